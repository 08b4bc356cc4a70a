"""Which visits end in a transaction, and what is known of those that do not. Pure; `rows.py` asks.

A visit is a stream, a camera and a track. Merging is the same whatever the order of events, and however often (P35).
"""

from collections.abc import Sequence
from itertools import chain

import numpy as np

from bridge.table import Ints, Mask, Table, grouped

KEY = ("stream", "camera_id", "track")


def first_ends(ended: Table) -> Mask:
    """Mark the first end of each visit; a second one changes nothing (P33)."""
    order, starts = _by_visit(ended)
    first = np.zeros(len(ended), bool)
    first[order[starts]] = True
    return first


def still_open(sightings: Sequence[Table], ended: Table) -> Table:
    """Return what is known of each visit without an end.

    The event with the greatest sequence number says where somebody is, the one with the smallest where from.

    Args:
        sightings: what events say of visits, in the columns of open visits, with `seq`, `started_ms` and `last_ms`.
        ended: the visits that end; what is said of them opens nothing, before their end or after it.
    """
    columns = {name: np.concatenate([table[name] for table in sightings]) for name in sightings[0].columns}
    seen = _without(Table(columns, list(chain.from_iterable(table.tails for table in sightings))), ended)
    if not len(seen):
        return Table(dict.fromkeys((*columns, "first_seq", "last_seq"), seen["seq"]))
    order, starts = _by_visit(seen, "seq")
    ends = np.append(starts[1:], len(order))[: len(starts)]
    first, last = order[starts], order[ends - 1]
    merged = {name: seen[name][last] for name in (*KEY, "exit_x", "exit_y", "w", "h", "clock", "vocabulary_id")}
    merged |= {name: seen[name][first] for name in ("entry_x", "entry_y")}
    merged |= {"first_seq": seen["seq"][first], "last_seq": seen["seq"][last]}
    merged |= {"started_ms": np.minimum.reduceat(seen["started_ms"][order], starts)}
    merged |= {name: np.maximum.reduceat(seen[name][order], starts) for name in ("last_ms", "score")}
    return Table(merged, [seen.tails[at] for at in last.tolist()])


def _without(seen: Table, ended: Table) -> Table:
    """Return the rows of visits that are not among the ended ones."""
    if not len(seen) or not len(ended):
        return seen
    keys = [np.concatenate((ended[name], seen[name])) for name in KEY]
    order, starts = grouped(*keys)
    over = np.logical_or.reduceat(order < len(ended), starts)
    known = np.zeros(len(order), bool)
    known[order] = np.repeat(over, np.diff(np.append(starts, len(order))))
    return seen.where(~known[len(ended) :])


def _by_visit(table: Table, *further: str) -> tuple[Ints, Ints]:
    """Sort rows by visit, then by further columns; say where each visit begins."""
    order, starts = grouped(*(table[name] for name in (*KEY, *further)))
    if further and len(order):
        visit = np.stack([table[name][order[starts]] for name in KEY])
        starts = starts[np.append(True, (np.diff(visit, axis=1) != 0).any(axis=0))]
    return order, starts
