"""What could not be written, for an operator: list it, read it, write it once more. Driven by cli.py."""

import json
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime

import msgspec
import psycopg
from psycopg.rows import class_row

from bridge.batches import Incoming
from bridge.connection import Connection
from bridge.errors import BridgeError
from bridge.ranges import Coverage
from bridge.store import Store
from edge.wire import WireError, decode_batch, inflate, parse_topic

_SELECT = (
    "SELECT dead_letter_id AS id, first_at, last_at, times, reason, error, topic, stream, seq, raw "
    "FROM facefleet.dead_letters "
)


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """One row of `dead_letters`. Without `seq` it is a message that was refused as a whole, and not covered."""

    id: int
    first_at: datetime
    last_at: datetime
    times: int
    reason: str
    error: str
    topic: str
    stream: int | None
    seq: int | None
    raw: bytes

    def line(self) -> str:
        """Return it in one line."""
        key = f" {self.stream:016x}/{self.seq}" if self.stream is not None else ""
        return f"{self.id:>6}  {self.last_at:%Y-%m-%d %H:%M:%S}  {self.reason}  {self.topic}{key}  {self.error[:120]}"

    def page(self) -> str:
        """Return all of it, its content as JSON where it can be read and as hexadecimal where not."""
        try:
            content = json.dumps(msgspec.to_builtins(decode_batch(self.raw)))
        except WireError:
            content = (
                _newer(self.raw)
                or f"{len(self.raw)} bytes, unreadable: {self.raw[:256].hex()}{'…' if len(self.raw) > 256 else ''}"
            )
        key = f"stream {self.stream:016x}, event {self.seq}" if self.stream is not None else "a whole message"
        return (
            f"dead letter {self.id}: {self.reason}\n{self.error}\n{self.topic}: {key}\n"
            f"came {self.times} times, from {self.first_at} to {self.last_at}\n{content}"
        )


def _newer(raw: bytes) -> str:
    """Return what is well-formed but beyond this version as JSON, without names; "" when it is not even that."""
    try:
        return json.dumps(msgspec.msgpack.decode(inflate(raw)), default=repr)
    except (msgspec.MsgspecError, ValueError, TypeError, RecursionError):
        return ""


def newest(dsn: str, limit: int) -> list[DeadLetter]:
    """Return the dead letters that came last."""
    return _read(dsn, _SELECT + "ORDER BY last_at DESC, dead_letter_id DESC LIMIT %s", limit)


def find(dsn: str, letter_id: int) -> DeadLetter:
    """Return one dead letter.

    Raises:
        BridgeError: there is none of this number.
    """
    found = _read(dsn, _SELECT + "WHERE dead_letter_id = %s", letter_id)
    if not found:
        raise BridgeError(f'no dead letter {letter_id}; "facefleet-bridge dead-letters list" shows their numbers')
    return found[0]


def replay(dsn: str, letter_id: int) -> str:
    """Write a message or a single event once more; it leaves the table if that works. Return what happened.

    Raises:
        BridgeError: it is refused again, or its key belongs to another row.
    """
    letter = find(dsn, letter_id)
    try:
        site, box, kind = parse_topic(letter.topic)
        if kind != "events":
            raise WireError(f"it is {kind}, expected events")
    except WireError as error:
        raise BridgeError(f"dead letter {letter_id} cannot be written again: {error}") from error
    if letter.reason == "conflict":
        raise BridgeError(
            f"dead letter {letter_id} is a conflict: a row with its key and other content came first and stands (P11); "
            "what it said is in its content (show)"
        )
    message = Incoming(site, box, letter.raw, letter.topic, datetime.now(UTC))
    with closing(Store(dsn, registry="strict")) as store, store.transaction() as connection:  # registers nobody
        if letter.stream is not None and letter.seq is not None:
            _uncover(connection, letter.stream, letter.seq)
        # Only now, after the stream: a bridge locks in this order.
        if not connection.execute(
            "SELECT FROM dead_letters WHERE dead_letter_id = %s FOR UPDATE", (letter_id,)
        ).fetchall():
            raise BridgeError(f"dead letter {letter_id} has just been written by somebody else")
        written = store.write([message])
        if written.dead_letters or written.unknown_vocabulary:
            why = "its vocabulary is unknown" if written.unknown_vocabulary else _why(connection, letter)
            raise BridgeError(f"dead letter {letter_id} is refused again: {why}")  # and nothing of this happened
        connection.execute("DELETE FROM dead_letters WHERE dead_letter_id = %s", (letter_id,))
    return (
        f"written: {written.inserted} events new, {written.duplicates} known, {written.quarantined} in quarantine, "
        f"{written.erased} of an erased time"
    )


def _uncover(connection: Connection, stream: int, seq: int) -> None:
    """Make the number of a dead-lettered event new again, for this transaction, which covers it once more (P17).

    No row can have its key: it was covered when it was dead-lettered, and whatever came after was no longer new.
    """
    row = connection.execute("SELECT upto, ranges FROM streams WHERE stream = %s FOR UPDATE", (stream,)).fetchone()
    if row is not None:
        left = Coverage.from_flat(*row).without(seq)
        connection.execute(
            "UPDATE streams SET upto = %s, ranges = %s WHERE stream = %s", (left.upto, list(left.flat()), stream)
        )


def _why(connection: Connection, letter: DeadLetter) -> str:
    """Return what the transaction that is about to fail says of a letter; the newest word counts."""
    row = connection.execute(
        "SELECT error FROM dead_letters WHERE topic = %s AND stream IS NOT DISTINCT FROM %s "
        "AND seq IS NOT DISTINCT FROM %s ORDER BY last_at DESC, dead_letter_id DESC LIMIT 1",
        (letter.topic, letter.stream, letter.seq),
    ).fetchone()
    return letter.error if row is None else str(row[0])


def _read(dsn: str, sql: str, value: int) -> list[DeadLetter]:
    with (
        psycopg.connect(dsn, autocommit=True) as connection,
        connection.cursor(row_factory=class_row(DeadLetter)) as cursor,
    ):
        return cursor.execute(sql.encode(), (value,)).fetchall()
