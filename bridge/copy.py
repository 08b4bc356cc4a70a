"""PostgreSQL's binary formats: rows for COPY, of integers and times first, then JSON or bytes; arrays as parameters.

Source: PostgreSQL manual, COPY, "Binary Format"; `array_recv` in its source. A value that does not fit its column
raises `struct.error` here, so that one absurd number costs one event and no round trip.
"""

import struct
from collections.abc import Sequence
from itertools import chain
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

HEADER = b"PGCOPY\n\xff\r\n\0" + bytes(8)  # signature, no flags, no extension
TRAILER = b"\xff\xff"
EPOCH_2000_MS = 946_684_800_000
_SIZES = {"q": 8, "i": 4, "h": 2}
_LENGTH = struct.Struct(">i")
_INT8_OID = 20
_ELEMENT = np.dtype([("length", ">i4"), ("value", ">i8")])
Time = TypeVar("Time", int, NDArray[np.int64])


def timestamp(ms: Time) -> Time:
    """Return a time in ms since 1970 as timestamptz holds it: µs since 2000."""
    return (ms - EPOCH_2000_MS) * 1000


class Layout:
    """The columns of one table: `fixed` names each column by its struct letter (q, i, h), `tail` counts the rest."""

    def __init__(self, fixed: str, tail: int = 0) -> None:
        self._template: list[int] = [len(fixed) + tail]
        for letter in fixed:
            self._template += [_SIZES[letter], 0]
        self._struct = struct.Struct(">h" + "".join("i" + letter for letter in fixed))
        fields = [("fields", ">i2")]
        for number, letter in enumerate(fixed):
            fields += [(f"length {number}", ">i4"), (f"value {number}", f">i{_SIZES[letter]}")]
        self._dtype = np.dtype(fields)

    def pack(self, fixed: tuple[int, ...], *tail: bytes) -> bytes:
        """Return one row.

        Raises:
            struct.error: a number is too large for its column.
        """
        values = self._template.copy()
        values[2::2] = fixed
        row = self._struct.pack(*values)
        for value in tail:
            row += _LENGTH.pack(len(value)) + value
        return row

    def pack_columns(self, fixed: Sequence[NDArray[np.int64]], tails: Sequence[bytes] = ()) -> bytes:
        """Return many rows.

        Args:
            fixed: one array (n,) per column; what does not fit is cut without a word, so look before.
            tails: the rest of each row, every value with its length before it (see `value`).
        """
        rows = np.empty(len(fixed[0]), self._dtype)
        rows["fields"] = self._template[0]
        for number, column in enumerate(fixed):
            rows[f"length {number}"] = self._template[1 + 2 * number]
            rows[f"value {number}"] = column
        packed = rows.tobytes()
        if not tails:
            return packed
        width = self._dtype.itemsize
        heads = (packed[at : at + width] for at in range(0, len(packed), width))
        return b"".join(chain.from_iterable(zip(heads, tails, strict=True)))


def value(data: bytes) -> bytes:
    """Return a value of a row's tail, its length before it."""
    return _LENGTH.pack(len(data)) + data


def jsonb(text: bytes) -> bytes:
    """Return JSON text as a jsonb column receives it: version 1, then the text."""
    return b"\x01" + text


def int8_array(numbers: NDArray[np.int64]) -> bytes:
    """Return a bigint[] as a parameter in binary."""
    elements = np.empty(len(numbers), _ELEMENT)
    elements["length"], elements["value"] = 8, numbers
    if not len(numbers):
        return struct.pack(">iii", 0, 0, _INT8_OID)
    return struct.pack(">iiiii", 1, 0, _INT8_OID, len(numbers), 1) + elements.tobytes()
