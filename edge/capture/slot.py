"""The latest frame of a live source: written by a capture thread, taken by the pipeline, never a queue."""

import threading

from edge.capture.frames import Frame


class LatestFrame:
    """Hold at most one unread frame.

    Attributes:
        dropped: frames overwritten before anybody took them.
    """

    def __init__(self) -> None:
        self.dropped = 0
        self._frame: Frame | None = None
        self._closed = False
        self._changed = threading.Condition()

    def put(self, frame: Frame) -> None:
        """Offer a frame; an unread older one is dropped and counted."""
        with self._changed:
            self.dropped += self._frame is not None
            self._frame = frame
            self._changed.notify()

    def take(self, timeout_s: float) -> Frame | None:
        """Return the newest unread frame, waiting for one up to `timeout_s`; None when none came."""
        with self._changed:
            self._changed.wait_for(lambda: self._frame is not None or self._closed, max(0.0, timeout_s))
            frame, self._frame = self._frame, None
            return frame

    def close(self) -> None:
        """Wake a waiting reader: nothing more will come."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
