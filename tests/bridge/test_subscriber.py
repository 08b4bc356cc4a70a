"""The writer between broker and database, with a typed fake on either side: what is acknowledged, when, and to whom."""

import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from itertools import pairwise
from uuid import UUID

import msgspec
import psycopg
import pytest
from psycopg import errors

from bridge.batches import Incoming
from bridge.errors import ConfigError, StoreError
from bridge.store import RECENT_STREAMS, Written
from bridge.subscriber import MOST_HEALTH, Status, Subscriber
from edge.link import Message
from edge.wire import BoxState, Covered, WireError, decode_ack, decode_batch, encode_batch
from tests.bridge.box import visits, wait_until

DATABASE = UUID("11111111-2222-4333-8444-555555555555")


class FakeStore:
    """Remembers sequence numbers; fails as told. Shared between connections, like a database."""

    def __init__(self) -> None:
        self.uuid = DATABASE
        self.fail: Exception | None = None
        self.poison: bytes | None = None
        self.gate = threading.Event()  # clear: writes hang, as behind a lock
        self.gate.set()
        self.rounds: list[list[Incoming]] = []
        self.log: list[str] = []
        self.heard: list[tuple[str, str]] = []  # box, what it said
        self.known: dict[tuple[str, str], tuple[Covered, ...]] = {}
        self.opened = self.closed = 0

    def open(self) -> "FakeStore":
        self._check()
        self.opened += 1
        return self

    def write(self, messages: Sequence[Incoming]) -> Written:
        self._check()
        assert self.gate.wait(10.0)
        if self.poison is not None and any(m.payload == self.poison for m in messages):
            raise ZeroDivisionError("a mistake of ours")
        self.rounds.append(list(messages))
        self.log += ["events" for _ in messages]
        dead, covered = 0, dict[tuple[str, str], tuple[Covered, ...]]()
        for message in messages:
            try:
                batch = decode_batch(message.payload)
            except WireError:
                dead += 1
            else:
                last = batch.first_seq + len(batch.events) - 1
                covered[message.site, message.box] = (Covered(batch.stream, last),)
        return Written(len(messages) - dead, 0, dead, 0, 0, covered)

    def write_states(self, states: Sequence[tuple[str, str, BoxState, datetime]]) -> None:
        self._check()
        self.log += [f"state {state.state}" for _, _, state, _ in states]
        self.heard += [(box, state.state) for _, box, state, _ in states]

    def write_healths(self, messages: Sequence[Incoming]) -> None:
        self._check()
        self.log += [f"health {message.payload.decode()}" for message in messages]

    def all_covered(self, boxes: Sequence[tuple[str, str]]) -> dict[tuple[str, str], tuple[Covered, ...]]:
        return {box: self.known.get(box, ()) for box in boxes}

    def database_uuid(self) -> UUID:
        self._check()
        return self.uuid

    def maintain(self, now: datetime) -> None:
        self.log.append("maintain")

    def close(self) -> None:
        self.closed += 1

    def _check(self) -> None:
        if self.fail is not None:
            raise self.fail


class FakeOutlet:
    """An MQTT connection that writes down what goes out."""

    def __init__(self) -> None:
        self.generation = 1
        self.up = True
        self.acked: list[int] = []
        self.published: list[tuple[float, str, bytes, bool]] = []

    def ack(self, message: Message) -> bool:
        if not self.up or message.generation != self.generation:
            return False
        self.acked.append(message.mid)
        return True

    def publish(self, topic: str, payload: bytes, *, qos: int, retain: bool = False) -> int | None:
        if not self.up:
            return None
        self.published.append((time.monotonic(), topic, payload, retain))
        return len(self.published)


class Bench:
    """A running subscriber between the two fakes."""

    def __init__(self, store: FakeStore, outlet: FakeOutlet, subscriber: Subscriber, statuses: list[Status]) -> None:
        self.store, self.outlet, self.subscriber, self.statuses = store, outlet, subscriber, statuses
        self._mid = 0

    def hear(self, kind: str, payload: bytes, *, box: str = "b1", generation: int = 1, qos: int = 1) -> int:
        self._mid += 1
        topic = f"facefleet/1/lab/{box}/{kind}"
        self.subscriber.on_message(Message(topic, payload, qos, False, self._mid, generation, False))
        return self._mid

    def written(self) -> int:
        return sum(map(len, self.store.rounds))


@contextmanager
def running(
    store: FakeStore | None = None,
    *,
    ack: bool = True,
    database: UUID | None = None,
    queue_bytes: int = 1 << 20,
    stop_retry_s: float = 0.2,
) -> Iterator[Bench]:
    store, outlet, statuses = store or FakeStore(), FakeOutlet(), list[Status]()
    subscriber = Subscriber(
        store.open,
        ack=ack,
        database=database,
        on_status=statuses.append,
        queue_bytes=queue_bytes,
        backoff_s=(0.01, 0.05),
        stop_retry_s=stop_retry_s,
    )
    subscriber.start(outlet)
    try:
        yield Bench(store, outlet, subscriber, statuses)
    finally:
        store.gate.set()
        subscriber.stop()


def batch(first_seq: int, stream: int = 7, count: int = 5) -> bytes:
    return encode_batch(visits(stream, first_seq, count, now_ms=1_700_000_000_000))


def birth(stream: int = 7) -> bytes:
    return msgspec.json.encode(BoxState("online", f"{stream:016x}", "boot", "machine", "nonce"))


def check_after(true: Callable[[], bool], bench: Bench) -> None:
    wait_until(true, 5.0)
    bench.subscriber.check()


def test_p15_nothing_is_acknowledged_before_the_commit() -> None:
    with running() as bench:
        bench.store.gate.clear()
        mid = bench.hear("events", batch(1))
        time.sleep(0.2)
        assert bench.outlet.acked == []
        assert bench.outlet.published == []
        bench.store.gate.set()
        check_after(lambda: bench.outlet.acked == [mid] and len(bench.outlet.published) == 1, bench)
    ((_, topic, payload, retain),) = bench.outlet.published
    assert (topic, retain) == ("facefleet/1/lab/b1/ack", True)
    ack = decode_ack(payload)
    assert ack.database == DATABASE.bytes
    assert ack.covered == (Covered(7, 5),)


def test_p15_busy_box_gets_one_ack_a_second_and_the_last_word_arrives() -> None:
    with running() as bench:
        ends_s = time.monotonic() + 2.3
        first_seq = 1
        while time.monotonic() < ends_s:
            bench.hear("events", batch(first_seq))
            first_seq += 5
            time.sleep(0.02)
        last = first_seq - 1
        check_after(lambda: decode_ack(bench.outlet.published[-1][2]).covered == (Covered(7, last),), bench)
    times_s = [at_s for at_s, *_ in bench.outlet.published]
    assert len(times_s) <= 4
    assert all(later - earlier >= 0.99 for earlier, later in pairwise(times_s))


def test_p18_bridge_without_ack_writes_and_never_acknowledges_to_boxes() -> None:
    with running(ack=False) as bench:
        bench.store.known["lab", "b1"] = (Covered(7, 5),)
        bench.hear("state", birth())
        mid = bench.hear("events", batch(1))
        check_after(lambda: mid in bench.outlet.acked, bench)
        time.sleep(0.2)
        assert bench.outlet.published == []


def test_what_gathers_during_a_transaction_is_the_next_one() -> None:
    with running() as bench:
        wait_until(lambda: bench.subscriber.status == "accepting")
        bench.store.gate.clear()
        bench.hear("events", batch(1))
        time.sleep(0.1)
        for i in range(1, 100):
            bench.hear("events", batch(1 + 5 * i))
        bench.store.gate.set()
        check_after(lambda: bench.written() == 100, bench)
        assert [len(messages) for messages in bench.store.rounds] == [1, 99]


def test_birth_stays_before_the_events_that_followed_it() -> None:
    with running() as bench:
        wait_until(lambda: bench.subscriber.status == "accepting")
        bench.store.gate.clear()
        bench.hear("events", batch(1, stream=6))
        time.sleep(0.1)
        bench.hear("events", batch(6, stream=6))
        bench.hear("state", birth(stream=7))
        bench.hear("events", batch(1, stream=7))
        bench.store.gate.set()
        check_after(lambda: bench.written() == 3, bench)
        assert bench.store.log == ["maintain", "events", "events", "state online", "events"]


def test_p38_full_queue_stops_acknowledging_and_frees_the_broker_once_there_is_room() -> None:
    with running(queue_bytes=20_000) as bench:
        wait_until(lambda: bench.subscriber.status == "accepting")
        bench.store.gate.clear()
        mids = [bench.hear("events", batch(1 + 5 * i, count=5)) for i in range(500)]
        assert bench.subscriber.inbox.bytes <= 20_000
        assert bench.subscriber.counts.turned_away > 400
        assert bench.outlet.acked == []
        bench.store.gate.set()
        check_after(lambda: sorted(bench.outlet.acked) == mids, bench)
        assert bench.written() < 100, "what was turned away is for the boxes to send again"


def test_p37_delivery_of_an_earlier_connection_is_written_and_its_ack_dropped() -> None:
    with running() as bench:
        bench.outlet.generation = 2
        old = bench.hear("events", batch(1), generation=1)
        new = bench.hear("events", batch(6), generation=2)
        check_after(lambda: bench.outlet.acked == [new], bench)
        time.sleep(0.1)
        assert old not in bench.outlet.acked
        assert bench.written() == 2


def test_broker_away_acks_to_boxes_stay_owed() -> None:
    with running() as bench:
        bench.outlet.up = False
        bench.hear("events", batch(1))
        wait_until(lambda: bench.written() == 1)
        time.sleep(0.1)
        bench.outlet.up = True
        check_after(lambda: len(bench.outlet.published) == 1, bench)


def test_database_down_at_start_is_paused_and_everything_arrives_afterwards() -> None:
    store = FakeStore()
    store.fail = psycopg.OperationalError("connection refused")
    with running(store) as bench:
        mids = [bench.hear("events", batch(1 + 5 * i)) for i in range(20)]
        time.sleep(0.3)
        bench.subscriber.check()
        assert bench.subscriber.status == "paused"
        assert (bench.statuses, bench.outlet.acked) == ([], [])
        store.fail = None
        check_after(lambda: bench.outlet.acked == mids, bench)
        assert bench.statuses == ["accepting"]


def test_database_lost_pauses_and_writes_the_same_round_again() -> None:
    with running() as bench:
        wait_until(lambda: bench.subscriber.status == "accepting")
        bench.store.fail = errors.AdminShutdown("terminating connection")
        mid = bench.hear("events", batch(1))
        check_after(lambda: bench.statuses == ["accepting", "paused"], bench)
        assert bench.outlet.acked == []
        bench.store.fail = None
        check_after(lambda: bench.outlet.acked == [mid], bench)
        assert bench.statuses == ["accepting", "paused", "accepting"]
        assert bench.store.opened == bench.store.closed + 1


def test_single_deadlock_is_tried_again_without_pausing_the_fleet() -> None:
    with running() as bench:
        wait_until(lambda: bench.subscriber.status == "accepting")
        once = errors.DeadlockDetected("deadlock")

        def fail_once(
            messages: Sequence[Incoming], write: Callable[[Sequence[Incoming]], Written] = bench.store.write
        ) -> Written:
            bench.store.__dict__.pop("write")
            raise once

        bench.store.write = fail_once  # type: ignore[method-assign]
        mid = bench.hear("events", batch(1))
        check_after(lambda: bench.outlet.acked == [mid], bench)
        assert bench.statuses == ["accepting"]


def test_missing_grant_stops_acknowledging_alarms_and_recovers_when_granted(caplog: pytest.LogCaptureFixture) -> None:
    with running() as bench:
        wait_until(lambda: bench.subscriber.status == "accepting")
        bench.store.fail = errors.InsufficientPrivilege("permission denied for table visits")
        mid = bench.hear("events", batch(1))
        check_after(lambda: bench.subscriber.status == "paused", bench)
        time.sleep(0.1)
        assert (bench.outlet.acked, bench.outlet.published) == ([], [])
        alarm = next(r for r in caplog.records if r.levelno == logging.CRITICAL)
        assert "SQLSTATE 42501" in alarm.getMessage()
        assert "nothing is acknowledged" in alarm.getMessage()
        time.sleep(0.3)  # it asks again meanwhile, and does not make boxes send by saying so
        assert bench.statuses == ["accepting", "paused"]
        bench.store.fail = None
        check_after(lambda: bench.outlet.acked == [mid], bench)


def test_missing_schema_at_start_ends_the_bridge_with_the_next_step() -> None:
    store = FakeStore()
    store.fail = errors.UndefinedTable('relation "database_identity" does not exist')
    with running(store) as bench:
        wait_until(lambda: not bench.subscriber._thread.is_alive())
        with pytest.raises(StoreError, match="facefleet-bridge migrate"):
            bench.subscriber.check()


def test_p18_other_database_than_configured_is_refused() -> None:
    with running(database=UUID(int=1)) as bench:
        wait_until(lambda: not bench.subscriber._thread.is_alive())
        with pytest.raises(ConfigError, match=f"the database is {DATABASE}, expected"):
            bench.subscriber.check()
        assert bench.statuses == []


def test_database_that_becomes_another_one_while_running_is_refused() -> None:
    with running() as bench:
        wait_until(lambda: bench.subscriber.status == "accepting")
        bench.store.uuid = UUID(int=2)
        bench.store.fail = psycopg.OperationalError("failover")
        bench.hear("events", batch(1))
        wait_until(lambda: bench.subscriber.status == "paused")
        bench.store.fail = None
        wait_until(lambda: not bench.subscriber._thread.is_alive())
        with pytest.raises(ConfigError):
            bench.subscriber.check()
        assert bench.outlet.acked == []


def test_batch_that_brings_out_a_mistake_of_ours_blocks_nobody_else(caplog: pytest.LogCaptureFixture) -> None:
    with running() as bench:
        wait_until(lambda: bench.subscriber.status == "accepting")
        bench.store.poison = batch(1, stream=666)
        bench.store.gate.clear()
        bench.hear("events", batch(1))
        time.sleep(0.1)
        mids = [bench.hear("events", batch(6 + 5 * i)) for i in range(10)]
        bench.hear("events", bench.store.poison, box="bad")
        mids += [bench.hear("events", batch(100 + 5 * i)) for i in range(10)]
        bench.store.gate.set()
        check_after(lambda: set(mids) <= set(bench.outlet.acked), bench)
        check_after(lambda: len(bench.outlet.published) == 1, bench)
        assert bench.written() == 21
        assert bench.outlet.published[0][1] == "facefleet/1/lab/b1/ack", "the bad box is not told anything"
        assert "cannot be handled; its box keeps it" in caplog.text


@pytest.mark.parametrize("payload", [b"", b"{", b"\xff\xfe", b'{"state":"sideways"}', b"[]", b"null"])
def test_malformed_state_is_dropped_and_blocks_nothing(payload: bytes) -> None:
    with running() as bench:
        bad = bench.hear("state", payload)
        good = bench.hear("events", batch(1))
        check_after(lambda: bench.outlet.acked == [bad, good], bench)


def test_topics_that_are_not_a_boxs_are_passed_over() -> None:
    with running() as bench:
        message = Message("facefleet/1/bridge/other/state", b"{}", 1, True, 99, 1, False)
        bench.subscriber.on_message(message)
        check_after(lambda: bench.outlet.acked == [99], bench)
        assert bench.store.log == ["maintain"]


def test_p23_birth_is_answered_with_what_the_database_holds() -> None:
    with running() as bench:
        bench.store.known["lab", "b1"] = (Covered(7, 3, (5, 6)),)
        bench.hear("state", birth())
        check_after(lambda: len(bench.outlet.published) == 1, bench)
        assert decode_ack(bench.outlet.published[0][2]).covered == (Covered(7, 3, (5, 6)),)


def test_p23_birth_of_a_stream_the_database_does_not_know_is_told_so() -> None:
    with running() as bench:
        bench.store.known["lab", "b1"] = (Covered(7, 3),)
        bench.hear("state", birth(stream=8))
        check_after(lambda: len(bench.outlet.published) == 1, bench)
        assert decode_ack(bench.outlet.published[0][2]).covered == (Covered(7, 3), Covered(8, 0))


def test_p23_answer_to_a_birth_says_that_it_is_complete_and_only_that_answer_does() -> None:
    with running() as bench:
        bench.hear("state", birth(stream=8))
        check_after(lambda: len(bench.outlet.published) == 1, bench)
        bench.hear("events", batch(1))
        check_after(lambda: len(bench.outlet.published) == 2, bench)
        assert [decode_ack(payload).complete for _, _, payload, *_ in bench.outlet.published] == [True, False]


def test_p23_answer_that_may_leave_streams_out_does_not_claim_to_be_complete() -> None:
    with running() as bench:
        bench.store.known["lab", "b1"] = tuple(Covered(stream, 1) for stream in range(1, RECENT_STREAMS + 1))
        bench.hear("state", birth(stream=8))
        check_after(lambda: len(bench.outlet.published) == 1, bench)
        assert not decode_ack(bench.outlet.published[0][2]).complete


def test_newest_health_is_written_and_needs_no_ack() -> None:
    with running() as bench:
        wait_until(lambda: bench.subscriber.status == "accepting")
        bench.store.gate.clear()
        bench.hear("events", batch(1))
        time.sleep(0.1)
        for n in range(50):
            bench.hear("health", f"{n}".encode(), qos=0)
        bench.store.gate.set()
        check_after(lambda: "health 49" in bench.store.log, bench)
        assert sum(entry.startswith("health") for entry in bench.store.log) == 1
        assert len(bench.outlet.acked) == 1


def test_unreadable_health_costs_its_neighbours_nothing() -> None:
    with running() as bench:
        wait_until(lambda: bench.subscriber.status == "accepting")
        bench.store.gate.clear()
        bench.hear("events", batch(1))
        time.sleep(0.1)
        for name, payload in (("b1", b"1"), ("b2", b"\xff"), ("b3", b"3")):
            bench.hear("health", payload, box=name, qos=0)
        bench.store.gate.set()
        check_after(lambda: bench.subscriber.counts.health + bench.subscriber.counts.malformed == 3, bench)
        assert [entry for entry in bench.store.log if entry.startswith("health")] == ["health 1", "health 3"]
        assert bench.subscriber.counts.malformed == 1


def test_events_go_between_when_a_whole_fleet_says_its_health() -> None:
    with running() as bench:
        wait_until(lambda: bench.subscriber.status == "accepting")
        bench.store.gate.clear()
        bench.hear("events", batch(1))
        time.sleep(0.1)
        for n in range(3 * MOST_HEALTH):
            bench.hear("health", b"", box=f"b{n}", qos=0)
        bench.hear("events", batch(6))
        bench.store.gate.set()
        check_after(lambda: bench.subscriber.counts.health == 3 * MOST_HEALTH, bench)
        second = [i for i, entry in enumerate(bench.store.log) if entry == "events"][1]
        before = sum(entry.startswith("health") for entry in bench.store.log[:second])
        assert before <= MOST_HEALTH


def test_p28_births_of_many_boxes_go_together_and_each_stays_between_what_its_box_said_before_and_after() -> None:
    with running() as bench:
        wait_until(lambda: bench.subscriber.status == "accepting")
        bench.store.gate.clear()
        bench.hear("events", batch(1), box="first")
        time.sleep(0.1)
        bench.store.log.clear()
        for n in range(20):
            bench.hear("state", birth(stream=n + 1), box=f"b{n}")
            bench.hear("events", batch(1, stream=n + 1), box=f"b{n}")
        bench.hear("state", birth(stream=99), box="b3")
        bench.hear("events", batch(1, stream=99), box="b3")
        bench.store.gate.set()
        check_after(lambda: bench.written() == 22, bench)
        done = [entry for entry in bench.store.log if entry.startswith(("state", "events"))][-42:]
        assert done == ["state online"] * 20 + ["events"] * 20 + ["state online", "events"]
        assert bench.store.heard[-1] == ("b3", "online")


def test_stop_writes_what_is_in_hand() -> None:
    with running() as bench:
        wait_until(lambda: bench.subscriber.status == "accepting")
        bench.store.gate.clear()
        for i in range(500):
            bench.hear("events", batch(1 + 5 * i))
        threading.Timer(0.1, bench.store.gate.set).start()
        bench.subscriber.stop()
        assert bench.written() == 500
        assert len(bench.outlet.acked) == 500
        assert bench.store.closed == 1
