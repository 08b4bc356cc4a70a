"""Events → rows, without a database: what each becomes, what is quarantined, what is a dead letter.

`transaction.py` drives it: `Rows.add` for each run of events that is new to the database.
"""

import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import assert_never

from bridge.batches import Incoming, Parsed
from bridge.copy import Layout, timestamp
from bridge.graves import Graves, Key
from bridge.meaning import EMPTY, Meaning
from edge.wire import Confirmed, Ended, Loss, Presence, Update, WireError

FUTURE_MS = 5 * 60_000  # P32

VISIT = Layout("qiqqqqqhhhhhhhhihi", tail=2)
OPEN = Layout("qiqqqqqhhhhhhhhi", tail=2)
UPDATE = Layout("qqqiqqhhhhh", tail=2)
PRESENCE = Layout("qqqiiiqi")


@dataclass(frozen=True, slots=True)
class Run:
    """Consecutive events of one message, first…last: all new to the database, or all covered before."""

    message: Incoming
    parsed: Parsed
    meaning: Meaning
    first: int
    last: int

    def __len__(self) -> int:
        return self.last - self.first + 1

    def halves(self) -> tuple["Run", "Run"]:
        """Split, to find a bad row."""
        middle = (self.first + self.last) // 2
        return (
            Run(self.message, self.parsed, self.meaning, self.first, middle),
            Run(self.message, self.parsed, self.meaning, middle + 1, self.last),
        )


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """What cannot become a row, with bytes that can be published again."""

    reason: str
    error: str
    message: Incoming
    raw: bytes
    stream: int | None = None
    seq: int | None = None


@dataclass(frozen=True, slots=True)
class Quarantined:
    """An event whose time is beyond belief (P32)."""

    stream: int
    seq: int
    at_ms: int
    message: Incoming
    raw: bytes


@dataclass(frozen=True, slots=True)
class Lost:
    """A loss a box reports, and where it said so."""

    stream: int
    seq: int
    loss: Loss
    run: Run


@dataclass(slots=True)
class OpenVisit:
    """What is known of a visit without its end. Merging is commutative, associative, idempotent (P35)."""

    first_seq: int
    last_seq: int
    started_ms: int
    last_ms: int
    entry: tuple[int, int]
    exit: tuple[int, int]
    wh: tuple[int, int]
    score: int
    clock: int
    vocabulary_id: int
    labels: bytes
    confidences: bytes

    def merge(self, other: "OpenVisit") -> None:
        """Take what `other` knows; the later sequence number says where somebody is, the earlier where from."""
        if other.last_seq > self.last_seq:
            self.last_seq, self.exit, self.wh = other.last_seq, other.exit, other.wh
            self.clock, self.vocabulary_id = other.clock, other.vocabulary_id
            self.labels, self.confidences = other.labels, other.confidences
        if other.first_seq < self.first_seq:
            self.first_seq, self.entry = other.first_seq, other.entry
        self.started_ms = min(self.started_ms, other.started_ms)
        self.last_ms = max(self.last_ms, other.last_ms)
        self.score = max(self.score, other.score)

    def pack(self, key: Key) -> bytes:
        """Return the row for open_visits."""
        return OPEN.pack(
            (
                *key, self.first_seq, self.last_seq, timestamp(self.started_ms), timestamp(self.last_ms),
                *self.entry, *self.exit, *self.wh, self.score, self.clock, self.vocabulary_id,
            ),
            self.labels,
            self.confidences,
        )  # fmt: skip


@dataclass(slots=True)
class Rows:
    """Rows of one transaction, packed for COPY, and what does not become a row."""

    retention_ms: int
    graves: Mapping[int, Graves] = field(default_factory=dict)  # by stream, of boxes of which something was erased
    visits: list[bytes] = field(default_factory=list)
    updates: list[bytes] = field(default_factory=list)
    presence: list[bytes] = field(default_factory=list)
    open: dict[Key, OpenVisit] = field(default_factory=dict)
    ended: dict[Key, tuple[int, Run]] = field(default_factory=dict)
    earliest_ms: int = 2**45  # of any visit touched: where to look for its end
    losses: list[Lost] = field(default_factory=list)
    dead: list[DeadLetter] = field(default_factory=list)
    quarantined: list[Quarantined] = field(default_factory=list)
    erased: list[int] = field(default_factory=list)  # the tombstones of events that came too late

    def add(self, run: Run) -> None:
        """Turn a run into rows; an event that cannot be one becomes a dead letter, and its neighbours live."""
        batch = run.parsed.batch
        base, stream, start = batch.base_ms, batch.stream, batch.first_seq
        now_ms = int(run.message.received_at.timestamp() * 1000)
        oldest, newest = now_ms - self.retention_ms, now_ms + FUTURE_MS
        graves = self.graves.get(stream)
        for seq in range(run.first, run.last + 1):
            event = batch.events[seq - start]
            if run.parsed.illegible and seq in run.parsed.illegible:
                self.bury(run, seq, "unknown event", run.parsed.illegible[seq])
                continue
            if graves is not None and (tombstone := graves.holds(stream, run.meaning, event, base)) is not None:
                self.erased.append(tombstone)
                continue
            if isinstance(event, Loss):
                self._loss(run, seq, event)
                continue
            at_ms = base + event.t_ms
            end_ms = at_ms + event.dwell_ms if isinstance(event, Ended) else at_ms
            if not (oldest <= at_ms <= newest and end_ms <= newest):
                shown = max(-(2**63), min(2**63 - 1, at_ms if at_ms < oldest else end_ms))
                self.quarantined.append(Quarantined(stream, seq, shown, run.message, run.parsed.single(seq)))
                continue
            try:
                self._event(run, seq, event, at_ms)
            except (WireError, struct.error) as error:
                self.bury(run, seq, "invalid", str(error))

    def refuse_end(self, key: Key) -> None:
        """Take back an `ended` whose visit had ended before (P33)."""
        seq, run = self.ended[key]
        self.bury(run, seq, "second end", "this visit ended before; the row that came first stands")

    def bury(self, run: Run, seq: int, reason: str, error: str) -> None:
        """Make a dead letter of one event."""
        stream = run.parsed.batch.stream
        self.dead.append(DeadLetter(reason, error, run.message, run.parsed.single(seq), stream, seq))

    def _loss(self, run: Run, seq: int, loss: Loss) -> None:
        if 0 < loss.stream < 2**63 and 0 < loss.first <= loss.last < 2**62 and 0 <= loss.reason < 2**15:
            self.losses.append(Lost(run.parsed.batch.stream, seq, loss, run))
        else:
            self.bury(run, seq, "invalid", f"impossible loss {loss}")

    def _event(self, run: Run, seq: int, event: Confirmed | Update | Ended | Presence, at_ms: int) -> None:
        batch, meaning = run.parsed.batch, run.meaning
        stream, clock, camera_id = batch.stream, batch.clock, meaning.camera_id(event.camera)
        if isinstance(event, Presence):
            self.presence.append(
                PRESENCE.pack(
                    (
                        stream, seq, timestamp(at_ms), camera_id,
                        event.period_ms, event.most, event.person_ms, event.entered,
                    )
                )
            )  # fmt: skip
            return
        key = (stream, camera_id, event.track)
        match event:
            case Confirmed():
                seen = OpenVisit(
                    seq, seq, at_ms, at_ms, (event.x, event.y), (event.x, event.y), (event.w, event.h),
                    event.score, clock, meaning.vocabulary_id, EMPTY, EMPTY,
                )  # fmt: skip
                seen.pack(key)  # what does not fit a column must show here, where it costs one event
                self._seen(key, seen)
            case Update():
                if not 0 <= event.dwell_ms <= self.retention_ms:
                    raise WireError(f"dwell of {event.dwell_ms} ms, expected 0 to the retention")
                labels, confidences = meaning.attributes(event.attributes)
                self.updates.append(
                    UPDATE.pack(
                        (
                            stream, seq, timestamp(at_ms), camera_id, event.track, event.dwell_ms,
                            event.x, event.y, event.w, event.h, event.score,
                        ),
                        labels,
                        confidences,
                    )
                )  # fmt: skip
                seen = OpenVisit(
                    seq, seq, at_ms - event.dwell_ms, at_ms, (event.x, event.y), (event.x, event.y),
                    (event.w, event.h), event.score, clock, meaning.vocabulary_id, labels, confidences,
                )  # fmt: skip
                self._seen(key, seen)
            case Ended():
                labels, confidences = meaning.attributes(event.attributes)
                row = VISIT.pack(
                    (
                        *key, seq, timestamp(at_ms), timestamp(at_ms + event.dwell_ms), event.dwell_ms, event.reason,
                        event.entry_x, event.entry_y, event.exit_x, event.exit_y, event.w, event.h, event.score,
                        event.hits, clock, meaning.vocabulary_id,
                    ),
                    labels,
                    confidences,
                )  # fmt: skip
                if key in self.ended:
                    raise WireError(f"track {event.track} ended twice in one transaction")
                self.visits.append(row)
                self.ended[key] = (seq, run)
                self.open.pop(key, None)
                self.earliest_ms = min(self.earliest_ms, at_ms)
            case _:
                assert_never(event)

    def _seen(self, key: Key, seen: OpenVisit) -> None:
        if key in self.ended:
            return
        self.earliest_ms = min(self.earliest_ms, seen.started_ms)
        known = self.open.get(key)
        if known is None:
            self.open[key] = seen
        else:
            known.merge(seen)
