"""A folder of images, played in the order a person would count them."""

import logging
import re
import time
from pathlib import Path
from typing import Self

import cv2
import numpy as np

from edge.capture import opencv
from edge.capture.frames import Frame, Image, SourceState
from edge.capture.spec import SourceSpec
from edge.errors import CameraError

log = logging.getLogger(__name__)

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".jp2"})
_DEFAULT_FPS = 10.0
_NAMED = 3


class FolderSource:
    """A folder of images, not its subfolders; see `edge.capture.frames.Source` for the common attributes.

    Images may differ in size. What is no image by its name is skipped and said once; an image that cannot be decoded
    is skipped, counted in `damaged` and said at the end.

    Args:
        spec: of kind "folder"; its `fps` gives the media time between two images.

    Raises:
        CameraError: no such folder, or no image in it.
    """

    live = False
    dropped = 0
    reconnects = 0
    decoder = "software"

    def __init__(self, spec: SourceSpec) -> None:
        self.folder = Path(spec.location)
        self.damaged = 0
        self.last_error = ""
        self.state = SourceState.STREAMING
        self.turned_at_s = time.monotonic()
        self._period_s = 1.0 / (spec.fps or _DEFAULT_FPS)
        self._left = list(reversed(self._images()))
        self.duration_s = len(self._left) * self._period_s
        self._index = 0
        self._unreadable: list[str] = []
        opencv.quiet()
        self._ahead = self._next()
        if self._ahead is None:
            raise CameraError(f"{self.folder}: none of its {self.damaged} images can be decoded: {self._names()}")

    def read(self, timeout_s: float = 0.0) -> Frame | None:
        """Return the next image, None after the last."""
        self.turned_at_s = time.monotonic()
        frame, self._ahead = self._ahead, None
        if frame is None and self.state is SourceState.STREAMING:
            frame = self._next()
        if frame is None and self.state is SourceState.STREAMING:
            self.state = SourceState.ENDED
            if self.damaged:
                self.last_error = f"{self.folder}: {self.damaged} images could not be decoded: {self._names()}"
                log.warning("%s", self.last_error)
        return frame

    def close(self) -> None:
        """End the playback."""
        self.state = SourceState.ENDED
        self._ahead = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _images(self) -> list[Path]:
        if not self.folder.is_dir():
            found = "is a file" if self.folder.exists() else "does not exist"
            raise CameraError(f"{self.folder}: {found}, expected a folder of images; correct the path")
        files = [path for path in self.folder.iterdir() if path.is_file() and not path.name.startswith(".")]
        images = sorted((path for path in files if path.suffix.lower() in SUFFIXES), key=natural)
        others = sorted(path.name for path in files if path.suffix.lower() not in SUFFIXES)
        if not images:
            found = f"{len(others)} other files ({_some(others)})" if others else "nothing"
            raise CameraError(f"{self.folder}: holds no image, found {found}; expected {', '.join(sorted(SUFFIXES))}")
        if others:
            log.warning("%s: skips what is no image (%d): %s", self.folder, len(others), _some(others))
        return images

    def _next(self) -> Frame | None:
        while self._left:
            path = self._left.pop()
            image = _load(path)
            if image is not None:
                media_s = self._index * self._period_s
                frame = Frame(image, self._index, media_s, media_s)
                self._index += 1
                return frame
            self.damaged += 1
            self._unreadable = [*self._unreadable, path.name][: _NAMED + 1]
        return None

    def _names(self) -> str:
        return _some(self._unreadable)


def natural(path: Path) -> tuple[list[tuple[int, int, str]], str]:
    """Return a sort key that puts `img2` before `img10`."""
    words = re.split(r"(\d+)", path.name.lower())
    return [(0, int(word), "") if word.isdecimal() else (1, 0, word) for word in words], path.name


def _some(names: list[str]) -> str:
    return ", ".join(names[:_NAMED]) + (", …" if len(names) > _NAMED else "")


def _load(path: Path) -> Image | None:
    try:
        data = np.fromfile(path, np.uint8)
        image = cv2.imdecode(data, cv2.IMREAD_COLOR) if data.size else None
    except (OSError, cv2.error):
        return None
    return None if image is None else image.astype(np.uint8, copy=False)
