"""The locked rows of streams: what is covered of each, read first and written last in a transaction."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from bridge import statements as sql
from bridge.connection import Connection
from bridge.ranges import Coverage
from edge.wire import Covered


@dataclass(slots=True)
class Stream:
    """A locked row of streams; its coverage grows as the transaction goes on."""

    box_id: int
    coverage: Coverage
    superseded: bool
    first_at: datetime
    erased: bool  # something was erased of its box

    def covered(self, stream: int) -> Covered:
        """Return what may be acknowledged, as soon as it is committed."""
        return Covered(stream, self.coverage.upto, self.coverage.flat())


def lock(connection: Connection, wanted: Mapping[int, int], known: set[int], now: datetime) -> dict[int, Stream]:
    """Lock streams, each given with its box, in key order; make those that are new.

    Args:
        connection: inside the transaction.
        wanted: stream → box.
        known: streams that need not be made; emptied where one of them was forgotten after the retention.
        now: when a new one is first heard.
    """
    if not wanted:
        return {}
    new = {stream: box_id for stream, box_id in wanted.items() if stream not in known}
    if new:
        connection.execute(sql.SHARE_BOXES, (sorted(set(new.values())),))
        connection.execute(sql.NEW_STREAMS, {"streams": list(new), "boxes": list(new.values()), "now": now})
    rows = connection.execute(sql.LOCK_STREAMS, (list(wanted),)).fetchall()
    if len(rows) < len(wanted) and known:
        known.clear()
        return lock(connection, wanted, known, now)
    return {
        stream: Stream(box_id, Coverage.from_flat(upto, ranges), superseded, first_at, erased)
        for stream, box_id, upto, ranges, superseded, first_at, erased in rows
    }


def cover(connection: Connection, streams: Mapping[int, Stream], now: datetime) -> None:
    """Write down what is covered."""
    coverages = [stream.coverage for stream in streams.values()]
    connection.execute(
        sql.COVER_STREAMS,
        {
            "streams": list(streams),
            "upto": [coverage.upto for coverage in coverages],
            "ranges": [f"{{{','.join(map(str, coverage.flat()))}}}" for coverage in coverages],
            "now": now,
        },
    )
