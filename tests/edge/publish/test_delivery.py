"""Which batch goes when, told without a broker, a disk or a clock."""

import random
from itertools import pairwise

import pytest

from edge.publish.delivery import Delivery, DeliverySettings
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
        self.delivery = Delivery(box, DeliverySettings(**settings), random.Random(1))  # type: ignore[arg-type]
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
    sender.delivery.acked()
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
    sender.delivery.acked()
    assert len(sender.go(2.0)) == 5
    box.add(2, 1)
    assert sender.go(2.0) == [(2, 1)], "what is new does not wait behind it"


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
