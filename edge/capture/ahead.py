"""Decodes a recording a few frames ahead, in a thread of its own, while the pipeline works on the one before.

Decoding H.264 costs a third of what a nano detector costs, and FFmpeg does not need the interpreter: on two cores the
two overlap. Order and content are the source's own, so a replay stays equal.
"""

import logging
import queue
import threading
import time
from typing import Self

from edge.capture.frames import Frame, Source, SourceState

_TURN_S = 0.2
CLOSE_S = 5.0  # a decoder that hangs in a broken file, or on a share that is gone, must not hang its owner too

log = logging.getLogger(__name__)


class Ahead:
    """A recording read ahead; see `edge.capture.frames.Source`.

    Args:
        source: a file or folder; owned, and closed with this.
        frames: how many may wait decoded; each 1080p frame is 6 MB.
    """

    live = False
    dropped = 0
    reconnects = 0

    def __init__(self, source: Source, frames: int = 2) -> None:
        self._source = source
        self._ready: queue.Queue[Frame | BaseException | None] = queue.Queue(max(1, frames - 1))
        self._closing = threading.Event()
        self._ended = False
        self._turned_at_s = time.monotonic()
        self._thread = threading.Thread(target=self._run, name="decode ahead", daemon=True)
        self._thread.start()

    @property
    def turned_at_s(self) -> float:
        """When the decoder last finished a frame or waited for us; now, once it has no more to do."""
        return self._turned_at_s if self._thread.is_alive() else time.monotonic()

    @property
    def state(self) -> SourceState:
        """Streaming until the last frame was read, whatever the decoder has already seen."""
        return SourceState.ENDED if self._ended else SourceState.STREAMING

    @property
    def damaged(self) -> int:
        """Frames that could not be decoded so far."""
        return self._source.damaged

    @property
    def last_error(self) -> str:
        """What went wrong last."""
        return self._source.last_error

    @property
    def decoder(self) -> str:
        """What really decodes."""
        return self._source.decoder

    @property
    def duration_s(self) -> float | None:
        """Length of the recording."""
        return self._source.duration_s

    def read(self, timeout_s: float = 0.0) -> Frame | None:
        """Return the next frame, None after the last, or when decoding it takes longer than `timeout_s`.

        Args:
            timeout_s: at most so long; 0 waits for the frame, and ends only with `close`.

        Raises:
            Exception: whatever the source raised while it decoded.
        """
        give_up_s = time.monotonic() + timeout_s if timeout_s > 0 else float("inf")
        frame: Frame | BaseException | None = None
        while not self._ended:
            try:
                frame = self._ready.get(timeout=min(_TURN_S, max(0.0, give_up_s - time.monotonic())))
                break
            except queue.Empty:
                if self._closing.is_set():
                    self._ended = True
                elif time.monotonic() >= give_up_s:
                    return None
        else:
            return None
        if isinstance(frame, Frame):
            return frame
        self._ended = True
        if frame is not None:
            raise frame
        return None

    def close(self) -> None:
        """Stop decoding and close the source."""
        self._closing.set()
        self._thread.join(CLOSE_S)
        self._ended = True
        if self._thread.is_alive():  # its file stays open: closing it under a decoder would end the process
            log.error("a recording is still being decoded after %g s: left to end with this process", CLOSE_S)
        else:
            self._source.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _run(self) -> None:
        frame: Frame | BaseException | None
        while not self._closing.is_set():
            try:
                frame = self._source.read(0.0)
            except BaseException as error:  # the reader's to handle, in its own thread
                frame = error
            self._turned_at_s = time.monotonic()
            self._put(frame)
            if not isinstance(frame, Frame):
                return

    def _put(self, frame: Frame | BaseException | None) -> None:
        while not self._closing.is_set():
            try:
                return self._ready.put(frame, timeout=_TURN_S)
            except queue.Full:
                self._turned_at_s = time.monotonic()
