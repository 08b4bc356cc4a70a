"""A bundle as one file: head, manifest, then the files' bytes one after the other. No archive format of anybody else's.

    magic 8 | key id 16 | signature 64 | length of manifest 4, big-endian | manifest (JSON) | file | file | …

The signature covers the manifest, the manifest covers every file by size and SHA-256, so nothing is parsed before it
was verified; and as paths are checked against a pattern, there is nothing to traverse.
"""

import hashlib
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from edge.errors import FlashError
from edge.flash.manifest import MAX_MANIFEST_BYTES, File, Manifest, read_manifest, write_manifest
from edge.flash.signing import KEY_ID_BYTES, SIGNATURE_BYTES, Trusted, key_id, sign, verify

MAGIC = b"FFBUNDL1"
HEAD_BYTES = len(MAGIC) + KEY_ID_BYTES + SIGNATURE_BYTES + 4
CHUNK_BYTES = 1 << 20

Progress = Callable[[int], None]


@dataclass(frozen=True, slots=True)
class Head:
    """A verified beginning of a bundle; `signed` is the manifest as it was signed."""

    key_id: str
    signature: bytes
    signed: bytes
    manifest: Manifest

    @property
    def bytes(self) -> int:
        """Return the size of the whole bundle."""
        return HEAD_BYTES + len(self.signed) + self.manifest.total_bytes


def write_bundle(path: Path, manifest: Manifest, contents: Mapping[str, Path | bytes], key: Ed25519PrivateKey) -> Head:
    """Write a bundle; `manifest.files` says in which order `contents` follow.

    Raises:
        FlashError: the manifest breaks a limit, or a file changed since it was described.
    """
    signed = write_manifest(manifest)
    name, signature = key_id(key.public_key()), sign(key, signed)
    with path.open("wb") as out:
        out.write(MAGIC + bytes.fromhex(name) + signature + len(signed).to_bytes(4, "big") + signed)
        for file in manifest.files:
            source = contents[file.path]
            data = source if isinstance(source, bytes) else source.read_bytes()
            if len(data) != file.bytes or hashlib.sha256(data).hexdigest() != file.sha256:
                raise FlashError(f"{file.path} changed while the bundle was made; run it again")
            out.write(data)
    return Head(name, signature, signed, manifest)


def describe(path: str, source: Path | bytes) -> File:
    """Return a manifest's entry of a file."""
    data = source if isinstance(source, bytes) else source.read_bytes()
    return File(path, len(data), hashlib.sha256(data).hexdigest())


def read_head(stream: BinaryIO, trusted: Trusted) -> Head:
    """Read and verify the beginning of a bundle; the stream then stands at its first file.

    Raises:
        FlashError: it is no bundle, its signature is missing, foreign or wrong, or its manifest breaks a limit.
    """
    head = _read(stream, HEAD_BYTES)
    if len(head) < HEAD_BYTES or not head.startswith(MAGIC):
        raise FlashError(f"this is no bundle: it begins with {head[:8]!r}, expected {MAGIC!r}")
    name = head[8 : 8 + KEY_ID_BYTES].hex()
    signature = head[8 + KEY_ID_BYTES : -4]
    length = int.from_bytes(head[-4:], "big")
    if length > MAX_MANIFEST_BYTES:
        raise FlashError(f"bundle says its manifest has {length} bytes, expected at most {MAX_MANIFEST_BYTES}")
    signed = _read(stream, length)
    if len(signed) < length:
        raise FlashError(f"bundle ends in its manifest, after {len(signed)} of {length} bytes; copy it again")
    if not any(signature):
        raise FlashError("bundle is not signed; build it with facefleet-edge bundle build")
    verify(trusted, name, signature, signed)
    return Head(name, signature, signed, read_manifest(signed))


def unpack(
    head: Head,
    stream: BinaryIO,
    folder: Path,
    *,
    progress: Progress = lambda _: None,
    at: Callable[[str], None] = lambda _: None,
) -> None:
    """Write the files into an empty folder, each synced and checked as it comes; the folders' names are not synced.

    Args:
        head: from the same stream.
        stream: where `read_head` left it.
        folder: new and empty; nothing is written outside of it.
        progress: told how many bytes were written since its last call.
        at: told each file's path before it is written, for tests that cut the power.

    Raises:
        FlashError: a file is damaged, the bundle ends early or has bytes too many, or the disk is full.
    """
    for file in head.manifest.files:
        at(file.path)
        target = folder / file.path
        try:
            target.parent.mkdir(parents=True, exist_ok=True, mode=0o755)
            _copy(stream, file, target, progress)
        except OSError as error:
            raise FlashError(f"{target} cannot be written ({error.strerror}); make room and flash again") from error
    if stream.read(1):
        raise FlashError("bundle has bytes after its last file; it was altered: build it again")


def check_files(head: Head, stream: BinaryIO) -> None:
    """Read a bundle to its end and check every digest, writing nothing."""
    for file in head.manifest.files:
        _checked(stream, file, lambda _: None)
    if stream.read(1):
        raise FlashError("bundle has bytes after its last file; it was altered: build it again")


def damaged(manifest: Manifest, folder: Path) -> list[str]:
    """Return which unpacked files are not as the manifest says; read past the page cache where possible."""
    return [file.path for file in manifest.files if not _same(file, folder / file.path)]


def _copy(stream: BinaryIO, file: File, target: Path, progress: Progress) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    with os.fdopen(os.open(target, flags, 0o644), "wb") as out:
        os.fchmod(out.fileno(), 0o644)

        def write(chunk: bytes) -> None:
            out.write(chunk)
            progress(len(chunk))

        _checked(stream, file, write)
        out.flush()
        os.fsync(out.fileno())


def _checked(stream: BinaryIO, file: File, take: Callable[[bytes], None]) -> None:
    digest, left = hashlib.sha256(), file.bytes
    while left:
        chunk = stream.read(min(CHUNK_BYTES, left))
        if not chunk:
            raise FlashError(f"bundle ends in {file.path}, {left} bytes too early; copy it again")
        digest.update(chunk)
        take(chunk)
        left -= len(chunk)
    if digest.hexdigest() != file.sha256:
        raise FlashError(f"{file.path} does not have the digest its manifest says; the bundle was altered or damaged")


def _same(file: File, path: Path) -> bool:
    try:
        with path.open("rb") as stream:
            os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            return (
                os.fstat(stream.fileno()).st_size == file.bytes
                and hashlib.file_digest(stream, "sha256").hexdigest() == file.sha256
            )
    except OSError:
        return False


def _read(stream: BinaryIO, count: int) -> bytes:
    """Read `count` bytes, fewer only at the end: pipes give them in pieces."""
    parts: list[bytes] = []
    while count and (part := stream.read(count)):
        parts.append(part)
        count -= len(part)
    return b"".join(parts)
