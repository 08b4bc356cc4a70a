"""The queue between broker and database and its bound."""

import threading
import time
from datetime import UTC, datetime

from bridge.inbox import Delivery, Inbox
from edge.link import Message


def delivery(kind: str, payload: bytes = b"x", box: str = "b1", mid: int = 1) -> Delivery:
    message = Message(f"facefleet/1/lab/{box}/{kind}", payload, 1, False, mid, 1, False)
    return Delivery("lab", box, kind, message, datetime(2026, 1, 1, tzinfo=UTC))


def test_p38_full_queue_turns_away_and_does_not_grow() -> None:
    inbox = Inbox(10_000)
    taken = [inbox.put(delivery("events", b"x" * 1000)) for _ in range(50)]
    assert taken.count(True) == 6  # 1,000 bytes and what surrounds them
    assert inbox.bytes <= 10_000
    assert not inbox.roomy
    inbox.take(100, 1 << 20, 0.0)
    assert inbox.roomy
    assert inbox.put(delivery("events"))


def test_tiny_messages_count_for_what_they_cost() -> None:
    inbox = Inbox(100_000)
    assert sum(inbox.put(delivery("events", b"")) for _ in range(10_000)) < 200


def test_take_keeps_the_order_and_obeys_both_limits() -> None:
    inbox = Inbox(1 << 20)
    for mid in range(10):
        inbox.put(delivery("state" if mid == 3 else "events", b"x" * 1000, mid=mid))
    assert [d.message.mid for d in inbox.take(4, 1 << 20, 0.0)] == [0, 1, 2, 3]
    assert [d.message.mid for d in inbox.take(100, 3100, 0.0)] == [4, 5]
    assert [d.message.mid for d in inbox.take(100, 1, 0.0)] == [6], "one message always comes, however large"


def test_only_the_newest_health_of_a_box_is_kept() -> None:
    inbox = Inbox(1000)
    for n in range(100):
        assert inbox.put(delivery("health", f"{n}".encode(), box=f"b{n % 2}"))
    assert sorted(d.message.payload for d in inbox.take_health()) == [b"98", b"99"]
    assert inbox.take_health() == []


def test_take_returns_at_once_when_something_comes() -> None:
    inbox = Inbox(1000)
    threading.Timer(0.05, lambda: inbox.put(delivery("events"))).start()
    began_s = time.monotonic()
    assert len(inbox.take(10, 1000, 5.0)) == 1
    assert time.monotonic() - began_s < 2.0


def test_take_gathers_while_more_comes_and_not_longer() -> None:
    inbox = Inbox(1 << 20)
    for mid in range(3):
        threading.Timer(0.001 + 0.002 * mid, lambda mid=mid: inbox.put(delivery("events", mid=mid))).start()
    began_s = time.monotonic()
    found = inbox.take(10, 1 << 20, 5.0, gather_s=20.0)
    assert time.monotonic() - began_s < 10.0, "nothing more came"
    assert [d.message.mid for d in found] == list(range(len(found)))


def test_take_gathers_no_more_than_it_may_take() -> None:
    inbox = Inbox(1 << 20)
    for mid in range(5):
        inbox.put(delivery("events", mid=mid))
    began_s = time.monotonic()
    assert len(inbox.take(5, 1 << 20, 5.0, gather_s=20.0)) == 5
    assert time.monotonic() - began_s < 10.0
