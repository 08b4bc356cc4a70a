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
        unacked: batches sent and not yet acked by the database, beyond which the backlog waits: so it drains at the
            pace of the centre and does not fill the broker's queue, which drops silently.
    """

    resend_s: float = 30.0
    resend_most_s: float = 480.0
    backlog_per_s: float = 100.0
    unacked: int = 200


@dataclass(slots=True)
class _Sent:
    row: Row
    tries: int
    due_s: float


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
    _once: Ranges = field(default_factory=Ranges)  # of this life, sent at least once over any connection
    _budget: float = 0.0
    _budget_s: float | None = None

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
        self._live = self._live_from = self.outbox.newest_key
        self._backlog = 0

    def puback(self, mid: int) -> None:
        """Free a place in the window. It proves nothing (P14)."""
        self._in_flight.pop(mid, None)

    def acked(self) -> None:
        """Forget what the database holds now."""
        for key in [key for key, sent in self._sent.items() if not self.outbox.is_pending(sent.row)]:
            del self._sent[key]

    def sent(self, row: Row, mid: int, now_s: float) -> None:
        """Note that a batch went out under a message id."""
        before = self._sent.get(row.key)
        tries = before.tries + 1 if before else 1
        wait_s = min(self.settings.resend_most_s, self.settings.resend_s * 2.0 ** (tries - 1))
        due_s = now_s + wait_s * (1.0 + 0.2 * self.rng.random())
        self._sent[row.key] = _Sent(row, tries, due_s)
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
            row = self._overdue(now_s) or self._from_backlog()
        if row is not None:
            self._advance(row)
        return row

    def next_due_s(self) -> float | None:
        """Return when the next resend is due, on the clock of `now_s`; None when nothing waits for an ack."""
        return self._due[0][0] if self._due else None

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
        return None

    def _from_backlog(self) -> Row | None:
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
