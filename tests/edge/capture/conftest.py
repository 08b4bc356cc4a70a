"""Clips, cameras and a way to wait, for the capture tests."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest

from edge.capture.frames import Frame, Source, SourceState
from tests.rtsp_server import RtspServer, interpreter


def until(condition: Callable[[], bool], timeout_s: float = 15.0) -> bool:
    """Wait until a condition holds; False when it does not in time."""
    end_s = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > end_s:
            return False
        time.sleep(0.02)
    return True


def next_frame(source: Source, timeout_s: float = 15.0) -> Frame:
    """Return the next frame of a live source, reading as the pipeline does."""
    end_s = time.monotonic() + timeout_s
    while time.monotonic() < end_s:
        frame = source.read(0.1)
        if frame is not None:
            return frame
    raise AssertionError(f"no frame: {source.state}, {source.last_error}")


def until_state(source: Source, state: SourceState, timeout_s: float = 15.0) -> bool:
    """Read as the pipeline does until the source is in a state; False when it is not in time."""
    end_s = time.monotonic() + timeout_s
    while source.state is not state and time.monotonic() < end_s:
        source.read(0.05)
    return source.state is state


def write_clip(path: Path, frames: int = 40, fps: float = 20.0, size: tuple[int, int] = (64, 48)) -> Path:
    """Write a clip whose n-th frame is grey 4·n, n modulo 60."""
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), fps, size)
    assert writer.isOpened()
    for number in range(frames):
        writer.write(np.full((size[1], size[0], 3), 4 * (number % 60), np.uint8))
    writer.release()
    return path


@pytest.fixture(scope="session")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a Matroska clip of 40 frames at 20 fps."""
    return write_clip(tmp_path_factory.mktemp("clips") / "clip.mkv")


@pytest.fixture
def rtsp_camera() -> Iterator[Callable[..., RtspServer]]:
    """Return a maker of real RTSP cameras, all of them killed at the end."""
    if interpreter() is None:
        pytest.skip("no RTSP server here: install gir1.2-gst-rtsp-server-1.0, python3-gi and gstreamer1.0-plugins-*")
    made: list[RtspServer] = []

    def make(**settings: object) -> RtspServer:
        server = RtspServer(**settings)  # type: ignore[arg-type]
        made.append(server)
        server.start()
        return server

    yield make
    for server in made:
        server.kill()
