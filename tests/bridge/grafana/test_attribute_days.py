"""Attribute days are the sum of their hours in the site's time zone, whatever happens to the hours."""

from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import psycopg
import pytest

from bridge.migrate import migrate
from bridge.store import Store
from tests.bridge.events import NOW, batch, birth, confirmed, ended, message, query, sent, update
from tests.bridge.grafana.conftest import Fleet

SUMMED = """
SELECT date_trunc('day', a.bucket, s.timezone) AS bucket, b.box_id, a.head, a.label, sum(a.visits)::bigint AS visits
FROM attribute_hours a JOIN cameras c USING (camera_id) JOIN boxes b USING (box_id) JOIN sites s USING (site_id)
GROUP BY 1, 2, 3, 4 HAVING sum(a.visits) <> 0 ORDER BY 2, 1, 3, 4
"""
KEPT = "SELECT bucket, box_id, head, label, visits FROM attribute_days WHERE visits <> 0 ORDER BY 2, 1, 3, 4"


@pytest.fixture
def store(dsn: str) -> Iterator[Store]:
    with Store(dsn) as opened:
        yield opened


def days(dsn: str) -> list[dict[str, Any]]:
    kept = query(dsn, KEPT)
    assert kept == query(dsn, SUMMED)
    return kept


def test_days_of_a_whole_fleet_are_the_sum_of_its_hours(fleet: Fleet) -> None:
    assert len(days(fleet.dsn)) > 300


def test_days_grow_with_late_events_and_are_counted_once_on_resend(store: Store, dsn: str) -> None:
    first, late = sent(ended(1), ended(2)), sent(ended(3), first_seq=3)
    store.write([late])
    store.write([first])
    store.write([first, late])
    assert [(row["head"], row["label"], row["visits"]) for row in days(dsn)] == [
        ("age", "20-39", 3),
        ("gender", "male", 3),
    ]


def test_days_give_back_what_a_restart_closed_too_early(store: Store, dsn: str) -> None:
    store.write_state("lab", "b1", birth(77), NOW)
    store.write([sent(confirmed(1), update(1, 10_000, 9_800, attributes=(0, 0, 200)), stream=77)])
    store.write_state("lab", "b1", birth(78), NOW)
    assert [row["label"] for row in days(dsn)] == ["0-19"]
    store.write([message(batch([ended(1, attributes=(0, 2, 250))], stream=77, first_seq=3))])
    assert [row["label"] for row in days(dsn)] == ["40+"]


def test_days_follow_deleted_hours(store: Store, dsn: str) -> None:
    store.write([sent(ended(1), ended(2, -26 * 3_600_000))])
    assert len(days(dsn)) == 4
    with psycopg.connect(dsn) as connection:
        connection.execute("DELETE FROM facefleet.attribute_hours WHERE bucket < %s", (NOW - timedelta(hours=20),))
    assert len(days(dsn)) == 2


def test_days_of_a_site_begin_at_its_own_midnight(store: Store, dsn: str) -> None:
    with psycopg.connect(dsn) as connection:
        connection.execute("INSERT INTO facefleet.sites (name, timezone) VALUES ('lab', 'Asia/Tokyo')")
    store.write([sent(ended(1))])
    assert {row["bucket"].hour for row in days(dsn)} == {15}


def test_retention_removes_days_once_their_hours_are_gone(dsn: str) -> None:
    with Store(dsn, retention_days=5) as store:
        store.write([sent(ended(1, -3 * 86_400_000))])
        store.maintain(NOW)
        assert len(days(dsn)) == 2
        store.maintain(NOW + timedelta(days=2, hours=2))
        assert days(dsn) == []
        assert len(query(dsn, "SELECT FROM attribute_days")) == 2, "a late event may still come"
        store.maintain(NOW + timedelta(days=4))
        assert query(dsn, "SELECT FROM attribute_days") == []


def test_maintenance_says_when_it_ran_and_never_turns_back(store: Store, dsn: str) -> None:
    store.maintain(NOW)
    store.maintain(NOW - timedelta(hours=1))
    assert query(dsn, "SELECT * FROM job_runs") == [{"job": "partitions", "finished_at": NOW}]


def test_hours_from_before_the_migration_become_days(empty_dsn: str) -> None:
    migrate(empty_dsn, upto=2)
    with psycopg.connect(empty_dsn) as connection:
        connection.execute("SET search_path = facefleet")
        connection.execute("INSERT INTO sites (name, timezone) VALUES ('lab', 'Europe/Berlin')")
        connection.execute("INSERT INTO boxes (site_id, name) VALUES (1, 'b1')")
        connection.execute("INSERT INTO cameras (box_id, name) VALUES (1, 'a'), (1, 'b')")
        connection.execute(
            "INSERT INTO attribute_hours SELECT t, c, 'age', '0-19', 4 FROM generate_series(timestamptz '2026-03-01', "
            "'2026-03-03', interval '1 hour') t, generate_series(1, 2) c"
        )
    migrate(empty_dsn)
    assert [row["visits"] for row in days(empty_dsn)] == [184, 192, 16]
