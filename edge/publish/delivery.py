"""Which batch goes next, and when again: windows, resends, live before backlog. Pure; `now_s` is an argument.

The publisher asks `next` for batches until there are none, and tells what became of each. Nothing in here proves
delivery: a batch is done when the outbox says that it is no longer pending.
"""

import heapq
import random
from dataclasses import dataclass, field
from typing import Protocol

from edge.publish.outbox_file import Row
from edge.publish.ranges import Ranges

LEAST_ALLOWED = 1 / 32  # of a batch under way: with ten thousand boxes, some hundreds


class Pending(Protocol):
    """What delivery needs to know of an outbox."""

    def pending(self, *, after: int = 0, until: int | None = None, limit: int = 100) -> list[Row]: ...
    def is_pending(self, row: Row) -> bool: ...
    def is_current(self, row: Row) -> bool: ...
    @property
    def newest_key(self) -> int: ...


@dataclass(frozen=True, slots=True)
class DeliverySettings:
    """How eagerly to send.

    Attributes:
        resend_s: wait for an ack before sending again; doubles with each try, up to `resend_most_s` (P20).
        backlog_per_s: batches older than the connection, per second (P21).
        unacked: batches sent and not yet acked by the database, beyond which the backlog waits.
        unacked_first: of the backlog, before the first ack says how the centre fares.
        slow_s: an ack that takes longer says that the centre has more than it can do.
    """

    resend_s: float = 30.0
    resend_most_s: float = 480.0
    backlog_per_s: float = 100.0
    unacked: int = 200
    unacked_first: int = 1
    slow_s: float = 2.0


@dataclass(slots=True)
class Pace:
    """How much of the backlog may wait for acks: a thousand boxes that come back at once share one centre.

    What they send ahead of it waits in the broker's queue, which drops silently when it is full, and the live events
    of all boxes wait behind it. So each box sends more while acks come soon and less after a slow one.
    """

    settings: DeliverySettings
    allowed: float = 0.0  # batches; below 1: one, and then a pause
    _ever_slow: bool = False
    _pause_until_s: float = float("-inf")

    def __post_init__(self) -> None:
        self.allowed = float(self.settings.unacked_first)

    def may_send(self, waiting: int, now_s: float) -> bool:
        """Return whether another batch may go while so many of the backlog wait for their ack."""
        return waiting < max(1, int(self.allowed)) and now_s >= self._pause_until_s

    def acked(self, took_s: float, now_s: float) -> None:
        """Learn how long the database took for batches of the backlog.

        The steps were chosen on a simulation of 10 to 5,000 boxes (tests/edge/publish/test_delivery.py has it): larger
        ones make a fleet swing between a full queue and an idle centre.
        """
        if took_s > self.settings.slow_s:
            self._ever_slow = True
            self.allowed = max(LEAST_ALLOWED, self.allowed * max(0.5, self.settings.slow_s / took_s))
        elif self.allowed < 1.0:
            self.allowed *= 1.1
        else:
            more = 0.5 if self._ever_slow else self.allowed / 2
            self.allowed = min(float(self.settings.unacked), self.allowed + more)
        if self.allowed < 1.0:
            self._pause_until_s = now_s + took_s * (1.0 / self.allowed - 1.0)


@dataclass(slots=True)
class _Sent:
    row: Row
    tries: int
    due_s: float
    sent_s: float


@dataclass(slots=True)
class Delivery:
    """The state of sending over one outbox."""

    outbox: Pending
    settings: DeliverySettings = field(default_factory=DeliverySettings)
    rng: random.Random = field(default_factory=random.Random)
    window: int = 0
    _in_flight: dict[int, int] = field(default_factory=dict)  # message id → key, until the broker's PUBACK
    _sent: dict[int, _Sent] = field(default_factory=dict)  # key → until the database's ack
    _due: list[tuple[float, int]] = field(default_factory=list)
    _live: int = 0  # keys above are new
    _live_from: int = 0  # the newest key when the connection came up: up to it is backlog
    _backlog: int = 0  # keys up to this have been sent over this connection
    _waiting: set[int] = field(default_factory=set)  # keys of the backlog that were sent and wait for their ack
    _pace: Pace = field(init=False)
    _once: Ranges = field(default_factory=Ranges)  # of this life, sent at least once over any connection
    _budget: float = 0.0
    _budget_s: float | None = None

    def __post_init__(self) -> None:
        self._pace = Pace(self.settings)

    def connected(self, window: int) -> None:
        """Begin again over a new connection whose broker takes `window` unacknowledged messages (P20, P22)."""
        self.window = window
        self._in_flight.clear()
        self.rewind()

    def disconnected(self) -> None:
        """Send nothing more."""
        self.window = 0
        self._in_flight.clear()

    def rewind(self) -> None:
        """Make everything pending due again: on connect, on a bridge's birth, after a restored database."""
        self._sent.clear()
        self._due.clear()
        self._waiting.clear()
        self._pace = Pace(self.settings)
        self._live = self._live_from = self.outbox.newest_key
        self._backlog = 0

    def puback(self, mid: int) -> None:
        """Free a place in the window. It proves nothing (P14)."""
        self._in_flight.pop(mid, None)

    def acked(self, now_s: float) -> None:
        """Forget what the database holds now, and learn from how long it took."""
        took_s = []
        for key in [key for key, sent in self._sent.items() if not self.outbox.is_pending(sent.row)]:
            sent = self._sent.pop(key)
            if key in self._waiting:
                took_s.append(now_s - sent.sent_s)
            self._waiting.discard(key)
        if took_s:
            self._pace.acked(max(took_s), now_s)

    def sent(self, row: Row, mid: int, now_s: float) -> None:
        """Note that a batch went out under a message id."""
        before = self._sent.get(row.key)
        tries = before.tries + 1 if before else 1
        wait_s = min(self.settings.resend_most_s, self.settings.resend_s * 2.0 ** (tries - 1))
        due_s = now_s + wait_s * (1.0 + 0.2 * self.rng.random())
        self._sent[row.key] = _Sent(row, tries, due_s, now_s)
        if row.key <= self._live_from and tries == 1:
            self._waiting.add(row.key)
        else:  # one that is not acked in time must not hold up what is behind it
            self._waiting.discard(row.key)
        heapq.heappush(self._due, (due_s, row.key))
        self._in_flight[mid] = row.key
        if self.outbox.is_current(row):
            self._once.add(row.first, row.last)

    def first_time(self, row: Row) -> bool:
        """Return whether a batch of this life was never sent, so that its vocabulary is known from the birth (P8)."""
        return self.outbox.is_current(row) and not self._once.covers(row.first, row.last)

    def next(self, now_s: float) -> Row | None:
        """Return the batch to send now: new ones first, then those not acked in time, then backlog; None to wait."""
        if len(self._in_flight) >= self.window:
            return None
        self._refill(now_s)
        row = self._first_after(self._live, None) if len(self._sent) < 2 * self.settings.unacked else None
        if row is None:
            row = self._overdue(now_s) or self._from_backlog(now_s)
        if row is not None:
            self._advance(row)
        return row

    def _overdue(self, now_s: float) -> Row | None:
        while self._due and self._due[0][0] <= now_s:
            due_s, key = heapq.heappop(self._due)
            sent = self._sent.get(key)
            if sent is None or sent.due_s != due_s:
                continue
            if self.outbox.is_pending(sent.row) and self._spend():
                return sent.row
            if self.outbox.is_pending(sent.row):
                heapq.heappush(self._due, (due_s, key))
                return None
            del self._sent[key]
            self._waiting.discard(key)
        return None

    def _from_backlog(self, now_s: float) -> Row | None:
        if not self._pace.may_send(len(self._waiting), now_s):
            return None
        if len(self._sent) >= self.settings.unacked or self._backlog >= self._live_from or self._budget < 1.0:
            return None
        row = self._first_after(self._backlog, self._live_from)
        if row is None:
            self._backlog = self._live_from
        elif not self._spend():
            return None
        return row

    def _first_after(self, key: int, until: int | None) -> Row | None:
        if until is None and self.outbox.newest_key <= key:
            return None
        rows = self.outbox.pending(after=key, until=until, limit=1)
        return rows[0] if rows else None

    def _advance(self, row: Row) -> None:
        if row.key > self._live_from:
            self._live = max(self._live, row.key)
        elif row.key > self._backlog:
            self._backlog = row.key

    def _refill(self, now_s: float) -> None:
        rate = self.settings.backlog_per_s
        if self._budget_s is not None:
            self._budget = min(rate, self._budget + (now_s - self._budget_s) * rate)
        else:
            self._budget = rate
        self._budget_s = now_s

    def _spend(self) -> bool:
        if self._budget < 1.0:
            return False
        self._budget -= 1.0
        return True
