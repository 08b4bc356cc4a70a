"""Which sequence numbers of a stream are covered: 1…`upto` without a hole, and ranges above it.

Pure values; `store.py` keeps one per stream, the ack is made from it (P16).
"""

from bisect import bisect_left, bisect_right
from dataclasses import dataclass
from typing import Self


@dataclass(frozen=True, slots=True)
class Coverage:
    """Covered sequence numbers: 1…`upto`, and `above`: sorted, disjoint (first, last), none touching another."""

    upto: int = 0
    above: tuple[tuple[int, int], ...] = ()

    @classmethod
    def from_flat(cls, upto: int, flat: list[int] | tuple[int, ...]) -> Self:
        """Read what `flat` wrote."""
        return cls(upto, tuple(zip(flat[::2], flat[1::2], strict=True)))

    def flat(self) -> tuple[int, ...]:
        """Return the ranges above `upto` as the ack and the database hold them: first, last, first, last, …"""
        return tuple(number for pair in self.above for number in pair)

    def contains(self, seq: int) -> bool:
        """Tell whether `seq` is covered."""
        return 1 <= seq <= self.upto or any(first <= seq <= last for first, last in self.above)

    def missing(self, first: int, last: int) -> list[tuple[int, int]]:
        """Return the parts of first…last (both included) that are not covered, in order."""
        gaps = []
        at = max(first, self.upto + 1)
        start = bisect_left(self.above, at, key=lambda pair: pair[1])
        for low, high in self.above[start:]:
            if at > last or low > last:
                break
            if at < low:
                gaps.append((at, low - 1))
            at = high + 1
        if at <= last:
            gaps.append((at, last))
        return gaps

    def add(self, first: int, last: int) -> "Coverage":
        """Return the coverage with first…last (both included) in it."""
        if last < first:
            raise ValueError(f"range {first}…{last} runs backwards")
        if first <= self.upto + 1:
            upto = max(self.upto, last)
            rest = self.above[bisect_left(self.above, upto, key=lambda pair: pair[1]) :]
            if rest and rest[0][0] <= upto + 1:
                upto, rest = max(upto, rest[0][1]), rest[1:]
            return Coverage(upto, tuple(pair for pair in rest if pair[1] > upto))
        low = bisect_left(self.above, first - 1, key=lambda pair: pair[1])  # the first range that touches or follows
        high = bisect_right(self.above, last + 1, key=lambda pair: pair[0])  # the first range beyond
        joined = self.above[low:high]
        if joined:
            first, last = min(first, joined[0][0]), max(last, joined[-1][1])
        return Coverage(self.upto, (*self.above[:low], (first, last), *self.above[high:]))

    def without(self, seq: int) -> "Coverage":
        """Return the coverage with one number taken out."""
        runs = [(1, self.upto), *self.above]
        cut = [part for low, high in runs for part in ((low, min(high, seq - 1)), (max(low, seq + 1), high))]
        kept = tuple((low, high) for low, high in cut if low <= high)
        return Coverage(kept[0][1], kept[1:]) if kept and kept[0][0] == 1 else Coverage(0, kept)
