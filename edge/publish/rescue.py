"""What can be read of a damaged outbox, and what cannot. Driven by `outbox.py`."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from edge.publish.bounds import join
from edge.publish.outbox_file import OutboxFile, Row, StreamRow, salvage
from edge.publish.ranges import Ranges
from edge.wire import Loss, LossReason, Vocabulary, decode_batch


@dataclass(frozen=True, slots=True)
class Rescued:
    """Batches with their bytes, the streams they belong to, by place, and what nobody could make sense of any more."""

    streams: dict[int, StreamRow]
    batches: list[tuple[Row, bytes]]
    senseless: list[Loss] = field(default_factory=list)

    @classmethod
    def of(cls, aside: Path, known: dict[int, StreamRow], vocabulary: Vocabulary) -> Self:
        """Read a file that was set aside.

        Args:
            aside: the file.
            known: its streams, where memory still has them.
            vocabulary: of this life. Where a stream's own row is spoilt, its batches say which stream they are of, but
                name their vocabulary by its digest only: it must be this one, or that of another stream.
        """
        old, batches = salvage(aside)
        found = cls(known or {row.place: row for row in old}, [])
        words = {one.digest(): one for one in (vocabulary, *(row.vocabulary for row in found.streams.values()))}
        for row, payload in batches:
            if row.place not in found.streams:
                batch = decode_batch(payload)
                meant = words.get(batch.vocabulary_digest)
                if meant is None:
                    found.senseless.extend(event for event in batch.events if isinstance(event, Loss))
                    join(found.senseless, Loss(batch.stream, row.first, row.last, LossReason.DAMAGED))
                    continue
                found.streams[row.place] = StreamRow(row.place, batch.stream, meant, Ranges(), Ranges())
            found.batches.append((row, payload))
        return found

    def missing(self) -> Iterator[Loss]:
        """Yield what of the pending could not be read, while the streams' rows take note that it is gone."""
        yield from self.senseless
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
