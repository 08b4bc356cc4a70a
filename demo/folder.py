"""Where a run keeps its things: results in the folder the user named, database and broker in one that goes away."""

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from demo.errors import DemoError

SCRATCH = Path("/var/tmp")  # short, for PostgreSQL's socket; a disk, not memory; readable by the user it runs as
LOCK = "owner.lock"


@contextmanager
def results(out: Path) -> Iterator[Path]:
    """Yield the folder for results, made if need be and held, so that two demos do not write into one.

    Raises:
        DemoError: it cannot be made, or another demo holds it.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        lock = (out / ".lock").open("w")
    except OSError as error:
        raise DemoError(f"folder {out} cannot be written ({error.strerror}); give another --out") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise DemoError(f"another demo writes into {out}; end it, or give another --out") from None
        yield out


@contextmanager
def scratch() -> Iterator[Path]:
    """Yield an empty folder that is removed at the end; by the next run, if this process is killed."""
    parent = (SCRATCH if os.access(SCRATCH, os.W_OK) else Path(tempfile.gettempdir())) / f"facefleet-demo-{os.getuid()}"
    parent.mkdir(mode=0o755, exist_ok=True)
    _sweep(parent)
    folder = Path(tempfile.mkdtemp(prefix="run-", dir=parent))
    folder.chmod(0o755)
    with (folder / LOCK).open("w") as owner:
        fcntl.flock(owner, fcntl.LOCK_EX)
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def _sweep(parent: Path) -> None:
    for mark in parent.glob(f"run-*/{LOCK}"):
        with suppress(OSError), mark.open() as owner:
            fcntl.flock(owner, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(mark.parent, ignore_errors=True)
