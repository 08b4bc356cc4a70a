"""Erasing a span of a box: all of it goes, the counts follow, and nothing brings it back."""

import random
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import psycopg
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from bridge.cli import main
from bridge.erase import Erased, erase, span
from bridge.errors import BridgeError
from bridge.store import Incoming, Store
from edge.wire import AnyEvent, Confirmed, Ended, Presence, Update
from tests.bridge.events import (
    BASE_MS,
    NOW,
    batch,
    birth,
    confirmed,
    count,
    ended,
    message,
    presence,
    query,
    rollups,
    sent,
    update,
)
from tests.bridge.test_roles import as_role
from tests.postgres import create_database

BASE = datetime.fromtimestamp(BASE_MS / 1000, UTC)
HEALTH = b'{"stream":"1","nonce":"n","t_ms":0,"uptime_s":1,"cameras":{"door":{"state":"ok"}},"models":{}}'
FACTS = ("visits", "open_visits", "track_updates", "presence", "dead_letters", "quarantine", "health", "camera_health")


@pytest.fixture
def store(dsn: str) -> Iterator[Store]:
    with Store(as_role(dsn, "ingest")) as opened:
        opened.maintain(datetime.now(UTC))
        yield opened


def life(track: int, start_ms: int, *, camera: int = 0, ends: bool = True, minutes: int = 2) -> list[AnyEvent]:
    """Return the events of one visit."""
    told: list[AnyEvent] = [confirmed(track, start_ms + 200, camera=camera)]
    told += [
        update(track, start_ms + 60_000 * m, 60_000 * m, camera=camera, attributes=(0, 0, 99))
        for m in range(1, minutes)
    ]
    return told + [ended(track, start_ms, 60_000 * minutes, camera=camera)] * ends


def fill(store: Store, box: str, stream: int) -> list[Incoming]:
    """Give a box some of everything; return what it sent."""
    store.write_state("lab", box, birth(stream), NOW)
    told = [*life(1, -3_600_000), *life(2, 0), *life(3, 30_000, camera=1), *life(4, 10_000, ends=False)]
    told += [presence(10_000 * i, most=i, camera=i % 2) for i in range(10)]
    told += [ended(90, 10**13), ended(91, 0, score=999), ended(92, 0, 10, attributes=(7, 7, 7))]
    messages = [message(batch(told, stream=stream), box=box), message(b"\xc1 rubbish", box=box)]
    store.write(messages)
    store.write_health("lab", box, HEALTH, NOW)
    return messages


def everything(dsn: str) -> dict[str, Any]:
    """Return all that tells of somebody."""
    counts = {table: count(dsn, table) for table in FACTS}
    return counts | rollups(dsn) | {"days": query(dsn, "SELECT * FROM attribute_days WHERE visits <> 0")}


def test_whole_box_is_erased_and_its_neighbour_untouched(store: Store, dsn: str) -> None:
    fill(store, "b2", 88)
    before = everything(dsn)
    messages = fill(store, "b1", 77)
    assert erase(dsn, "lab/b1", None, None) == Erased(3, 1, 4, 10, 3, 1, 3)
    assert everything(dsn) == before
    assert not query(dsn, "SELECT FROM rollup_days JOIN cameras USING (camera_id) WHERE box_id = 2 AND most <> 0")
    written = store.write(messages)
    assert (written.inserted, written.erased) == (0, 0), "their numbers are covered"
    assert count(dsn, "visits") == before["visits"]


def test_late_events_of_an_erased_span_are_covered_counted_and_dropped(store: Store, dsn: str) -> None:
    fill(store, "b1", 77)
    erase(dsn, "lab/b1", None, None)
    late = [*life(7, 5_000), presence(0), ended(8, 0, score=999), ended(9, -(10**12)), confirmed(10, 0, camera=9)]
    for stream, base in ((77, 27), (78, 0)):  # what the outbox still had, and what a new process tells late
        written = store.write([sent(*late, stream=stream, first_seq=base + 1)])
        assert (written.inserted, written.erased, written.dead_letters, written.quarantined) == (0, len(late), 0, 0)
        assert written.covered["lab", "b1"][0].upto + sum(written.covered["lab", "b1"][0].ranges) > 0
    assert [count(dsn, table) for table in FACTS if table != "dead_letters"] == [0] * 7
    assert query(dsn, "SELECT dropped FROM tombstones") == [{"dropped": 2 * len(late)}]
    assert all(not rows for rows in rollups(dsn).values())


def test_box_goes_on_after_its_past_was_erased(store: Store, dsn: str) -> None:
    fill(store, "b1", 77)
    until = BASE + timedelta(minutes=1)
    erase(dsn, "lab/b1", None, until)
    written = store.write([sent(*life(20, 120_000), presence(120_000), first_seq=100)])
    assert (written.inserted, written.erased) == (4, 0)
    assert [row["started_at"] > until for row in query(dsn, "SELECT started_at FROM visits")] == [True]


def test_visit_that_reaches_into_the_span_goes_as_a_whole_whatever_comes_of_it_later(store: Store, dsn: str) -> None:
    """One second of it erases all of it: its confirmation came before, its update and end are still to come."""
    told = life(1, 0, minutes=5)
    store.write([sent(*told[:2])])
    first = BASE + timedelta(seconds=30)
    erase(dsn, "lab/b1", first, first + timedelta(seconds=1))
    assert count(dsn, "open_visits") == 0
    written = store.write([sent(*told[2:], first_seq=3)])
    assert written.erased == len(told) - 2
    assert all(count(dsn, table) == 0 for table in FACTS)


def test_part_of_a_visit_outside_the_span_goes_when_its_end_tells_that_it_reached_in(store: Store, dsn: str) -> None:
    """Nobody knew at the time of erasing that this visit reached into the span; its end says so."""
    store.write([sent(confirmed(1, 200))])
    first = BASE + timedelta(seconds=30)
    erase(dsn, "lab/b1", first, first + timedelta(seconds=1))
    assert count(dsn, "open_visits") == 1
    assert store.write([sent(ended(1, 0, 60_000), first_seq=2)]).erased == 1
    assert count(dsn, "open_visits") == 0


def test_resend_with_other_content_leaves_no_bytes_of_the_erased(store: Store, dsn: str) -> None:
    store.write([sent(*life(1, 0))])
    erase(dsn, "lab/b1", None, None)
    store.write([sent(*life(1, 1000))])
    assert count(dsn, "dead_letters") == 0


def test_most_people_at_once_is_looked_up_again(store: Store, dsn: str) -> None:
    store.write([sent(presence(0, most=3), presence(10_000, most=9), presence(20_000, most=5))])
    erase(dsn, "lab/b1", BASE + timedelta(seconds=10), BASE + timedelta(seconds=20))
    assert [row[5] for table in ("rollup_minutes", "rollup_hours", "rollup_days") for row in rollups(dsn)[table]] == [
        5, 5, 5
    ]  # fmt: skip


def test_whole_days_of_which_only_counts_are_left_go_too(store: Store, dsn: str) -> None:
    store.write([sent(presence(0))])
    with psycopg.connect(dsn, options="-c search_path=facefleet") as connection:
        for table in ("rollup_days", "rollup_hours"):
            old = f"INSERT INTO {table} SELECT bucket - interval '400 days', camera_id, 9, 9, 9, 9, 9 FROM {table}"
            connection.execute(old.encode())
    erase(dsn, "lab/b1", None, BASE - timedelta(days=1))
    assert [count(dsn, table) for table in ("rollup_days", "rollup_hours", "presence")] == [1, 1, 1]


def test_dry_run_says_the_same_and_changes_nothing(store: Store, dsn: str) -> None:
    fill(store, "b1", 77)
    before = everything(dsn)
    would = erase(dsn, "lab/b1", None, None, dry_run=True)
    assert everything(dsn) == before
    assert count(dsn, "tombstones") == 0
    assert erase(dsn, "lab/b1", None, None) == would


def test_dated_dead_letters_outside_the_span_stay(store: Store, dsn: str) -> None:
    fill(store, "b1", 77)
    erase(dsn, "lab/b1", BASE - timedelta(minutes=70), BASE - timedelta(minutes=50))
    assert {row["reason"] for row in query(dsn, "SELECT reason FROM dead_letters")} == {"invalid", "refused"}
    assert count(dsn, "visits") == 2


def test_unknown_event_of_a_newer_box_goes_when_it_came_after_the_beginning(store: Store, dsn: str) -> None:
    envelope = msgspec.to_builtins(batch([ended()]))
    envelope[6] = [[6, 1, 2, 3]]
    store.write([message(msgspec.msgpack.encode(envelope))])
    assert query(dsn, "SELECT reason FROM dead_letters") == [{"reason": "unknown event"}]
    erase(dsn, "lab/b1", BASE, BASE + timedelta(seconds=1))
    assert count(dsn, "dead_letters") == 0


def test_ingest_may_not_erase(store: Store, dsn: str) -> None:
    fill(store, "b1", 77)
    with pytest.raises(BridgeError, match="needs a member of facefleet_migrator"):
        erase(as_role(dsn, "ingest"), "lab/b1", None, None)
    assert count(dsn, "visits") == 3
    erase(as_role(dsn, "migrator"), "lab/b1", None, None)
    assert count(dsn, "visits") == 0


@pytest.mark.parametrize(("box", "why"), [("lab/b9", "there is no box lab/b9"), ("b1", "is no SITE/BOX")])
def test_box_that_is_not_there_is_said(dsn: str, box: str, why: str) -> None:
    with pytest.raises(BridgeError, match=why):
        erase(dsn, box, None, None)


def test_span_is_local_at_the_site_ends_now_and_is_not_empty() -> None:
    now = datetime(2026, 7, 1, 12, tzinfo=UTC)
    first, end = span(datetime(2026, 7, 1, 10), datetime(2026, 7, 1, 20), "Europe/Berlin", now)
    assert (first, end) == (datetime(2026, 7, 1, 8, tzinfo=UTC), now)
    with pytest.raises(BridgeError, match="nothing lies between"):
        span(now + timedelta(hours=1), None, "UTC", now)


def test_verb_says_what_would_go_and_does_it_only_when_told(
    store: Store, dsn: str, capsys: pytest.CaptureFixture[str]
) -> None:
    fill(store, "b1", 77)
    verb = ["erase", "--box", "lab/b1", "--dsn", dsn]
    assert main([*verb, "--dry-run"]) == 0
    assert "would erase 3 visits, 1 open visits, 4 updates" in capsys.readouterr().out
    assert main(verb) == 2
    assert "give --yes" in capsys.readouterr().err
    assert count(dsn, "visits") == 3
    assert main([*verb, "--yes"]) == 0
    assert count(dsn, "visits") == 0
    assert main([*verb, "--from", "yesterday"]) == 2
    assert "expected such as" in capsys.readouterr().err


def test_erasing_beside_a_writer_leaves_nothing_whichever_comes_first(store: Store, dsn: str) -> None:
    """Every event lies in the span: what the writer had in is erased, what it brings afterwards is dropped."""
    store.write_state("lab", "b1", birth(77), NOW)
    messages = [sent(*life(n, -n * 1000, minutes=1), first_seq=2 * n - 1) for n in range(1, 121)]
    under_way = threading.Event()

    def bring() -> None:
        for number, one in enumerate(messages):
            store.write([one])
            if number == 20:
                under_way.set()

    writer = threading.Thread(target=bring)
    writer.start()
    under_way.wait(60)
    erased = erase(dsn, "lab/b1", None, None)
    writer.join()
    assert [count(dsn, table) for table in FACTS] == [0] * len(FACTS)
    (dropped,) = (row["dropped"] for row in query(dsn, "SELECT dropped FROM tombstones"))
    assert erased.visits + dropped / 2 == 120
    assert all(not rows for rows in rollups(dsn).values())


# The property ---------------------------------------------------------------------------------------------------------


def extent(told: list[AnyEvent]) -> tuple[int, int]:
    times: list[int] = []
    for event in told:
        match event:
            case Confirmed():
                times += [event.t_ms]
            case Update():
                times += [event.t_ms - event.dwell_ms, event.t_ms]
            case Ended():
                times += [event.t_ms, event.t_ms + event.dwell_ms]
            case Presence():
                times += [event.t_ms, event.t_ms + event.period_ms - 1]
    return min(times), max(times)


def facts(dsn: str) -> dict[str, Any]:
    """Return every fact and count that is not of the ledger, without the sequence numbers' order."""
    tables = {table: query(dsn, f"SELECT * FROM {table} ORDER BY 1, 2, 3") for table in FACTS[:4]}
    return tables | rollups(dsn) | {"letters": count(dsn, "dead_letters"), "held": count(dsn, "quarantine")}


@settings(
    max_examples=12, deadline=None, phases=[Phase.generate], suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    starts=st.lists(st.tuples(st.integers(-1_200_000, 0), st.integers(1, 4), st.booleans()), max_size=6),
    grid=st.lists(st.integers(-120, 20), max_size=6, unique=True),
    first=st.integers(-1_300_000, 300_000),
    length=st.integers(1, 400_000),
    before=st.floats(0, 1),
    restarts=st.booleans(),
    seed=st.integers(0, 2**32),
)
def test_erased_and_sent_again_in_any_order_is_as_if_it_had_never_been(
    postgres: str, template: str, starts: Any, grid: Any, first: int, length: int, before: float, restarts: bool,
    seed: int,
) -> None:  # fmt: skip
    """Facts and counts afterwards are those of a database that never heard of the visits and counts in the span."""
    rng = random.Random(seed)
    stories = [life(n, start, minutes=m, ends=ends) for n, (start, m, ends) in enumerate(starts)]
    stories += [[presence(10_000 * slot, most=abs(slot), person_ms=slot * slot)] for slot in grid]
    stories += [[confirmed(99, 300_000)]]  # never empty
    events = [event for told in stories for event in told]
    gone = {id(event) for told in stories if reaches(told, first, first + length) for event in told}
    kept = [event for event in events if id(event) not in gone]
    outcomes = []
    for name, some in (("erased", events), ("never", kept)):
        dsn = fresh(postgres, template, name)
        wanted = set(map(id, some))
        messages = [sent(event, first_seq=i) for i, event in enumerate(events, 1) if id(event) in wanted]
        rng.shuffle(messages)
        with Store(as_role(dsn, "ingest")) as store:
            store.write_state("lab", "b1", birth(77), NOW)
            cut = int(len(messages) * before)
            store.write(messages[:cut])
            if restarts:
                store.write_state("lab", "b1", birth(78), NOW)
            if name == "erased":
                erase(
                    dsn, "lab/b1", BASE + timedelta(milliseconds=first), BASE + timedelta(milliseconds=first + length)
                )
            rng.shuffle(messages)  # everything once more, and what had not come yet
            for message_ in messages:
                store.write([message_])
        outcomes.append(facts(dsn))
    assert outcomes[0] == outcomes[1]


def reaches(told: list[AnyEvent], first_ms: int, end_ms: int) -> bool:
    low, high = extent(told)
    return low < end_ms and high >= first_ms


_number = iter(range(10**9))


def fresh(postgres: str, template: str, name: str) -> str:
    return create_database(postgres, f"erase_{name}_{next(_number)}", template)
