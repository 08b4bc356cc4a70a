"""What a bundle says about itself: for which box, how new, and which files. Plain data; read only after its signature.

JSON, because it is small, bounded and has one meaning; every limit stands here.
"""

import re

import msgspec

from edge.errors import FlashError
from edge.wire import ID

SCHEMA = 1
CONFIG = "config.yaml"
ANY_CLASS = "any"
MAX_MANIFEST_BYTES = 256 << 10
MAX_FILES = 256
MAX_FILE_BYTES = 512 << 20
MAX_TOTAL_BYTES = 1 << 30
MAX_COUNTER = 2**53 - 1  # what every JSON reader keeps exactly

_NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}"
PATH = re.compile(rf"config\.yaml|models/{_NAME}/{_NAME}", re.ASCII)
_SHA256 = re.compile(r"[0-9a-f]{64}", re.ASCII)


class File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One file: its place in the slot, its size, its digest."""

    path: str
    bytes: int
    sha256: str


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """A bundle's own account.

    Attributes:
        counter: grows with every bundle of a key; a box takes no lower one than it has committed.
        device_class: of the boxes it is for, or "any": configs and models do not depend on the processor.
        files: in the order their bytes follow the manifest.
        trust: public keys (base64, raw) that the box believes after this bundle, and no others; empty: as before.
    """

    site: str
    box: str
    device_class: str
    counter: int
    files: tuple[File, ...]
    created: str = ""
    software: str = ""
    trust: tuple[str, ...] = ()
    schema: int = SCHEMA

    @property
    def total_bytes(self) -> int:
        """Return the size of all files."""
        return sum(file.bytes for file in self.files)

    @property
    def models(self) -> dict[str, dict[str, str]]:
        """Return the digests by file name, by model."""
        models: dict[str, dict[str, str]] = {}
        for file in self.files:
            if file.path != CONFIG:
                _, model, name = file.path.split("/")
                models.setdefault(model, {})[name] = file.sha256
        return models


def read_manifest(data: bytes) -> Manifest:
    """Read a manifest and check every limit.

    Raises:
        FlashError: it is not one, or breaks a limit.
    """
    if len(data) > MAX_MANIFEST_BYTES:
        raise FlashError(f"manifest has {len(data)} bytes, expected at most {MAX_MANIFEST_BYTES}")
    try:
        manifest = msgspec.json.decode(data, type=Manifest)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise FlashError(f"manifest is not readable ({error}); was it made by a newer facefleet?") from error
    if wrong := fault(manifest):
        raise FlashError(f"manifest: {wrong}")
    return manifest


def fault(manifest: Manifest) -> str | None:
    """Say what in a well-formed manifest cannot be taken, or None."""
    if manifest.schema != SCHEMA:
        return f"schema is {manifest.schema}, this software reads {SCHEMA}; update the software of the box first"
    for key in ("site", "box", "device_class"):
        if not ID.fullmatch(value := getattr(manifest, key)):
            return f"{key} is {value[:80]!r}, expected 1–63 letters, digits, '.', '_', '-'"
    if not 0 < manifest.counter <= MAX_COUNTER:
        return f"counter is {manifest.counter}, expected 1–{MAX_COUNTER}"
    if not 0 < len(manifest.files) <= MAX_FILES:
        return f"it lists {len(manifest.files)} files, expected 1–{MAX_FILES}"
    seen: set[str] = set()
    for file in manifest.files:
        if not PATH.fullmatch(file.path):
            return f"path {file.path[:80]!r} is refused, expected config.yaml or models/<model>/<file>"
        if file.path.casefold() in seen:  # a card may be FAT
            return f"path {file.path!r} is listed twice"
        seen.add(file.path.casefold())
        if not 0 <= file.bytes <= MAX_FILE_BYTES or not _SHA256.fullmatch(file.sha256):
            return f"{file.path} has {file.bytes} bytes or no SHA-256, expected at most {MAX_FILE_BYTES} bytes"
    if CONFIG not in seen:
        return f"it has no {CONFIG}"
    if manifest.total_bytes > MAX_TOTAL_BYTES:
        return f"its files have {manifest.total_bytes} bytes, expected at most {MAX_TOTAL_BYTES}"
    return None


def write_manifest(manifest: Manifest) -> bytes:
    """Return the bytes that are signed.

    Raises:
        FlashError: the manifest would be refused by a box.
    """
    if wrong := fault(manifest):
        raise FlashError(f"manifest: {wrong}")
    return msgspec.json.encode(manifest)
