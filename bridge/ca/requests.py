"""A request that came through the broker, judged: who signed it, and for which key. Pure.

The broker is not believed. What counts is the signature of a key that the authority has certified: of a claim, or of
the certificate that the box has.
"""

from dataclasses import dataclass
from datetime import datetime
from hashlib import sha256

import msgspec
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from bridge.ca import signer
from bridge.ca.names import Name
from bridge.errors import ConfigError
from edge.wire import CertificateRequest, signed_request

MAX_BYTES = 16 << 10


@dataclass(frozen=True)
class Asked:
    """A request whose signature fits.

    Attributes:
        serial: of the certificate that was shown, hexadecimal as in the register.
        user: its common name.
        shown: the key of that certificate.
        public: the key to be certified.
    """

    serial: str
    user: str
    shown: signer.PublicKey
    public: signer.PublicKey


def read(payload: bytes) -> CertificateRequest:
    """Read a request.

    Raises:
        ConfigError: it is none.
    """
    if len(payload) > MAX_BYTES:
        raise ConfigError(f"the request has {len(payload)} bytes, expected at most {MAX_BYTES}")
    try:
        return msgspec.json.decode(payload, type=CertificateRequest)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise ConfigError(f"this is no request for a certificate ({error})") from error


def judge(request: CertificateRequest, name: Name, authority: x509.Certificate, now: datetime) -> Asked:
    """Check everything that can be known without the register.

    Raises:
        ConfigError: the certificate shown is not ours or out of its time, or a signature does not fit.
    """
    try:
        shown = x509.load_pem_x509_certificate(request.certificate.encode())
        shown.verify_directly_issued_by(authority)
        key = shown.public_key()
        (common,) = shown.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    except (ValueError, TypeError, InvalidSignature) as error:
        raise ConfigError("the certificate shown with the request is not of this authority") from error
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise ConfigError("the certificate shown with the request has a key of another kind than an elliptic curve's")
    if not shown.not_valid_before_utc <= now < shown.not_valid_after_utc:
        raise ConfigError(
            f"the certificate shown was good until {shown.not_valid_after_utc:%Y-%m-%d %H:%M} UTC, and it is "
            f'{now:%Y-%m-%d %H:%M} here; make a new claim: "facefleet-bridge ca claim {name}"'
        )
    try:
        signature = bytes.fromhex(request.signature)
        key.verify(signature, signed_request(name.site, name.id, request.csr), ec.ECDSA(hashes.SHA256()))
    except (ValueError, InvalidSignature) as error:
        raise ConfigError("the request is not signed by the key of the certificate shown") from error
    public = signer.read_request(request.csr.encode(), name)
    return Asked(f"{shown.serial_number:x}", str(common.value), key, public)


def fingerprint(key: signer.PublicKey) -> str:
    """Return the SHA-256 of a public key, hexadecimal."""
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    return sha256(key.public_bytes(serialization.Encoding.DER, form)).hexdigest()
