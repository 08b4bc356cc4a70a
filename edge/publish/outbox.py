"""What a box may not forget: events on their way to the database, kept until an ack or a counted loss covers them.

Camera threads `append`; one thread, the publisher's, owns everything else. An event is accepted once `commit` has put
it on the disk (P13). It stays *pending* until acks cover its whole batch (P14), and in the file as long as the bounds
allow, for a centre that is restored from an older backup (P23). What must go earlier leaves a `Loss` (P24).
"""

import logging
import sqlite3
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from uuid import UUID

import msgspec

from edge.errors import OutboxError
from edge.publish.clock import BoxClock, Stamper
from edge.publish.outbox_file import (
    DAMAGED,
    FULL,
    SEQ_BITS,
    OutboxFile,
    Row,
    StreamRow,
    code_of,
    key_of,
    salvage,
    set_aside,
)
from edge.publish.ranges import Ranges
from edge.wire import (
    MAX_BYTES,
    MAX_EVENTS,
    SCHEMA,
    AnyEvent,
    Batch,
    Clock,
    Covered,
    Loss,
    LossReason,
    Vocabulary,
    decode_batch,
    encode_batch,
)

log = logging.getLogger(__name__)

SAVE_COVERED_S = 10.0  # acks are written down this often: forgetting one costs a resend, writing each costs a page
TIDY_S = 60.0  # how often age, empty streams and the reserve are looked at
DOUBT_S = 5.0  # an ack that says less than we know is believed after this long: a late one is corrected sooner
BUFFER_EVENTS = 20_000  # in memory, while the disk refuses to take any
DROP_ROWS = 500  # batches that go in one transaction
GATHER_EVENTS = 50  # in one batch, while nothing can be sent: so a backlog is few messages
GATHER_ROWS = 24  # that many become one: one at a time would write the card twice as full

Stamped = tuple[int, Clock, AnyEvent]


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
        self._path, self._deflate = path, deflate
        self._max_bytes, self._max_age_s, self._reserve_bytes = max_bytes, max_age_s, reserve_bytes
        self._lock = threading.Lock()
        self._buffer: list[Stamped] = []
        self._refused: Counter[str] = Counter()
        self._losses: Counter[str] = Counter()
        self._trouble = ""
        self._cramped = ""  # why the file may not grow: the disk is full
        self._losing: LossReason | None = None  # said in the journal already
        self._logged = ""  # as well
        self._log_bytes = min(1 << 20, max_bytes // 8, reserve_bytes // 2 or max_bytes)  # the reserve must hold it
        self._page_bytes = max_bytes - self._log_bytes - min(256 << 10, max_bytes // 16)  # a commit may overshoot
        self._began_s: float | None = None  # monotonic time of the first commit
        self._tidied_s = self._saved_s = 0.0
        self._doubts: dict[int, tuple[Ranges, float]] = {}
        self._named_s: dict[int, float] = {}  # when an ack last spoke of a stream
        self._unsaved: set[int] = set()  # places whose covered ranges changed
        self._database: bytes = b""
        self._database_unsaved = False
        self.gather = False  # nothing can be sent at present: the newest batches, never sent, may become one
        self._loose = 0  # batches since the last that was gathered
        self._sent = 0  # the newest event of this stream that has left the file
        self.retakes = 0  # how often acked events became pending again
        self._unsaid: list[Loss] = []  # losses found before the next commit can say them
        self._unreadable: dict[int, Row] = {}
        self._suspect: sqlite3.DatabaseError | None = None
        self._digest = vocabulary.digest()
        self._load()

    # -- from any thread ---------------------------------------------------------------------------------------------

    def append(self, events: Sequence[AnyEvent]) -> None:
        """Take events whose `t_ms` is on the process's timeline (monotonic or media), and date them.

        They are accepted at the next commit. What cannot be kept is counted in `OutboxState.refused` (P25).
        """
        stamped: list[Stamped] = []
        for event in events:
            try:
                t_ms, clock = self._clock.stamp(0.0 if isinstance(event, Loss) else event.t_ms / 1000.0)
                one = Batch(SCHEMA, self.stream, 1, t_ms, clock, self._digest, (_at(event, 0),), self.vocabulary)
                decode_batch(encode_batch(one))  # what we cannot read ourselves must not reach the bridge
            except (TypeError, ValueError, OverflowError, msgspec.MsgspecError) as error:
                log.error("refused an event that cannot be put on the wire: %r: %s", event, error)
                self._refuse("invalid", 1)
            else:
                stamped.append((t_ms, clock, event))
        with self._lock:
            room = max(0, BUFFER_EVENTS - len(self._buffer))
            self._buffer += stamped[:room]
        if len(stamped) > room:
            self._refuse("buffer", len(stamped) - room)

    def idle(self) -> bool:
        """Return whether every event taken so far is acked, or counted as lost or refused."""
        with self._lock:
            return not self._buffer and self.state.events == 0

    # -- from the owning thread --------------------------------------------------------------------------------------

    def use(self, database: UUID) -> None:
        """Say which database's acks count (P18); what only another one holds is pending again."""
        if database.bytes == self._database:
            return
        if self._database:
            for row in self._streams.values():
                row.covered = Ranges()
        self._doubts.clear()
        self._database = database.bytes
        self._unsaved |= {row.place for row in self._streams.values() if row.last}
        self._database_unsaved = True
        self._refresh(self._began_s or 0.0)

    def commit(self, now_s: float) -> int:
        """Put what was appended on the disk in one transaction, making room where it is needed.

        Args:
            now_s: monotonic.

        Returns:
            How many events were accepted. 0 with `state.trouble` set when the disk refuses: they stay in memory.
        """
        if self._began_s is None:
            self._began_s = self._tidied_s = self._saved_s = now_s
        self._settle_doubts(now_s)
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
            for row in self._walk(lambda stream: stream.pending(), after):
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
        stream = self._streams.get(row.place)
        return stream is not None and not (
            stream.gone.covers(row.first, row.last) or stream.covered.covers(row.first, row.last)
        )

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
            raw = self._file.payload(row)
        except sqlite3.DatabaseError as error:
            self._suspect = error
            return None
        if raw is None:
            self._unreadable[row.key] = row
            return None
        if not inline_vocabulary:
            return raw
        batch = msgspec.structs.replace(decode_batch(raw), vocabulary=self._streams[row.place].vocabulary)
        return encode_batch(batch, deflate=self._deflate)

    def cover(self, database: UUID, covered: Iterable[Covered], now_s: float, *, complete: bool = False) -> int:
        """Learn what the database holds; return how many events are newly covered.

        What an ack adds is believed at once (P16). What it no longer names is doubted, and pending again when no ack
        has named it within a few seconds: then the centre was restored from an older backup (P23). A `complete` ack
        that leaves a stream out says that the database holds nothing of it.
        """
        if database.bytes != self._database:
            return 0
        by_stream = {row.stream: row for row in self._streams.values()}
        newly = 0
        covered = list(covered)
        if complete:
            named = {said.stream for said in covered}
            covered += [Covered(stream, 0) for stream in by_stream if stream not in named]
        for said in covered:
            row = by_stream.get(said.stream)
            if row is None:
                continue
            self._named_s[row.place] = now_s
            held = Ranges.from_flat((1, said.upto, *said.ranges) if said.upto > 0 else said.ranges)
            held.discard(row.last + 1, max(row.last + 1, held.top))  # nobody can hold what was never accepted
            fresh = (held - row.covered) & row.held()
            if fresh:
                newly += fresh.count()
                row.covered = row.covered | held
                self._unsaved.add(row.place)
            missing = (row.covered - held) & row.held()
            if said.ranges:  # a bridge may name only the first few ranges: above them, silence means nothing
                missing.discard(held.top + 1, max(held.top + 1, missing.top))
            if missing:
                before, since_s = self._doubts.get(row.place, (missing, now_s))
                self._doubts[row.place] = (missing, since_s if before & missing else now_s)
            else:
                self._doubts.pop(row.place, None)
        self.state = replace(self.state, events=self._waiting())
        return newly

    def close(self, now_s: float | None = None) -> None:
        """Commit what is left and close the file."""
        if now_s is not None:
            self._saved_s = float("-inf")
            self.commit(now_s)
        if self._buffer:
            log.error(
                "outbox %s: %d events were never written and end with this process", self._path, len(self._buffer)
            )
        self._file.close()

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
            self._file.close()
            raise OutboxError(f"outbox {self._path} already has stream {self.stream:016x}: a process draws its own")

    def _open(self) -> None:
        self._file = OutboxFile(self._path, reserve_bytes=self._reserve_bytes, log_bytes=self._log_bytes)
        try:
            self._read()
        except BaseException:
            self._file.abandon()
            raise

    def _open_on_full_disk(self, error: sqlite3.DatabaseError) -> None:
        self._path.with_name(self._path.name + ".reserve").unlink(missing_ok=True)
        try:
            self._open()
        except sqlite3.DatabaseError as again:
            raise OutboxError(
                f"outbox {self._path} cannot be opened: {error}; free at least 1 MB on that disk"
            ) from again

    def _read(self) -> None:
        self._streams = {row.place: row for row in self._file.streams()}
        newest = self._file.end(newest=True)
        self._newest_key = newest.key if newest else 0
        if self._began_s is None:
            self._base_s = newest.made_s if newest else 0  # running time before this life
        database, floor_s = self._file.get("database"), self._file.get("floor_s")
        self._database = database if isinstance(database, bytes) else self._database
        if isinstance(self._clock, BoxClock) and isinstance(floor_s, int):
            self._clock.raise_floor(float(floor_s))
        same = [row for row in self._streams.values() if row.stream == self.stream]
        place = max([*self._streams, self._newest_key >> SEQ_BITS]) + 1
        self._here = same[0] if same else StreamRow(place, self.stream, self.vocabulary, Ranges(), Ranges())
        self._streams[self._here.place] = self._here
        self._refresh(0.0)

    def _walk(self, what: Callable[[StreamRow], Ranges], after: int = 0) -> Iterator[Row]:
        """Yield, in order, the batches that touch `what` of each stream."""
        for place in sorted(self._streams):
            for first, last in what(self._streams[place]):
                while key_of(place, last) > after:
                    rows = self._file.rows(place, first, last, after=after, limit=100)
                    yield from rows
                    if not rows:
                        break
                    after = rows[-1].key

    # -- writing it --------------------------------------------------------------------------------------------------

    def _write(self, entries: Sequence[Stamped], now_s: float, make_room_bytes: int = 0) -> int:
        """Do one commit; memory follows only when the disk has it."""
        tidy = now_s - self._tidied_s >= TIDY_S
        save = self._database_unsaved or (bool(self._unsaved) and now_s - self._saved_s >= SAVE_COVERED_S)
        if not (entries or tidy or save or make_room_bytes or self._unsaid or self._unreadable):
            return 0
        gone: dict[int, Ranges] = {}
        lost: Counter[str] = Counter()
        with self._file.transaction():
            losses = list(self._unsaid)
            losses += self._drop(list(self._unreadable.values()), LossReason.DAMAGED, gone, lost)
            losses += self._make_room(make_room_bytes, gone, lost)
            if tidy:
                losses += self._drop_old(self._made_s(now_s), gone, lost)
            now_ms, trust = self._clock.stamp(now_s)
            new = self._insert([*((now_ms, trust, loss) for loss in losses), *entries], self._made_s(now_s))
            changed = set(gone) | (self._unsaved if save else set())
            if new and not self._here.last:
                changed.add(self._here.place)
            for place in changed:
                row = self._streams[place]
                self._file.put_stream(replace(row, gone=row.gone | gone.get(place, Ranges())))
            if save:
                self._file.put("database", self._database)
            if tidy:
                self._file.put("floor_s", now_ms // 1000)
                empty = [place for place in self._streams if self._forgotten(place, gone)]
                for place in empty:
                    self._file.delete_stream(place)
        for place, dropped in gone.items():
            self._streams[place].gone = self._streams[place].gone | dropped
        if new:
            self._loose = self._loose + len(new) if new[0].first > self._here.last else 0
            self._here.last, self._newest_key = new[-1].last, new[-1].key
        self._losses += lost
        self._unsaid.clear()
        self._unreadable.clear()
        self._unsaved -= changed
        if save:
            self._saved_s, self._database_unsaved = now_s, False
        if tidy:
            self._losing = self._losing if lost else None
            self._logged = self._cramped and self._logged
            self._tidied_s = now_s
            for place in empty:
                del self._streams[place]
            if self._cramped and self._file.grow_again():
                self._cramped = ""
            if not self._cramped:
                self._file.take_reserve()
        self._trouble = self._cramped  # whatever it was before, the disk has just taken something
        return len(entries)

    def _insert(self, entries: Sequence[Stamped], made_s: int) -> list[Row]:
        rows: list[Row] = []
        first_seq, oldest_s = self._here.last + 1, made_s
        if entries and self.gather and self._loose >= GATHER_ROWS:
            loose = self._unsent(GATHER_EVENTS - len(entries))
            if len(loose) >= GATHER_ROWS:
                self._file.delete([row for row, _ in loose])
                entries = [*(stamped for _, batch in loose for stamped in _stamped(batch)), *entries]
                first_seq, oldest_s = loose[0][0].first, loose[0][0].made_s
        for part in _parts(entries):
            for batch in self._batches(part, first_seq):
                row = Row(key_of(self._here.place, batch.first_seq), batch.first_seq + len(batch.events) - 1, oldest_s)
                self._file.insert(row, encode_batch(batch, deflate=self._deflate))
                rows.append(row)
            first_seq += len(part)
        return rows

    def _unsent(self, most: int) -> list[tuple[Row, Batch]]:
        """Return this life's newest batches that nobody has seen (P12), of `most` events in all, oldest first."""
        last = end = self._here.last
        found: list[tuple[Row, Batch]] = []
        for row in reversed(self._file.rows(self._here.place, max(1, last - most + 1), last)):
            raw = self._file.payload(row) if row.first > self._sent else None
            if raw is None or last - row.first + 1 > most or row.last != end:  # a hole's numbers belong to its loss
                break
            found.append((row, decode_batch(raw)))
            end = row.first - 1
        return found[::-1]

    def _batches(self, part: Sequence[Stamped], first_seq: int) -> list[Batch]:
        """Return one batch of events with one clock state, or two when its resend would be too large (P6)."""
        base_ms, clock, _ = part[0]
        events = tuple(_at(event, t_ms - base_ms) for t_ms, _, event in part)
        batch = Batch(SCHEMA, self.stream, first_seq, base_ms, clock, self._digest, events)
        if len(part) > 1 and len(encode_batch(msgspec.structs.replace(batch, vocabulary=self.vocabulary))) > MAX_BYTES:
            half = len(part) // 2
            return self._batches(part[:half], first_seq) + self._batches(part[half:], first_seq + half)
        return [batch]

    def _drop(self, rows: Sequence[Row], reason: LossReason, gone: dict[int, Ranges], lost: Counter[str]) -> list[Loss]:
        """Delete batches; return the losses that must be said in their place, those that were in them included."""
        losses: list[Loss] = []
        for row in rows:
            stream = self._streams[row.place]
            dropped = gone.setdefault(row.place, Ranges())
            if dropped.covers(row.first, row.last):
                continue
            if not stream.covered.covers(row.first, row.last):
                losses += [event for event in self._events(row) if isinstance(event, Loss)]
                _join(losses, Loss(stream.stream, row.first, row.last, reason))
                lost[reason.name.lower()] += row.last - row.first + 1
            dropped.add(row.first, row.last)
        self._file.delete(rows)
        return losses

    def _make_room(self, room_bytes: int, gone: dict[int, Ranges], lost: Counter[str]) -> list[Loss]:
        """Drop batches, acked ones first, until the size bound holds or `room_bytes` of pages are free."""
        used = self._file.page_bytes
        if room_bytes:
            reason = LossReason.DISK
            target = used() - max(0, room_bytes - self._file.free_bytes())
        elif used() > self._page_bytes:
            reason = LossReason.SIZE
            target = self._page_bytes - self._max_bytes // 20
        else:
            return []
        losses: list[Loss] = []
        acked = (row for row in self._walk(lambda s: s.held() & s.covered) if not self.is_pending(row))
        for rows in (acked, self._walk(lambda s: s.pending())):
            while used() > target and (some := list(islice(rows, 20))):
                for loss in self._drop(some, reason, gone, lost):
                    _join(losses, loss)
        if losses and self._losing != reason:
            why = reason.name.lower()
            fields = {"EVENT": "events_lost"}
            log.error("outbox %s has no room (%s): the oldest events are being lost", self._path, why, extra=fields)
            self._losing = reason
        return losses

    def _drop_old(self, made_s: int, gone: dict[int, Ranges], lost: Counter[str]) -> list[Loss]:
        old: list[Row] = []
        for row in self._walk(lambda s: s.held()):
            if row.made_s >= made_s - self._max_age_s or len(old) >= DROP_ROWS:
                break
            old.append(row)
        return self._drop(old, LossReason.AGE, gone, lost)

    def _recover(self, error: sqlite3.DatabaseError, entries: Sequence[Stamped], now_s: float) -> int:
        """Meet a full disk or a damaged file, then try once more."""
        self._suspect = None
        try:
            if code_of(error) in DAMAGED:
                self._replace(self._file.abandon(), self._streams, error)
                return self._write(entries, now_s)
            if code_of(error) in FULL:
                released = self._file.release_reserve()
                self._file.checkpoint()
                self._file.stop_growing()
                self._cramped = "disk full, " + ("reserve released" if released else "the oldest events go")
                accepted = self._write(entries, now_s, make_room_bytes=max(64 * 1024, self._reserve_bytes // 4))
                self._file.checkpoint()
                self._log_trouble(self._cramped)
                return accepted
        except sqlite3.DatabaseError as again:
            error = again
        self._trouble = f"cannot write: {error}"
        self._log_trouble(self._trouble)
        return 0

    def _replace(self, aside: Path, known: dict[int, StreamRow], error: sqlite3.DatabaseError) -> None:
        """Start a new file with what can be read of the damaged one; the rest of what was pending is lost, and said."""
        old, batches = salvage(aside)
        streams = known or {row.place: row for row in old}
        batches = [(row, payload) for row, payload in batches if row.place in streams]
        log.critical(
            "outbox %s is damaged (%s): kept as %s, %d batches saved from it", self._path, error, aside, len(batches)
        )
        saved: dict[int, Ranges] = {place: Ranges() for place in streams}
        for row, _ in batches:
            saved[row.place].add(row.first, row.last)
        for place, stream in streams.items():
            stream.last = max(stream.last, saved[place].top, stream.gone.top)
            for first, last in stream.pending() - saved[place]:
                self._unsaid.append(Loss(stream.stream, first, last, LossReason.DAMAGED))
                self._losses["damaged"] += last - first + 1
            stream.gone = stream.gone | (stream.held() - saved[place])
        fresh = OutboxFile(self._path, reserve_bytes=self._reserve_bytes, log_bytes=self._log_bytes)
        with fresh.transaction():
            for stream in streams.values():
                if stream.last:
                    fresh.put_stream(stream)
            for row, payload in batches:
                fresh.insert(row, payload)
            fresh.put("database", self._database)
        fresh.close()
        self._unreadable.clear()
        self._open()

    def _settle_doubts(self, now_s: float) -> None:
        for place, (missing, since_s) in list(self._doubts.items()):
            if now_s - since_s >= DOUBT_S and place in self._streams:
                self._take_back(place, missing)
                for other, row in self._streams.items():  # a restored database may not know a stream it could name
                    if other not in self._doubts and self._named_s.get(other, float("-inf")) < since_s:
                        self._take_back(other, row.covered & row.held())

    def _take_back(self, place: int, missing: Ranges) -> None:
        row = self._streams[place]
        self._doubts.pop(place, None)
        if not missing:
            return
        row.covered = row.covered - missing
        self._unsaved.add(place)
        self._saved_s = float("-inf")  # this may not be forgotten: the database has said it once
        self.retakes += 1
        log.warning(
            "the database no longer holds %d events of stream %016x: pending again; was it restored from a backup?",
            missing.count(),
            row.stream,
        )

    # -- small ones --------------------------------------------------------------------------------------------------

    def _events(self, row: Row) -> tuple[AnyEvent, ...]:
        raw = self._file.payload(row)
        try:
            return () if raw is None else decode_batch(raw).events
        except ValueError:
            return ()

    def _forgotten(self, place: int, gone: dict[int, Ranges]) -> bool:
        left = self._streams[place].held() - gone.get(place, Ranges())
        return place != self._here.place and not left

    def _made_s(self, now_s: float) -> int:
        return int(self._base_s + now_s - (self._began_s if self._began_s is not None else now_s))

    def _waiting(self) -> int:
        return sum(row.pending().count() for row in self._streams.values())

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
            used = self._file.page_bytes() + self._file.log_bytes()
        except sqlite3.DatabaseError as error:
            self._suspect, used = error, self.state.bytes
        with self._lock:
            self.state = OutboxState(
                events=self._waiting(),
                accepted=self._here.last,
                bytes=used,
                fill=used / self._max_bytes,
                oldest_s=float(max(0, self._made_s(now_s) - oldest[0].made_s)) if oldest else 0.0,
                losses=dict(self._losses),
                refused=dict(self._refused),
                trouble=self._trouble or ("" if self._file.reserved else "no room on the disk for its reserve"),
            )


def _at(event: AnyEvent, t_ms: int) -> AnyEvent:
    return event if isinstance(event, Loss) else msgspec.structs.replace(event, t_ms=t_ms)


def _stamped(batch: Batch) -> Iterator[Stamped]:
    """Yield the events of a batch as they were appended."""
    clock = Clock(batch.clock)
    for event in batch.events:
        yield batch.base_ms + (0 if isinstance(event, Loss) else event.t_ms), clock, event


def _parts(entries: Sequence[Stamped]) -> Iterator[Sequence[Stamped]]:
    """Split where the trust in the clock changes, and at what a batch may hold."""
    begin = 0
    for i in range(1, len(entries) + 1):
        if i == len(entries) or i - begin == MAX_EVENTS or entries[i][1] != entries[begin][1]:
            yield entries[begin:i]
            begin = i


def _join(losses: list[Loss], loss: Loss) -> None:
    """Append a loss, or lengthen the last one when it goes on where that ended."""
    before = losses[-1] if losses else None
    if before and (before.stream, before.reason, before.last + 1) == (loss.stream, loss.reason, loss.first):
        losses[-1] = Loss(loss.stream, before.first, loss.last, loss.reason)
    else:
        losses.append(loss)
