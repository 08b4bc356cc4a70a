"""Videos that browsers play: one writer, and the observer that turns what a box sees into the annotated video."""

import queue
import threading
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from demo.errors import DemoError
from edge.box.annotate import draw
from edge.pipeline import Seen

TICKS = 90_000  # time base, 1/s: whatever pace frames come at, they are shown at that pace
BT709 = 1  # H.273: what browsers assume for HD; said aloud, so that nobody guesses
CODECS = (("libx264", ".mp4", "mp4"), ("libvpx-vp9", ".webm", "webm"))  # builds without x264 exist


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


class AnnotatedVideo:
    """An observer of a box: every frame with boxes, ids and labels, one video per camera.

    Drawing and encoding run in a thread of their own. A file waits for it when it falls behind; a live camera does
    not: its pictures are then left out of the video, never out of the counting.

    Args:
        path: Video of the first camera; later ones have the camera's name in theirs.
        live: Whether pictures may be left out.
        width: Pixels across, at most.
    """

    def __init__(self, path: Path, *, live: bool, width: int = 1280) -> None:
        self.path, self.live, self.width = path, live, width
        self.left_out = 0
        self.written: dict[str, Path] = {}
        self.error: BaseException | None = None
        self._queue: queue.Queue[tuple[str, Seen] | None] = queue.Queue(maxsize=16)
        self._tapes: dict[str, _Tape] = {}
        self._thread = threading.Thread(target=self._work, name="annotated-video", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._queue.put(None)
        self._thread.join()

    def __call__(self, camera: str, seen: Seen) -> None:
        """Take in what became of one frame."""
        if not self.live:
            self._queue.put((camera, seen))
            return
        try:
            self._queue.put_nowait((camera, seen))
        except queue.Full:
            self.left_out += 1

    def _work(self) -> None:
        while (item := self._queue.get()) is not None:
            if self.error is None:
                try:
                    self._show(*item)
                except Exception as error:  # the disk is full, say: the box goes on counting without its video
                    self.error = error
        for camera, tape in self._tapes.items():
            tape.writer.close(keep=self.error is None)
            self.written[camera] = tape.writer.path

    def _show(self, camera: str, seen: Seen) -> None:
        if camera not in self._tapes:
            path = self.path if not self._tapes else self.path.with_name(f"{self.path.stem}-{camera}{self.path.suffix}")
            self._tapes[camera] = _Tape(path, seen, self.width)
        self._tapes[camera].show(camera, seen)


class _Tape:
    """One camera's video and what its captions need to remember."""

    def __init__(self, path: Path, seen: Seen, width: int) -> None:
        height, full = seen.frame.image.shape[:2]
        self.width = min(width, full)
        self.writer = VideoWriter(path, (self.width, round(height * self.width / full)), fps=25)
        self.began_s = seen.frame.media_s
        self.first_seen_s: dict[int, float] = {}

    def show(self, camera: str, seen: Seen) -> None:
        now_s = seen.frame.media_s
        tracks = seen.tracks.track_id.tolist()
        dwell_s = {i: now_s - self.first_seen_s.setdefault(i, now_s) for i in tracks}
        title = f"{camera}   {seen.people} here   {len(self.first_seen_s)} so far"
        self.writer.write(draw(seen, width=self.width, title=title, dwell_s=dwell_s), now_s - self.began_s)


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
    raise DemoError("this build of PyAV can encode neither H.264 (libx264) nor VP9; install av from PyPI")


def _av() -> Any:
    try:
        import av
    except ImportError as error:
        raise DemoError("videos need the package av; install facefleet[demo]") from error
    return av
