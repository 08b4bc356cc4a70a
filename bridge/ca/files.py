"""Files of an authority, replaced so that neither a power cut nor a reader finds half of one."""

import os
from pathlib import Path


def write(path: Path, data: bytes, *, mode: int = 0o644) -> None:
    """Replace a file durably; a secret one is never readable by others, not even for a moment."""
    aside = path.with_name(f".{path.name}.new")
    aside.unlink(missing_ok=True)
    descriptor = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    with os.fdopen(descriptor, "wb") as file:
        os.fchmod(file.fileno(), mode)
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(aside, path)
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(folder)  # else a power cut may bring back a claim that was used
    finally:
        os.close(folder)
