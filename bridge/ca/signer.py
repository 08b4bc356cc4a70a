"""The authority's handwriting: keys, requests, certificates and the list of revoked ones. Pure, with `now` passed in.

Elliptic curve P-256 throughout: every TLS library of the last ten years has it, and a box makes a key in a millisecond.
"""

import ipaddress
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from bridge.ca.names import ClaimName, Name
from bridge.errors import ConfigError

PublicKey = ec.EllipticCurvePublicKey | rsa.RSAPublicKey
CA_DAYS = 3650
# A broker refuses everybody once its list has run out, and nobody would look for that: as long as the authority lives.
CRL_DAYS = 3650
EARLIER = timedelta(days=1)  # clocks of boxes without one may lag behind


@dataclass(frozen=True, slots=True)
class Signer:
    """A key and its certificate."""

    key: ec.EllipticCurvePrivateKey
    certificate: x509.Certificate

    def member(self, name: Name, public: PublicKey, now: datetime, days: float) -> x509.Certificate:
        """Return a certificate for a client of the broker."""
        subject = [x509.NameAttribute(NameOID.COMMON_NAME, name.user)]
        if name.site:
            subject.append(x509.NameAttribute(NameOID.ORGANIZATION_NAME, name.site))
        builder = self._leaf(x509.Name(subject), public, now, days)
        return self._signed(builder, ExtendedKeyUsageOID.CLIENT_AUTH)

    def claim(self, name: ClaimName, public: PublicKey, now: datetime, days: float) -> x509.Certificate:
        """Return a certificate whose holder may ask once for that of a box."""
        words = (
            (NameOID.COMMON_NAME, name.user),
            (NameOID.ORGANIZATION_NAME, name.box.site),
            (NameOID.ORGANIZATIONAL_UNIT_NAME, name.box.id),
        )
        subject = x509.Name([x509.NameAttribute(oid, word) for oid, word in words])
        return self._signed(self._leaf(subject, public, now, days), ExtendedKeyUsageOID.CLIENT_AUTH)

    def server(self, hosts: Sequence[str], public: PublicKey, now: datetime, days: float) -> x509.Certificate:
        """Return a certificate for the broker under these names and addresses; no client can use it."""
        builder = self._leaf(_subject(hosts[0][:64]), public, now, days)
        names = x509.SubjectAlternativeName([_host(host) for host in hosts])
        return self._signed(builder.add_extension(names, critical=False), ExtendedKeyUsageOID.SERVER_AUTH)

    def revocations(self, revoked: Iterable[tuple[int, datetime]], number: int, now: datetime) -> bytes:
        """Return the PEM list of revoked serial numbers."""
        builder = (
            x509.CertificateRevocationListBuilder()
            .issuer_name(self.certificate.subject)
            .last_update(now - EARLIER)
            .next_update(now + timedelta(days=CRL_DAYS))
            .add_extension(x509.CRLNumber(number), critical=False)
            .add_extension(self._authority(), critical=False)
        )
        for serial, at in revoked:
            entry = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(at).build()
            builder = builder.add_revoked_certificate(entry)
        return builder.sign(self.key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)

    def _leaf(self, subject: x509.Name, public: PublicKey, now: datetime, days: float) -> x509.CertificateBuilder:
        end = min(now + timedelta(days=days), self.certificate.not_valid_after_utc)
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self.certificate.subject)
            .public_key(public)
            .serial_number(x509.random_serial_number())
            .not_valid_before(min(now - EARLIER, end - EARLIER))
            .not_valid_after(end)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(sign=True), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
            .add_extension(self._authority(), critical=False)
        )

    def _signed(self, builder: x509.CertificateBuilder, purpose: x509.ObjectIdentifier) -> x509.Certificate:
        return builder.add_extension(x509.ExtendedKeyUsage([purpose]), critical=False).sign(self.key, hashes.SHA256())

    def _authority(self) -> x509.AuthorityKeyIdentifier:
        return x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key())


def new_key() -> ec.EllipticCurvePrivateKey:
    """Return a fresh key."""
    return ec.generate_private_key(ec.SECP256R1())


def new_signer(title: str, now: datetime) -> Signer:
    """Return a new authority, which signs certificates and nothing below it may."""
    key, subject = new_key(), _subject(title)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - EARLIER)
        .not_valid_after(now + timedelta(days=CA_DAYS))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(sign=False), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    return Signer(key, certificate)


def read_signer(key: bytes, certificate: bytes) -> Signer:
    """Read an authority from PEM.

    Raises:
        ConfigError: it is damaged, or key and certificate do not belong together.
    """
    try:
        loaded = serialization.load_pem_private_key(key, None)
        signer = x509.load_pem_x509_certificate(certificate)
    except (ValueError, TypeError) as error:
        raise ConfigError("the authority's ca.key or ca.pem is damaged; restore the folder from its backup") from error
    if not isinstance(loaded, ec.EllipticCurvePrivateKey) or loaded.public_key() != signer.public_key():
        raise ConfigError("the authority's ca.key and ca.pem do not belong together; restore the folder")
    return Signer(loaded, signer)


def read_request(pem: bytes, name: Name) -> PublicKey:
    """Return the public key of a signing request; whatever else it asks for is not granted.

    Raises:
        ConfigError: it is damaged, of a weak key, or made for somebody else.
    """
    try:
        request = x509.load_pem_x509_csr(pem)
        public = request.public_key()
        valid = request.is_signature_valid
    except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm) as error:
        raise ConfigError(
            'this is no signing request; on the box run "facefleet-edge certificate request SITE/BOX"'
        ) from error
    if not valid:
        raise ConfigError("the request's signature does not fit its key; make it again")
    strong = isinstance(public, ec.EllipticCurvePublicKey) or (
        isinstance(public, rsa.RSAPublicKey) and public.key_size >= 2048
    )
    if not strong or not isinstance(public, PublicKey):
        raise ConfigError("the request has a key of another kind, expected an elliptic curve, or RSA of 2048 bits")
    for attribute in request.subject.get_attributes_for_oid(NameOID.COMMON_NAME):
        if attribute.value != name.user:
            raise ConfigError(f"the request is of {attribute.value!r}, not of {name.user!r}; is it the right box?")
    return public


def pem_key(key: ec.EllipticCurvePrivateKey) -> bytes:
    """Return a private key as PEM, not encrypted."""
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def read_key(pem: bytes) -> ec.EllipticCurvePrivateKey | None:
    """Return a private key as `pem_key` wrote it, None where that is damaged."""
    try:
        key = serialization.load_pem_private_key(pem, None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        return None
    return key if isinstance(key, ec.EllipticCurvePrivateKey) else None


def pem(certificate: x509.Certificate) -> bytes:
    """Return a certificate as PEM."""
    return certificate.public_bytes(serialization.Encoding.PEM)


def public_key(certificate: bytes) -> PublicKey:
    """Return the key of a certificate we issued."""
    key = x509.load_pem_x509_certificate(certificate).public_key()
    assert isinstance(key, PublicKey), "we issue for no other"
    return key


def _subject(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _host(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _usage(*, sign: bool) -> x509.KeyUsage:
    """Return what a key is for: a member's signs handshakes, the authority's signs certificates."""
    return x509.KeyUsage(
        digital_signature=sign,
        key_cert_sign=not sign,
        crl_sign=not sign,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )
