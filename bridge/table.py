"""Rows as columns: what `rows.py` makes, `rollups.py` adds up and COPY sends. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import compress
from typing import Self

import numpy as np
from numpy.typing import NDArray

from bridge.copy import Layout

Ints = NDArray[np.int64]
Mask = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Table:
    """n rows.

    Attributes:
        columns: name → (n,).
        tails: the last columns of each row, packed; empty where a table has none.
        labels: (k, n), at most k labels of each row, as places in `Rows.pairs`; -1 for none.
    """

    columns: dict[str, Ints]
    tails: Sequence[bytes] = ()
    labels: Ints = field(default_factory=lambda: np.zeros((0, 0), np.int64))

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

    def __getitem__(self, name: str) -> Ints:
        return self.columns[name]

    def where(self, mask: Mask) -> Self:
        """Return the rows for which the mask is true."""
        if mask.all():
            return self
        columns = {name: column[mask] for name, column in self.columns.items()}
        tails = list(compress(self.tails, mask.tolist()))
        return type(self)(columns, tails, self.labels[:, mask] if self.labels.size else self.labels)

    def pack(self, layout: Layout, names: Sequence[str]) -> bytes:
        """Return the rows for COPY, the named columns first."""
        return layout.pack_columns([self.columns[name] for name in names], self.tails)


def grouped(*keys: Ints) -> tuple[Ints, Ints]:
    """Sort rows by keys, the first one most significant; rows with equal keys keep their order.

    Returns:
        (n,) rows in order, and where in that order each group of equal keys begins.
    """
    order = np.lexsort(keys[::-1])
    if not len(order):
        return order, order
    new = np.zeros(len(order) - 1, bool)
    for key in keys:
        ordered = key[order]
        new |= ordered[1:] != ordered[:-1]
    return order, np.concatenate(([0], np.flatnonzero(new) + 1))
