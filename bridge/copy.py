"""PostgreSQL's binary COPY format: rows of integers and times first, then JSON or bytes.

Source: PostgreSQL manual, COPY, "Binary Format". A value that does not fit its column raises `struct.error` here,
so that one absurd number costs one event and no round trip.
"""

import struct

HEADER = b"PGCOPY\n\xff\r\n\0" + bytes(8)  # signature, no flags, no extension
TRAILER = b"\xff\xff"
EPOCH_2000_MS = 946_684_800_000
_SIZES = {"q": 8, "i": 4, "h": 2}
_LENGTH = struct.Struct(">i")


def timestamp(ms: int) -> int:
    """Return a time in ms since 1970 as timestamptz holds it: µs since 2000."""
    return (ms - EPOCH_2000_MS) * 1000


class Layout:
    """The columns of one table: `fixed` names each column by its struct letter (q, i, h), `tail` counts the rest."""

    def __init__(self, fixed: str, tail: int = 0) -> None:
        self._template: list[int] = [len(fixed) + tail]
        for letter in fixed:
            self._template += [_SIZES[letter], 0]
        self._struct = struct.Struct(">h" + "".join("i" + letter for letter in fixed))

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


def jsonb(text: bytes) -> bytes:
    """Return JSON text as a jsonb column receives it: version 1, then the text."""
    return b"\x01" + text
