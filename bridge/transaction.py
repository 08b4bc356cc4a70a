"""What happens between BEGIN and COMMIT when events are written. Driven by `store.py`.

Lock the streams, sort out what is new, copy it in, count it, cover it. Rollups are fed from rows really inserted.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg

from bridge import ledger
from bridge import statements as sql
from bridge.batches import Incoming, Parsed
from bridge.connection import Connection, copy
from bridge.erasure import name_tracks, remove_tracks
from bridge.graves import Graves, Key, Span, key_of
from bridge.letters import bury, dead_letter, quarantine
from bridge.ranges import Coverage
from bridge.registry import Registry
from bridge.rows import DeadLetter, Lost, Quarantined, Rows, Run
from bridge.sqlstate import Verdict, classify
from edge.wire import AnyEvent, Covered, EndReason, Loss

COPY_VISITS = "COPY in_visits FROM STDIN (FORMAT binary)"
COPY_UPDATES = "COPY in_updates FROM STDIN (FORMAT binary)"
COPY_PRESENCE = "COPY in_presence FROM STDIN (FORMAT binary)"


@dataclass(frozen=True, slots=True)
class Written:
    """What one committed transaction did; `covered` may now be acknowledged."""

    inserted: int  # events that became rows, losses among them
    duplicates: int  # events that were covered before
    dead_letters: int  # messages and events
    quarantined: int
    unknown_vocabulary: int  # batches left alone: their resend carries the vocabulary
    covered: dict[tuple[str, str], tuple[Covered, ...]]
    erased: int = 0  # events of a time that was erased: covered, and nothing else


@dataclass(slots=True)
class Stream:
    """A locked row of streams."""

    box_id: int
    coverage: Coverage
    superseded: bool
    first_at: datetime
    erased: bool  # something was erased of its box


class Transaction:
    """One transaction's work; made after BEGIN, thrown away after COMMIT."""

    def __init__(
        self,
        connection: Connection,
        registry: Registry,
        known_streams: set[int],
        *,
        now: datetime,
        retention: timedelta,
    ) -> None:
        self.streams: dict[int, Stream] = {}
        self._connection = connection
        self._registry = registry
        self._known_streams = known_streams
        self._now = now
        self._retention = retention
        self._runs: list[Run] = []
        self._repeats: list[Run] = []
        self._touched: dict[tuple[str, str], set[int]] = {}
        self._losses: list[Lost] = []
        self._dead: list[DeadLetter] = []
        self._quarantined: list[Quarantined] = []
        self._graves: dict[int, Graves] = {}  # by stream
        self._erased: list[int] = []  # tombstones, one for each event that came too late

    def run(self, batches: Sequence[tuple[Incoming, Parsed]], dead: Sequence[DeadLetter], *, careful: bool) -> Written:
        """Do all of it.

        Args:
            batches: messages that could be read, in any order, repeats included.
            dead: messages that could not.
            careful: put savepoints around ever smaller halves, to find the rows the database refuses.
        """
        self._dead += dead
        unknown = self._sort_out(batches)
        self._dig()
        ledger.write(self._connection, self._runs, self._now)
        if self._repeats:
            oldest = min(self.streams[run.parsed.batch.stream].first_at for run in self._repeats)
            found = ledger.conflicts(self._connection, self._repeats, since=oldest)
            self._dead += [letter for letter in found if not self._is_erased(letter)]
        inserted = 0
        if self._runs:
            inserted = self._bisect(self._runs) if careful else self._apply(self._runs)
            inserted += self._write_losses()
        for tombstone, events in sorted(Counter(self._erased).items()):
            self._connection.execute(sql.COUNT_DROPPED, (events, tombstone))
        quarantine(self._connection, self._quarantined)
        bury(self._connection, self._dead)
        if self._runs:
            self._write_coverage()
        return Written(
            inserted,
            sum(len(run) for run in self._repeats),
            len(self._dead),
            len(self._quarantined),
            unknown,
            {name: tuple(map(self._ack, sorted(streams))) for name, streams in self._touched.items()},
            len(self._erased),
        )

    # What is new --------------------------------------------------------------------------------------------------

    def _sort_out(self, batches: Sequence[tuple[Incoming, Parsed]]) -> int:
        """Split every batch into runs that are new and runs that were here before; return how many mean nothing yet."""
        box_ids = self._registry.boxes(self._connection, ((m.site, m.box) for m, _ in batches))
        registered: list[tuple[Incoming, Parsed, int]] = []
        for message, parsed in batches:
            box_id = box_ids.get((message.site, message.box))
            if box_id is None:  # not covered: once the box is registered, its resend gets in
                error = f"box {message.site}/{message.box} is not registered, and the registry is strict"
                self._dead.append(DeadLetter("unknown box", error, message, message.payload))
                continue
            registered.append((message, parsed, box_id))
            if parsed.batch.vocabulary is not None:
                digest = parsed.batch.vocabulary_digest
                self._registry.learn(self._connection, box_id, digest, parsed.batch.vocabulary)
        meanings = self._registry.meanings(
            self._connection, ((box_id, parsed.batch.vocabulary_digest) for _, parsed, box_id in registered)
        )
        clear = [item for item in registered if (item[2], item[1].batch.vocabulary_digest) in meanings]
        clear.sort(key=lambda item: (item[1].batch.stream, item[1].batch.first_seq))
        self.streams = self._lock(clear)
        for message, parsed, box_id in clear:
            batch = parsed.batch
            meaning, stream = meanings[box_id, batch.vocabulary_digest], self.streams[batch.stream]
            first, last = batch.first_seq, batch.first_seq + len(batch.events) - 1
            fresh = stream.coverage.missing(first, last)
            self._runs += [Run(message, parsed, meaning, *gap) for gap in fresh]
            self._repeats += [Run(message, parsed, meaning, *part) for part in _between(fresh, first, last)]
            stream.coverage = stream.coverage.add(first, last)
            self._touched.setdefault((message.site, message.box), set()).add(batch.stream)
        return len(registered) - len(clear)

    def _lock(self, batches: Sequence[tuple[Incoming, Parsed, int]]) -> dict[int, Stream]:
        if not batches:
            return {}
        wanted = {parsed.batch.stream: box_id for _, parsed, box_id in batches}
        for _, parsed, box_id in batches:  # a loss may cover another stream than the one that tells of it
            for event in parsed.batch.events:
                if isinstance(event, Loss) and 0 < event.stream < 2**63:
                    wanted.setdefault(event.stream, box_id)
        new = {stream: box_id for stream, box_id in wanted.items() if stream not in self._known_streams}
        if new:
            self._connection.execute(sql.SHARE_BOXES, (sorted(set(new.values())),))
            self._connection.execute(
                sql.NEW_STREAMS, {"streams": list(new), "boxes": list(new.values()), "now": self._now}
            )
        rows = self._connection.execute(sql.LOCK_STREAMS, (list(wanted),)).fetchall()
        if len(rows) < len(wanted) and self._known_streams:  # one was forgotten after the retention
            self._known_streams.clear()
            return self._lock(batches)
        return {
            stream: Stream(box_id, Coverage.from_flat(upto, ranges), superseded, first_at, erased)
            for stream, box_id, upto, ranges, superseded, first_at, erased in rows
        }

    # What was erased ----------------------------------------------------------------------------------------------

    def _dig(self) -> None:
        """Find out which events come too late, and take away what earlier ones of the same visits left."""
        runs = [run for run in (*self._runs, *self._repeats) if self.streams[run.parsed.batch.stream].erased]
        if not runs:
            return
        spans: dict[int, list[Span]] = {}
        for box_id, *span in self._connection.execute(sql.TOMBSTONES, ([run.meaning.box_id for run in runs],)):
            spans.setdefault(box_id, []).append(Span(*span))
        self._graves = {r.parsed.batch.stream: Graves(tuple(spans.get(r.meaning.box_id, ()))) for r in runs}
        told = {key_of(run.parsed.batch.stream, run.meaning, event) for run in runs for event in _events(run)}
        columns = list(zip(*sorted(filter(None, told)), strict=True)) or [(), (), ()]
        for key in self._connection.execute(sql.ERASED_TRACKS, [list(column) for column in columns]).fetchall():
            graves = self._graves[key[0]]
            graves.tracks[key] = graves.spans[0].tombstone
        fresh: set[Key] = set()
        for run in runs:
            batch = run.parsed.batch
            fresh |= self._graves[batch.stream].dig(batch.stream, run.meaning, batch.base_ms, _events(run))
        if fresh:
            name_tracks(self._connection, fresh)
            remove_tracks(self._connection)
            roll_up(self._connection)
            self._connection.execute("TRUNCATE in_delta, in_erased")

    def _is_erased(self, letter: DeadLetter) -> bool:
        """Tell whether a dead letter would keep the bytes of an erased event."""
        graves = self._graves.get(letter.stream or 0)
        if graves is None or letter.seq is None:
            return False
        for run in self._repeats:
            batch = run.parsed.batch
            if batch.stream == letter.stream and run.first <= letter.seq <= run.last:
                event = batch.events[letter.seq - batch.first_seq]
                if graves.holds(batch.stream, run.meaning, event, batch.base_ms) is not None:
                    return True
        return False

    # Rows ---------------------------------------------------------------------------------------------------------

    def _bisect(self, runs: Sequence[Run]) -> int:
        """Write what can be written, and dead-letter the events the database refuses."""
        gathered: tuple[list[Any], ...] = (self._losses, self._dead, self._quarantined, self._erased)
        before = [len(items) for items in gathered]
        try:
            with self._connection.transaction():
                self._connection.execute(sql.EMPTY_TEMPORARY)
                return self._apply(runs)
        except psycopg.Error as error:
            if classify(error) is not Verdict.BAD_ROW:
                raise
            refused = str(error)
        for items, length in zip(gathered, before, strict=True):
            del items[length:]
        if len(runs) > 1:
            middle = len(runs) // 2
            return self._bisect(runs[:middle]) + self._bisect(runs[middle:])
        if len(runs[0]) > 1:
            left, right = runs[0].halves()
            return self._bisect([left]) + self._bisect([right])
        self._dead.append(dead_letter(runs[0], runs[0].first, "refused", refused))
        return 0

    def _apply(self, runs: Sequence[Run]) -> int:
        """Write the rows of some runs; return how many events became rows, losses not counted."""
        execute = self._connection.execute
        rows = Rows(int(self._retention.total_seconds() * 1000), self._graves)
        for run in runs:
            rows.add(run)
        streams = {run.parsed.batch.stream for run in runs}
        superseded = sorted(stream for stream in streams if self.streams[stream].superseded)
        if superseded:
            execute(sql.RETRACT_CLOSED, {"streams": superseded})
        earliest = {"earliest": datetime.fromtimestamp(rows.earliest_ms / 1000, UTC)}
        if rows.visits:
            copy(self._connection, COPY_VISITS, rows.visits)
            if execute(sql.INSERT_VISITS, earliest).fetchone() != (len(rows.visits),):
                for key in execute(sql.REFUSED_VISITS, earliest).fetchall():
                    rows.refuse_end(key)
            execute(sql.END_OPEN)
        if rows.open:
            copy(self._connection, sql.COPY_OPEN, [visit.pack(key) for key, visit in rows.open.items()])
            execute(sql.MERGE_OPEN, earliest)
        if rows.updates:
            copy(self._connection, COPY_UPDATES, rows.updates)
            execute(sql.INSERT_UPDATES)
        if rows.presence:
            copy(self._connection, COPY_PRESENCE, rows.presence)
            execute(sql.INSERT_PRESENCE)
        if superseded:
            execute(sql.CLOSE_OPEN, {"streams": superseded, "reason": int(EndReason.BOX_RESTARTED)})
        if superseded or rows.visits or rows.presence:
            roll_up(self._connection)
        self._losses += rows.losses
        self._dead += rows.dead
        self._quarantined += rows.quarantined
        self._erased += rows.erased
        elsewhere = len(rows.losses) + len(rows.dead) + len(rows.quarantined) + len(rows.erased)
        return sum(len(run) for run in runs) - elsewhere

    def _write_losses(self) -> int:
        written = 0
        for lost in self._losses:
            loss, run = lost.loss, lost.run
            stream = self.streams[loss.stream]
            if stream.box_id != run.meaning.box_id:
                error = f"stream {loss.stream} belongs to another box; a loss covers only a box's own streams"
                self._dead.append(dead_letter(run, lost.seq, "foreign stream", error))
                continue
            missing = stream.coverage.missing(loss.first, loss.last)
            stream.coverage = stream.coverage.add(loss.first, loss.last)
            self._touched[run.message.site, run.message.box].add(loss.stream)
            self._connection.execute(
                sql.INSERT_LOSS,
                (
                    lost.stream, lost.seq, run.meaning.box_id, loss.stream, loss.first, loss.last,
                    sum(last - first + 1 for first, last in missing), loss.reason, run.message.received_at,
                ),
            )  # fmt: skip
            written += 1
        return written

    # What is covered ----------------------------------------------------------------------------------------------

    def _write_coverage(self) -> None:
        streams = list(self.streams)
        coverages = [self.streams[stream].coverage for stream in streams]
        self._connection.execute(
            sql.COVER_STREAMS,
            {
                "streams": streams,
                "upto": [coverage.upto for coverage in coverages],
                "ranges": [f"{{{','.join(map(str, coverage.flat()))}}}" for coverage in coverages],
                "now": self._now,
            },
        )

    def _ack(self, stream: int) -> Covered:
        coverage = self.streams[stream].coverage
        return Covered(stream, coverage.upto, coverage.flat())


def roll_up(connection: Connection) -> None:
    """Add what this transaction counted to the rollups."""
    for rollup in sql.ROLLUPS:
        connection.execute(rollup)


def _events(run: Run) -> Sequence[AnyEvent]:
    start = run.parsed.batch.first_seq
    return run.parsed.batch.events[run.first - start : run.last - start + 1]


def _between(gaps: Sequence[tuple[int, int]], first: int, last: int) -> list[tuple[int, int]]:
    """Return what of first…last lies outside the gaps."""
    edges = [first, *(edge for low, high in gaps for edge in (low - 1, high + 1)), last]
    return [(low, high) for low, high in zip(edges[::2], edges[1::2], strict=True) if low <= high]
