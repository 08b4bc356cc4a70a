"""The database connection, as every module of the store passes it on, and binary COPY through it."""

from collections.abc import Iterable
from typing import Any

import psycopg

from bridge.copy import HEADER, TRAILER

Connection = psycopg.Connection[Any]


def copy(connection: Connection, statement: str, rows: Iterable[bytes]) -> None:
    """Send rows packed by a `Layout` through COPY; without rows, send nothing."""
    data = b"".join((HEADER, *rows, TRAILER))
    if len(data) > len(HEADER) + len(TRAILER):
        with connection.cursor() as cursor, cursor.copy(statement.encode()) as into:
            into.write(data)
