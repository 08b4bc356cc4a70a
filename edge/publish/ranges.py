"""Sets of sequence numbers as sorted, disjoint, inclusive ranges: what is held, what is covered, what is gone."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Self


class Ranges:
    """A mutable set of positive integers; cheap while the numbers come in runs, as sequence numbers do."""

    __slots__ = ("_runs",)

    def __init__(self, runs: Iterable[tuple[int, int]] = ()) -> None:
        self._runs: list[tuple[int, int]] = []
        for first, last in runs:
            self.add(first, last)

    @classmethod
    def from_flat(cls, flat: Sequence[int]) -> Self:
        """Return the set that `flat` wrote down; a trailing odd number or a range upside down is left out."""
        return cls((first, last) for first, last in zip(flat[::2], flat[1::2], strict=False) if 0 < first <= last)

    def flat(self) -> tuple[int, ...]:
        """Return first, last, first, last, …"""
        return tuple(number for run in self._runs for number in run)

    def add(self, first: int, last: int) -> None:
        """Put first…last in, joining what touches."""
        if not self._runs or first > self._runs[-1][1] + 1:  # the usual case: at the end
            self._runs.append((first, last))
            return
        kept = []
        for a, b in self._runs:
            if b + 1 < first or last + 1 < a:
                kept.append((a, b))
            else:
                first, last = min(a, first), max(b, last)
        kept.append((first, last))
        self._runs = sorted(kept)

    def discard(self, first: int, last: int) -> None:
        """Take first…last out."""
        kept = []
        for a, b in self._runs:
            if a < first:
                kept.append((a, min(b, first - 1)))
            if b > last:
                kept.append((max(a, last + 1), b))
        self._runs = kept

    def covers(self, first: int, last: int) -> bool:
        """Return whether all of first…last is in."""
        return any(a <= first and last <= b for a, b in self._runs)

    def touches(self, first: int, last: int) -> bool:
        """Return whether any of first…last is in."""
        return any(a <= last and first <= b for a, b in self._runs)

    @property
    def top(self) -> int:
        """The largest number, 0 when empty."""
        return self._runs[-1][1] if self._runs else 0

    def count(self) -> int:
        """Return how many numbers are in."""
        return sum(last - first + 1 for first, last in self._runs)

    def copy(self) -> "Ranges":
        """Return an equal set that changes on its own."""
        twin = Ranges()
        twin._runs = list(self._runs)
        return twin

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return iter(self._runs)

    def __bool__(self) -> bool:
        return bool(self._runs)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Ranges) and self._runs == other._runs

    def __or__(self, other: "Ranges") -> "Ranges":
        union = self.copy()
        for first, last in other:
            union.add(first, last)
        return union

    def __sub__(self, other: "Ranges") -> "Ranges":
        rest = self.copy()
        for first, last in other:
            rest.discard(first, last)
        return rest

    def __and__(self, other: "Ranges") -> "Ranges":
        return self - (self - other)

    def __repr__(self) -> str:
        return f"Ranges({self._runs})"

    __hash__ = None  # type: ignore[assignment]
