"""Ed25519 keys and signatures: the integrator's desk signs, boxes verify. The cryptography is the library's.

Private keys are PKCS #8 PEM with mode 0600, public ones SubjectPublicKeyInfo PEM: `openssl pkey` reads both.
"""

import base64
import hashlib
import os
import stat
from collections.abc import Iterable, Mapping
from pathlib import Path

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)

from edge.errors import FlashError
from edge.flash.slots import sync_folder, write_durably, write_new

CONTEXT = b"facefleet bundle v1\0"  # a signature made for anything else says nothing here
SIGNATURE_BYTES = 64
KEY_ID_BYTES = 16
MAX_KEY_BYTES = 16 << 10

Trusted = Mapping[str, Ed25519PublicKey]


def default_key() -> Path:
    """Return where the desk keeps its key: $FACEFLEET_KEY, or below the user's config folder."""
    if named := os.environ.get("FACEFLEET_KEY"):
        return Path(named)
    home = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")
    return home / "facefleet" / "signing.key"


def new_key(path: Path) -> Path:
    """Make a key pair; the public half gets `.pub` at its end. Never overwrites.

    Raises:
        FlashError: there is a key already, or the folder cannot be written.
    """
    key = Ed25519PrivateKey.generate()
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_new(path, private, mode=0o600)
        write_durably(public_path(path), public_pem(key.public_key()))
    except FileExistsError as error:
        raise FlashError(f"{path} exists; a key is never overwritten: name another file") from error
    except OSError as error:
        raise FlashError(f"{path} cannot be written ({error.strerror})") from error
    return public_path(path)


def public_path(path: Path) -> Path:
    """Return where the public half of a key lies."""
    return path.with_name(path.name + ".pub")


def load_private(path: Path) -> Ed25519PrivateKey:
    """Read a signing key.

    Raises:
        FlashError: there is none, others may read it, or it is not Ed25519.
    """
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            data = file.read(MAX_KEY_BYTES)
    except OSError as error:
        raise FlashError(
            f'signing key {path} cannot be read ({error.strerror}); make one: "facefleet-edge keys new {path}"'
        ) from error
    if mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise FlashError(
            f"signing key {path} has mode {stat.S_IMODE(mode):04o}, so others can use it; expected 0600: "
            f'run "chmod 600 {path}", and if somebody else had access, make a new one'
        )
    try:
        key = load_pem_private_key(data, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise FlashError(f"{path} holds no PEM private key without a passphrase ({error})") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise FlashError(f"{path} holds a {type(key).__name__}, expected Ed25519")
    return key


def load_public(path: Path) -> Ed25519PublicKey:
    """Read a public key; the private file's own public half when `path` is a private key.

    Raises:
        FlashError: it cannot be read, or is no Ed25519 public key.
    """
    try:
        with path.open("rb") as file:
            data = file.read(MAX_KEY_BYTES)
    except OSError as error:
        raise FlashError(f"public key {path} cannot be read ({error.strerror})") from error
    if b"PRIVATE KEY" in data:
        return load_private(path).public_key()
    try:
        key = load_pem_public_key(data)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise FlashError(f"{path} holds no PEM public key ({error})") from error
    if not isinstance(key, Ed25519PublicKey):
        raise FlashError(f"{path} holds a {type(key).__name__}, expected Ed25519")
    return key


def key_id(key: Ed25519PublicKey) -> str:
    """Return a key's name: the first 16 bytes of the SHA-256 of its raw form, in hex."""
    return hashlib.sha256(raw(key)).hexdigest()[: 2 * KEY_ID_BYTES]


def raw(key: Ed25519PublicKey) -> bytes:
    """Return the 32 bytes of a public key."""
    return key.public_bytes(Encoding.Raw, PublicFormat.Raw)


def public_pem(key: Ed25519PublicKey) -> bytes:
    """Return a public key as PEM."""
    return key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def encode_public(key: Ed25519PublicKey) -> str:
    """Return a public key in base64, as manifests list them."""
    return base64.b64encode(raw(key)).decode()


def decode_public(text: str) -> Ed25519PublicKey:
    """Read what `encode_public` wrote, or raise FlashError."""
    try:
        return Ed25519PublicKey.from_public_bytes(base64.b64decode(text, validate=True))
    except ValueError as error:
        raise FlashError(f"{text[:80]!r} is no Ed25519 public key in base64 ({error})") from error


def sign(key: Ed25519PrivateKey, manifest: bytes) -> bytes:
    """Return the 64 bytes of signature over a manifest."""
    return key.sign(CONTEXT + manifest)


def verify(trusted: Trusted, name: str, signature: bytes, manifest: bytes) -> None:
    """Check a signature.

    Raises:
        FlashError: the key is not trusted here, or it did not sign these bytes.
    """
    key = trusted.get(name)
    if key is None:
        known = ", ".join(sorted(trusted)) or "no key at all"
        raise FlashError(f"bundle is signed by key {name}, which is not trusted here (trusted: {known})")
    try:
        key.verify(signature, CONTEXT + manifest)
    except InvalidSignature as error:
        raise FlashError(
            f"signature of key {name} does not fit the bundle: it was altered or damaged; build it again"
        ) from error


def load_trust(folder: Path) -> dict[str, Ed25519PublicKey]:
    """Read all public keys of a folder, by key id."""
    keys = [load_public(path) for path in sorted(folder.glob("*.pub"))] if folder.is_dir() else []
    return {key_id(key): key for key in keys}


def write_trust(folder: Path, keys: Iterable[Ed25519PublicKey]) -> None:
    """Make a folder hold exactly these keys: new ones are written before old ones go."""
    wanted = {f"{key_id(key)}.pub": public_pem(key) for key in keys}
    for name, pem in wanted.items():
        write_durably(folder / name, pem)
    for path in folder.glob("*.pub"):
        if path.name not in wanted:
            path.unlink()
    sync_folder(folder)
