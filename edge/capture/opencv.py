"""Everything that asks OpenCV for a stream: clips, RTSP, USB. Quiet, bounded in time, one thread each.

What was found with OpenCV 5.0 and its FFmpeg 8 (2025-11):
- FFmpeg writes to stderr, at its chattier levels with the whole URL, password included; so it is silenced before the
  first open, whatever the environment says.
- A read that times out is sometimes tried again inside one `grab`, up to twice; so a silent camera may hold its
  thread for three times the silence. `LiveSource` does not wait for it.
- RTSP options reach FFmpeg only through an environment variable, one for all cameras. Without it OpenCV prefers TCP;
  UDP needs it set for the length of an open, so opens take turns once a camera wants UDP.
- One decoder thread costs the least CPU (0.60 s against 0.81 s for 180 frames of 1080p) and delays no frame.
- When an RTSP camera changes resolution in the middle of a stream, OpenCV goes on at the first size, stretched.
"""

import functools
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np

from edge.capture import rtsp
from edge.capture.faults import RefusedError
from edge.capture.frames import Image
from edge.capture.spec import SourceSpec, Transport
from edge.errors import CameraError

_OPTIONS = "OPENCV_FFMPEG_CAPTURE_OPTIONS"
_ACCELERATORS = {
    cv2.VIDEO_ACCELERATION_ANY: "any",
    cv2.VIDEO_ACCELERATION_VAAPI: "VA-API",
    cv2.VIDEO_ACCELERATION_MFX: "Media SDK",
    cv2.VIDEO_ACCELERATION_D3D11: "D3D11",
    getattr(cv2, "VIDEO_ACCELERATION_DRM", 5): "DRM",
}
_turns = threading.Lock()
_udp_is_used = threading.Event()


class OpenCvConnection:
    """One open camera or clip. Not for two threads at once.

    Attributes:
        decoder: "software", or which hardware decodes.
    """

    def __init__(self, capture: cv2.VideoCapture, decoder: str) -> None:
        self.capture = capture
        self.decoder = decoder

    def grab(self) -> bool:
        """Wait for the next frame and decode it; False when there is none."""
        try:
            return self.capture.grab()
        except cv2.error:
            return False

    def retrieve(self) -> Image | None:
        """Return the grabbed frame as (H, W, 3) uint8 BGR in memory of its own, None when it cannot be shown."""
        try:
            ok, image = self.capture.retrieve()
        except cv2.error:
            return None
        return image.astype(np.uint8, copy=False) if ok and image is not None and image.size else None

    @property
    def fps(self) -> float:
        """Frames a second, as the container states it; 0 or nonsense where it does not."""
        return self.capture.get(cv2.CAP_PROP_FPS)

    @property
    def frame_count(self) -> int:
        """Frames in the clip, stated or guessed from its duration; 0 where neither is known."""
        count = self.capture.get(cv2.CAP_PROP_FRAME_COUNT)
        return int(count) if 0 < count < 1e9 else 0

    @property
    def stamp_s(self) -> float:
        """Time of the grabbed frame from the start of the clip, seconds."""
        return self.capture.get(cv2.CAP_PROP_POS_MSEC) / 1000.0

    def close(self) -> None:
        """Let go of the device or connection."""
        self.capture.release()


@functools.cache
def quiet() -> None:
    """Keep FFmpeg and OpenCV from writing to stderr. Counts only before the process opens its first stream."""
    os.environ["OPENCV_FFMPEG_LOGLEVEL"] = "-8"
    os.environ.pop("OPENCV_FFMPEG_DEBUG", None)
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)


def open_clip(path: Path, hw_decode: bool) -> OpenCvConnection | None:
    """Open a video file; None when FFmpeg cannot read it."""
    quiet()
    return _open_ffmpeg(str(path.absolute()), [], hw_decode)


class RtspOpener:
    """Opens one RTSP camera, again and again, and finds out why where it does not open.

    Asking costs a connection of its own, which some servers answer by failing the next one; so a camera is asked only
    after FFmpeg has failed. Once it has refused a password it is asked first, for one wrong try less each time.

    Args:
        spec: of kind "rtsp".
    """

    def __init__(self, spec: SourceSpec) -> None:
        self._spec = spec
        self._was_refused = False

    def __call__(self) -> OpenCvConnection:
        """Open the camera.

        Raises:
            RefusedError: it wants other credentials.
            CameraError: it cannot be reached, or sends nothing FFmpeg can decode.
        """
        if self._was_refused:
            self._ask()
        try:
            return open_stream(self._spec)
        except CameraError:
            self._ask()
            raise

    def _ask(self) -> None:
        self._was_refused = False
        try:
            rtsp.ask(self._spec, open_timeout_s(self._spec) / 5)
        except RefusedError:
            self._was_refused = True
            raise


def open_stream(spec: SourceSpec) -> OpenCvConnection:
    """Open whatever FFmpeg finds behind a URL; raise CameraError when it finds nothing."""
    quiet()
    patience = [
        cv2.CAP_PROP_OPEN_TIMEOUT_MSEC,
        int(1000 * open_timeout_s(spec)),
        cv2.CAP_PROP_READ_TIMEOUT_MSEC,
        max(1, int(1000 * spec.silence_s)),
    ]
    with _transport(spec.transport):
        connection = _open_ffmpeg(spec.url, patience, spec.hw_decode)
    if connection is None:
        raise CameraError(
            f"{spec.shown}: no video could be opened: the address answers, but sends nothing FFmpeg can decode in "
            "time; look at it with another player"
        )
    return connection


def open_usb(spec: SourceSpec) -> OpenCvConnection:
    """Open a camera by its index or /dev/videoN; raise CameraError when it is not there, busy or not ours."""
    quiet()
    device = Path(f"/dev/video{spec.location}" if spec.location.isdecimal() else spec.location)
    if not device.exists():
        found = ", ".join(sorted(str(other) for other in Path("/dev").glob("video*"))) or "none"
        raise CameraError(f"{device}: no such camera; found: {found}; plug it in, or correct the index")
    if not os.access(device, os.R_OK | os.W_OK):
        raise CameraError(f"{device}: not allowed to open it; add the user of this process to the group video")
    wishes: list[int] = []
    if spec.fourcc:
        wishes += [cv2.CAP_PROP_FOURCC, cv2.VideoWriter.fourcc(*spec.fourcc)]
    if spec.size:
        wishes += [cv2.CAP_PROP_FRAME_WIDTH, spec.size[0], cv2.CAP_PROP_FRAME_HEIGHT, spec.size[1]]
    capture = cv2.VideoCapture(str(device), cv2.CAP_V4L2, wishes)
    if not capture.isOpened():
        capture.release()
        raise CameraError(f"{device}: is there, but gives no video; is another program using it, or is it no camera?")
    # One buffer instead of four: a latest-frame slot wants no queue behind it. Drivers may ignore this.
    capture.set(cv2.CAP_PROP_BUFFERSIZE, 1)
    return OpenCvConnection(capture, "software")


def open_timeout_s(spec: SourceSpec) -> float:
    """Return how long FFmpeg may take to open a live source, seconds; some cameras send a key frame every ten."""
    return max(5.0, min(15.0, spec.silence_s))


def _open_ffmpeg(url: str, settings: list[int], hw_decode: bool) -> OpenCvConnection | None:
    # Hardware first where it is wanted; some drivers then fail to open at all, so software gets a try of its own.
    for wish in (
        (cv2.VIDEO_ACCELERATION_ANY, cv2.VIDEO_ACCELERATION_NONE) if hw_decode else (cv2.VIDEO_ACCELERATION_NONE,)
    ):
        choice = [cv2.CAP_PROP_HW_ACCELERATION, wish, cv2.CAP_PROP_N_THREADS, 1]
        capture = cv2.VideoCapture(url, cv2.CAP_FFMPEG, [*settings, *choice])
        if capture.isOpened():
            used = int(capture.get(cv2.CAP_PROP_HW_ACCELERATION))
            return OpenCvConnection(capture, _ACCELERATORS.get(used, "software"))
        capture.release()
    return None


@contextmanager
def _transport(wanted: Transport) -> Iterator[None]:
    if wanted == "udp":
        _udp_is_used.set()
    if not _udp_is_used.is_set():
        yield
        return
    with _turns:
        before = os.environ.get(_OPTIONS)
        if wanted == "udp":
            os.environ[_OPTIONS] = "rtsp_transport;udp"
        try:
            yield
        finally:
            if wanted == "udp" and before is not None:
                os.environ[_OPTIONS] = before
            elif wanted == "udp":
                os.environ.pop(_OPTIONS, None)
