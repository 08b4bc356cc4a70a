"""The outbox's SQLite file: tables, transactions, the reserve for a full disk. It knows no rule of delivery.

A batch is one row whose key is made of its stream's place in this file and its first sequence number, so appending
touches the last page of one B-tree and nothing else. Pages are 1 KiB: a commit of one event then writes one or two
blocks of the disk instead of three (measured in docs/PROTOCOL.md). The lock is exclusive, which keeps a second
process out and the write-ahead index in memory, where a full disk cannot hurt it.
"""

import contextlib
import os
import sqlite3
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from edge.errors import OutboxError
from edge.publish.ranges import Ranges
from edge.wire import Vocabulary

PAGE_BYTES = 1024
SEQ_BITS = 40  # of a key; a stream may have 10^12 events, a file 8 million streams
FULL = {sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR}
DAMAGED = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}
SPOILT = (msgspec.MsgspecError, TypeError, ValueError)  # what a row raises whose bytes are not ours any more
MOST_PAGES = 1 << 30
MANY_BYTES = 2 << 20  # free on the disk, before the file may grow again
VERSION = 1

_SCHEMA = """
CREATE TABLE IF NOT EXISTS meta (name TEXT PRIMARY KEY, value ANY) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS streams (
    place INTEGER PRIMARY KEY, stream INTEGER NOT NULL UNIQUE, vocabulary BLOB NOT NULL, covered BLOB NOT NULL,
    gone BLOB NOT NULL
);
CREATE TABLE IF NOT EXISTS batches (
    key INTEGER PRIMARY KEY, last INTEGER NOT NULL, made_s INTEGER NOT NULL, crc INTEGER NOT NULL,
    payload BLOB NOT NULL
);
"""


@dataclass(frozen=True, slots=True)
class Row:
    """One stored batch, without its bytes. `made_s` counts seconds the box has been running, over all lives."""

    key: int
    last: int
    made_s: int

    @property
    def place(self) -> int:
        """Where its stream stands in this file."""
        return self.key >> SEQ_BITS

    @property
    def first(self) -> int:
        """Its first sequence number."""
        return self.key & (1 << SEQ_BITS) - 1


@dataclass(slots=True)
class StreamRow:
    """One life of the process, as this file knows it."""

    place: int
    stream: int
    vocabulary: Vocabulary
    covered: Ranges  # what the database has said it holds
    gone: Ranges  # what this file no longer holds
    last: int = 0

    def held(self) -> Ranges:
        """Return what this file still holds."""
        return Ranges([(1, self.last)] if self.last else []) - self.gone

    def pending(self) -> Ranges:
        """Return what may not be forgotten yet."""
        return self.held() - self.covered


def key_of(place: int, first: int) -> int:
    """Return the row key of a batch."""
    return place << SEQ_BITS | first


def code_of(error: sqlite3.Error) -> int:
    """Return SQLite's primary result code; 0 when Python raised on its own."""
    return (getattr(error, "sqlite_errorcode", None) or 0) & 0xFF


class OutboxFile:
    """An open outbox file. Not for two threads at once.

    Raises:
        OutboxError: the file is in use, of a newer version, or cannot be created.
        sqlite3.DatabaseError: it is damaged (`code_of` in DAMAGED) or the disk is full (in FULL).
    """

    def __init__(self, path: Path, *, reserve_bytes: int, log_bytes: int = 1 << 20) -> None:
        self.path = path
        self._reserve = path.with_name(path.name + ".reserve")
        self._reserve_bytes = reserve_bytes
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._db = sqlite3.connect(path, timeout=2.0, isolation_level=None, check_same_thread=False)
        except (OSError, sqlite3.OperationalError) as error:
            raise OutboxError(f"outbox {path} cannot be opened: {error}; its folder must be writable") from error
        try:
            self._prepare(log_bytes)
        except BaseException:
            self._db.close()
            raise
        self.take_reserve()

    def _prepare(self, log_bytes: int) -> None:
        try:
            self._db.execute(f"PRAGMA page_size = {PAGE_BYTES}")
            self._db.execute("PRAGMA locking_mode = EXCLUSIVE")
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute("PRAGMA synchronous = FULL")
            self._db.execute(f"PRAGMA wal_autocheckpoint = {log_bytes // PAGE_BYTES}")
            self._db.execute("PRAGMA cache_size = -512")
            self._db.executescript(_SCHEMA)
            if self.get("clean") == 0:  # the power went or we were killed: look before trusting it
                found = self._db.execute("PRAGMA quick_check(1)").fetchone()[0]
                if found != "ok":
                    raise _corrupt(found)
            version = self.get("version")
            if version not in (None, VERSION):
                raise OutboxError(
                    f"outbox {self.path} has version {version!r}, expected {VERSION}; update the software"
                )
            with self.transaction():
                self.put("version", VERSION)
                self.put("clean", 0)
        except sqlite3.OperationalError as error:
            if code_of(error) in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
                raise OutboxError(f"outbox {self.path} is in use by another process; stop that one first") from error
            if code_of(error) in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM):
                raise OutboxError(
                    f"outbox {self.path} cannot be written: {error}; its folder must be writable"
                ) from error
            raise

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        """All or nothing, on the disk when the block has ended."""
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._db.execute("COMMIT")
        except BaseException:
            if self._db.in_transaction:
                with contextlib.suppress(sqlite3.Error):
                    self._db.execute("ROLLBACK")
            raise

    def get(self, name: str) -> int | bytes | None:
        """Return a value of the small table of facts about this file."""
        row = self._db.execute("SELECT value FROM meta WHERE name = ?", (name,)).fetchone()
        return None if row is None else row[0]

    def put(self, name: str, value: int | bytes) -> None:
        """Set a fact about this file."""
        self._db.execute("INSERT INTO meta VALUES (?1, ?2) ON CONFLICT DO UPDATE SET value = ?2", (name, value))

    def streams(self) -> list[StreamRow]:
        """Return all streams, oldest first, each with the last sequence number it ever had here."""
        found = []
        for values in self._db.execute("SELECT * FROM streams ORDER BY place"):
            try:
                row = _stream_row(*values)
            except SPOILT as error:
                raise _corrupt(f"the row of a stream cannot be read: {error}") from error
            place = row.place
            newest = self._db.execute(
                "SELECT last FROM batches WHERE key BETWEEN ? AND ? ORDER BY key DESC LIMIT 1",
                (key_of(place, 0), key_of(place + 1, 0) - 1),
            ).fetchone()
            row.last = max(row.gone.top, newest[0] if newest else 0)
            found.append(row)
        return found

    def put_stream(self, row: StreamRow) -> None:
        """Insert or update one stream."""
        pack = msgspec.msgpack.encode
        self._db.execute(
            "INSERT INTO streams VALUES (?1, ?2, ?3, ?4, ?5) ON CONFLICT (place) DO UPDATE SET covered = ?4, gone = ?5",
            (row.place, row.stream, pack(row.vocabulary), pack(row.covered.flat()), pack(row.gone.flat())),
        )

    def delete_stream(self, place: int) -> None:
        """Forget a stream of which nothing is held."""
        self._db.execute("DELETE FROM streams WHERE place = ?", (place,))

    def insert(self, row: Row, payload: bytes) -> None:
        """Store one batch."""
        self._db.execute(
            "INSERT INTO batches VALUES (?, ?, ?, ?, ?)", (row.key, row.last, row.made_s, zlib.crc32(payload), payload)
        )

    def delete(self, rows: Sequence[Row]) -> None:
        """Remove batches."""
        self._db.executemany("DELETE FROM batches WHERE key = ?", [(row.key,) for row in rows])

    def rows(self, place: int, first: int, last: int, *, after: int = 0, limit: int = 1000) -> list[Row]:
        """Return the batches of one stream that touch first…last and whose key is above `after`, in order."""
        low = self._db.execute(
            "SELECT max(key) FROM batches WHERE key BETWEEN ? AND ?", (key_of(place, 0), key_of(place, first))
        ).fetchone()[0]
        found = self._db.execute(
            "SELECT key, last, made_s FROM batches WHERE key >= ? AND key > ? AND key <= ? AND last >= ? "
            "ORDER BY key LIMIT ?",
            (low or key_of(place, first), after, key_of(place, last), first, limit),
        )
        return [Row(*values) for values in found]

    def payload(self, row: Row) -> bytes | None:
        """Return the bytes of a batch; None when they are not those that were stored."""
        found = self._db.execute("SELECT crc, payload FROM batches WHERE key = ?", (row.key,)).fetchone()
        return found[1] if found is not None and zlib.crc32(found[1]) == found[0] else None

    def end(self, *, newest: bool) -> Row | None:
        """Return the newest or the oldest batch."""
        order = "DESC" if newest else "ASC"
        found = self._db.execute(f"SELECT key, last, made_s FROM batches ORDER BY key {order} LIMIT 1").fetchone()
        return None if found is None else Row(*found)

    def page_bytes(self) -> int:
        """Return the bytes of pages in use."""
        pages = self._db.execute("PRAGMA page_count").fetchone()[0]
        free = self._db.execute("PRAGMA freelist_count").fetchone()[0]
        return int(pages - free) * PAGE_BYTES

    def free_bytes(self) -> int:
        """Return the bytes of pages that are allocated on the disk and empty."""
        return int(self._db.execute("PRAGMA freelist_count").fetchone()[0]) * PAGE_BYTES

    def log_bytes(self) -> int:
        """Return the size of the write-ahead log."""
        with contextlib.suppress(OSError):
            return os.stat(f"{self.path}-wal").st_size
        return 0

    def stop_growing(self) -> None:
        """Stay within the blocks there are. A page that is only in the log can never leave it once the disk is full."""
        pages = self._db.execute("PRAGMA page_count").fetchone()[0]
        self._db.execute(f"PRAGMA max_page_count = {pages}")

    def grow_again(self) -> bool:
        """Lift `stop_growing` when the disk has room; return whether it was lifted."""
        space = os.statvfs(self.path.parent)
        if space.f_bavail * space.f_frsize < max(MANY_BYTES, 4 * self._reserve_bytes):
            return False
        self._db.execute(f"PRAGMA max_page_count = {MOST_PAGES}")
        return True

    def checkpoint(self) -> None:
        """Move the log into the pages, so that its blocks can be written again. A full disk may refuse: no matter."""
        with contextlib.suppress(sqlite3.Error):
            self._db.execute("PRAGMA wal_checkpoint(RESTART)").fetchall()

    def take_reserve(self) -> None:
        """Set bytes aside for the day the disk is full, when SQLite cannot even delete; only where there is plenty."""
        if self._reserve.exists() or self._reserve_bytes == 0:
            return
        try:
            space = os.statvfs(self.path.parent)
            if space.f_bavail * space.f_frsize < 4 * self._reserve_bytes:
                return
            with self._reserve.open("xb") as file:
                os.posix_fallocate(file.fileno(), 0, self._reserve_bytes)
                os.fsync(file.fileno())
        except OSError:
            self.release_reserve()

    @property
    def reserved(self) -> bool:
        """Whether as many bytes are set aside as were asked for."""
        return self._reserve_bytes == 0 or self._reserve.exists()

    def release_reserve(self) -> bool:
        """Give the reserve back to the file system; False when it was gone already."""
        try:
            self._reserve.unlink()
        except OSError:
            return False
        return True

    def close(self) -> None:
        """Close; a file closed in good order is not checked at the next start."""
        with contextlib.suppress(sqlite3.Error), self.transaction():
            self.put("clean", 1)
        self._db.close()

    def leave(self) -> None:
        """Close it as it is, to be checked at the next start."""
        with contextlib.suppress(sqlite3.Error):
            self._db.close()

    def abandon(self) -> Path:
        """Close a damaged file and rename it and its log; return the new name."""
        self.leave()
        return set_aside(self.path)


def _stream_row(place: int, stream: int, vocabulary: bytes, covered: bytes, gone: bytes) -> StreamRow:
    known = msgspec.msgpack.decode(vocabulary, type=Vocabulary)
    said, lost = (Ranges.from_flat(msgspec.msgpack.decode(flat, type=list[int])) for flat in (covered, gone))
    return StreamRow(place, stream, known, said, lost)


def _corrupt(what: str) -> sqlite3.DatabaseError:
    error = sqlite3.DatabaseError(what)
    error.sqlite_errorcode = sqlite3.SQLITE_CORRUPT
    return error


def waiting(path: Path) -> int:
    """Return how many events no ack covers in the outbox of a box that is stopped.

    Raises:
        OutboxError: the file is in use or cannot be read.
    """
    try:
        with contextlib.closing(OutboxFile(path, reserve_bytes=0)) as file:
            return sum(stream.pending().count() for stream in file.streams())
    except (sqlite3.DatabaseError, msgspec.MsgspecError) as error:
        raise OutboxError(f"outbox {path} cannot be read: {error}") from error


def set_aside(path: Path) -> Path:
    """Rename a damaged file, and its log beside it, to the first free name `….damaged-N`."""
    number = 1
    while (aside := path.with_name(f"{path.name}.damaged-{number}")).exists():
        number += 1
    path.rename(aside)
    log = path.with_name(path.name + "-wal")
    if log.exists():
        log.rename(aside.with_name(aside.name + "-wal"))
    return aside


def salvage(aside: Path) -> tuple[list[StreamRow], list[tuple[Row, bytes]]]:
    """Read what can still be read of a damaged file: from its beginning to the damage, and from its end back to it."""
    streams: list[StreamRow] = []
    batches: dict[int, tuple[Row, bytes]] = {}
    db = sqlite3.connect(aside, isolation_level=None)
    try:
        with contextlib.suppress(sqlite3.Error):
            for values in db.execute("SELECT * FROM streams ORDER BY place"):
                with contextlib.suppress(*SPOILT):
                    streams.append(_stream_row(*values))
        for order in ("ASC", "DESC"):
            with contextlib.suppress(sqlite3.Error, ValueError, TypeError):
                for key, last, made_s, crc, payload in db.execute(f"SELECT * FROM batches ORDER BY key {order}"):
                    if key in batches and order == "DESC":
                        break
                    if zlib.crc32(payload) == crc:
                        batches[key] = (Row(key, last, made_s), payload)
    finally:
        db.close()
    return streams, [batches[key] for key in sorted(batches)]
