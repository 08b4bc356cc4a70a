"""The life of a live source, with connections that do exactly what a bad camera does."""

import itertools
import threading
import time
from collections.abc import Callable, Iterator
from random import Random

import numpy as np
import pytest

from edge.capture.backoff import Backoff
from edge.capture.faults import RefusedError
from edge.capture.frames import Image, SourceState
from edge.capture.live import Connection, LiveSource
from edge.errors import CameraError
from tests.edge.capture.conftest import next_frame, until, until_state


class FakeCamera:
    """Frames at a steady rate until it is told otherwise; each connection is a new object."""

    def __init__(self, fps: float = 100.0) -> None:
        self.fps = fps
        self.connects = self.open_now = 0
        self.absent = self.refuses = self.cut = self.damaged = False
        self.hang: threading.Event | None = None

    def connect(self) -> Connection:
        self.connects += 1
        if self.refuses:
            raise RefusedError("cam: authentication refused")
        if self.absent:
            raise CameraError("cam: nothing listens")
        self.open_now += 1
        return FakeConnection(self)


class FakeConnection:
    decoder = "software"

    def __init__(self, camera: FakeCamera) -> None:
        self.camera = camera
        self.number = 0

    def grab(self) -> bool:
        if self.camera.hang is not None:
            self.camera.hang.wait(20)
            return False
        time.sleep(1 / self.camera.fps)
        self.number += 1
        return not self.camera.cut

    def retrieve(self) -> Image | None:
        return None if self.camera.damaged else np.full((4, 4, 3), self.number % 256, np.uint8)

    def close(self) -> None:
        self.camera.open_now -= 1


Open = Callable[..., LiveSource]


@pytest.fixture
def camera() -> Iterator[FakeCamera]:
    camera = FakeCamera()
    yield camera
    if camera.hang is not None:
        camera.hang.set()


@pytest.fixture
def opened(camera: FakeCamera) -> Iterator[Open]:
    made: list[LiveSource] = []

    def make(**settings: object) -> LiveSource:
        quick = Backoff(base_s=0.02, cap_s=0.05, floor_s=0.01)
        made.append(LiveSource("cam", camera.connect, rng=Random(1), **{"backoff": quick, **settings}))  # type: ignore[arg-type]
        return made[-1]

    yield make
    if camera.hang is not None:
        camera.hang.set()
    for source in made:
        source.close()


def test_a_quick_reader_gets_every_frame(opened: Open) -> None:
    source = opened()
    got = [next_frame(source) for _ in range(20)]
    assert [frame.index for frame in got] == list(range(20))
    assert source.dropped == 0
    assert source.state is SourceState.STREAMING


def test_a_slow_reader_gets_the_newest_and_the_rest_is_counted(opened: Open) -> None:
    source = opened()
    got = []
    for _ in range(4):
        time.sleep(0.15)
        got.append(next_frame(source))
    gaps = np.diff([frame.index for frame in got])
    assert gaps.min() > 5
    assert source.dropped >= got[-1].index - len(got)
    assert time.monotonic() - got[-1].captured_at_s < 0.1


def test_times_are_monotonic_and_start_at_the_start(opened: Open) -> None:
    before_s = time.monotonic()
    source = opened()
    got = [next_frame(source) for _ in range(10)]
    assert all(a.media_s < b.media_s for a, b in itertools.pairwise(got))
    assert 0 <= got[0].media_s < 1
    assert before_s <= got[0].captured_at_s <= time.monotonic()


def test_nothing_within_the_timeout_is_none(camera: FakeCamera, opened: Open) -> None:
    camera.absent = True
    source = opened()
    started_s = time.monotonic()
    assert source.read(0.1) is None
    assert 0.09 <= time.monotonic() - started_s < 1.0


def test_a_lost_stream_is_rebuilt_whole_and_index_goes_on(camera: FakeCamera, opened: Open) -> None:
    source = opened()
    first = next_frame(source)
    camera.cut = True
    assert until_state(source, SourceState.RECONNECTING)
    camera.cut = False
    assert until_state(source, SourceState.STREAMING)
    again = next_frame(source)
    assert again.index > first.index
    assert again.media_s > first.media_s
    assert source.reconnects == 1
    assert camera.connects >= 2
    assert camera.open_now == 1
    assert "ended or fell silent" in source.last_error


def test_a_camera_that_is_not_there_is_tried_again_until_it_is(camera: FakeCamera, opened: Open) -> None:
    camera.absent = True
    source = opened()
    assert until(lambda: camera.connects > 5)
    assert source.state is SourceState.RECONNECTING
    assert source.last_error == "cam: nothing listens"
    camera.absent = False
    assert next_frame(source).image.shape == (4, 4, 3)


def test_the_loop_is_seen_turning_while_the_camera_is_away(camera: FakeCamera, opened: Open) -> None:
    camera.absent = True
    source = opened(backoff=Backoff(base_s=60, cap_s=60, floor_s=60))
    assert until(lambda: source.state is SourceState.RECONNECTING)
    before_s = source.turned_at_s
    assert until(lambda: source.turned_at_s > before_s + 0.8, 5)


def test_a_refused_password_is_not_tried_again_at_once(camera: FakeCamera, opened: Open) -> None:
    """Five wrong tries lock many a camera."""
    camera.refuses = True
    source = opened()
    assert until(lambda: source.last_error != "")
    time.sleep(0.3)
    assert camera.connects == 1


def test_a_camera_that_hangs_in_its_driver_is_replaced(camera: FakeCamera, opened: Open) -> None:
    source = opened(silence_s=0.3)
    next_frame(source)
    camera.hang = threading.Event()
    assert until_state(source, SourceState.RECONNECTING, 5)
    assert "no frame for 0.3 s" in source.last_error
    old, camera.hang = camera.hang, None
    assert until_state(source, SourceState.STREAMING, 10)
    frame = next_frame(source)
    old.set()  # the stray thread wakes up; it must not touch the source any more
    time.sleep(0.2)
    assert next_frame(source).index > frame.index
    assert source.reconnects == 1
    assert until(lambda: camera.open_now == 1)


def test_strays_are_bounded_and_then_the_watchdog_is_told(camera: FakeCamera, opened: Open) -> None:
    """With every thread stuck the source stops pretending: `turned_at_s` stands still."""
    camera.hang = threading.Event()
    source = opened(silence_s=0.05, open_s=0.05)
    assert until(lambda: source.read(0.02) is not None or camera.connects >= 5, 20)
    for _ in range(100):
        source.read(0.02)
    assert camera.connects == 5
    assert time.monotonic() - source.turned_at_s > 0.9


def test_damaged_frames_are_counted_and_not_handed_out(camera: FakeCamera, opened: Open) -> None:
    camera.damaged = True
    source = opened(silence_s=60)
    assert until(lambda: source.damaged > 3)
    assert source.read(0.05) is None
    camera.damaged = False
    assert next_frame(source)


def test_a_stream_of_nothing_but_damage_counts_as_silence(camera: FakeCamera, opened: Open) -> None:
    camera.damaged = True
    source = opened(silence_s=0.2)
    assert until(lambda: camera.connects > 1)
    assert source.state is SourceState.RECONNECTING


def test_fps_limits_what_is_converted(camera: FakeCamera, opened: Open) -> None:
    source = opened(fps=20)
    got = [next_frame(source) for _ in range(20)]
    assert 15 <= 19 / (got[-1].media_s - got[0].media_s) <= 21
    assert source.dropped == 0


def test_a_driver_s_surprise_does_not_end_the_thread_nor_show_a_secret(opened: Open, camera: FakeCamera) -> None:
    def surprise() -> Connection:
        camera.connects += 1
        raise RuntimeError("cannot open rtsp://u:geheim@cam")

    source = LiveSource(
        "cam", surprise, scrub=lambda text: text.replace("geheim", "***"), backoff=Backoff(base_s=0.01, floor_s=0.01)
    )
    with source:
        assert until(lambda: camera.connects > 2)
        assert source.last_error == "cam: RuntimeError: cannot open rtsp://u:***@cam"


def test_one_loss_is_logged_once(camera: FakeCamera, opened: Open, caplog: pytest.LogCaptureFixture) -> None:
    camera.absent = True
    opened()
    assert until(lambda: camera.connects > 5)
    assert len([record for record in caplog.records if "nothing listens" in record.getMessage()]) == 1


def test_close_ends_the_thread_and_the_connection(camera: FakeCamera, opened: Open) -> None:
    source = opened()
    next_frame(source)
    source.close()
    source.close()
    assert camera.open_now == 0
    assert source.state is SourceState.ENDED
    assert not any("capture cam" in thread.name for thread in threading.enumerate())


def test_close_wakes_a_waiting_reader(camera: FakeCamera, opened: Open) -> None:
    camera.absent = True
    source = opened()
    threading.Timer(0.1, source.close).start()
    started_s = time.monotonic()
    assert source.read(10) is None
    assert time.monotonic() - started_s < 5


def test_two_cameras_do_not_share_their_fate() -> None:
    good, bad = FakeCamera(), FakeCamera()
    with LiveSource("good", good.connect) as one, LiveSource("bad", bad.connect) as two:
        next_frame(one)
        next_frame(two)
        bad.hang = threading.Event()
        got = [next_frame(one, 1.0) for _ in range(30)]
        assert np.diff([frame.media_s for frame in got]).max() < 0.5
        assert two.state is not SourceState.ENDED
        bad.hang.set()


def test_a_hardware_wish_that_fell_through_is_said_once(opened: Open, caplog: pytest.LogCaptureFixture) -> None:
    source = opened(hw_decode=True)
    next_frame(source)
    assert source.decoder == "software (hardware was asked for)"
    assert caplog.text.count("hardware decoding was asked for") == 1
