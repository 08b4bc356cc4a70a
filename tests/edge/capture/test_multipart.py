"""MJPEG streams are cut into the same pictures however the bytes arrive."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.capture.multipart import LONGEST_PART_BYTES, MultipartCutter

PICTURES = [b"\xff\xd8one\xff\xd9", b"\xff\xd8--edge\r\n\r\n two \xff\xd9", b"\xff\xd8\r\n\xff\xd9"]


def stream(pictures: list[bytes], *, length: bool, line: bytes = b"\r\n") -> bytes:
    parts = []
    for body in pictures:
        head = b"--edge" + line + b"Content-Type: image/jpeg" + line
        head += b"content-length: %d" % len(body) + line if length else b""
        parts.append(head + line + body + line)
    return b"".join(parts) + b"--edge"


@given(cuts=st.lists(st.integers(0, 400), max_size=12))
def test_parts_do_not_depend_on_how_the_bytes_arrive(cuts: list[int]) -> None:
    data = stream(PICTURES, length=True)
    marks = sorted({0, len(data), *(cut for cut in cuts if cut < len(data))})
    cutter = MultipartCutter("edge")
    got = [part for a, b in itertools.pairwise(marks) for part in cutter.feed(data[a:b])]
    assert got == PICTURES


@pytest.mark.parametrize("boundary", ["edge", '"edge"', "--edge", " --edge"])
def test_every_spelling_of_the_boundary_is_understood(boundary: str) -> None:
    assert MultipartCutter(boundary).feed(stream(PICTURES[:1], length=True)) == PICTURES[:1]


@pytest.mark.parametrize("line", [b"\r\n", b"\n"])
def test_without_content_length_the_next_boundary_ends_a_picture(line: bytes) -> None:
    plain = [PICTURES[0], PICTURES[0] + b"x"]
    assert MultipartCutter("edge").feed(stream(plain, length=False, line=line)) == plain


def test_a_stream_without_end_is_refused() -> None:
    cutter = MultipartCutter("edge")
    cutter.feed(bytes(LONGEST_PART_BYTES))
    with pytest.raises(ValueError, match="no end of a picture"):
        cutter.feed(b"x")


def test_a_part_that_says_it_is_huge_is_refused_at_once() -> None:
    with pytest.raises(ValueError, match="says it has"):
        MultipartCutter("edge").feed(b"--edge\r\nContent-Length: 99999999999\r\n\r\n")


def test_headers_without_end_are_refused() -> None:
    with pytest.raises(ValueError, match="headers"):
        MultipartCutter("edge").feed(b"--edge\r\n" + b"X: y\r\n" * 5000)
