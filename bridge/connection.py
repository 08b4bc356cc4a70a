"""The database connection, as every module of the store passes it on, and what it sends in binary."""

from collections.abc import Iterable
from typing import Any

import numpy as np
import psycopg
from numpy.typing import NDArray
from psycopg.adapt import Buffer, Dumper
from psycopg.pq import Format

from bridge.copy import HEADER, TRAILER, int8_array

Connection = psycopg.Connection[Any]


class IntsDumper(Dumper):
    """Passes an int64 array as bigint[]: thousands of keys without an object for each."""

    format = Format.BINARY
    oid = psycopg.adapters.types["int8"].array_oid

    def dump(self, obj: NDArray[np.int64]) -> Buffer:
        """Return the parameter."""
        return int8_array(obj)


def adapt(connection: Connection) -> None:
    """Teach a connection to take numpy arrays as parameters."""
    connection.adapters.register_dumper(np.ndarray, IntsDumper)


def copy(connection: Connection, statement: str, rows: Iterable[bytes]) -> None:
    """Send rows packed by a `Layout` through COPY; without rows, send nothing."""
    data = b"".join((HEADER, *rows, TRAILER))
    if len(data) > len(HEADER) + len(TRAILER):
        with connection.cursor() as cursor, cursor.copy(statement.encode()) as into:
            into.write(data)
