"""A box's own key and certificate. The key is made here and never leaves; a request goes out, a certificate comes in.

    <folder>/box.key   0600      <folder>/box.pem      <folder>/ca.pem

Both belong to whoever owns the state folder, which is the service's user; the config names them by absolute path.
"""

import os
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from edge.errors import ConfigError, EdgeError
from edge.flash.slots import write_durably
from edge.wire import WireError, check_id

FOLDER = Path("/var/lib/facefleet/tls")
KEY, CERTIFICATE, CA = "box.key", "box.pem", "ca.pem"


def request(folder: Path, site: str, box: str) -> bytes:
    """Return a signing request (PEM), with the key that is there or a new one.

    Args:
        folder: made when missing.
        site: of the box.
        box: its id, which becomes its user name at the broker.

    Raises:
        ConfigError: an id that cannot stand in a topic.
        EdgeError: the folder cannot be written, or its key is damaged.
    """
    try:
        check_id(site, "site"), check_id(box, "box")
    except WireError as error:
        raise ConfigError(str(error)) from error
    path = folder / KEY
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o755)
        if not path.exists():
            made = ec.generate_private_key(ec.SECP256R1())
            _write(path, made.private_bytes(*_PLAIN), mode=0o600)
        key = _load_key(path)
    except OSError as error:
        raise EdgeError(f"{path} cannot be written or read ({error.strerror}); are you root?") from error
    names = [x509.NameAttribute(NameOID.COMMON_NAME, box), x509.NameAttribute(NameOID.ORGANIZATION_NAME, site)]
    signed = x509.CertificateSigningRequestBuilder().subject_name(x509.Name(names)).sign(key, hashes.SHA256())
    return signed.public_bytes(serialization.Encoding.PEM)


def accept(folder: Path, chain: bytes) -> str:
    """Take a certificate and its authority's; the service uses both from its next connection on.

    Args:
        folder: where the key is.
        chain: PEM, the box's certificate first, then the authority's.

    Returns:
        Who it is for and until when, for a person.

    Raises:
        EdgeError: it is damaged, of another key, or not signed by the authority beside it.
    """
    try:
        own, ca = x509.load_pem_x509_certificates(chain)
    except ValueError as error:
        raise EdgeError(
            'this is no certificate with its authority\'s; expected what "facefleet-bridge ca enroll" printed'
        ) from error
    try:
        key = _load_key(folder / KEY)
    except OSError as error:
        raise EdgeError(f'{folder / KEY} cannot be read ({error.strerror}); run "certificate request" first') from error
    if own.public_key() != key.public_key():
        raise EdgeError("the certificate is for another key than the one of this box; was it made for another box?")
    try:
        own.verify_directly_issued_by(ca)
    except (ValueError, TypeError, InvalidSignature) as error:
        raise EdgeError("the certificate was not signed by the authority beside it") from error
    try:
        _write(folder / CA, ca.public_bytes(serialization.Encoding.PEM))
        _write(folder / CERTIFICATE, own.public_bytes(serialization.Encoding.PEM))
    except OSError as error:
        raise EdgeError(f"{folder} cannot be written ({error.strerror}); are you root?") from error
    return f"{own.subject.rfc4514_string()}, until {own.not_valid_after_utc:%Y-%m-%d}"


_PLAIN = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()


def _load_key(path: Path) -> ec.EllipticCurvePrivateKey:
    try:
        key = serialization.load_pem_private_key(path.read_bytes(), None)
    except (ValueError, TypeError) as error:
        raise EdgeError(f"{path} is damaged; remove it, and enroll this box again") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise EdgeError(f"{path} is no elliptic curve key; remove it, and enroll this box again")
    return key


def _write(path: Path, data: bytes, *, mode: int = 0o644) -> None:
    write_durably(path, data, mode=mode)
    if os.geteuid() == 0:
        owner = path.parent.parent.stat()
        os.chown(path, owner.st_uid, owner.st_gid)
