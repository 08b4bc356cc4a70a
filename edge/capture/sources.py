"""Open a source by its spec: the one door for `run`, `check`, `doctor` and the demo."""

import time
from collections.abc import Callable
from functools import partial
from random import Random

from edge.capture import mjpeg, opencv
from edge.capture.ahead import Ahead
from edge.capture.files import FileSource
from edge.capture.folder import FolderSource
from edge.capture.frames import Frame, Source
from edge.capture.live import Connection, LiveSource
from edge.capture.spec import SourceSpec
from edge.errors import CameraError


def open_source(
    spec: SourceSpec,
    *,
    name: str | None = None,
    probe: bool = False,
    ahead: int = 2,
    rng: Random | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> Source:
    """Open a source.

    Args:
        spec: which.
        name: what to call it in logs and errors; its address without credentials when None.
        probe: a live source must give a frame now, or CameraError is raised. Without it a camera that is not there is
            tried again for ever, and says so in `state` and `last_error`.
        ahead: frames of a recording to decode while the one before is worked on; 0 decodes when asked.
        rng: jitter of the reconnects.
        clock: monotonic seconds, for live sources.

    Raises:
        CameraError: a file or folder cannot be read; with `probe`, a camera gives no frame.
    """
    match spec.kind:
        case "file":
            return Ahead(FileSource(spec), ahead) if ahead else FileSource(spec)
        case "folder":
            return Ahead(FolderSource(spec), ahead) if ahead else FolderSource(spec)
    connect = _connector(spec)
    return LiveSource(
        name or spec.shown,
        connect,
        silence_s=spec.silence_s,
        open_s=1.6 * opencv.open_timeout_s(spec),
        fps=spec.fps,
        hw_decode=spec.hw_decode,
        scrub=spec.scrub,
        rng=rng,
        clock=clock,
        first=_proven(spec, connect)[0] if probe else None,
    )


def probe(spec: SourceSpec) -> Frame:
    """Return the first frame of a source and close it, for `check`, `doctor` and the demo.

    Raises:
        CameraError: it gives none; the message says why and what to do.
    """
    if spec.kind in ("file", "folder"):
        with open_source(spec, ahead=0) as source:
            frame = source.read(0.0)
            assert frame is not None, "files raise when they open without a frame"
            return frame
    connection, frame = _proven(spec, _connector(spec))
    connection.close()
    return frame


def _connector(spec: SourceSpec) -> Callable[[], Connection]:
    match spec.kind:
        case "usb":
            return partial(opencv.open_usb, spec)
        case "rtsp":
            return opencv.RtspOpener(spec)
        case _:
            return partial(mjpeg.open_http, spec)


def _proven(spec: SourceSpec, connect: Callable[[], Connection]) -> tuple[Connection, Frame]:
    started_s = time.monotonic()
    connection = connect()
    # The first pictures of a stream that was joined in its middle may be damaged; the tenth is not.
    for _ in range(10):
        if not connection.grab():
            break
        image = connection.retrieve()
        if image is not None:
            now_s = time.monotonic()
            return connection, Frame(image, 0, now_s - started_s, now_s)
    connection.close()
    raise CameraError(f"{spec.shown}: opened, but sent no picture in {spec.silence_s:g} s; look at it with a player")
