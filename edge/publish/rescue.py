"""What can be read of a damaged outbox, and what cannot. Driven by `outbox.py`."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from edge.publish.outbox_file import OutboxFile, Row, StreamRow, salvage
from edge.publish.ranges import Ranges
from edge.wire import Loss, LossReason


@dataclass(frozen=True, slots=True)
class Rescued:
    """Batches with their bytes, and the streams they belong to, by place."""

    streams: dict[int, StreamRow]
    batches: list[tuple[Row, bytes]]

    @classmethod
    def of(cls, aside: Path, known: dict[int, StreamRow]) -> Self:
        """Read a file that was set aside; `known` are its streams where memory still has them."""
        old, batches = salvage(aside)
        streams = known or {row.place: row for row in old}
        batches = [(row, payload) for row, payload in batches if row.place in streams]
        return cls(streams, batches)

    def missing(self) -> Iterator[Loss]:
        """Yield what of the pending could not be read, while the streams' rows take note that it is gone."""
        saved: dict[int, Ranges] = {place: Ranges() for place in self.streams}
        for row, _ in self.batches:
            saved[row.place].add(row.first, row.last)
        for place, stream in self.streams.items():
            stream.last = max(stream.last, saved[place].top, stream.gone.top)
            for first, last in stream.pending() - saved[place]:
                yield Loss(stream.stream, first, last, LossReason.DAMAGED)
            stream.gone = stream.gone | (stream.held() - saved[place])

    def write(self, fresh: OutboxFile, database: bytes) -> None:
        """Put it all into a new file."""
        with fresh.transaction():
            for stream in self.streams.values():
                if stream.last:
                    fresh.put_stream(stream)
            for row, payload in self.batches:
                fresh.insert(row, payload)
            fresh.put("database", database)
