"""What happens between BEGIN and COMMIT when events are written. Driven by `store.py`.

Lock the streams, sort out what is new, copy it in, count it, cover it. Rollups are fed from rows really inserted.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import psycopg

from bridge import late, ledger, rollups, streams
from bridge import statements as sql
from bridge.batches import Incoming, Parsed
from bridge.columns import Columns
from bridge.connection import Connection, copy
from bridge.graves import Graves
from bridge.letters import bury, quarantine
from bridge.registry import Registry
from bridge.rows import Rows
from bridge.runs import DeadLetter, Lost, Quarantined, Run
from bridge.sqlstate import Verdict, classify
from bridge.streams import Stream
from bridge.table import Table
from edge.wire import Covered, EndReason


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


class Transaction:
    """One transaction's work; made after BEGIN, thrown away after COMMIT."""

    def __init__(
        self,
        connection: Connection,
        registry: Registry,
        known_streams: set[int],
        columns: Columns,
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
        self._columns = columns
        self._runs: list[Run] = []
        self._repeats: list[Run] = []
        self._touched: dict[tuple[str, str], set[int]] = {}
        self._losses: list[Lost] = []
        self._dead: list[DeadLetter] = []
        self._quarantined: list[Quarantined] = []
        self._graves: dict[int, Graves] = {}  # by stream
        self._erased: list[int] = []  # tombstones, one for each event that came too late

    def run(self, messages: Sequence[Incoming], dead: Sequence[DeadLetter], *, careful: bool) -> Written:
        """Do all of it.

        Args:
            messages: those that could be read, in the order of the columns, repeats included.
            dead: messages that could not be read.
            careful: put savepoints around ever smaller halves, to find the rows the database refuses.
        """
        self._dead += dead
        unknown = self._sort_out(messages)
        erased = [run for run in (*self._runs, *self._repeats) if self.streams[run.stream].erased]
        self._graves = late.dig(self._connection, erased)
        ledger.write(self._connection, self._runs, self._columns, self._now)
        if self._repeats:
            oldest = min(self.streams[run.stream].first_at for run in self._repeats)
            found = ledger.conflicts(self._connection, self._repeats, since=oldest)
            self._dead += [letter for letter in found if not late.is_late(letter, self._repeats, self._graves)]
        inserted = 0
        if self._runs:
            inserted = self._bisect(self._runs) if careful else self._apply(self._runs, careful=False)
            inserted += self._write_losses()
        for tombstone, events in sorted(Counter(self._erased).items()):
            self._connection.execute(sql.COUNT_DROPPED, (events, tombstone))
        quarantine(self._connection, self._quarantined)
        bury(self._connection, self._dead)
        if self._runs:
            streams.cover(self._connection, self.streams, self._now)
        return Written(
            inserted,
            sum(len(run) for run in self._repeats),
            len(self._dead),
            len(self._quarantined),
            unknown,
            {box: tuple(self.streams[s].covered(s) for s in sorted(own)) for box, own in self._touched.items()},
            len(self._erased),
        )

    # What is new --------------------------------------------------------------------------------------------------

    def _sort_out(self, messages: Sequence[Incoming]) -> int:
        """Split every batch into runs that are new and runs that were here before; return how many mean nothing yet."""
        box_ids = self._registry.boxes(self._connection, {(m.site, m.box) for m in messages})
        registered: list[tuple[int, Incoming, Parsed, int]] = []
        for place, (message, parsed) in enumerate(zip(messages, self._columns.parsed, strict=True)):
            box_id = box_ids.get((message.site, message.box))
            if box_id is None:  # not covered: once the box is registered, its resend gets in
                error = f"box {message.site}/{message.box} is not registered, and the registry is strict"
                self._dead.append(DeadLetter("unknown box", error, message, message.payload))
                continue
            registered.append((place, message, parsed, box_id))
            if parsed.envelope.vocabulary is not None:
                digest = parsed.envelope.vocabulary_digest
                self._registry.learn(self._connection, box_id, digest, parsed.envelope.vocabulary)
        meanings = self._registry.meanings(
            self._connection, {(box_id, parsed.envelope.vocabulary_digest) for *_, parsed, box_id in registered}
        )
        clear = [item for item in registered if (item[3], item[2].envelope.vocabulary_digest) in meanings]
        clear.sort(key=lambda item: (item[2].envelope.stream, item[2].envelope.first_seq))
        self.streams = self._lock({place: (parsed, box_id) for place, _, parsed, box_id in clear})
        for place, message, parsed, box_id in clear:
            envelope = parsed.envelope
            meaning, stream = meanings[box_id, envelope.vocabulary_digest], self.streams[envelope.stream]
            first, last = envelope.first_seq, parsed.last_seq
            fresh = stream.coverage.missing(first, last)
            self._runs += [Run(message, parsed, meaning, *gap, place) for gap in fresh]
            self._repeats += [Run(message, parsed, meaning, *part, place) for part in _between(fresh, first, last)]
            stream.coverage = stream.coverage.add(first, last)
            self._touched.setdefault((message.site, message.box), set()).add(envelope.stream)
        return len(registered) - len(clear)

    def _lock(self, batches: Mapping[int, tuple[Parsed, int]]) -> dict[int, Stream]:
        """Lock the streams of batches, by place, each with its box."""
        wanted = {parsed.envelope.stream: box_id for parsed, box_id in batches.values()}
        for at, loss in self._columns.losses():  # a loss may cover another stream than the one that tells of it
            _, box_id = batches.get(self._columns.message(at), (None, None))
            if box_id is not None and 0 < loss.stream < 2**63:
                wanted.setdefault(loss.stream, box_id)
        return streams.lock(self._connection, wanted, self._known_streams, self._now)

    # Rows ---------------------------------------------------------------------------------------------------------

    def _bisect(self, runs: Sequence[Run]) -> int:
        """Write what can be written, and dead-letter the events the database refuses."""
        gathered: tuple[list[Any], ...] = (self._losses, self._dead, self._quarantined, self._erased)
        before = [len(items) for items in gathered]
        try:
            with self._connection.transaction():
                self._connection.execute(sql.EMPTY_TEMPORARY)
                return self._apply(runs, careful=True)
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
        self._dead.append(runs[0].letter(runs[0].first, "refused", refused))
        return 0

    def _apply(self, runs: Sequence[Run], *, careful: bool) -> int:
        """Write the rows of some runs; return how many events became rows, losses not counted."""
        execute = self._connection.execute
        rows = Rows(self._columns, runs, int(self._retention.total_seconds() * 1000), self._graves)
        superseded = sorted({run.stream for run in runs if self.streams[run.stream].superseded})
        if superseded:
            execute(sql.RETRACT_CLOSED, {"streams": superseded})
        earliest = datetime.fromtimestamp(rows.earliest_ms / 1000, UTC)
        visits = rows.visits
        if len(visits):
            keys = {name: visits[name] for name in ("stream", "camera_id", "track", "seq")}
            refused = execute(sql.ENDED_BEFORE, keys | {"earliest": earliest}).fetchall()
            if refused:
                rows.refuse_ends([place for (place,) in refused])
            visits = self._insert("visits", rows.visits, rows.visit_rows, careful=careful)
            execute(sql.END_OPEN, keys)
        if len(rows.open):
            copy(self._connection, sql.COPY_OPEN, [rows.open_rows()])
            execute(sql.MERGE_OPEN, {"earliest": earliest})
        self._insert("track_updates", rows.updates, rows.update_rows, careful=careful)
        presence = self._insert("presence", rows.presence, rows.presence_rows, careful=careful)
        if superseded:
            execute(sql.CLOSE_OPEN, {"streams": superseded, "reason": int(EndReason.BOX_RESTARTED)})
        rollups.count(self._connection, visits, presence, rows.pairs)
        if superseded or len(visits) or len(presence):
            rollups.roll_up(self._connection)
        self._losses += rows.losses
        self._dead += rows.dead
        self._quarantined += rows.quarantined
        self._erased += rows.erased
        elsewhere = len(rows.losses) + len(rows.dead) + len(rows.quarantined) + len(rows.erased)
        return sum(len(run) for run in runs) - elsewhere

    def _insert(self, name: str, table: Table, packed: Callable[[], bytes], *, careful: bool) -> Table:
        """Write rows and return those that were not there before; without care, one that was is an error."""
        if not len(table):
            return table
        if not careful:
            copy(self._connection, sql.COPY[name], [packed()])
            return table
        copy(self._connection, sql.COPY[f"in_{name}"], [packed()])
        written = set(self._connection.execute(sql.INSERT[name]).fetchall())
        keys = zip(table["stream"].tolist(), table["seq"].tolist(), strict=True)
        return table.where(np.array([key in written for key in keys], bool))

    def _write_losses(self) -> int:
        written = 0
        for lost in self._losses:
            loss, run = lost.loss, lost.run
            stream = self.streams[loss.stream]
            if stream.box_id != run.meaning.box_id:
                error = f"stream {loss.stream} belongs to another box; a loss covers only a box's own streams"
                self._dead.append(run.letter(lost.seq, "foreign stream", error))
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


def _between(gaps: Sequence[tuple[int, int]], first: int, last: int) -> list[tuple[int, int]]:
    """Return what of first…last lies outside the gaps."""
    edges = [first, *(edge for low, high in gaps for edge in (low - 1, high + 1)), last]
    return [(low, high) for low, high in zip(edges[::2], edges[1::2], strict=True) if low <= high]
