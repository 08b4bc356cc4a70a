"""A real HTTP camera: MJPEG in all its dialects, stopped, restarted, silent, locked."""

import itertools
import time
from collections.abc import Iterator

import pytest

from edge.capture.backoff import Backoff
from edge.capture.faults import RefusedError
from edge.capture.frames import SourceState
from edge.capture.live import LiveSource
from edge.capture.mjpeg import open_http
from edge.capture.sources import open_source, probe
from edge.capture.spec import SourceSpec
from edge.errors import CameraError
from tests.edge.capture.conftest import next_frame, until, until_state
from tests.mjpeg_server import MjpegServer
from tests.rtsp_server import free_port


@pytest.fixture
def camera() -> Iterator[MjpegServer]:
    with MjpegServer() as server:
        yield server


def opened(camera: MjpegServer, silence_s: float = 20.0) -> LiveSource:
    spec = SourceSpec("http", camera.url, silence_s=silence_s)
    quick = Backoff(base_s=0.05, cap_s=0.2)
    return LiveSource(spec.shown, lambda: open_http(spec), silence_s=silence_s, open_s=20, backoff=quick)


@pytest.mark.parametrize("content_length", [True, False])
def test_pictures_arrive_in_order(content_length: bool) -> None:
    with (
        MjpegServer(content_length=content_length) as camera,
        open_source(SourceSpec("http", camera.url)) as source,
    ):
        got = [next_frame(source) for _ in range(10)]
        assert all(abs(frame.image.mean() - frame.index) < 2 for frame in got)
        assert got[0].image.shape == (48, 64, 3)


def test_a_camera_stopped_and_started_comes_back(camera: MjpegServer) -> None:
    with opened(camera) as source:
        next_frame(source)
        camera.stop()
        assert until_state(source, SourceState.RECONNECTING)
        assert until(lambda: "connection refused" in source.last_error)
        camera.start()
        assert until_state(source, SourceState.STREAMING)
        assert source.reconnects == 1


def test_silence_counts_as_dead(camera: MjpegServer) -> None:
    with opened(camera, silence_s=0.5) as source:
        next_frame(source)
        camera.silent = True
        silent_s = time.monotonic()
        assert until_state(source, SourceState.RECONNECTING)
        assert 0.3 < time.monotonic() - silent_s < 4
        camera.silent = False
        assert until_state(source, SourceState.STREAMING)


def test_a_change_of_resolution_is_simply_followed(camera: MjpegServer) -> None:
    with opened(camera) as source:
        assert next_frame(source).image.shape == (48, 64, 3)
        camera.size = (128, 96)
        assert until(lambda: next_frame(source).image.shape == (96, 128, 3))
        assert source.reconnects == 0


def test_damaged_pictures_are_counted_and_the_next_good_one_is_shown(camera: MjpegServer) -> None:
    with opened(camera) as source:
        next_frame(source)
        camera.damaged = True
        assert until(lambda: source.damaged > 2)
        camera.damaged = False
        assert next_frame(source).image.shape == (48, 64, 3)
        assert source.state is SourceState.STREAMING


@pytest.mark.parametrize("auth", ["basic", "digest"])
def test_a_locked_camera_opens_with_its_password_and_refuses_another(auth: str) -> None:
    with MjpegServer(user="admin", password="p:ä ss", auth=auth) as camera:
        assert probe(SourceSpec("http", camera.url, user="admin", password="p:ä ss")).image.shape == (48, 64, 3)
        camera.requests = 0
        with pytest.raises(RefusedError, match="authentication refused") as caught:
            probe(SourceSpec("http", camera.url, user="admin", password="geheim-4711"))
        assert "geheim" not in str(caught.value)
        assert camera.requests == 2  # one wrong try, not five: cameras lock accounts
        with pytest.raises(RefusedError, match="wants a user and a password"):
            probe(SourceSpec("http", camera.url))


def test_a_password_that_a_camera_takes_in_its_address_gets_there_and_nowhere_else() -> None:
    with MjpegServer(user="admin", password="p&ä ss", auth="query") as camera:
        address = f"{camera.url}?user={{user}}&password={{password}}"
        assert probe(SourceSpec("http", address, user="admin", password="p&ä ss")).image.shape == (48, 64, 3)
        assert probe(SourceSpec("http", f"{camera.url}?user=admin&password=p%26%C3%A4%20ss")).image.shape == (48, 64, 3)
        with pytest.raises(RefusedError, match="authentication refused") as caught:
            probe(SourceSpec("http", address, user="admin", password="geheim-4711"))
        assert "geheim" not in str(caught.value)


def test_a_web_page_is_told_from_a_stream() -> None:
    page, still = MjpegServer(content_type="text/html; charset=utf-8"), MjpegServer(content_type="image/jpeg")
    with page, pytest.raises(CameraError, match=r"answers with a page \(text/html\).*often /video"):
        probe(SourceSpec("http", page.url))
    with still, pytest.raises(CameraError, match="answers with one picture"):
        probe(SourceSpec("http", still.url))


def test_probe_of_nobody_fails_at_once() -> None:
    started_s = time.monotonic()
    with pytest.raises(CameraError, match="nothing listens at 127"):
        open_source(SourceSpec("http", f"http://127.0.0.1:{free_port()}/video"), probe=True)
    assert time.monotonic() - started_s < 2


def test_a_silent_camera_fails_its_probe(camera: MjpegServer) -> None:
    camera.silent = True
    with pytest.raises(CameraError, match="sent no picture in"):
        open_source(SourceSpec("http", camera.url, silence_s=0.5), probe=True)


def test_a_probed_source_goes_on_with_the_connection_it_proved(camera: MjpegServer) -> None:
    with open_source(SourceSpec("http", camera.url), probe=True) as source:
        next_frame(source)
        assert camera.requests == 1


def test_closing_hangs_up(camera: MjpegServer) -> None:
    with opened(camera) as source:
        next_frame(source)
    assert until(lambda: not camera._links, 5)


def test_two_cameras_are_independent(camera: MjpegServer) -> None:
    with MjpegServer() as other, opened(camera) as one, opened(other) as two:
        next_frame(one)
        next_frame(two)
        other.stop()
        assert until_state(two, SourceState.RECONNECTING)
        stamps = [next_frame(one).captured_at_s for _ in range(20)]
        assert max(b - a for a, b in itertools.pairwise(stamps)) < 1.0
        assert one.reconnects == 0
