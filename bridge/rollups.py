"""What rows count into the rollups, added up before PostgreSQL hears of it; and the rollups themselves.

A transaction's thousands of rows fall into few buckets. Only rows that were really inserted are counted.
"""

import numpy as np

from bridge import statements as sql
from bridge.connection import Connection, copy
from bridge.copy import Layout, timestamp
from bridge.table import Ints, Table, grouped

DELTA = Layout("qiqqqiq")
MINUTE_MS = 60_000
QUARTER_MS = 15 * MINUTE_MS  # hours of every time zone in use begin on one


def count(connection: Connection, visits: Table, presence: Table, pairs: list[tuple[str, str]]) -> None:
    """Count rows into the attributes' hours, and into `in_delta`, for `roll_up` to take further."""
    if visits.labels.size:
        bucket, camera_id, pair, counts = labels(visits)
        heads, texts = zip(*(pairs[i] for i in pair.tolist()), strict=True) if len(pair) else ((), ())
        connection.execute(
            sql.COUNT_LABELS,
            {
                "bucket": timestamp(bucket),
                "camera_id": camera_id,
                "head": list(heads),
                "label": list(texts),
                "visits": counts,
            },
        )
    copy(connection, sql.COPY_DELTA, [DELTA.pack_columns(deltas) for deltas in minutes(visits, presence)])


def roll_up(connection: Connection) -> None:
    """Add what stands in `in_delta` to the rollups."""
    for rollup in sql.ROLLUPS:
        connection.execute(rollup)


def labels(visits: Table) -> tuple[Ints, Ints, Ints, Ints]:
    """Return bucket (ms, a quarter of an hour), camera, place in the pairs, and visits that carry this label."""
    held = visits.labels >= 0
    quarters = np.broadcast_to(visits["end_ms"] // QUARTER_MS * QUARTER_MS, held.shape)[held]
    cameras = np.broadcast_to(visits["camera_id"], held.shape)[held]
    pairs = visits.labels[held]
    order, starts = grouped(cameras, quarters, pairs)
    first = order[starts]
    return quarters[first], cameras[first], pairs[first], np.diff(np.append(starts, len(order)))


def minutes(visits: Table, presence: Table) -> list[list[Ints]]:
    """Return for visits and for presence, where there are any, the columns of `in_delta`: time, camera, five sums."""
    found = []
    if len(visits):
        order, starts, key = _by_minute(visits["end_ms"], visits["camera_id"])
        nothing = np.zeros(len(starts), np.int64)
        counts = np.diff(np.append(starts, len(order)))
        dwell_ms = np.add.reduceat(visits["dwell_ms"][order], starts)
        found.append([*key, counts, dwell_ms, nothing, nothing, nothing])
    if len(presence):
        order, starts, key = _by_minute(presence["at_ms"], presence["camera_id"])
        nothing = np.zeros(len(starts), np.int64)
        person_ms, entered = (np.add.reduceat(presence[name][order], starts) for name in ("person_ms", "entered"))
        most = np.maximum.reduceat(presence["most"][order], starts)
        found.append([*key, nothing, nothing, person_ms, most, entered])
    return found


def _by_minute(at_ms: Ints, camera_id: Ints) -> tuple[Ints, Ints, tuple[Ints, Ints]]:
    minute = at_ms // MINUTE_MS * MINUTE_MS
    order, starts = grouped(camera_id, minute)
    first = order[starts]
    return order, starts, (timestamp(minute[first]), camera_id[first])
