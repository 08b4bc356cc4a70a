"""One box's outbox over its lives, and what a test asks of it."""

from collections.abc import Callable
from uuid import UUID

from edge.publish.outbox import Outbox
from edge.wire import Head, Loss, Presence, Vocabulary, decode_batch

DATABASE, OTHER = UUID(int=1), UUID(int=2)
WORDS = Vocabulary(("cam",), (Head("age", ("young", "old")),))
Make = Callable[..., Outbox]


def presence(at_ms: int) -> Presence:
    return Presence(0, at_ms, 60_000, 1, 500, 1)


def kill(outbox: Outbox) -> None:
    """End as a SIGKILL does: nothing is said to the file any more."""
    outbox._held.file._db.close()


def fill(outbox: Outbox, batches: int, events: int = 1, now_s: float = 0.0) -> None:
    for i in range(batches):
        outbox.append([presence(i * 1000 + k) for k in range(events)])
        outbox.commit(now_s + i)


def held(outbox: Outbox) -> list[tuple[int, int]]:
    """Return (first, last) of the pending batches."""
    return [(row.first, row.last) for row in outbox.pending(limit=100_000)]


def losses(outbox: Outbox) -> list[Loss]:
    rows = outbox.pending(limit=100_000)
    payloads = [outbox.payload(row, inline_vocabulary=False) for row in rows]
    return [e for raw in payloads if raw for e in decode_batch(raw).events if isinstance(e, Loss)]
