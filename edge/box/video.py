"""Video files: H.264 or VP9, which browsers play, where PyAV is installed; else MPEG-4 by OpenCV, which players do.

The demo's clip and annotated video and `facefleet-edge clips` are written here. No box needs it to run.
"""

from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

import cv2
import numpy as np
from numpy.typing import NDArray

from edge.errors import EdgeError

TICKS = 90_000  # time base, 1/s: whatever pace frames come at, they are shown at that pace
BT709 = 1  # H.273: what browsers assume for HD; said aloud, so that nobody guesses
CODECS = (("libx264", ".mp4", "mp4"), ("libvpx-vp9", ".webm", "webm"))  # builds without x264 exist
MOST_FPS = 60.0  # of what OpenCV writes


class Writer(Protocol):
    """A video being written; its file appears under `path` when it is closed, whole."""

    @property
    def path(self) -> Path: ...

    def write(self, image: NDArray[np.uint8], at_s: float) -> None:
        """Append a picture, (h, w, 3) uint8 BGR, shown from `at_s` seconds into the video on."""
        ...

    def __enter__(self) -> Self: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None: ...


def open_video(path: Path, frame_wh: tuple[int, int], fps: float) -> Writer:
    """Begin a video with what this machine has; `playable` says whether browsers will show it."""
    return VideoWriter(path, frame_wh, fps) if playable() else Mp4vWriter(path, frame_wh, fps)


def playable() -> bool:
    """Tell whether this machine can write videos that browsers play."""
    try:
        return bool(_codec())
    except EdgeError:
        return False


class VideoWriter:
    """Writes one video; the file appears under its name only when it is whole.

    Args:
        path: Where to; the ending becomes .mp4 (H.264) or .webm (VP9), by what this build of FFmpeg can encode.
        frame_wh: Width and height, px; an odd last column or row is cut off.
        fps: Usual rate; only a hint, as every frame carries its time.
        crf: Quality; larger is smaller and worse.
        preset: x264's: how much time to spend.
        comment: Kept in the file's metadata; see `comment_of`.
    """

    def __init__(
        self,
        path: Path,
        frame_wh: tuple[int, int],
        fps: float,
        *,
        crf: int = 21,
        preset: str = "veryfast",
        comment: str = "",
    ) -> None:
        av = _av()
        name, suffix, container = _codec()
        self.path = path.with_suffix(suffix)
        self._part = self.path.with_name(f".{self.path.name}.part")
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.width, self.height = frame_wh[0] // 2 * 2, frame_wh[1] // 2 * 2
        options = {"movflags": "+faststart"} if container == "mp4" else {}
        self._file = av.open(str(self._part), "w", format=container, options=options)
        self._file.metadata["comment"] = comment
        stream = self._file.add_stream(name, rate=Fraction(fps).limit_denominator(1001))
        stream.width, stream.height, stream.pix_fmt = self.width, self.height, "yuv420p"
        stream.time_base = Fraction(1, TICKS)
        x264 = {"preset": preset, "crf": str(crf)}
        stream.options = x264 if name == "libx264" else {"crf": "32", "b": "0", "deadline": "realtime", "cpu-used": "8"}
        context = stream.codec_context
        context.time_base = Fraction(1, TICKS)
        context.gop_size = round(2 * fps)  # a seek lands within two seconds
        context.colorspace = context.color_primaries = context.color_trc = BT709
        context.color_range = 1  # studio swing
        self._stream = stream
        self._last_pts = -1
        self.frames = 0

    def write(self, image: NDArray[np.uint8], at_s: float) -> None:
        """Append a picture, (h, w, 3) uint8 BGR, shown from `at_s` seconds into the video on."""
        frame = _av().VideoFrame.from_ndarray(np.ascontiguousarray(image[: self.height, : self.width]), format="bgr24")
        frame = frame.reformat(format="yuv420p", dst_colorspace=BT709)
        frame.pts = self._last_pts = max(self._last_pts + 1, round(at_s * TICKS))
        frame.time_base = Fraction(1, TICKS)
        for packet in self._stream.encode(frame):
            self._file.mux(packet)
        self.frames += 1

    def close(self, *, keep: bool = True) -> None:
        """Finish the file; without `keep`, or without a single frame, leave nothing behind."""
        try:
            if keep and self.frames:
                for packet in self._stream.encode():
                    self._file.mux(packet)
        finally:
            self._file.close()
            if keep and self.frames:
                self._part.replace(self.path)
            else:
                self._part.unlink(missing_ok=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close(keep=error is None)


class Mp4vWriter:
    """Writes MPEG-4 with OpenCV, which knows one pace per file: a picture is repeated until the next one is due.

    Args:
        path: Where to; the ending becomes .mp4.
        frame_wh: Width and height, px; an odd last column or row is cut off.
        fps: Pictures a second.
    """

    def __init__(self, path: Path, frame_wh: tuple[int, int], fps: float) -> None:
        self.path = path.with_suffix(".mp4")
        self._part = self.path.with_name(f".part-{self.path.name}")  # OpenCV goes by the ending
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.width, self.height = frame_wh[0] // 2 * 2, frame_wh[1] // 2 * 2
        self.fps = min(fps, MOST_FPS)
        fourcc = cv2.VideoWriter.fourcc(*"mp4v")
        self._file = cv2.VideoWriter(str(self._part), fourcc, self.fps, (self.width, self.height))
        if not self._file.isOpened():
            raise EdgeError(f"{self.path}: OpenCV cannot write MPEG-4 here; install av from PyPI")
        self._due: NDArray[np.uint8] | None = None
        self.frames = 0

    def write(self, image: NDArray[np.uint8], at_s: float) -> None:
        """Append a picture, (h, w, 3) uint8 BGR, shown from `at_s` seconds into the video on."""
        while self._due is not None and self.frames < round(at_s * self.fps):
            self._file.write(self._due)
            self.frames += 1
        self._due = np.ascontiguousarray(image[: self.height, : self.width])

    def close(self, *, keep: bool = True) -> None:
        """Finish the file; without `keep`, or without a single frame, leave nothing behind."""
        if self._due is not None:
            self._file.write(self._due)
            self.frames += 1
        self._file.release()
        if keep and self.frames:
            self._part.replace(self.path)
        else:
            self._part.unlink(missing_ok=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close(keep=error is None)


def comment_of(path: Path) -> str:
    """Return the comment that a video was written with, "" where there is none or no video."""
    av = _av()
    try:
        with av.open(str(path)) as file:
            return next((text for key, text in file.metadata.items() if key.lower() == "comment"), "")
    except (OSError, av.error.FFmpegError):
        return ""


def suffix() -> str:
    """Return the ending that videos of this machine have, ".mp4" or ".webm"."""
    return _codec()[1]


def _codec() -> tuple[str, str, str]:
    av = _av()
    for name, suffix, container in CODECS:
        try:
            av.codec.Codec(name, "w")
        except (ValueError, av.error.FFmpegError):
            continue
        return name, suffix, container
    raise EdgeError("this build of PyAV can encode neither H.264 (libx264) nor VP9; install av from PyPI")


def _av() -> Any:
    try:
        import av
    except ImportError as error:
        raise EdgeError("videos need the package av; install facefleet[demo]") from error
    return av
