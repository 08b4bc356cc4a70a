"""The observer that turns what a box sees into the annotated video."""

import queue
import threading
from pathlib import Path
from typing import Self

from edge.box.annotate import draw
from edge.box.video import VideoWriter
from edge.pipeline import Seen


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
