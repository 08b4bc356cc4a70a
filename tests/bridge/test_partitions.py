"""Daily partitions: ahead of time, past rows in DEFAULT, and away with retention."""

import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import msgspec
import psycopg
import pytest

from bridge.partitions import OUTBOX_DAYS
from bridge.store import Store
from edge.config import OutboxConfig
from edge.wire import Covered, Ended
from tests.bridge.events import BASE_MS, NOW, batch, birth, count, ended, message, presence, query, rollups, sent

DAY_MS = 86_400_000


@pytest.fixture
def store(dsn: str) -> Iterator[Store]:
    with Store(dsn) as opened:
        yield opened


def parts(dsn: str, parent: str) -> list[str]:
    rows = query(
        dsn,
        "SELECT inhrelid::regclass::text AS part FROM pg_inherits WHERE inhparent = %(p)s::regclass ORDER BY 1",
        {"p": parent},
    )
    return [row["part"].removeprefix(parent) for row in rows]


def day(offset: int) -> str:
    return f"_p{datetime.now(UTC) + timedelta(days=offset):%Y%m%d}"


def test_partitions_are_made_ahead_and_a_second_time_changes_nothing(store: Store, dsn: str) -> None:
    for _ in range(2):
        store.maintain(datetime.now(UTC))
        for parent in ("visits", "track_updates", "presence", "batches", "health", "camera_health", "rollup_minutes"):
            assert parts(dsn, parent) == ["_default", *(day(offset) for offset in range(-1, 4))]


def test_row_in_default_is_moved_out_before_its_partition_is_made(store: Store, dsn: str) -> None:
    store.write([sent(ended(1), ended(2, -5 * DAY_MS), presence(-5 * DAY_MS))])
    bounds = f"FOR VALUES FROM ('{NOW.date()}') TO ('{NOW.date() + timedelta(days=1)}')"
    with psycopg.connect(dsn) as connection, pytest.raises(psycopg.errors.CheckViolation):  # why the mover is there
        connection.execute(f"CREATE TABLE facefleet.x PARTITION OF facefleet.visits {bounds}".encode())
    before = rollups(dsn)
    assert query(dsn, "SELECT rows FROM report.default_partitions WHERE parent = 'visits'") == [{"rows": 2}]
    store.maintain(NOW)
    assert query(dsn, "SELECT sum(rows)::int AS rows FROM report.default_partitions") == [{"rows": 0}]
    assert (count(dsn, "visits"), count(dsn, "presence")) == (2, 1)
    old = f"_p{datetime.fromtimestamp(BASE_MS / 1000, UTC) - timedelta(days=5):%Y%m%d}"
    assert old in parts(dsn, "visits")
    assert old in parts(dsn, "rollup_minutes")
    assert rollups(dsn) == before
    again = store.write([sent(ended(1), ended(2, -5 * DAY_MS), presence(-5 * DAY_MS))])
    assert (again.inserted, again.duplicates) == (0, 3)


def test_partition_has_the_keys_and_checks_of_its_parent(store: Store, dsn: str) -> None:
    store.maintain(NOW)
    written = store.write([sent(ended(1), ended(2, score=300), ended(3))])
    assert (written.inserted, written.dead_letters) == (2, 1)
    assert query(dsn, "SELECT count(*) AS n FROM visits_default") == [{"n": 0}]


def test_retention_drops_whole_days_and_keeps_plain_counts(store: Store, dsn: str) -> None:
    store.write([sent(ended(1), ended(2, -40 * DAY_MS))])
    store.write([message(batch([ended(3, 10**12)], stream=78), received_at=NOW - timedelta(days=40))])
    assert count(dsn, "quarantine") == 1
    store.maintain(NOW)
    assert count(dsn, "visits") == 2
    store.close()
    with Store(dsn, retention_days=30) as shorter:
        shorter.maintain(NOW)
        assert [row["track"] for row in query(dsn, "SELECT track FROM visits")] == [1]
        assert len(rollups(dsn)["rollup_minutes"]) == 1
        assert len(rollups(dsn)["attribute_hours"]) == 2, "age and gender of the visit that is left"
        assert len(rollups(dsn)["rollup_days"]) == 2, "plain day counts outlive the visits"
    assert count(dsn, "quarantine") == 0


def test_retention_never_drops_the_last_day(store: Store, dsn: str) -> None:
    store.maintain(NOW)
    with (
        pytest.raises(psycopg.errors.RaiseException, match="keep at least one day"),
        psycopg.connect(dsn) as connection,
    ):
        connection.execute("SELECT facefleet.drop_partitions('visits', now())")


def test_maintenance_beside_a_writer_loses_and_doubles_nothing(dsn: str) -> None:
    """Two bridges maintain while a third writes into the very days that get their partitions."""
    failures: list[Exception] = []

    def maintain() -> None:
        with Store(dsn) as store:
            for _ in range(3):
                try:
                    store.maintain(NOW)
                except psycopg.Error as error:
                    failures.append(error)

    threads = [threading.Thread(target=maintain) for _ in range(2)]
    with Store(dsn) as store:
        store.write([sent(*[visit(n) for n in range(10)], stream=1)])
        for thread in threads:
            thread.start()
        for stream in range(2, 40):
            store.write([sent(*[visit(n) for n in range(10)], stream=stream)])
        for thread in threads:
            thread.join()
        store.maintain(NOW)
    assert failures == []
    assert count(dsn, "visits") == 390
    assert query(dsn, "SELECT count(*) AS n FROM visits_default") == [{"n": 0}]


def visit(number: int) -> Ended:
    return ended(number, -number * DAY_MS)


def test_p32_stream_is_forgotten_when_no_outbox_can_hold_any_of_it_and_what_comes_late_all_the_same_counts_nowhere(
    dsn: str,
) -> None:
    now = datetime.now(UTC)
    then = now - timedelta(days=OUTBOX_DAYS + 2)
    clock = [then]
    with Store(dsn, clock=lambda: clock[0]) as bridge:
        late = batch([ended(1), ended(2)], base_ms=int(then.timestamp() * 1000) - 60_000)
        bridge.write_state("lab", "b1", birth(77), then)
        assert bridge.write([message(late, received_at=then)]).inserted == 2
        bridge.write_state("lab", "b1", birth(78), then)
        assert bridge.covered("lab", "b1") == (Covered(77, 2),), "78 has told of nothing yet"
        before = rollups(dsn)

        clock[0] = now
        bridge.maintain(now)
        assert query(dsn, "SELECT stream FROM streams") == [{"stream": 78}], "the box may still live in it"
        again = bridge.write([message(late, received_at=now)])  # a box that lay in a drawer
        assert (again.inserted, again.duplicates, again.quarantined) == (0, 0, 2)
        assert again.covered == {("lab", "b1"): (Covered(77, 2),)}, "and may forget it now"
        assert (count(dsn, "visits"), rollups(dsn)["rollup_days"]) == (0, before["rollup_days"])


@pytest.mark.parametrize(
    ("days", "retention_days", "left"),
    [
        pytest.param(OUTBOX_DAYS, 90, 1, id="an outbox may hold some of it"),
        pytest.param(OUTBOX_DAYS + 2, 90, 0, id="none can"),
        pytest.param(OUTBOX_DAYS + 2, 400, 1, id="its rows are still there"),
        pytest.param(402, 400, 0, id="they are not"),
    ],
)
def test_stream_outlives_retention_and_every_outbox(dsn: str, days: int, retention_days: int, left: int) -> None:
    now = datetime.now(UTC)
    with Store(dsn, retention_days=retention_days) as store:
        store.write([sent(ended(1))])
        with psycopg.connect(dsn) as connection:
            connection.execute("UPDATE facefleet.streams SET last_at = %s", (now - timedelta(days=days),))
        store.maintain(now)
        assert count(dsn, "streams") == left


def test_no_config_lets_an_outbox_remember_for_longer_than_streams_are_kept() -> None:
    schema = msgspec.json.schema(OutboxConfig)["$defs"]["OutboxConfig"]
    assert schema["properties"]["max_days"]["maximum"] == OUTBOX_DAYS
