"""Decoding ahead changes when the work is done, and nothing else."""

import threading
import time
from pathlib import Path

import cv2
import numpy as np
import pytest

from edge.capture.ahead import Ahead
from edge.capture.frames import Frame, SourceState
from edge.capture.sources import open_source
from edge.capture.spec import SourceSpec
from edge.errors import CameraError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for i in range(12):
        cv2.imwrite(str(tmp_path / f"{i:02}.png"), np.full((8, 8, 3), 20 * i, np.uint8))
    return tmp_path


def spec(folder: Path) -> SourceSpec:
    return SourceSpec("folder", str(folder))


def test_the_frames_are_the_same_and_in_order(folder: Path) -> None:
    with open_source(spec(folder)) as ahead, open_source(spec(folder), ahead=0) as plain:
        while (expected := plain.read(0.0)) is not None:
            frame = ahead.read(0.0)
            assert frame is not None
            assert (frame.index, frame.media_s) == (expected.index, expected.media_s)
            assert np.array_equal(frame.image, expected.image)
        assert ahead.read(0.0) is None
        assert ahead.read(0.0) is None
        assert ahead.state is SourceState.ENDED
        assert ahead.duration_s == plain.duration_s


def test_it_streams_until_the_last_frame_was_read(folder: Path) -> None:
    with open_source(spec(folder)) as source:
        time.sleep(0.3)  # long enough to decode all twelve, were it not bounded
        for _ in range(12):
            assert source.state is SourceState.STREAMING
            assert source.read(0.0) is not None


def test_closing_in_the_middle_ends_the_thread(folder: Path) -> None:
    before = threading.active_count()
    source = open_source(spec(folder))
    assert source.read(0.0) is not None
    source.close()
    source.close()
    assert threading.active_count() == before
    assert source.read(0.0) is None


def test_what_the_decoder_raises_reaches_the_reader(folder: Path) -> None:
    class Broken:
        def __init__(self) -> None:
            self._source = open_source(spec(folder), ahead=0)
            self._reads = 0

        def __getattr__(self, name: str) -> object:
            return getattr(self._source, name)

        def read(self, timeout_s: float) -> object:
            self._reads += 1
            if self._reads == 3:
                raise CameraError("the card was pulled out")
            return self._source.read(timeout_s)

    with Ahead(Broken()) as source:  # type: ignore[arg-type]
        assert source.read() is not None
        assert source.read() is not None
        with pytest.raises(CameraError, match="pulled out"):
            source.read()
        assert source.read() is None


class Hanging:
    """A recording whose second frame never comes, until it is let go."""

    live, damaged, last_error, decoder, duration_s = False, 0, "", "software", None

    def __init__(self) -> None:
        self.let_go = threading.Event()
        self.closed = False
        self._frames = [Frame(np.zeros((4, 4, 3), np.uint8), 0, 0.0, 0.0)]

    def read(self, timeout_s: float) -> Frame | None:
        if self._frames:
            return self._frames.pop()
        self.let_go.wait()
        return None

    def close(self) -> None:
        self.closed = True


def test_a_decoder_that_hangs_is_waited_for_no_longer_than_asked_and_seen_to_stand_still() -> None:
    source = Hanging()
    with Ahead(source) as ahead:  # type: ignore[arg-type]
        assert ahead.read(5.0) is not None
        turned_at_s = ahead.turned_at_s
        assert ahead.read(0.3) is None
        assert ahead.state is SourceState.STREAMING
        assert ahead.turned_at_s == turned_at_s
        source.let_go.set()
        assert ahead.read(0.0) is None
        assert ahead.state is SourceState.ENDED
    assert source.closed


def test_closing_from_another_thread_ends_a_reader_who_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """The file of a decoder that still hangs stays open: closed under its hands it would take the process along."""
    monkeypatch.setattr("edge.capture.ahead.CLOSE_S", 0.3)
    source, got = Hanging(), []
    ahead = Ahead(source)  # type: ignore[arg-type]
    assert ahead.read() is not None
    reader = threading.Thread(target=lambda: got.append(ahead.read()))
    reader.start()
    ahead.close()
    reader.join(30.0)
    assert got == [None]
    assert not source.closed
    source.let_go.set()
