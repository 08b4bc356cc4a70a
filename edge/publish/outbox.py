"""What a box may not forget: events on their way to the database, kept until an ack or a counted loss covers them.

Camera threads `append`; one thread, the publisher's, owns everything else. An event is accepted once `commit` has put
it on the disk (P13). It stays *pending* until acks cover its whole batch (P14), and in the file as long as the bounds
allow, for a centre that is restored from an older backup (P23). What must go earlier leaves a `Loss` (P24).
"""

import logging
import sqlite3
import threading
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from uuid import UUID

import msgspec

from edge.errors import OutboxError
from edge.publish.batching import Batcher, Stamped, parts, stamped
from edge.publish.bounds import Bounds
from edge.publish.clock import BoxClock, Stamper
from edge.publish.coverage import Coverage
from edge.publish.held import Held
from edge.publish.outbox_file import (
    DAMAGED,
    FULL,
    SEQ_BITS,
    OutboxFile,
    Row,
    StreamRow,
    code_of,
    key_of,
    set_aside,
)
from edge.publish.ranges import Ranges
from edge.publish.rescue import Rescued
from edge.wire import AnyEvent, Batch, Covered, Loss, LossReason, Vocabulary, decode_batch, encode_batch

log = logging.getLogger(__name__)

TIDY_S = 60.0  # how often age, empty streams and the reserve are looked at
BUFFER_EVENTS = 20_000  # in memory, while the disk refuses to take any
GATHER_EVENTS = 50  # in one batch, while nothing can be sent: so a backlog is few messages
GATHER_ROWS = 24  # that many become one: one at a time would write the card twice as full


@dataclass(frozen=True, slots=True)
class OutboxState:
    """What health says about the outbox; a snapshot that any thread may read."""

    events: int = 0  # accepted and pending
    accepted: int = 0  # of this stream
    bytes: int = 0
    fill: float = 0.0  # of the size bound
    oldest_s: float = 0.0  # of the pending; counts running time only, so that no clock step ages anything
    losses: dict[str, int] = field(default_factory=dict)
    refused: dict[str, int] = field(default_factory=dict)
    trouble: str = ""  # of its disk, as it stands: no room, no reserve, or nothing can be written


class Outbox:
    """Batches of events on the disk, the current stream's and those of earlier lives.

    Args:
        path: the SQLite file; its folder is made.
        stream: this life, see P10.
        vocabulary: of this stream; older streams keep theirs.
        clock: dates events as they enter.
        max_bytes: of pages and log; what is acked goes first, then the oldest.
        max_age_s: of a batch, in running time.
        reserve_bytes: set aside for the day the disk is full; 0 for none.
        deflate: compress batches; pays from about ten events on.

    Raises:
        OutboxError: the file belongs to another process or cannot be made.
    """

    def __init__(
        self,
        path: Path,
        *,
        stream: int,
        vocabulary: Vocabulary,
        clock: Stamper | None = None,
        max_bytes: int = 256 << 20,
        max_age_s: float = 7 * 86400,
        reserve_bytes: int = 4 << 20,
        deflate: bool = False,
    ) -> None:
        self.stream = stream
        self.vocabulary = vocabulary
        self.state = OutboxState()
        self._clock = clock or BoxClock()
        self._path, self._deflate, self._reserve_bytes = path, deflate, reserve_bytes
        self._bounds = Bounds(path, max_bytes=max_bytes, max_age_s=max_age_s, reserve_bytes=reserve_bytes)
        self._batcher = Batcher(stream, vocabulary, vocabulary.digest())
        self._coverage = Coverage()
        self._lock = threading.Lock()
        self._buffer: list[Stamped] = []
        self._refused: Counter[str] = Counter()
        self._losses: Counter[str] = Counter()
        self._trouble = ""
        self._cramped = ""  # why the file may not grow: the disk is full
        self._logged = ""  # said in the journal already
        self._began_s: float | None = None  # monotonic time of the first commit
        self._tidied_s = 0.0
        self.gather = False  # nothing can be sent at present: the newest batches, never sent, may become one
        self._loose = 0  # batches since the last that was gathered
        self._sent = 0  # the newest event of this stream that has left the file
        self.retakes = 0  # how often acked events became pending again
        self._unsaid: list[Loss] = []  # losses found before the next commit can say them
        self._unreadable: dict[int, Row] = {}
        self._suspect: sqlite3.DatabaseError | None = None
        self._load()

    # -- from any thread ---------------------------------------------------------------------------------------------

    def append(self, events: Sequence[AnyEvent]) -> None:
        """Take events whose `t_ms` is on the process's timeline (monotonic or media), and date them.

        They are accepted at the next commit. What cannot be kept is counted in `OutboxState.refused` (P25).
        """
        entries: list[Stamped] = []
        for event in events:
            try:
                t_ms, clock = self._clock.stamp(0.0 if isinstance(event, Loss) else event.t_ms / 1000.0)
                self._batcher.check(event, t_ms, clock)
            except (TypeError, ValueError, OverflowError, msgspec.MsgspecError) as error:
                log.error("refused an event that cannot be put on the wire: %r: %s", event, error)
                self._refuse("invalid", 1)
            else:
                entries.append((t_ms, clock, event))
        with self._lock:
            room = max(0, BUFFER_EVENTS - len(self._buffer))
            self._buffer += entries[:room]
        if len(entries) > room:
            self._refuse("buffer", len(entries) - room)

    def idle(self) -> bool:
        """Return whether every event taken so far is acked, or counted as lost or refused."""
        with self._lock:
            return not self._buffer and self.state.events == 0

    # -- from the owning thread --------------------------------------------------------------------------------------

    def use(self, database: UUID) -> None:
        """Say which database's acks count (P18); what only another one holds is pending again."""
        if self._coverage.use(database, self._held.streams):
            self._refresh(self._began_s or 0.0)

    def commit(self, now_s: float) -> int:
        """Put what was appended on the disk in one transaction, making room where it is needed.

        Args:
            now_s: monotonic.

        Returns:
            How many events were accepted. 0 with `state.trouble` set when the disk refuses: they stay in memory.
        """
        if self._began_s is None:
            self._began_s = self._tidied_s = now_s
            self._coverage.begin(now_s)
        self.retakes += self._coverage.settle_doubts(self._held.streams, now_s)
        with self._lock:
            entries = list(self._buffer)
        accepted = 0
        try:
            if self._suspect is not None:
                raise self._suspect
            accepted = self._write(entries, now_s)
        except sqlite3.DatabaseError as error:
            accepted = self._recover(error, entries, now_s)
        self._refresh(now_s)
        with self._lock:
            del self._buffer[:accepted]  # after the count of pending events has them, so that `idle` never lies
        return accepted

    @property
    def newest_key(self) -> int:
        """The key of the newest batch, 0 when there never was one."""
        return self._newest_key

    def pending(self, *, after: int = 0, until: int | None = None, limit: int = 100) -> list[Row]:
        """Return batches that may not be forgotten, oldest first, with keys above `after` and up to `until`."""
        found: list[Row] = []
        try:
            for row in self._held.walk(lambda stream: stream.pending(), after):
                if until is not None and row.key > until:
                    break
                found.append(row)
                if len(found) >= limit:
                    break
        except sqlite3.DatabaseError as error:
            self._suspect = error  # the next commit deals with it
        return found

    def is_pending(self, row: Row) -> bool:
        """Return whether a batch is still in the file and not wholly covered (P14)."""
        return self._held.is_pending(row)

    def is_current(self, row: Row) -> bool:
        """Return whether a batch belongs to this life, whose birth message carries the vocabulary."""
        return row.place == self._here.place

    def payload(self, row: Row, *, inline_vocabulary: bool) -> bytes | None:
        """Return the bytes to send; None when the disk has spoilt them: the next commit says so with a loss.

        Args:
            row: a batch from `pending`.
            inline_vocabulary: append the vocabulary, as every resend does (P8); nothing else changes (P12).
        """
        if self.is_current(row):
            self._sent = max(self._sent, row.last)
        try:
            raw = self._held.file.payload(row)
        except sqlite3.DatabaseError as error:
            self._suspect = error
            return None
        if raw is None:
            self._unreadable[row.key] = row
            return None
        if not inline_vocabulary:
            return raw
        batch = msgspec.structs.replace(decode_batch(raw), vocabulary=self._held.streams[row.place].vocabulary)
        return encode_batch(batch, deflate=self._deflate)

    def cover(self, database: UUID, covered: Iterable[Covered], now_s: float, *, complete: bool = False) -> int:
        """Learn what the database holds (see `Coverage.cover`); return how many events are newly covered."""
        newly = self._coverage.cover(self._held.streams, database, covered, now_s, complete)
        self.state = replace(self.state, events=self._held.waiting())
        return newly

    def close(self, now_s: float | None = None) -> None:
        """Commit what is left and close the file."""
        if now_s is not None:
            self._coverage.save_next()
            self.commit(now_s)
        if self._buffer:
            log.error(
                "outbox %s: %d events were never written and end with this process", self._path, len(self._buffer)
            )
        self._held.file.close()

    # -- reading the file --------------------------------------------------------------------------------------------

    def _load(self) -> None:
        try:
            self._open()
        except sqlite3.DatabaseError as error:
            if code_of(error) in DAMAGED:
                self._replace(set_aside(self._path), {}, error)
            elif code_of(error) in FULL:
                self._open_on_full_disk(error)
            else:
                raise OutboxError(f"outbox {self._path} cannot be read: {error}") from error
        if self._here.last:
            self._held.file.close()
            raise OutboxError(f"outbox {self._path} already has stream {self.stream:016x}: a process draws its own")

    def _open(self) -> None:
        file = self._new_file()
        try:
            self._read(file)
        except BaseException:
            file.leave()
            raise

    def _new_file(self) -> OutboxFile:
        return OutboxFile(self._path, reserve_bytes=self._reserve_bytes, log_bytes=self._bounds.log_bytes)

    def _open_on_full_disk(self, error: sqlite3.DatabaseError) -> None:
        self._path.with_name(self._path.name + ".reserve").unlink(missing_ok=True)
        try:
            self._open()
        except sqlite3.DatabaseError as again:
            raise OutboxError(
                f"outbox {self._path} cannot be opened: {error}; free at least 1 MB on that disk"
            ) from again

    def _read(self, file: OutboxFile) -> None:
        self._held = Held(file, {row.place: row for row in file.streams()})
        newest = file.end(newest=True)
        self._newest_key = newest.key if newest else 0
        if self._began_s is None:
            self._base_s = newest.made_s if newest else 0  # running time before this life
        database, floor_s = file.get("database"), file.get("floor_s")
        self._coverage.database = database if isinstance(database, bytes) else self._coverage.database
        if isinstance(self._clock, BoxClock) and isinstance(floor_s, int):
            self._clock.raise_floor(float(floor_s))
        same = [row for row in self._held.streams.values() if row.stream == self.stream]
        place = max([*self._held.streams, self._newest_key >> SEQ_BITS]) + 1
        self._here = same[0] if same else StreamRow(place, self.stream, self.vocabulary, Ranges(), Ranges())
        self._held.streams[self._here.place] = self._here
        self._refresh(0.0)

    # -- writing it --------------------------------------------------------------------------------------------------

    def _write(self, entries: Sequence[Stamped], now_s: float, make_room_bytes: int = 0) -> int:
        """Do one commit; memory follows only when the disk has it."""
        tidy = now_s - self._tidied_s >= TIDY_S
        save = self._coverage.due(now_s)
        if not (entries or tidy or save or make_room_bytes or self._unsaid or self._unreadable):
            return 0
        gone: dict[int, Ranges] = {}
        lost: Counter[str] = Counter()
        held, file, streams = self._held, self._held.file, self._held.streams
        with file.transaction():
            losses = list(self._unsaid)
            losses += self._bounds.drop(held, list(self._unreadable.values()), LossReason.DAMAGED, gone, lost)
            losses += self._bounds.make_room(held, make_room_bytes, gone, lost)
            if tidy:
                losses += self._bounds.drop_old(held, self._made_s(now_s), gone, lost)
            now_ms, trust = self._clock.stamp(now_s)
            new = self._insert([*((now_ms, trust, loss) for loss in losses), *entries], self._made_s(now_s))
            changed = set(gone) | (self._coverage.unsaved if save else set())
            if new and not self._here.last:
                changed.add(self._here.place)
            for place in changed:
                row = streams[place]
                file.put_stream(replace(row, gone=row.gone | gone.get(place, Ranges())))
            if save:
                file.put("database", self._coverage.database)
            if tidy:
                file.put("floor_s", now_ms // 1000)
                empty = [place for place in streams if self._forgotten(place, gone)]
                for place in empty:
                    file.delete_stream(place)
        for place, dropped in gone.items():
            streams[place].gone = streams[place].gone | dropped
        if new:
            self._loose = self._loose + len(new) if new[0].first > self._here.last else 0
            self._here.last, self._newest_key = new[-1].last, new[-1].key
        self._losses += lost
        self._unsaid.clear()
        self._unreadable.clear()
        self._coverage.unsaved -= changed
        if save:
            self._coverage.saved(now_s)
        if tidy:
            self._bounds.losing = self._bounds.losing if lost else None
            self._logged = self._cramped and self._logged
            self._tidied_s = now_s
            for place in empty:
                del streams[place]
            if self._cramped and file.grow_again():
                self._cramped = ""
            if not self._cramped:
                file.take_reserve()
        self._trouble = self._cramped  # whatever it was before, the disk has just taken something
        return len(entries)

    def _insert(self, entries: Sequence[Stamped], made_s: int) -> list[Row]:
        rows: list[Row] = []
        first_seq, oldest_s = self._here.last + 1, made_s
        if entries and self.gather and self._loose >= GATHER_ROWS:
            loose = self._unsent(GATHER_EVENTS - len(entries))
            if len(loose) >= GATHER_ROWS:
                self._held.file.delete([row for row, _ in loose])
                entries = [*(one for _, batch in loose for one in stamped(batch)), *entries]
                first_seq, oldest_s = loose[0][0].first, loose[0][0].made_s
        for part in parts(entries):
            for batch in self._batcher.batches(part, first_seq):
                row = Row(key_of(self._here.place, batch.first_seq), batch.first_seq + len(batch.events) - 1, oldest_s)
                self._held.file.insert(row, encode_batch(batch, deflate=self._deflate))
                rows.append(row)
            first_seq += len(part)
        return rows

    def _unsent(self, most: int) -> list[tuple[Row, Batch]]:
        """Return this life's newest batches that nobody has seen (P12), of `most` events in all, oldest first."""
        last = end = self._here.last
        found: list[tuple[Row, Batch]] = []
        for row in reversed(self._held.file.rows(self._here.place, max(1, last - most + 1), last)):
            raw = self._held.file.payload(row) if row.first > self._sent else None
            if raw is None or last - row.first + 1 > most or row.last != end:  # a hole's numbers belong to its loss
                break
            found.append((row, decode_batch(raw)))
            end = row.first - 1
        return found[::-1]

    def _recover(self, error: sqlite3.DatabaseError, entries: Sequence[Stamped], now_s: float) -> int:
        """Meet a full disk or a damaged file, then try once more."""
        self._suspect = None
        try:
            if code_of(error) in DAMAGED:
                self._replace(self._held.file.abandon(), self._held.streams, error)
                return self._write(entries, now_s)
            if code_of(error) in FULL:
                file = self._held.file
                released = file.release_reserve()
                file.checkpoint()
                file.stop_growing()
                self._cramped = "disk full, " + ("reserve released" if released else "the oldest events go")
                accepted = self._write(entries, now_s, make_room_bytes=max(64 * 1024, self._reserve_bytes // 4))
                file.checkpoint()
                self._log_trouble(self._cramped)
                return accepted
        except sqlite3.DatabaseError as again:
            error = again
        self._trouble = f"cannot write: {error}"
        self._log_trouble(self._trouble)
        return 0

    def _replace(self, aside: Path, known: dict[int, StreamRow], error: sqlite3.DatabaseError) -> None:
        """Start a new file with what can be read of the damaged one; the rest of what was pending is lost, and said."""
        found = Rescued.of(aside, known, self.vocabulary)
        log.critical(
            "outbox %s is damaged (%s): kept as %s, %d batches saved from it",
            self._path, error, aside, len(found.batches),
        )  # fmt: skip
        for loss in found.missing():
            self._unsaid.append(loss)
            if loss.reason == LossReason.DAMAGED:  # else it was counted when it was said first
                self._losses["damaged"] += loss.last - loss.first + 1
        fresh = self._new_file()
        found.write(fresh, self._coverage.database)
        fresh.close()
        self._unreadable.clear()
        self._open()

    # -- small ones --------------------------------------------------------------------------------------------------

    def _forgotten(self, place: int, gone: dict[int, Ranges]) -> bool:
        left = self._held.streams[place].held() - gone.get(place, Ranges())
        return place != self._here.place and not left

    def _made_s(self, now_s: float) -> int:
        return int(self._base_s + now_s - (self._began_s if self._began_s is not None else now_s))

    def _refuse(self, reason: str, count: int) -> None:
        with self._lock:
            self._refused[reason] += count
            self.state = replace(self.state, refused=dict(self._refused))

    def _log_trouble(self, trouble: str) -> None:
        if trouble != self._logged:
            log.error("outbox %s: %s", self._path, trouble)
        self._logged = trouble

    def _refresh(self, now_s: float) -> None:
        oldest = self.pending(limit=1)
        try:
            used = self._held.file.page_bytes() + self._held.file.log_bytes()
        except sqlite3.DatabaseError as error:
            self._suspect, used = error, self.state.bytes
        with self._lock:
            self.state = OutboxState(
                events=self._held.waiting(),
                accepted=self._here.last,
                bytes=used,
                fill=used / self._bounds.max_bytes,
                oldest_s=float(max(0, self._made_s(now_s) - oldest[0].made_s)) if oldest else 0.0,
                losses=dict(self._losses),
                refused=dict(self._refused),
                trouble=self._trouble or ("" if self._held.file.reserved else "no room on the disk for its reserve"),
            )
