"""What the indices in a box's events mean, as the database knows it: camera ids, labels as JSON. Pure."""

import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import chain, repeat

import msgspec
import numpy as np
from numpy.typing import NDArray

from bridge.copy import jsonb, value
from edge.wire import SCORE_UNIT, Head, WireError

Ints = NDArray[np.int64]
EMPTY = value(jsonb(b"{}")) * 2  # labels and confidences of an event without attributes
_CONFIDENCES = SCORE_UNIT + 1
_DIGITS = [b"%.3f" % (confidence / SCORE_UNIT) for confidence in range(_CONFIDENCES)]  # all of one length


class Names:
    """The labels of some heads as pieces of JSON; shared by all boxes that run the same heads.

    Attributes:
        pairs: (head, label) of every label of every head; an event's labels are told as places in it.
    """

    def __init__(self, heads: Sequence[Head]) -> None:
        self.pairs = [(head.name, label) for head in heads for label in head.labels]
        counts = [len(head.labels) for head in heads]
        self._counts = np.array(counts, np.int64)
        self._first = np.cumsum([0, *counts[:-1]], dtype=np.int64)
        names = [msgspec.json.encode(head.name) for head in heads]
        labels = [msgspec.json.encode(label) for _, label in self.pairs]
        owners = chain.from_iterable(map(repeat, names, counts))
        self._labels = _Members([name + b":" + label for name, label in zip(owners, labels, strict=True)])
        self._heads = _Members([name + b":" for name in names])

    def places(self, attributes: Ints) -> tuple[Ints, NDArray[np.bool_]]:
        """Return where each label stands in `pairs`, and which events make sense.

        Args:
            attributes: (3 k, n): head, label, confidence in 1/255, head, …

        Returns:
            (k, n) places, meaningless where the event is; (n,).
        """
        heads, labels, confidences = attributes[0::3], attributes[1::3], attributes[2::3]
        known = (heads >= 0) & (heads < len(self._counts))
        safe = np.where(known, heads, 0)
        if not len(self._counts):
            return safe, np.zeros(attributes.shape[1], bool)
        fine = known & (labels >= 0) & (labels < self._counts[safe])
        fine &= (confidences >= 0) & (confidences < _CONFIDENCES)
        ordered = np.sort(heads, axis=0)
        fine[1:] &= np.diff(ordered, axis=0) > 0
        return self._first[safe] + labels, np.logical_and.reduce(fine)

    def refusal(self, flat: Sequence[int]) -> str:
        """Say what is wrong with the attributes of one event; `flat` is head, label, confidence, …"""
        for head, label, confidence in zip(flat[0::3], flat[1::3], flat[2::3], strict=True):
            if not (0 <= head < len(self._counts) and 0 <= label < self._counts[head]):
                return f"head {head}, label {label} is not in the vocabulary"
            if not 0 <= confidence < _CONFIDENCES:
                return f"confidence {confidence} of head {head}, expected 0–{SCORE_UNIT}"
        return "a head speaks twice in one event"

    def tails(self, attributes: Ints, places: Ints) -> list[bytes]:
        """Return labels and confidences of events as the two last columns of their rows; arguments as `places` has."""
        heads, confidences = attributes[0::3], attributes[2::3]
        digits = [[_DIGITS[confidence] for confidence in row] for row in confidences.tolist()]
        labelled = self._labels.columns(places)
        told = chain.from_iterable(zip(self._heads.columns(heads), digits, strict=True))
        lengths = self._heads.lengths(heads) + len(heads) * len(_DIGITS[0])
        ends = repeat(b"}")
        columns = (_prefixes(self._labels.lengths(places)), *labelled, ends, _prefixes(lengths), *told, ends)
        return list(map(b"".join, zip(*columns, strict=False)))


class _Members:
    """Members of JSON objects, to be put together: with the brace that opens one, or the comma that goes on."""

    def __init__(self, members: Sequence[bytes]) -> None:
        self._opening = [b"{" + member for member in members]
        self._further = [b"," + member for member in members]
        self._bytes = np.array([len(member) + 1 for member in members], np.int64)

    def columns(self, places: Ints) -> list[list[bytes]]:
        """Return the members at places (k, n) of n objects, first members first."""
        first, *others = places.tolist()
        return [[self._opening[at] for at in first], *([self._further[at] for at in other] for other in others)]

    def lengths(self, places: Ints) -> Ints:
        """Return the bytes of each of n objects, without the brace that closes it."""
        return np.asarray(self._bytes[places].sum(axis=0))


def _prefixes(lengths: Ints) -> list[bytes]:
    return [_prefix(length) for length in lengths.tolist()]


@lru_cache(4096)
def _prefix(length: int) -> bytes:
    """Return what stands before a jsonb value: its length with the version and the closing brace, the version."""
    return struct.pack(">ib", length + 2, 1)


@lru_cache(256)
def names_of(heads: tuple[Head, ...]) -> Names:
    """Return the names of some heads; boxes that run the same ones share them."""
    return Names(heads)


@dataclass(frozen=True, slots=True)
class Meaning:
    """A vocabulary as the database knows it: camera ids instead of names."""

    vocabulary_id: int
    box_id: int
    camera_ids: tuple[int, ...]
    heads: tuple[Head, ...]
    names: Names = field(init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "names", names_of(self.heads))

    def camera_id(self, index: int) -> int:
        """Return the id of the camera an event names by index."""
        if not 0 <= index < len(self.camera_ids):
            raise WireError(f"camera {index} is not in the vocabulary of {len(self.camera_ids)} cameras")
        return self.camera_ids[index]
