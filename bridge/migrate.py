"""Bring a database up to this version: numbered SQL files, forward only, each in one transaction.

What ran is written to `facefleet.migrations` with its checksum; an advisory lock makes two migrators take turns.
"""

import hashlib
import re
from dataclasses import dataclass
from importlib.resources import files
from uuid import UUID, uuid4

import psycopg

from bridge.errors import StoreError

LOCK = 0x66616365_666C6565  # one number for all versions: "facefle" in ASCII
# Migrations whose text changed, and not what they leave behind: 0001 once asked what PostgreSQL 15 cannot answer.
SAME = frozenset({"191002bcf37323aca93905d9e3be351bc06d4b3b5dbd1332f355071a1ca5ecb5"})
_NAME = re.compile(r"(\d{4})_[a-z0-9_]+\.sql")


@dataclass(frozen=True, slots=True)
class Migration:
    """One numbered SQL file."""

    number: int
    name: str
    sql: str

    @property
    def checksum(self) -> str:
        """Return the SHA-256 of the SQL, hexadecimal."""
        return hashlib.sha256(self.sql.encode()).hexdigest()


def migrations() -> list[Migration]:
    """Return the migrations that come with this version, in order."""
    found = [
        Migration(int(match[1]), entry.name, entry.read_text("utf-8"))
        for entry in files("bridge").joinpath("migrations").iterdir()
        if (match := _NAME.fullmatch(entry.name))
    ]
    return sorted(found, key=lambda migration: migration.number)


def migrate(dsn: str, *, database_uuid: UUID | None = None, upto: int | None = None) -> list[str]:
    """Apply what is missing and return the names applied; the second call applies nothing.

    Args:
        dsn: a role that may create schemas and roles (the first time) or is a member of `facefleet_migrator`.
        database_uuid: who this database is to the boxes; drawn at random the first time when not given.
        upto: stop after this number; for tests of the way from earlier versions.

    Raises:
        StoreError: an applied migration differs from ours, or the database is another than `database_uuid`.
    """
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute("SELECT pg_advisory_lock(%s)", (LOCK,))
        applied = _applied(connection)
        names = []
        for migration in migrations():
            if migration.number in applied:
                _check(migration, *applied[migration.number])
            elif upto is None or migration.number <= upto:
                _apply(connection, migration)
                names.append(migration.name)
        _identify(connection, database_uuid)
        return names


def _applied(connection: psycopg.Connection[tuple[object, ...]]) -> dict[int, tuple[str, str]]:
    with connection.transaction():
        if connection.execute("SELECT to_regclass('facefleet.migrations')").fetchone() == (None,):
            connection.execute("CREATE SCHEMA IF NOT EXISTS facefleet")
            connection.execute(
                "CREATE TABLE facefleet.migrations (number integer PRIMARY KEY, name text NOT NULL, "
                "checksum text NOT NULL, applied_at timestamptz NOT NULL DEFAULT now())"
            )
    rows = connection.execute("SELECT number, name, checksum FROM facefleet.migrations").fetchall()
    return {int(str(number)): (str(name), str(checksum)) for number, name, checksum in rows}


def _check(migration: Migration, name: str, checksum: str) -> None:
    if checksum != migration.checksum and checksum not in SAME:
        raise StoreError(
            f"migration {migration.name} was applied as {name} with checksum {checksum[:12]}…, ours is "
            f"{migration.checksum[:12]}…; migrations never change once applied: add a new one, or restore the old file"
        )


def _apply(connection: psycopg.Connection[tuple[object, ...]], migration: Migration) -> None:
    with connection.transaction():
        connection.execute(migration.sql.encode())
        connection.execute(
            "INSERT INTO facefleet.migrations (number, name, checksum) VALUES (%s, %s, %s)",
            (migration.number, migration.name, migration.checksum),
        )


def _identify(connection: psycopg.Connection[tuple[object, ...]], wanted: UUID | None) -> None:
    with connection.transaction():
        connection.execute("SET LOCAL ROLE facefleet_migrator")
        connection.execute(
            "INSERT INTO facefleet.database_identity (uuid) VALUES (%s) ON CONFLICT DO NOTHING", (wanted or uuid4(),)
        )
        row = connection.execute("SELECT uuid FROM facefleet.database_identity").fetchone()
    if wanted is not None and row != (wanted,):
        found = row[0] if row else None
        raise StoreError(
            f"this database is {found}, expected {wanted}; boxes of one would delete what only the other holds: "
            "check the DSN, or run without a UUID of your own"
        )
