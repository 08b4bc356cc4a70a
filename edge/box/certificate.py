"""A box's own key and certificate. The key is made here and never leaves; a request goes out, a certificate comes in.

    <folder>/box.pem  ca.pem     what the service goes to the broker with; a config says `tls: {own: true}`
    <folder>/box.key             0600, unless the key lies in systemd's credential store (`edge.box.keystore`)
    <folder>/claim.pem           0600, before the first boot of a card (`edge.box.enrollment`)

The folder belongs to whoever owns the state folder, which is the service's user.
"""

import logging
from datetime import UTC, datetime
from pathlib import Path

import msgspec
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from edge.box.keystore import INSTALLED, KeyStore, give, key_store, make_folder
from edge.config import OWN_CA, OWN_CERTIFICATE, LoadedConfig
from edge.errors import ConfigError, EdgeError
from edge.flash.slots import remove, sync_folder, write_durably
from edge.wire import WireError, check_id

log = logging.getLogger(__name__)

FOLDER = INSTALLED
CLAIM, CLAIMED = "claim.pem", "claim.used"  # the second: enrolled, and the authority may close the claim
RENEW_DAYS = 45.0  # before its end a certificate is renewed


class Held(msgspec.Struct, frozen=True):
    """The certificate a box has, for a person and for the desk. `authority` is the SHA-256 of its authority's."""

    site: str
    box: str
    until: datetime
    authority: str

    def days(self, now: datetime) -> float:
        """Return how long it is still good, negative when it has ended."""
        return (self.until - now).total_seconds() / 86400


def request(folder: Path, site: str, box: str, store: KeyStore | None = None) -> bytes:
    """Return a signing request (PEM), with the key that is there or a new one.

    Args:
        folder: made when missing.
        site: of the box.
        box: its id, which becomes its user name at the broker.
        store: of the key; the one that belongs to the folder unless given.

    Raises:
        ConfigError: an id that cannot stand in a topic.
        EdgeError: the folder cannot be written, or its key is damaged.
    """
    try:
        check_id(site, "site"), check_id(box, "box")
    except WireError as error:
        raise ConfigError(str(error)) from error
    make_folder(folder)
    store = store or key_store(folder)
    if (pem := store.read()) is None:
        pem = ec.generate_private_key(ec.SECP256R1()).private_bytes(*_PLAIN)
        log.info("the box's key: %s", store.write(pem))
    return csr(read_key(pem), site, box)


def csr(key: ec.EllipticCurvePrivateKey, site: str, box: str) -> bytes:
    """Return a signing request (PEM) for a key."""
    subject = x509.Name([x509.NameAttribute(_BOX, box), x509.NameAttribute(_SITE, site)])
    signed = x509.CertificateSigningRequestBuilder().subject_name(subject).sign(key, hashes.SHA256())
    return signed.public_bytes(serialization.Encoding.PEM)


def accept(folder: Path, chain: bytes, store: KeyStore | None = None, *, pinned: bytes | None = None) -> str:
    """Take a certificate and its authority's; the service uses both from its next connection on.

    A claim that waited is used up by it.

    Args:
        folder: of the certificate.
        chain: PEM, the box's certificate first, then the authority's.
        store: of the key; the one that belongs to the folder unless given.
        pinned: PEM: the one authority that is believed, where the chain came over the network.

    Returns:
        Who it is for and until when, for a person.

    Raises:
        EdgeError: it is damaged, of another key, not signed by the authority beside it, or that is another one.
    """
    try:
        own, ca = x509.load_pem_x509_certificates(chain)
    except ValueError as error:
        raise EdgeError(
            'this is no certificate with its authority\'s; expected what "facefleet-bridge ca enroll" printed'
        ) from error
    if (pem := (store or key_store(folder)).read()) is None:
        raise EdgeError(f'there is no key for {folder}; run "facefleet-edge certificate request" first')
    if own.public_key() != read_key(pem).public_key():
        raise EdgeError("the certificate is for another key than the one of this box; was it made for another box?")
    try:
        own.verify_directly_issued_by(ca)
    except (ValueError, TypeError, InvalidSignature) as error:
        raise EdgeError("the certificate was not signed by the authority beside it") from error
    if pinned is not None and ca != x509.load_pem_x509_certificate(pinned):
        raise EdgeError("the certificate came with another authority than the one this box believes; it is not taken")
    try:
        for name, certificate in ((OWN_CA, ca), (OWN_CERTIFICATE, own)):
            write_durably(folder / name, certificate.public_bytes(serialization.Encoding.PEM))
            give(folder / name)
        forget_claim(folder)
    except OSError as error:
        raise EdgeError(f"{folder} cannot be written ({error.strerror}); are you root?") from error
    return f"{own.subject.rfc4514_string()}, until {own.not_valid_after_utc:%Y-%m-%d}"


def forget_claim(folder: Path) -> None:
    """Throw a claim away that has done its work; a mark stays until its authority has heard of it."""
    if (folder / CLAIM).exists():
        write_durably(folder / CLAIMED, b"")
        give(folder / CLAIMED)
        remove(folder / CLAIM)
        sync_folder(folder)


def held(folder: Path) -> Held | None:
    """Return which certificate a box has, None when it has none that can be read."""
    try:
        own = x509.load_pem_x509_certificate((folder / OWN_CERTIFICATE).read_bytes())
        ca = x509.load_pem_x509_certificate((folder / OWN_CA).read_bytes())
        (box,), (site,) = (own.subject.get_attributes_for_oid(o) for o in (_BOX, _SITE))
    except (OSError, ValueError):
        return None
    return Held(str(site.value), str(box.value), own.not_valid_after_utc, fingerprint(ca))


def require(config: LoadedConfig) -> None:
    """Refuse to go on without a certificate of this box; one that has ended is a state, which the broker tells.

    Raises:
        ConfigError: it has none, or that of another.
    """
    folder, us = config.own_tls_dir, f"{config.box.site}/{config.box.box}"
    how = 'enroll it: "facefleet-edge flash CONFIG user@host --ca DIR", or a card with "--claim FILE"'
    found = held(folder)
    if found is None:
        raise ConfigError(f"mqtt.tls.own is true and this box has no certificate in {folder}; {how}")
    if f"{found.site}/{found.box}" != us:
        raise ConfigError(f"the certificate in {folder} is of {found.site}/{found.box}, the config of {us}; {how}")


def fingerprint(certificate: x509.Certificate) -> str:
    """Return the SHA-256 of a certificate, hexadecimal."""
    return certificate.fingerprint(hashes.SHA256()).hex()


def now() -> datetime:
    """Return the time."""
    return datetime.now(UTC)


def read_key(pem: bytes) -> ec.EllipticCurvePrivateKey:
    """Read a box's key.

    Raises:
        EdgeError: it is damaged, or of another kind.
    """
    try:
        key = serialization.load_pem_private_key(pem, None)
    except (ValueError, TypeError) as error:
        raise EdgeError("box.key is damaged; remove it, and enroll this box again") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise EdgeError("box.key is no elliptic curve key; remove it, and enroll this box again")
    return key


_PLAIN = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
_BOX, _SITE = NameOID.COMMON_NAME, NameOID.ORGANIZATION_NAME
