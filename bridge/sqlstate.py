"""What a PostgreSQL error means for the bridge: try again, one row is bad, or stop and call somebody."""

from enum import Enum

import psycopg

RETRY_CLASSES = frozenset({"08", "25", "40", "53", "55", "57", "58"})
BAD_ROW_CLASSES = frozenset({"22", "23"})


class Verdict(Enum):
    """What to do about a failed transaction."""

    RETRY = "retry"  # connection lost, read-only, deadlock, out of disk, lock, shutdown, I/O: the same rows, later
    BAD_ROW = "bad row"  # a value or a constraint: bisect to the row and dead-letter it
    STOP = "stop"  # a missing grant, table or function, or something unknown: no ack, alarm; the rows are innocent


def classify(error: psycopg.Error) -> Verdict:
    """Return the verdict by SQLSTATE class; without a SQLSTATE, a broken connection is tried again."""
    state = error.sqlstate
    if state is None:
        return Verdict.RETRY if isinstance(error, psycopg.OperationalError | psycopg.InterfaceError) else Verdict.STOP
    if state[:2] in RETRY_CLASSES:
        return Verdict.RETRY
    if state[:2] in BAD_ROW_CLASSES:
        return Verdict.BAD_ROW
    return Verdict.STOP
