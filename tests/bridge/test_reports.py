"""What the analyst sees, and what stays hidden."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import psycopg
import pytest
from psycopg.conninfo import make_conninfo
from psycopg.rows import dict_row

from bridge.store import Store
from edge.wire import Ended, Head, Vocabulary
from tests.bridge.events import BASE_MS, NOW, batch, birth, confirmed, ended, message, presence, query, sent, update

HOUR_MS = 3_600_000
AGES = ("0-19", "20-39", "40+")


@pytest.fixture
def store(dsn: str) -> Iterator[Store]:
    with Store(dsn) as opened:
        yield opened


def visitors(ages: tuple[int, int, int], first_track: int = 1, t_ms: int = 0, camera: int = 0) -> list[Ended]:
    """Return visits: so many of each age, no gender."""
    labels = [label for label, number in enumerate(ages) for _ in range(number)]
    return [ended(first_track + i, t_ms, camera=camera, attributes=(0, label, 200)) for i, label in enumerate(labels)]


def read(dsn: str, statement: str) -> list[dict[str, object]]:
    """Ask as a dashboard would."""
    as_reader = make_conninfo(dsn, options="-c role=facefleet_reader -c TimeZone=UTC")
    with psycopg.connect(as_reader, row_factory=dict_row) as connection:
        return connection.execute(statement.encode()).fetchall()


def shown(dsn: str) -> dict[object, object]:
    rows = read(dsn, "SELECT label, visits FROM report.attribute_hours WHERE head = 'age' AND camera = 'door'")
    return {row["label"]: row["visits"] for row in rows}


def setting(dsn: str, name: str, value: int) -> None:
    with psycopg.connect(dsn) as connection:
        connection.execute("UPDATE facefleet.settings SET value = %s WHERE name = %s", (value, name))


@pytest.mark.parametrize(
    ("ages", "expected"),
    [
        ((30, 22, 11), {"0-19": 30, "20-39": 20, "40+": 10}),
        ((30, 22, 0), {"0-19": 30, "20-39": 20}),
        ((30, 22, 9), {"0-19": 30}),
        ((30, 9, 9), {"0-19": 30}),
        ((30, 0, 1), {}),
        ((9, 0, 0), {}),
        ((10, 0, 0), {"0-19": 10}),
    ],
    ids=["all above k", "an empty cell", "one small: the next goes too", "two small hide each other", "one of two",
         "below k", "exactly k"],
)  # fmt: skip
def test_attribute_cells_below_k_are_hidden_and_rounded(
    store: Store, dsn: str, ages: tuple[int, int, int], expected: dict[str, int]
) -> None:
    store.write([sent(*visitors(ages))])
    assert shown(dsn) == expected


def test_hidden_cell_cannot_be_had_from_the_plain_count(store: Store, dsn: str) -> None:
    """Attack: visits of the hour minus the shown labels. What is left is k or more visits, or rounded away."""
    store.write([sent(*visitors((30, 22, 9)))])
    [hour] = read(dsn, "SELECT visits FROM report.visits_hours")
    left = int(str(hour["visits"])) - sum(int(str(n)) for n in shown(dsn).values())
    assert left == 31, "22 and 9 stand together"


def test_hour_that_is_not_over_shows_people_but_no_attributes(store: Store, dsn: str) -> None:
    now = datetime.now(UTC).replace(minute=0, second=0, microsecond=0)
    running = batch(visitors((30, 30, 30), t_ms=-20_000), base_ms=int(now.timestamp() * 1000))
    store.write([message(running, received_at=datetime.now(UTC))])
    assert shown(dsn) == {}
    assert [row["visits"] for row in read(dsn, "SELECT visits FROM report.visits_hours")] == [90]


def test_demo_setting_shows_single_visits(store: Store, dsn: str) -> None:
    store.write([sent(*visitors((1, 2, 0)))])
    assert shown(dsn) == {}
    setting(dsn, "k", 1)
    assert shown(dsn) == {"0-19": 1, "20-39": 2}


def test_attribute_days_are_marginals_of_a_site_for_closed_days(store: Store, dsn: str) -> None:
    store.write([sent(*visitors((8, 0, 0), t_ms=-26 * HOUR_MS))])
    store.write([sent(*visitors((8, 0, 0), t_ms=-26 * HOUR_MS, camera=1), stream=78)])
    store.write([sent(*visitors((50, 0, 0)), stream=79)])  # today
    assert shown(dsn) == {"0-19": 50}
    rows = read(dsn, "SELECT site, head, label, visits FROM report.attribute_days")
    assert rows == [{"site": "lab", "head": "age", "label": "0-19", "visits": 15}]


def test_people_minutes_and_hours(store: Store, dsn: str) -> None:
    store.write([sent(ended(1), ended(2, 0, 10_000), presence(0, most=2, person_ms=15_000), presence(10_000, most=3))])
    assert read(dsn, "SELECT site, box, camera, people, most, entered, visits FROM report.people_minutes") == [
        {"site": "lab", "box": "b1", "camera": "door", "people": 0.4, "most": 3, "entered": 2, "visits": 2}
    ]
    assert read(dsn, "SELECT visits, mean_dwell_s FROM report.visits_hours") == [{"visits": 2, "mean_dwell_s": 15.0}]
    assert read(dsn, "SELECT visits, mean_dwell_s FROM report.visits_days") == [{"visits": 2, "mean_dwell_s": 15.0}]


def test_people_now_counts_open_visits_of_boxes_that_are_online(store: Store, dsn: str) -> None:
    store.write_state("lab", "b1", birth(77), NOW)
    store.write([sent(confirmed(1), confirmed(2), ended(3))])
    assert read(dsn, "SELECT camera, people FROM report.people_now ORDER BY 1") == [
        {"camera": "door", "people": 2},
        {"camera": "till", "people": 0},
    ]


def test_every_camera_and_every_parent_is_a_row_even_without_data(store: Store, dsn: str) -> None:
    store.write_state("lab", "b1", birth(77), NOW)
    assert len(read(dsn, "SELECT * FROM report.camera_status")) == 2
    assert len(read(dsn, "SELECT * FROM report.default_partitions")) == 7


# The original project's tables ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("view", "columns"),
    [
        (
            "object_detection",
            "object_id, tracked_object_id, object_class, age_category, gender, race, face, last_updated",
        ),
        (
            "object_detection_idx",
            "object_id_idx, tracked_object_idx, age_category_idx, gender_idx, race_idx, face_idx, status, total_obj, "
            "time_updated",
        ),
    ],
)
def test_compat_views_have_the_original_columns(dsn: str, view: str, columns: str) -> None:
    with psycopg.connect(dsn) as connection:
        described = connection.execute(f"SELECT * FROM compat.{view}".encode()).description
    assert ", ".join(column.name for column in described or ()) == columns


def test_compat_views_have_one_row_per_person(store: Store, dsn: str) -> None:
    heads = (
        Head("age", AGES),
        Head("gender", ("female", "male")),
        Head("race", ("r0", "r1"), "demonstration"),
        Head("emotion", ("calm", "happy"), "demonstration"),
    )
    vocabulary = Vocabulary(("door",), heads)
    events = (
        confirmed(4),
        update(4, 60_000, 59_800, attributes=(1, 1, 200, 3, 0, 90)),
        ended(5, attributes=(0, 2, 200, 1, 0, 200, 2, 1, 150, 3, 1, 180)),
        ended(6, attributes=()),
    )
    first = batch(events)
    whole = type(first)(1, 77, 1, BASE_MS, 0, vocabulary.digest(), events, vocabulary)
    store.write([message(whole)])
    people = query(dsn, "SELECT * FROM compat.object_detection ORDER BY tracked_object_id")
    shown = [(p["tracked_object_id"], p["age_category"], p["gender"], p["race"], p["face"]) for p in people]
    assert shown == [(4, None, "male", None, "calm"), (5, "40+", "female", "r1", "happy"), (6, None, None, None, None)]
    assert people[0]["last_updated"] == NOW
    index = query(dsn, "SELECT * FROM compat.object_detection_idx ORDER BY tracked_object_idx")
    keys = ("age_category_idx", "gender_idx", "race_idx", "face_idx", "status", "total_obj")
    assert [tuple(row[key] for key in keys) for row in index] == [
        (None, 1, None, 0, "detected", 1),
        (2, 0, 1, 1, "not_detected", 1),
        (None, None, None, None, "not_detected", 1),
    ]
    assert [row["object_id_idx"] for row in index] == [person["object_id"] for person in people]
    assert len({person["object_id"] for person in people}) == 3


def test_person_keeps_its_id_from_open_to_ended(store: Store, dsn: str) -> None:
    store.write([sent(confirmed(4))])
    before = query(dsn, "SELECT object_id FROM compat.object_detection")
    store.write([message(batch([ended(4)], first_seq=2))])
    assert query(dsn, "SELECT object_id FROM compat.object_detection") == before


def test_lag_is_from_event_to_row(dsn: str) -> None:
    with Store(dsn, clock=lambda: NOW + timedelta(seconds=2)) as store:
        store.write([sent(confirmed(1, 60_000))])
    assert read(dsn, "SELECT site, box, events, lag_s FROM report.lag") == [
        {"site": "lab", "box": "b1", "events": 1, "lag_s": 2.0}
    ]
