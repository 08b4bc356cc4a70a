"""What a bundle says about itself: for which box, how new, and which files. Plain data; read only after its signature.

JSON, because it is small, bounded and has one meaning; every limit stands here.
"""

import re

import msgspec

from edge.errors import FlashError
from edge.wire import ID, Brings

SCHEMA = 1
CONFIG = "config.yaml"
ANY_CLASS = "any"
MAX_MANIFEST_BYTES = 256 << 10
MAX_FILES = 256
MAX_FILE_BYTES = 512 << 20
MAX_TOTAL_BYTES = 1 << 30
MAX_UNPACKED_BYTES = 4 << 30  # what the wheels of a program may grow to
MAX_COUNTER = 2**53 - 1  # what every JSON reader keeps exactly

Kind = Brings

_NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}"
PATH = re.compile(rf"config\.yaml|models/{_NAME}/{_NAME}", re.ASCII)
WHEEL = re.compile(r"wheels/[A-Za-z0-9][A-Za-z0-9._+!-]{0,199}\.whl", re.ASCII)
VERSION = re.compile(r"[0-9][A-Za-z0-9.+!]{0,63}", re.ASCII)
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
        kind: a config and its models for one box, or the program itself, for one box or, without site and box, for all.
        version: of the program that a software bundle brings.
        unpacked_bytes: what its wheels grow to.
        downgrade: whoever signed it wants it taken by boxes with a newer version too.
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
    kind: Kind = "config"
    version: str = ""
    unpacked_bytes: int = 0
    downgrade: bool = False

    @property
    def total_bytes(self) -> int:
        """Return the size of all files."""
        return sum(file.bytes for file in self.files)

    @property
    def needed_bytes(self) -> int:
        """Return what it takes on the disk at most."""
        return self.total_bytes + self.unpacked_bytes

    @property
    def slot(self) -> str:
        """Return the name of the slot it goes to: the counter, for a program with its version before it."""
        return f"{self.version}-{self.counter}" if self.kind == "software" else str(self.counter)

    @property
    def addressee(self) -> str:
        """Return for whom it is, in words."""
        return f"{self.site}/{self.box}" if self.box else "every box"

    @property
    def models(self) -> dict[str, dict[str, str]]:
        """Return the digests by file name, by model."""
        models: dict[str, dict[str, str]] = {}
        for file in self.files:
            if file.path.startswith("models/"):
                _, model, name = file.path.split("/")
                models.setdefault(model, {})[name] = file.sha256
        return models


def counter_of(slot: str) -> int:
    """Return the counter in a slot's name; 0 where it was not flashed."""
    last = slot.rpartition("-")[2]
    return int(last) if last.isdecimal() else 0


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
    software = manifest.kind == "software"
    anybody = software and not manifest.site and not manifest.box
    for key in ("device_class",) if anybody else ("site", "box", "device_class"):
        if not ID.fullmatch(value := getattr(manifest, key)):
            return f"{key} is {value[:80]!r}, expected 1–63 letters, digits, '.', '_', '-'"
    if not 0 < manifest.counter <= MAX_COUNTER:
        return f"counter is {manifest.counter}, expected 1–{MAX_COUNTER}"
    if not 0 < len(manifest.files) <= MAX_FILES:
        return f"it lists {len(manifest.files)} files, expected 1–{MAX_FILES}"
    seen: set[str] = set()
    for file in manifest.files:
        if not (WHEEL if software else PATH).fullmatch(file.path):
            expected = "wheels/<wheel>" if software else "config.yaml or models/<model>/<file>"
            return f"path {file.path[:80]!r} is refused, expected {expected}"
        if file.path.casefold() in seen:  # a card may be FAT
            return f"path {file.path!r} is listed twice"
        seen.add(file.path.casefold())
        if not 0 <= file.bytes <= MAX_FILE_BYTES or not _SHA256.fullmatch(file.sha256):
            return f"{file.path} has {file.bytes} bytes or no SHA-256, expected at most {MAX_FILE_BYTES} bytes"
    if not software and CONFIG not in seen:
        return f"it has no {CONFIG}"
    if software and not (VERSION.fullmatch(manifest.version) and 0 < manifest.unpacked_bytes <= MAX_UNPACKED_BYTES):
        what = f"{manifest.version[:80]!r} with {manifest.unpacked_bytes} bytes"
        return f"its program is {what}, expected a version and 1–{MAX_UNPACKED_BYTES} bytes"
    if not software and (manifest.version or manifest.unpacked_bytes or manifest.downgrade):
        return "a config has no version"
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
