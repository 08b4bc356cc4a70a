"""Which events arrived, 4 bytes of digest each: tells "same key, other content" (P11), and the lag."""

import struct
from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta
from hashlib import blake2b

import numpy as np

from bridge.batches import DIGEST_BYTES
from bridge.columns import NEVER_MS, Columns
from bridge.connection import Connection, copy
from bridge.copy import Layout, timestamp
from bridge.runs import DeadLetter, Run
from bridge.statements import KNOWN_DIGESTS

FORMER_DIGEST_BYTES = 8  # of BLAKE2b, as rows have it that were written before

ROW = Layout("qqiqqqqh", tail=1)
COPY = "COPY batches FROM STDIN (FORMAT binary)"


def write(connection: Connection, runs: Sequence[Run], columns: Columns, now: datetime) -> None:
    """Write one row per run of new events."""
    if runs:
        newest = _newest_ms(runs, columns)
        copy(connection, COPY, [_row(run, known_ms, _ms(now)) for run, known_ms in zip(runs, newest, strict=True)])


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
            "streams": [run.stream for run in repeats],
            "first": [run.first for run in repeats],
            "last": [run.last for run in repeats],
            "since": since - timedelta(days=1),  # first heard by our clock, written by another bridge's
        },
    )
    known: dict[int, list[tuple[int, int, bytes]]] = {}
    for stream, *rest in rows:
        known.setdefault(stream, []).append((rest[0], rest[1], rest[2]))
    error = "the same key came before with other content; the row that came first stands"
    return [
        run.letter(seq, "conflict", error)
        for run in repeats
        for first_seq, last_seq, digests in known.get(run.stream, ())
        for seq in _differing(run, first_seq, last_seq, digests)
    ]


def _newest_ms(runs: Sequence[Run], columns: Columns) -> list[int]:
    """Return of each run when a box could tell of its last event, ms from its base."""
    known = np.append(columns.known_ms(), 0)
    starts = [int(columns.first[run.place]) - run.parsed.envelope.first_seq for run in runs]
    edges = [edge for run, at in zip(runs, starts, strict=True) for edge in (at + run.first, at + run.last + 1)]
    return [int(latest) for latest in np.maximum.reduceat(known, edges)[::2]]


def _row(run: Run, known_ms: int, now_ms: int) -> bytes:
    envelope, received_ms = run.parsed.envelope, _ms(run.message.received_at)
    low, high = run.first - envelope.first_seq, run.last - envelope.first_seq + 1
    # One absurd time spoils no lag figure and fits its column.
    newest_ms = max(0, min(envelope.base_ms + known_ms, received_ms)) if known_ms > NEVER_MS else received_ms
    fixed = (
        timestamp(received_ms), timestamp(now_ms), run.meaning.box_id, run.stream, run.first, run.last,
        timestamp(newest_ms), envelope.clock,
    )  # fmt: skip
    return ROW.pack(fixed, run.parsed.digests[low * DIGEST_BYTES : high * DIGEST_BYTES])


def _differing(run: Run, first_seq: int, last_seq: int, digests: bytes) -> Iterator[int]:
    """Return the events of a run whose content is not what a row of the ledger says."""
    size = len(digests) // (last_seq - first_seq + 1)
    first, last = max(run.first, first_seq), min(run.last, last_seq)
    known = digests[(first - first_seq) * size : (last + 1 - first_seq) * size]
    came = _digests(run, first, last, former=size == FORMER_DIGEST_BYTES)
    if known != came:
        for seq in range(first, last + 1):
            at = (seq - first) * size
            if known[at : at + size] != came[at : at + size]:
                yield seq


def _digests(run: Run, first: int, last: int, *, former: bool) -> bytes:
    envelope = run.parsed.envelope
    low, high = first - envelope.first_seq, last + 1 - envelope.first_seq
    if not former:
        return run.parsed.digests[low * DIGEST_BYTES : high * DIGEST_BYTES]
    start = struct.pack(">qhI", envelope.base_ms, envelope.clock, envelope.vocabulary_digest)
    raws = map(bytes, envelope.events[low:high])
    return b"".join(blake2b(start + raw, digest_size=FORMER_DIGEST_BYTES).digest() for raw in raws)


def _ms(at: datetime) -> int:
    return int(at.timestamp() * 1000)
