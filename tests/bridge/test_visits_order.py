"""P35 and P28: a visit's row depends on what was said, never on the order it was heard in."""

import random
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from functools import partial
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bridge.store import Incoming, Store
from edge.wire import AnyEvent
from tests.bridge.events import NOW, batch, birth, confirmed, count, death, ended, message, query, rollups, sent, update

LIFE: list[AnyEvent] = [
    confirmed(1, 200),
    update(1, 60_000, 60_000, attributes=(0, 0, 100)),
    update(1, 110_000, 110_000, score=240, attributes=(0, 2, 120, 1, 1, 99)),
    ended(1, 0, 115_000),
]
Step = Callable[[Store], object]


@pytest.fixture
def store(dsn: str) -> Iterator[Store]:
    with Store(dsn) as opened:
        yield opened


def visits(dsn: str, stream: int = 77) -> list[dict[str, Any]]:
    rows = query(
        dsn,
        "SELECT stream, track, camera_id, seq, started_at, ended_at, dwell_ms, reason, entry_x, exit_x, w, score, "
        "labels, confidences FROM visits WHERE stream = %(s)s ORDER BY track, ended_at",
        {"s": stream},
    )
    rows += query(
        dsn,
        "SELECT stream, track, camera_id, first_seq, last_seq, started_at, last_at, entry_x, exit_x, w, score, "
        "labels, confidences, closed FROM open_visits WHERE stream = %(s)s ORDER BY track",
        {"s": stream},
    )
    return rows


def _write(messages: Sequence[Incoming], store: Store) -> None:
    store.write(messages)


def test_late_confirmed_never_reopens_an_ended_visit(store: Store, dsn: str) -> None:
    store.write([sent(LIFE[3], first_seq=4)])
    store.write([sent(LIFE[0]), sent(LIFE[1], first_seq=2)])
    assert count(dsn, "open_visits") == 0
    assert [row["seq"] for row in visits(dsn)] == [4]
    assert count(dsn, "track_updates") == 1, "the update itself is kept"


def test_open_visit_gathers_what_updates_say(store: Store, dsn: str) -> None:
    for seq in (3, 1, 2):
        store.write([sent(LIFE[seq - 1], first_seq=seq)])
    [row] = visits(dsn)
    assert (row["first_seq"], row["last_seq"], row["score"]) == (1, 3, 240)
    assert (row["entry_x"], row["exit_x"]) == (100, 110)
    assert row["labels"] == {"age": "40+", "gender": "male"}
    assert row["last_at"] - row["started_at"] == timedelta(seconds=110)


def test_second_end_of_a_visit_is_a_dead_letter(store: Store, dsn: str) -> None:
    store.write([sent(ended(1, 0, 5000), ended(1, 0, 9000))])
    store.write([sent(ended(1, 0, 7000), first_seq=3)])
    assert [row["dwell_ms"] for row in visits(dsn)] == [5000]
    assert query(dsn, "SELECT seq, reason FROM dead_letters ORDER BY seq") == [
        {"seq": 2, "reason": "invalid"},
        {"seq": 3, "reason": "second end"},
    ]
    assert [row[2] for row in rollups(dsn)["rollup_days"]] == [1]


def test_same_track_number_on_two_cameras_is_two_visits(store: Store, dsn: str) -> None:
    store.write([sent(ended(1, camera=0), confirmed(1, camera=1))])
    assert (count(dsn, "visits"), count(dsn, "open_visits")) == (1, 1)


def test_p28_birth_closes_older_open_visits_as_box_restarted(store: Store, dsn: str) -> None:
    store.write_state("lab", "b1", birth(77), NOW)
    store.write([sent(*LIFE[:3], confirmed(2))])
    store.write_state("lab", "b1", birth(78), NOW)
    rows = query(dsn, "SELECT track, reason, dwell_ms, labels FROM visit_list ORDER BY track")
    assert [(row["track"], row["reason"], row["dwell_ms"]) for row in rows] == [
        (1, "box_restarted", 110_000),
        (2, "box_restarted", 0),
    ]
    assert [row[2] for row in rollups(dsn)["rollup_days"]] == [2]
    assert rollups(dsn)["attribute_hours"][0][2:] == ("age", "40+", 1)


def test_p28_real_end_replaces_box_restarted_and_the_counts_follow(store: Store, dsn: str) -> None:
    store.write([sent(*LIFE[:3])])
    store.write_state("lab", "b1", birth(78), NOW)
    store.write([sent(LIFE[3], first_seq=4)])
    assert [(row["seq"], row["reason"], row["dwell_ms"]) for row in visits(dsn)] == [(4, 0, 115_000)]
    days = rollups(dsn)["rollup_days"]
    assert [(row[2], row[3]) for row in days] == [(1, 115_000)]
    assert [row[2:] for row in rollups(dsn)["attribute_hours"]] == [("age", "20-39", 1), ("gender", "male", 1)]


def test_p28_another_boxs_birth_closes_nothing(store: Store, dsn: str) -> None:
    store.write([sent(confirmed(1))])
    store.write_state("lab", "b2", birth(78), NOW)
    assert query(dsn, "SELECT closed FROM open_visits") == [{"closed": False}]


def test_birth_heard_after_its_first_events_leaves_them_open(store: Store, dsn: str) -> None:
    store.write_state("lab", "b1", birth(70), NOW)
    store.write([sent(confirmed(1))])
    assert query(dsn, "SELECT closed FROM open_visits") == [{"closed": True}], "for all we know, of an older process"
    store.write_state("lab", "b1", birth(77), NOW)
    assert query(dsn, "SELECT closed FROM open_visits") == [{"closed": False}]
    assert count(dsn, "visits") == 0
    assert rollups(dsn)["rollup_days"] == []


def test_p27_old_birth_heard_again_changes_nothing(store: Store, dsn: str) -> None:
    for stream in (70, 77, 70):
        store.write_state("lab", "b1", birth(stream), NOW)
    assert query(dsn, "SELECT stream, state FROM boxes") == [{"stream": 77, "state": "online"}]


def test_p27_death_of_an_older_stream_is_old_news(store: Store, dsn: str) -> None:
    store.write_state("lab", "b1", birth(70), NOW)
    store.write_state("lab", "b1", birth(77), NOW)
    store.write_state("lab", "b1", death(70), NOW)
    assert query(dsn, "SELECT state FROM boxes") == [{"state": "online"}]
    store.write_state("lab", "b1", death(77, "shutdown"), NOW)
    assert query(dsn, "SELECT state, reason FROM boxes") == [{"state": "offline", "reason": "shutdown"}]


EVENTS = [*LIFE, confirmed(2, 300), update(2, 70_000, 69_700), confirmed(3, 500), ended(3, 0, 900)]


def outcome(dsn: str, store: Store, steps: Sequence[Step], stream: int) -> tuple[object, ...]:
    """Run steps on a box of its own and return what the database says of it, without ids that depend on the run."""
    for step in steps:
        step(store)
    rows = [{k: v for k, v in row.items() if k not in ("stream", "camera_id")} for row in visits(dsn, stream)]
    counts = query(
        dsn,
        "SELECT bucket, camera, visits, dwell_ms, most FROM rollup_minutes JOIN camera_names USING (camera_id) "
        "WHERE box = %(b)s AND visits <> 0 ORDER BY 1, 2",
        {"b": f"b{stream}"},
    )
    labels = query(
        dsn,
        "SELECT bucket, camera, head, label, visits FROM attribute_hours JOIN camera_names USING (camera_id) "
        "WHERE box = %(b)s AND visits <> 0 ORDER BY 1, 2, 3, 4",
        {"b": f"b{stream}"},
    )
    return rows, counts, labels


_streams = iter(range(1000, 10**6, 2))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    kept=st.sets(st.integers(0, len(EVENTS) - 1), min_size=1),
    successor=st.booleans(),
    seed=st.integers(0, 2**32),
    repeats=st.integers(0, 4),
    grouped=st.booleans(),
)
def test_p35_rows_and_counts_are_the_same_whatever_the_order(
    dsn: str, kept: set[int], successor: bool, seed: int, repeats: int, grouped: bool
) -> None:
    rng = random.Random(seed)
    said = sorted(kept)

    def steps(stream: int, shuffled: bool) -> list[Step]:
        box = f"b{stream}"
        order = list(said)
        if shuffled:
            order += rng.choices(order, k=repeats)
            rng.shuffle(order)
        messages = [[message(batch([EVENTS[i]], stream=stream, first_seq=i + 1), box=box)] for i in order]
        if shuffled and grouped:
            messages = [[m for one in messages[at : at + 3] for m in one] for at in range(0, len(messages), 3)]
        actions: list[Step] = [partial(_write, m) for m in messages]
        if successor:
            at = rng.randrange(len(actions) + 1) if shuffled else len(actions)
            actions.insert(at, lambda s: s.write_state("lab", box, birth(stream + 1), NOW))
        return actions

    with Store(dsn) as store:
        straight, shaken = next(_streams), next(_streams)
        expected = outcome(dsn, store, steps(straight, shuffled=False), straight)
        assert outcome(dsn, store, steps(shaken, shuffled=True), shaken) == expected
