"""What an outbox holds: its open file, and the streams in it as they stand in memory. It decides nothing."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from edge.publish.outbox_file import OutboxFile, Row, StreamRow, key_of
from edge.publish.ranges import Ranges
from edge.wire import AnyEvent, decode_batch


@dataclass(frozen=True, slots=True)
class Held:
    """A file and its streams by their place in it; a damaged file is replaced by another `Held`."""

    file: OutboxFile
    streams: dict[int, StreamRow]

    def walk(self, what: Callable[[StreamRow], Ranges], after: int = 0) -> Iterator[Row]:
        """Yield, in order, the batches that touch `what` of each stream."""
        for place in sorted(self.streams):
            for first, last in what(self.streams[place]):
                while key_of(place, last) > after:
                    rows = self.file.rows(place, first, last, after=after, limit=100)
                    yield from rows
                    if not rows:
                        break
                    after = rows[-1].key

    def is_pending(self, row: Row) -> bool:
        """Return whether a batch is still in the file and not wholly covered (P14)."""
        stream = self.streams.get(row.place)
        return stream is not None and not (
            stream.gone.covers(row.first, row.last) or stream.covered.covers(row.first, row.last)
        )

    def waiting(self) -> int:
        """Return how many events are pending."""
        return sum(row.pending().count() for row in self.streams.values())

    def events(self, row: Row) -> tuple[AnyEvent, ...]:
        """Return the events of a batch, none when its bytes are spoilt."""
        raw = self.file.payload(row)
        try:
            return () if raw is None else decode_batch(raw).events
        except ValueError:
            return ()
