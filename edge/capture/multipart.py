"""Cut an MJPEG stream (`multipart/x-mixed-replace`) into its pictures. Pure: bytes in, bytes out.

Cameras disagree on the details (a boundary with or without its dashes, with or without Content-Length, stray line
ends), so only two things are believed: the boundary, and a Content-Length where there is one.

Source: RFC 2046, section 5.1.
"""

_LONGEST_HEAD_BYTES = 16 * 1024
LONGEST_PART_BYTES = 32 * 1024 * 1024


class MultipartCutter:
    """Collect bytes as they come and give out whole parts.

    Args:
        boundary: as in the Content-Type, with or without quotes and leading dashes.
    """

    def __init__(self, boundary: str) -> None:
        self._mark = b"--" + boundary.strip().strip('"').lstrip("-").encode("latin-1")
        self._buffer = bytearray()

    def feed(self, chunk: bytes) -> list[bytes]:
        """Return the parts that are whole after this chunk, oldest first.

        Raises:
            ValueError: the stream never shows its boundary, or a part is larger than any picture.
        """
        self._buffer += chunk
        parts: list[bytes] = []
        while (part := self._cut()) is not None:
            if part:
                parts.append(part)
        if len(self._buffer) > LONGEST_PART_BYTES:
            raise ValueError(f"no end of a picture within {LONGEST_PART_BYTES} bytes")
        return parts

    def _cut(self) -> bytes | None:
        start = self._buffer.find(self._mark)
        if start < 0:
            return None
        head_start = start + len(self._mark)
        head_end, gap = self._end_of_head(head_start)
        if head_end < 0:
            if len(self._buffer) - head_start > _LONGEST_HEAD_BYTES:
                raise ValueError("a part without an end of its headers")
            return None
        body_start = head_end + gap
        length = _content_length(bytes(self._buffer[head_start:head_end]))
        if length is not None:
            if length > LONGEST_PART_BYTES:
                raise ValueError(f"a part that says it has {length} bytes")
            body_end = after = body_start + length
            if body_end > len(self._buffer):
                return None
        else:
            after = self._buffer.find(self._mark, body_start)
            if after < 0:
                return None
            body_end = after
        part = bytes(self._buffer[body_start:body_end])
        del self._buffer[:after]
        return part.rstrip(b"\r\n") if length is None else part

    def _end_of_head(self, start: int) -> tuple[int, int]:
        ends = [(self._buffer.find(gap, start), len(gap)) for gap in (b"\r\n\r\n", b"\n\n")]
        return min((end for end in ends if end[0] >= 0), default=(-1, 0))


def _content_length(head: bytes) -> int | None:
    for line in head.splitlines():
        name, _, value = line.partition(b":")
        if name.strip().lower() == b"content-length" and value.strip().isdigit():
            return int(value)
    return None
