"""A live camera that comes back: one capture thread, the latest frame, and the whole connection rebuilt after a loss.

The thread may hang where no timeout reaches it (a driver, a library). Whoever reads notices: after `silence_s` without
a frame the thread is left to itself and another takes its place. At most `_MOST_STRAYS` are left behind; then
`turned_at_s` stands still, and the process's watchdog decides.
"""

import logging
import threading
import time
from collections.abc import Callable
from random import Random
from typing import Protocol, Self

from edge.capture.backoff import Backoff
from edge.capture.faults import RefusedError
from edge.capture.frames import Frame, Image, SourceState
from edge.capture.slot import LatestFrame
from edge.errors import CameraError

log = logging.getLogger(__name__)

_MOST_STRAYS = 4
_SLICE_S = 0.5
_JOIN_S = 2.0


class Connection(Protocol):
    """One open camera; driven by one thread.

    Attributes:
        decoder: "software", or the hardware that decodes.
    """

    decoder: str

    def grab(self) -> bool:
        """Wait for the next frame; False when the camera is gone."""
        ...

    def retrieve(self) -> Image | None:
        """Return the grabbed frame, (H, W, 3) uint8 BGR, None when it is damaged."""
        ...

    def close(self) -> None:
        """Let go of the camera."""
        ...


class LiveSource:
    """A camera read through a latest-frame slot; see `edge.capture.frames.Source` for the common attributes.

    Args:
        name: what to call the camera in logs.
        connect: opens the camera anew; raises CameraError.
        silence_s: without a frame for so long the connection counts as dead.
        open_s: how long `connect` may take.
        fps: convert and hand out at most so many frames a second; None means all.
        hw_decode: the config asks for hardware; said aloud when it is not what happens.
        scrub: takes credentials out of foreign error texts.
        rng: jitter of the backoff.
        clock: monotonic seconds.
        first: a connection already open, used before `connect` is called.
        backoff: how long to wait between tries.
    """

    live = True
    duration_s = None

    def __init__(
        self,
        name: str,
        connect: Callable[[], Connection],
        *,
        silence_s: float = 20.0,
        open_s: float = 10.0,
        fps: float | None = None,
        hw_decode: bool = False,
        scrub: Callable[[str], str] = str,
        rng: Random | None = None,
        clock: Callable[[], float] = time.monotonic,
        first: Connection | None = None,
        backoff: Backoff | None = None,
    ) -> None:
        self.name = name
        self.reconnects = 0
        self.damaged = 0
        self.last_error = ""
        self.decoder = "software"
        self.state = SourceState.OPENING
        self._connect, self._silence_s, self._open_s, self._scrub = connect, silence_s, open_s, scrub
        self._period_s = 1.0 / fps if fps else 0.0
        self._hw_decode, self._first = hw_decode, first
        self._rng = rng or Random()
        self._backoff = backoff or Backoff()
        self._clock = clock
        self._started_s = self.turned_at_s = self._heard_s = clock()
        self._index = 0
        self._slot = LatestFrame()
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._generation = 0
        self._connecting = True
        self._threads: list[threading.Thread] = []
        self._start_thread()

    @property
    def dropped(self) -> int:
        """Frames overwritten before they were read."""
        return self._slot.dropped

    def read(self, timeout_s: float) -> Frame | None:
        """Return the newest frame not read yet; None when none came within `timeout_s`."""
        frame = self._slot.take(timeout_s)
        if frame is None and not self._stop.is_set():
            self._replace_hung_thread()
        return frame

    def close(self) -> None:
        """Stop the capture thread and let go of the camera.

        A thread that is inside a library call cannot be interrupted; it is given two seconds and then ends on its own
        when the call returns, without touching anything but its own connection.
        """
        self._stop.set()
        self._slot.close()
        for thread in self._threads:
            thread.join(_JOIN_S)
        self.state = SourceState.ENDED

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _start_thread(self) -> None:
        thread = threading.Thread(
            target=self._run, args=(self._generation,), name=f"capture {self.name}"[:60], daemon=True
        )
        self._threads = [old for old in self._threads if old.is_alive()] + [thread]
        thread.start()

    def _replace_hung_thread(self) -> None:
        with self._lock:
            patience_s = self._open_s if self._connecting else self._silence_s
            hung = self._clock() - self._heard_s > patience_s + 2 * _SLICE_S
            if not hung or sum(thread.is_alive() for thread in self._threads) > _MOST_STRAYS:
                return
            self._generation += 1
            self._heard_s = self.turned_at_s = self._clock()
            self._lost(CameraError(f"{self.name}: no frame for {patience_s:g} s; opening it anew"))
            self._start_thread()

    def _mine(self, generation: int) -> bool:
        return generation == self._generation and not self._stop.is_set()

    def _turn(self, generation: int, *, connecting: bool) -> bool:
        """Take note that the loop turns; False when this thread is no longer wanted."""
        with self._lock:
            if not self._mine(generation):
                return False
            self.turned_at_s = self._heard_s = self._clock()
            self._connecting = connecting
            return True

    def _run(self, generation: int) -> None:
        while self._turn(generation, connecting=True):
            connection: Connection | None = None
            try:
                connection, self._first = self._first or self._connect(), None
                self._stream(generation, connection)
                error = CameraError(f"{self.name}: the stream ended or fell silent")
            except CameraError as raised:
                error = raised
            except Exception as raised:  # a capture thread must not die of a driver's surprise
                error = CameraError(f"{self.name}: {type(raised).__name__}: {self._scrub(str(raised))}")
            finally:
                if connection is not None:
                    connection.close()
            with self._lock:
                if not self._mine(generation):
                    return
                wait_s = self._lost(error)
            self._wait(generation, wait_s)

    def _stream(self, generation: int, connection: Connection) -> None:
        self._say_decoder(connection.decoder)
        due_s = -1.0
        good_s = self._clock()
        while self._turn(generation, connecting=False) and connection.grab():
            now_s = self._clock()
            if not self._mine(generation):
                return
            index, self._index = self._index, self._index + 1
            if self._period_s and now_s < due_s - 0.002:
                continue
            image = connection.retrieve()
            if image is None:
                self.damaged += 1
                if now_s - good_s > self._silence_s:
                    return
                continue
            good_s = now_s
            # On a grid, so that 12 fps out of 30 is 12 and not 10; after a pause the grid starts anew.
            due_s = (due_s if now_s - due_s < self._period_s else now_s) + self._period_s
            with self._lock:
                if not self._mine(generation):
                    return
                self._streaming(now_s)
                self._slot.put(Frame(image, index, now_s - self._started_s, now_s))

    def _streaming(self, now_s: float) -> None:
        if self.state is SourceState.STREAMING:
            return
        if self.state is SourceState.RECONNECTING:
            self.reconnects += 1
            log.warning("%s: streaming again", self.name, extra={"CAMERA": self.name, "EVENT": "camera_back"})
        self._backoff.connected(now_s)
        self.state = SourceState.STREAMING

    def _lost(self, error: CameraError) -> float:
        wait_s = self._backoff.failed(self._clock(), self._rng, refused=isinstance(error, RefusedError))
        text = str(error) if str(error).startswith(self.name) else f"{self.name}: {error}"
        if self.state is not SourceState.RECONNECTING or text != self.last_error:
            fields = {"CAMERA": self.name, "EVENT": "camera_unreachable"}
            log.warning("%s; trying again in %.1f s", text, wait_s, extra=fields)
        self.last_error = text
        self.state = SourceState.RECONNECTING
        return wait_s

    def _wait(self, generation: int, wait_s: float) -> None:
        until_s = self._clock() + wait_s
        while (left_s := until_s - self._clock()) > 0 and self._turn(generation, connecting=True):
            self._stop.wait(min(_SLICE_S, left_s))

    def _say_decoder(self, decoder: str) -> None:
        fell_back = self._hw_decode and decoder == "software"
        if fell_back and not self.decoder.startswith("software ("):
            log.warning("%s: hardware decoding was asked for and is not offered: software decodes", self.name)
        self.decoder = "software (hardware was asked for)" if fell_back else decoder
