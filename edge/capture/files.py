"""A video file: every frame, in order, at the times its container states."""

import logging
import math
import os
import time
from pathlib import Path
from typing import Self

from edge.capture import opencv
from edge.capture.frames import Frame, Image, SourceState
from edge.capture.spec import SourceSpec
from edge.errors import CameraError

log = logging.getLogger(__name__)

_FALLBACK_FPS = 25.0
# A container's frame count may be a guess from its duration (Matroska), one or two off; damage is more than that.
_GUESS_FRAMES = 2
_GUESS_S = 0.5
_MOST_FAILURES = 1000
# No picture for so long, and then one beyond the container's own end, is a broken stamp; where no end is stated, only
# a gap of hours is: a recorder that writes while something moves leaves minutes.
_JUMP_S = 10.0
_LONG_S = 6 * 3600.0


class FileSource:
    """A clip; see `edge.capture.frames.Source` for the common attributes.

    A clip that is damaged in the middle gives the frames before and after the damage; `damaged` and `last_error` say
    so at the end.

    Args:
        spec: of kind "file".

    Raises:
        CameraError: the file is missing, empty, not readable, or holds no picture.
    """

    live = False
    dropped = 0
    reconnects = 0

    def __init__(self, spec: SourceSpec) -> None:
        self.path = Path(spec.location)
        self.damaged = 0
        self.last_error = ""
        self.state = SourceState.OPENING
        self.turned_at_s = time.monotonic()
        self._clip = _open(self.path, spec.hw_decode)
        self.decoder = self._clip.decoder
        if spec.hw_decode and self.decoder == "software":
            self.decoder = "software (hardware was asked for)"
            log.warning("%s: hardware decoding was asked for, and is not offered: software decodes", self.path)
        fps = self._clip.fps
        self._period_s = 1.0 / fps if 0.1 <= fps <= 1000 else 1.0 / _FALLBACK_FPS
        self._expected = self._clip.frame_count
        self._index = 0
        self._media_s = self._shift_s = 0.0
        self._ahead = self._next()
        if self._ahead is None:
            self._clip.close()
            raise CameraError(f"{self.path}: is a video of which no frame can be decoded; {_NEXT_STEP}")
        self.state = SourceState.STREAMING

    @property
    def duration_s(self) -> float:
        """Length of the clip, seconds; as good as the container's word."""
        return self._expected * self._period_s

    def read(self, timeout_s: float = 0.0) -> Frame | None:
        """Return the next frame, None after the last."""
        self.turned_at_s = time.monotonic()
        frame, self._ahead = self._ahead, None
        if frame is None and self.state is SourceState.STREAMING:
            frame = self._next()
        if frame is None:
            self._end()
        return frame

    def close(self) -> None:
        """Close the file."""
        self.state = SourceState.ENDED
        self._ahead = None
        self._clip.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _next(self) -> Frame | None:
        image = self._decode()
        if image is None:
            return None
        if self._index:
            self._media_s = self._next_s(self._clip.stamp_s)
        frame = Frame(image, self._index, self._media_s, self._media_s)
        self._index += 1
        return frame

    def _next_s(self, stamp_s: float) -> float:
        """Return the media time of a frame, not the first: its stamp, unless that goes back or out of all reason.

        What follows a jump is moved as a whole, until the stamps find back by themselves.
        """
        soon_s = self._media_s + self._period_s
        if not math.isfinite(stamp_s):
            return soon_s
        end_s = (self._expected * self._period_s or self._media_s + _LONG_S) + _JUMP_S
        for shift_s in (0.0, self._shift_s):
            moved_s = stamp_s - shift_s
            if self._media_s < moved_s and (moved_s - self._media_s <= _JUMP_S or moved_s <= end_s):
                self._shift_s = shift_s
                return moved_s
        if stamp_s > self._media_s:
            log.warning(
                "%s: a frame is stamped %.0f s after the one before: not believed", self.path, stamp_s - self._media_s
            )
            self._shift_s = stamp_s - soon_s
        return soon_s

    def _decode(self) -> Image | None:
        """Return the next picture that can be decoded, however many damaged ones lie before it."""
        for failures in range(1 + min(_MOST_FAILURES, max(0, self._expected - self._index - self.damaged))):
            if self._clip.grab() and (image := self._clip.retrieve()) is not None:
                self.damaged += failures
                return image
        return None

    def _end(self) -> None:
        if self.state is SourceState.ENDED:
            return
        self.state = SourceState.ENDED
        missing = self._expected - self._index
        end_s, promised_s = self._media_s + self._period_s, self._expected * self._period_s
        if missing > _GUESS_FRAMES and promised_s - end_s > _GUESS_S:
            self.damaged = max(self.damaged, missing)
        if self.damaged:
            self.last_error = (
                f"{self.path}: {self._index} frames read to {end_s:.2f} s, {self._expected} expected: the file is "
                f"damaged or cut short; copy it again from where it came"
            )
            log.warning("%s", self.last_error)


_NEXT_STEP = "play it elsewhere, or copy it again from where it came"


def _open(path: Path, hw_decode: bool) -> opencv.OpenCvConnection:
    if path.is_dir():
        raise CameraError(f"{path}: is a folder, expected a video file; give kind folder for images")
    if not path.is_file():
        raise CameraError(f"{path}: no such file (looked in {path.absolute().parent}); correct the path")
    if not os.access(path, os.R_OK):
        raise CameraError(f"{path}: may not be read by this user; change its permissions")
    size = path.stat().st_size
    if size == 0:
        raise CameraError(f"{path}: is empty (0 bytes), expected a video; {_NEXT_STEP}")
    clip = opencv.open_clip(path, hw_decode)
    if clip is None:
        with path.open("rb") as head:
            start = head.read(8).hex(" ")
        raise CameraError(
            f"{path}: {size} bytes beginning with {start} are no video FFmpeg can read, expected MP4, MKV, GIF or the "
            f"like; {_NEXT_STEP}"
        )
    return clip
