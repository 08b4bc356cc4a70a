"""Migrations: forward only, once each, two migrators at a time."""

import threading
from uuid import UUID

import psycopg
import pytest

from bridge import migrate as module
from bridge.errors import StoreError
from bridge.migrate import SAME, migrate, migrations
from tests.bridge.events import query

OURS = UUID("11111111-2222-4333-8444-555555555555")


def test_first_run_applies_all_and_second_run_nothing(empty_dsn: str) -> None:
    assert migrate(empty_dsn) == [migration.name for migration in migrations()]
    assert migrate(empty_dsn) == []
    rows = query(empty_dsn, "SELECT number, name, checksum FROM migrations ORDER BY number")
    assert [(r["number"], r["name"], r["checksum"]) for r in rows] == [
        (m.number, m.name, m.checksum) for m in migrations()
    ]


def test_numbers_run_from_one_without_a_hole() -> None:
    assert [migration.number for migration in migrations()] == list(range(1, len(migrations()) + 1))


def test_every_earlier_version_reaches_this_one(postgres: str, empty_dsn: str) -> None:
    for migration in migrations():
        migrate(empty_dsn, upto=migration.number)
    assert len(query(empty_dsn, "SELECT FROM migrations")) == len(migrations())


def test_two_migrators_take_turns(empty_dsn: str) -> None:
    applied: list[list[str]] = []
    threads = [threading.Thread(target=lambda: applied.append(migrate(empty_dsn))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(map(len, applied)) == [0, 0, len(migrations())]


def test_changed_migration_is_refused(empty_dsn: str) -> None:
    migrate(empty_dsn)
    with psycopg.connect(empty_dsn) as connection:
        connection.execute("UPDATE facefleet.migrations SET checksum = 'abc' WHERE number = 1")
    with pytest.raises(StoreError, match="migrations never change once applied"):
        migrate(empty_dsn)


def test_a_database_whose_first_migration_could_not_do_postgresql_15_yet_is_taken_as_it_is(empty_dsn: str) -> None:
    migrate(empty_dsn)
    with psycopg.connect(empty_dsn) as connection:
        connection.execute("UPDATE facefleet.migrations SET checksum = %s WHERE number = 1", (next(iter(SAME)),))
    assert migrate(empty_dsn) == []


def test_failing_migration_leaves_nothing_behind(empty_dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    migrate(empty_dsn)
    broken = module.Migration(9999, "9999_broken.sql", "CREATE TABLE facefleet.half (x int); SELECT nonsense;")
    monkeypatch.setattr(module, "migrations", lambda: [*migrations(), broken])
    with pytest.raises(psycopg.errors.UndefinedColumn):
        migrate(empty_dsn)
    assert query(empty_dsn, "SELECT to_regclass('facefleet.half') AS t") == [{"t": None}]
    assert not query(empty_dsn, "SELECT FROM migrations WHERE number = 9999")


def test_p18_identity_is_given_once_and_never_changes(empty_dsn: str) -> None:
    migrate(empty_dsn, database_uuid=OURS)
    migrate(empty_dsn)
    assert query(empty_dsn, "SELECT uuid FROM database_identity") == [{"uuid": OURS}]
    with pytest.raises(StoreError, match=f"this database is {OURS}"):
        migrate(empty_dsn, database_uuid=UUID(int=1))


def test_owner_without_superuser_rights_can_migrate(postgres: str, empty_dsn: str) -> None:
    with psycopg.connect(postgres, autocommit=True) as connection:
        connection.execute("CREATE ROLE plain_owner LOGIN IN ROLE facefleet_migrator")
        name = psycopg.conninfo.conninfo_to_dict(empty_dsn)["dbname"]
        connection.execute(f"ALTER DATABASE {name} OWNER TO plain_owner".encode())
    assert migrate(psycopg.conninfo.make_conninfo(empty_dsn, user="plain_owner"))
    assert query(empty_dsn, "SELECT tableowner FROM pg_tables WHERE tablename = 'visits'") == [
        {"tableowner": "facefleet_migrator"}
    ]
