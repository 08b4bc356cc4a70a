"""A real RTSP camera: it is killed, restarted, frozen, locked and resized, and the source lives through it."""

import itertools
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from edge.capture.backoff import Backoff
from edge.capture.faults import RefusedError
from edge.capture.frames import SourceState
from edge.capture.live import LiveSource
from edge.capture.opencv import RtspOpener
from edge.capture.sources import open_source, probe
from edge.capture.spec import SourceSpec, Transport
from edge.errors import CameraError
from tests.edge.capture.conftest import next_frame, until, until_state
from tests.rtsp_server import RtspServer, free_port

MakeCamera = Callable[..., RtspServer]
ROOT = Path(__file__).resolve().parents[3]


def opened(camera: RtspServer, **settings: object) -> LiveSource:
    spec = SourceSpec("rtsp", camera.url, **settings)  # type: ignore[arg-type]
    quick = Backoff(base_s=0.1, cap_s=0.3)
    return LiveSource(spec.shown, RtspOpener(spec), silence_s=spec.silence_s, open_s=20, backoff=quick)


def test_frames_arrive_and_a_slow_reader_drops(rtsp_camera: MakeCamera) -> None:
    with open_source(SourceSpec("rtsp", rtsp_camera().url)) as source:
        first = next_frame(source)
        assert first.image.shape == (240, 320, 3)
        time.sleep(0.5)
        second = next_frame(source)
        assert second.index - first.index > 3
        assert source.dropped >= second.index - 1  # all of them but the two that were read
        assert second.media_s > first.media_s
        assert source.decoder == "software"


def test_a_camera_killed_and_restarted_comes_back_at_its_new_size(rtsp_camera: MakeCamera) -> None:
    camera = rtsp_camera()
    with opened(camera) as source:
        next_frame(source)
        camera.kill()
        assert until_state(source, SourceState.RECONNECTING)
        assert until(lambda: "connection refused" in source.last_error)
        camera.size = (160, 120)
        camera.start()
        assert until_state(source, SourceState.STREAMING)
        while (frame := next_frame(source)).image.shape != (120, 160, 3):
            assert frame.image.shape == (240, 320, 3)
        assert source.reconnects == 1


def test_one_camera_dies_and_the_other_goes_on(rtsp_camera: MakeCamera) -> None:
    good, bad = rtsp_camera(), rtsp_camera()
    with opened(good) as one, opened(bad) as two:
        next_frame(one)
        next_frame(two)
        bad.kill()
        assert until_state(two, SourceState.RECONNECTING)
        stamps = [next_frame(one, 2.0).captured_at_s for _ in range(30)]
        assert max(b - a for a, b in itertools.pairwise(stamps)) < 1.0
        assert (one.state, one.reconnects) == (SourceState.STREAMING, 0)
        assert two.read(0.0) is None or two.state is SourceState.RECONNECTING


def test_a_camera_that_freezes_is_noticed_and_comes_back(rtsp_camera: MakeCamera) -> None:
    """SIGSTOP: the connection stays open and nothing comes any more."""
    camera = rtsp_camera()
    with opened(camera, silence_s=2.0) as source:
        next_frame(source)
        frozen_s = time.monotonic()
        camera.freeze()
        assert until_state(source, SourceState.RECONNECTING)
        assert 1.9 < time.monotonic() - frozen_s < 6
        camera.thaw()
        assert until_state(source, SourceState.STREAMING, 20)


def test_a_camera_that_changes_resolution_in_the_stream_goes_on(rtsp_camera: MakeCamera) -> None:
    camera = rtsp_camera()
    with opened(camera) as source:
        before = next_frame(source).index
        camera.resize(160, 120)
        until_s = time.monotonic() + 2
        while time.monotonic() < until_s:
            after = next_frame(source)
        assert after.index > before + 20
        assert after.image.any()


@pytest.mark.parametrize("auth", ["digest", "basic"])
def test_credentials_with_every_awkward_letter_open_the_camera(rtsp_camera: MakeCamera, auth: str) -> None:
    password = "p@ss:w/r?d% ü"
    camera = rtsp_camera(user="admin", password=password, auth=auth)
    frame = probe(SourceSpec("rtsp", camera.url, user="admin", password=password))
    assert frame.image.shape == (240, 320, 3)


@pytest.mark.parametrize("auth", ["digest", "basic"])
def test_a_wrong_password_is_called_by_its_name_and_never_shown(rtsp_camera: MakeCamera, auth: str) -> None:
    camera = rtsp_camera(user="admin", password="right", auth=auth)
    spec = SourceSpec("rtsp", camera.url, user="admin", password="geheim-4711")
    with pytest.raises(RefusedError, match="authentication refused; check the user") as caught:
        probe(spec)
    assert "geheim" not in str(caught.value)
    with open_source(spec) as source:
        assert until(lambda: "authentication refused" in source.last_error)
        assert "geheim" not in source.last_error
        assert source.state is SourceState.RECONNECTING


def test_a_locked_camera_without_configured_credentials_asks_for_them(rtsp_camera: MakeCamera) -> None:
    camera = rtsp_camera(user="admin", password="right")
    with pytest.raises(RefusedError, match="wants a user and a password"):
        probe(SourceSpec("rtsp", camera.url))


WATCH = """
import logging, sys, time
from edge.capture.sources import open_source
from edge.capture.spec import SourceSpec, Transport
from edge.errors import CameraError
logging.basicConfig(level=logging.DEBUG)
spec = SourceSpec("rtsp", sys.argv[1], user="admin", password=sys.argv[2])
print(spec, repr(spec), spec.shown)
try:
    open_source(spec, probe=True).close()
except CameraError as error:
    logging.exception("probe")
    print(error)
with open_source(spec) as source:
    end = time.monotonic() + 2.5
    while time.monotonic() < end:
        source.read(0.2)
    print(source.state, source.last_error, source.dropped)
"""


@pytest.mark.parametrize("password", ["geheim-right", "geheim-wrong"])
def test_no_credential_reaches_stdout_stderr_or_the_log(rtsp_camera: MakeCamera, password: str, tmp_path: Path) -> None:
    """Even where the environment asks FFmpeg and OpenCV to tell everything."""
    camera = rtsp_camera(user="admin", password="geheim-right", auth="basic")
    chatty = {"OPENCV_FFMPEG_DEBUG": "1", "OPENCV_FFMPEG_LOGLEVEL": "56", "OPENCV_LOG_LEVEL": "VERBOSE"}
    script = tmp_path / "watch.py"
    script.write_text(WATCH)
    done = subprocess.run(
        [sys.executable, str(script), camera.url, password],
        env={**os.environ, **chatty, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    said = done.stdout + done.stderr
    assert ("authentication refused" in said) == (password == "geheim-wrong")
    assert "geheim" not in said
    assert "Z2VoZWlt" not in said  # the same in base64


def test_nobody_at_the_address_is_told_from_a_wrong_path(rtsp_camera: MakeCamera) -> None:
    with pytest.raises(CameraError, match="connection refused: nothing listens at 127"):
        probe(SourceSpec("rtsp", f"rtsp://127.0.0.1:{free_port()}/cam"))
    camera = rtsp_camera()
    with pytest.raises(CameraError, match=r"no stream at this path \(RTSP 404\)"):
        probe(SourceSpec("rtsp", camera.url + "-of-yesterday"))


def test_a_camera_that_accepts_and_never_answers_is_given_up(rtsp_camera: MakeCamera) -> None:
    camera = rtsp_camera()
    camera.freeze()
    started_s = time.monotonic()
    with pytest.raises(CameraError, match="no answer from 127"):
        probe(SourceSpec("rtsp", camera.url, silence_s=1))
    assert time.monotonic() - started_s < 15
    camera.thaw()


def test_udp_is_used_where_asked_for_and_tcp_elsewhere(rtsp_camera: MakeCamera) -> None:
    camera = rtsp_camera()

    def udp_sockets() -> int:
        rows = [Path(f"/proc/self/net/{table}").read_text().splitlines()[1:] for table in ("udp", "udp6")]
        inodes = {row.split()[9] for table in rows for row in table}
        links = [os.readlink(path) for path in Path("/proc/self/fd").iterdir() if path.is_symlink()]
        return sum(link.removeprefix("socket:[").rstrip("]") in inodes for link in links)

    order: tuple[Transport, ...] = ("tcp", "udp", "tcp")
    before, used = udp_sockets(), []
    for transport in order:
        with open_source(SourceSpec("rtsp", camera.url, transport=transport)) as source:
            next_frame(source)
            used.append(udp_sockets() - before)
    assert used[0] == used[2] == 0
    assert used[1] >= 2  # RTP and RTCP
    assert "OPENCV_FFMPEG_CAPTURE_OPTIONS" not in os.environ


def test_closing_leaves_no_thread_and_no_socket(rtsp_camera: MakeCamera) -> None:
    camera = rtsp_camera()
    before = len(os.listdir("/proc/self/fd"))
    with open_source(SourceSpec("rtsp", camera.url)) as source:
        next_frame(source)
    assert until(lambda: len(os.listdir("/proc/self/fd")) <= before, 5)
    assert not any(thread.name.startswith("capture") for thread in threading.enumerate())
