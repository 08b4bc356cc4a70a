"""Which events arrived, 8 bytes of digest each: tells "same key, other content" (P11), and the lag."""

from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta

from bridge.batches import DIGEST_BYTES
from bridge.connection import Connection, copy
from bridge.copy import Layout, timestamp
from bridge.letters import dead_letter
from bridge.rows import DeadLetter, Run
from bridge.statements import KNOWN_DIGESTS
from edge.wire import Confirmed, Ended, Loss, Presence, Update

ROW = Layout("qqiqqqqh", tail=1)
COPY = "COPY batches FROM STDIN (FORMAT binary)"


def write(connection: Connection, runs: Sequence[Run], now: datetime) -> None:
    """Write one row per run of new events."""
    copy(connection, COPY, [_row(run, now) for run in runs])


def conflicts(connection: Connection, repeats: Sequence[Run], *, since: datetime) -> list[DeadLetter]:
    """Compare what was here before with what came now; the ledger must hold this transaction's runs already.

    Args:
        connection: inside the transaction.
        repeats: runs of events whose keys are covered.
        since: when the oldest of their streams was first heard.
    """
    rows = connection.execute(
        KNOWN_DIGESTS,
        {
            "streams": [run.parsed.batch.stream for run in repeats],
            "first": [run.first for run in repeats],
            "last": [run.last for run in repeats],
            "since": since - timedelta(days=1),  # first heard by our clock, written by another bridge's
        },
    )
    known: dict[int, list[tuple[int, bytes]]] = {}
    for stream, first_seq, digests in rows:
        known.setdefault(stream, []).append((first_seq, digests))
    error = "the same key came before with other content; the row that came first stands"
    return [
        dead_letter(run, seq, "conflict", error)
        for run in repeats
        for first_seq, digests in known.get(run.parsed.batch.stream, ())
        for seq in _differing(run, first_seq, digests)
    ]


def _row(run: Run, now: datetime) -> bytes:
    batch, received_ms = run.parsed.batch, _ms(run.message.received_at)
    low, high = run.first - batch.first_seq, run.last - batch.first_seq + 1
    times = (batch.base_ms + _known_ms(event) for event in batch.events[low:high] if not isinstance(event, Loss))
    # One absurd time spoils no lag figure and fits its column.
    newest_ms = max(0, min(max(times, default=received_ms), received_ms))
    fixed = (
        timestamp(received_ms), timestamp(_ms(now)), run.meaning.box_id, batch.stream, run.first, run.last,
        timestamp(newest_ms), batch.clock,
    )  # fmt: skip
    return ROW.pack(fixed, run.parsed.digests[low * DIGEST_BYTES : high * DIGEST_BYTES])


def _differing(run: Run, first_seq: int, digests: bytes) -> Iterator[int]:
    first = max(run.first, first_seq)
    last = min(run.last, first_seq + len(digests) // DIGEST_BYTES - 1)
    for seq in range(first, last + 1):
        at = (seq - first_seq) * DIGEST_BYTES
        if run.parsed.digest(seq) != digests[at : at + DIGEST_BYTES]:
            yield seq


def _ms(at: datetime) -> int:
    return int(at.timestamp() * 1000)


def _known_ms(event: Confirmed | Update | Ended | Presence) -> int:
    """Return when a box could first tell of an event: a visit when it ends, a count when its period does.

    Lag is counted from here; counted from an event's own time it would be a visit's length.
    """
    match event:
        case Ended():
            return event.t_ms + event.dwell_ms
        case Presence():
            return event.t_ms + event.period_ms
    return event.t_ms
