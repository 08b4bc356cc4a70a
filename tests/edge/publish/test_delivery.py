"""Which batch goes when, told without a broker, a disk or a clock."""

import random
from collections import deque
from itertools import pairwise

import pytest

from edge.publish.delivery import LEAST_ALLOWED, Delivery, DeliverySettings, Pace
from edge.publish.outbox_file import Row, key_of


class Box:
    """An outbox that is a list: batches of one event, of an older life (place 1) and of this one (place 2)."""

    def __init__(self) -> None:
        self.rows: list[Row] = []
        self.done: set[int] = set()

    def add(self, place: int, *firsts: int) -> None:
        self.rows += [Row(key_of(place, first), first, 0) for first in firsts]

    def pending(self, *, after: int = 0, until: int | None = None, limit: int = 100) -> list[Row]:
        rows = [r for r in self.rows if r.key > after and r.key not in self.done and (until is None or r.key <= until)]
        return rows[:limit]

    def is_pending(self, row: Row) -> bool:
        return row.key not in self.done

    def is_current(self, row: Row) -> bool:
        return row.place == 2

    @property
    def newest_key(self) -> int:
        return self.rows[-1].key if self.rows else 0


class Sender:
    """Sends whatever delivery says and writes it down."""

    def __init__(self, box: Box, window: int = 1000, **settings: float) -> None:
        self.delivery = Delivery(box, DeliverySettings(**({"unacked_first": 200} | settings)), random.Random(1))  # type: ignore[arg-type]
        self.delivery.connected(window)
        self.mid = 0

    def go(self, now_s: float, puback: bool = True) -> list[tuple[int, int]]:
        sent = []
        while (row := self.delivery.next(now_s)) is not None:
            self.mid += 1
            self.delivery.sent(row, self.mid, now_s)
            sent.append((row.place, row.first))
            if puback:
                self.delivery.puback(self.mid)
        return sent


def test_everything_pending_is_sent_once_in_order() -> None:
    box = Box()
    box.add(1, 1, 2)
    box.add(2, 1)
    sender = Sender(box)
    assert sender.go(0.0) == [(1, 1), (1, 2), (2, 1)]
    assert sender.go(1.0) == []


def test_p14_a_puback_takes_nothing_out_of_the_unacked_set() -> None:
    box = Box()
    box.add(2, 1)
    sender = Sender(box)
    sender.go(0.0, puback=True)
    assert sender.go(40.0) == [(2, 1)]


def test_p20_unacked_batches_are_sent_again_after_30_s_with_backoff() -> None:
    box = Box()
    box.add(2, 1)
    sender = Sender(box)
    times = [s for s in range(2000) if sender.go(float(s))]
    assert times[0] == 0
    gaps = [b - a for a, b in pairwise(times)]
    for gap, wanted in zip(gaps, (30, 60, 120, 240, 480, 480), strict=False):
        assert wanted <= gap <= 1.2 * wanted + 1
    assert len(gaps) >= 5


def test_p20_what_was_acked_is_not_sent_again() -> None:
    box = Box()
    box.add(2, 1, 2)
    sender = Sender(box)
    sender.go(0.0)
    box.done.add(key_of(2, 1))
    sender.delivery.acked(1.0)
    assert sender.go(40.0) == [(2, 2)]


@pytest.mark.parametrize("what", ["connect", "a bridge's birth"])
def test_p20_everything_unacked_is_due_again_on(what: str) -> None:
    box = Box()
    box.add(2, 1, 2, 3)
    sender = Sender(box)
    sender.go(0.0)
    box.done.add(key_of(2, 2))
    if what == "connect":
        sender.delivery.disconnected()
        assert sender.go(0.5) == []
        sender.delivery.connected(1000)
    else:
        sender.delivery.rewind()
    assert sender.go(1.0) == [(2, 1), (2, 3)]


def test_p21_new_events_go_before_backlog_and_backlog_at_a_capped_rate() -> None:
    box = Box()
    box.add(1, *range(1, 101))
    sender = Sender(box, backlog_per_s=10)
    assert len(sender.go(0.0)) == 10
    box.add(2, 1, 2)
    assert sender.go(0.0) == [(2, 1), (2, 2)]
    assert sender.go(0.5) == [(1, n) for n in range(11, 16)]
    assert len(sender.go(1.5)) == 10


def test_p21_backlog_waits_for_acks_rather_than_fill_the_brokers_queue() -> None:
    box = Box()
    box.add(1, *range(1, 101))
    sender = Sender(box, unacked=8)
    assert len(sender.go(0.0)) == 8
    assert sender.go(1.0) == []
    box.done |= {key_of(1, n) for n in range(1, 6)}
    sender.delivery.acked(1.5)
    assert len(sender.go(2.0)) == 5
    box.add(2, 1)
    assert sender.go(2.0) == [(2, 1)], "what is new does not wait behind it"


def test_p21_backlog_grows_while_acks_come_soon_and_shrinks_when_they_do_not() -> None:
    pace = Pace(DeliverySettings(unacked=64))
    assert pace.may_send(0, 0.0)
    assert not pace.may_send(1, 0.0), "nobody knows yet how the centre fares"
    for _ in range(9):
        pace.acked(0.5, 1.0)
    before = pace.allowed
    assert 32 < before < 64
    pace.acked(2.5, 2.0)
    assert pace.allowed == pytest.approx(0.8 * before)
    pace.acked(60.0, 3.0)
    assert pace.allowed == pytest.approx(0.4 * before), "at most by half"
    pace.acked(0.5, 4.0)
    assert pace.allowed == pytest.approx(0.4 * before + 0.5), "carefully, once the centre was slow"
    for _ in range(200):
        pace.acked(0.5, 5.0)
    assert pace.allowed == 64


def test_p21_box_among_very_many_pauses_between_two_batches() -> None:
    pace = Pace(DeliverySettings())
    pace.acked(4.0, 10.0)
    assert pace.allowed == 0.5
    assert not pace.may_send(0, 13.9)
    assert pace.may_send(0, 14.0)
    for _ in range(20):
        pace.acked(4.0, 20.0)
    assert pace.allowed == LEAST_ALLOWED, "however slow, it never stops"
    assert pace.may_send(0, 20.0 + 4.0 / LEAST_ALLOWED)


@pytest.mark.parametrize(("boxes", "each"), [(1000, 36), (100, 360), (10, 1000)])
def test_p21_boxes_share_a_centre_and_live_events_hardly_wait_behind_their_backlogs(boxes: int, each: int) -> None:
    """A queue that one server empties in order, as the broker's towards the bridge; an ack a second per box (P15)."""
    per_tick, tick_s, now_s = 43, 0.1, 0.0
    paces, waiting, left = [Pace(DeliverySettings()) for _ in range(boxes)], [0] * boxes, [each] * boxes
    queue, owed, waited = deque[tuple[int, float]](), dict[int, list[float]](), list[float]()
    said_s = [-box / boxes for box in range(boxes)]
    while any(left) or queue or owed:
        for box, pace in enumerate(paces):
            while left[box] and pace.may_send(waiting[box], now_s):
                queue.append((box, now_s))
                waiting[box] += 1
                left[box] -= 1
        waited.append(len(queue) / per_tick * tick_s)  # what an event of now waits
        for _ in range(min(len(queue), per_tick)):
            box, sent_s = queue.popleft()
            owed.setdefault(box, []).append(sent_s)
        for box in [box for box in owed if now_s - said_s[box] >= 1.0]:
            sent = owed.pop(box)
            waiting[box] -= len(sent)
            paces[box].acked(now_s - min(sent), now_s)
            said_s[box] = now_s
        now_s += tick_s
        assert now_s < 300.0
    assert sorted(waited)[int(0.99 * len(waited))] < 4.0
    assert now_s < 1.25 * boxes * each / per_tick * tick_s + 25.0, "and the centre has nearly always something to do"


def test_p21_batch_that_nobody_acks_holds_up_no_other() -> None:
    box = Box()
    box.add(1, *range(1, 4))
    sender = Sender(box, unacked_first=1)
    assert sender.go(0.0) == [(1, 1)]
    assert sender.go(20.0) == []
    assert sender.go(40.0) == [(1, 1), (1, 2)]
    box.done.add(key_of(1, 2))
    sender.delivery.acked(41.0)
    assert sender.go(41.0) == [(1, 3)]


def test_p22_no_more_in_flight_than_the_window() -> None:
    box = Box()
    box.add(2, *range(1, 31))
    sender = Sender(box, window=5)
    assert len(sender.go(0.0, puback=False)) == 5
    sender.delivery.puback(1)
    sender.delivery.puback(2)
    sender.delivery.puback(99)
    assert len(sender.go(0.0, puback=False)) == 2


def test_p8_only_the_first_sending_of_this_life_leaves_the_vocabulary_out() -> None:
    box = Box()
    box.add(1, 1)
    box.add(2, 1)
    delivery = Delivery(box)
    delivery.connected(10)
    old, new = box.rows
    assert (delivery.first_time(old), delivery.first_time(new)) == (False, True)
    delivery.sent(new, 1, 0.0)
    delivery.connected(10)
    assert not delivery.first_time(new)


def test_rows_that_vanish_while_waiting_are_forgotten() -> None:
    """Lost to a bound, say: the resend of it must not block the next."""
    box = Box()
    box.add(2, 1, 2)
    sender = Sender(box)
    sender.go(0.0)
    box.done.add(key_of(2, 1))
    assert sender.go(50.0) == [(2, 2)]
