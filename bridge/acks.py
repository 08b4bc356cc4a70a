"""Which acks are owed to which boxes, and when each may go: at most one a second per box (P15). Knows no clock."""

from collections import OrderedDict
from collections.abc import Iterable

from edge.wire import Covered

Box = tuple[str, str]  # site, box

MOST_STREAMS = 8_001  # named in one ack: some 160 kB, less than a batch may have; a box that restarts hourly for a year
EVERY_S = 1.0


class AckBook:
    """The newest coverage of each box, and since when it waits to be said."""

    def __init__(self, *, every_s: float = EVERY_S) -> None:
        """Let at most one ack per box go each `every_s` seconds."""
        self._every_s = every_s
        self._owed: dict[Box, OrderedDict[int, Covered]] = {}
        self._said_at_s: dict[Box, float] = {}
        self._complete: set[Box] = set()

    def note(self, box: Box, covered: Iterable[Covered], *, complete: bool = False) -> None:
        """Owe a box an ack that says this; of each stream the newest word counts.

        `complete`: this is all the database holds of the box. What is added before it is said leaves it complete.
        """
        streams = self._owed.get(box) or OrderedDict()
        for one in covered:
            streams[one.stream] = one
            streams.move_to_end(one.stream)
            if len(streams) > MOST_STREAMS:
                streams.popitem(last=False)
                self._complete.discard(box)
                complete = False
        if streams:
            self._owed[box] = streams
            if complete:
                self._complete.add(box)

    def is_complete(self, box: Box) -> bool:
        """Tell whether the ack owed to a box names every stream of it that the database knows (P23)."""
        return box in self._complete

    def due(self, now_s: float) -> list[tuple[Box, tuple[Covered, ...]]]:
        """Return the acks that may go now; each stays owed until `said`."""
        return [
            (box, tuple(streams.values()))
            for box, streams in self._owed.items()
            if now_s - self._said_at_s.get(box, -self._every_s) >= self._every_s
        ]

    def said(self, box: Box, now_s: float) -> None:
        """Take note that a box's ack has been published."""
        self._owed.pop(box, None)
        self._complete.discard(box)
        self._said_at_s[box] = now_s
        if len(self._said_at_s) > 10_000:
            self._said_at_s = {b: t for b, t in self._said_at_s.items() if now_s - t < self._every_s}

    def wait_s(self, now_s: float, longest_s: float) -> float:
        """Return how long until the next ack may go, at most `longest_s`."""
        times = [self._said_at_s.get(box, now_s - self._every_s) + self._every_s - now_s for box in self._owed]
        return min([longest_s, *(max(0.0, t) for t in times)])
