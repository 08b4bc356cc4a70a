"""One camera's thread: opens the source, runs the pipeline frame by frame, hands events on, and says how it fares.

Cameras are independent: nothing here raises into another camera, and a lost camera is a state, not an end.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from edge.capture.frames import Source, SourceState
from edge.errors import EdgeError
from edge.pipeline import STAGES, Pipeline, Seen
from edge.wire import AnyEvent, CameraHealth, EndReason, StageMs

log = logging.getLogger(__name__)

READ_S = 0.5  # how long one read of a live source may wait: the loop turns at least this often
LOST_S = 5.0  # without a frame for so long, the people who were there are no longer known to be
AHEAD_S = 5.0  # a recording that runs so far ahead of the clock is worth a line in the log

Observer = Callable[[str, Seen], None]


@dataclass(frozen=True, slots=True)
class Timeline:
    """Where a camera's times lie on the process's: a recording is moved as a whole, live frames come as captured."""

    offset_s: float
    live: bool

    def at_s(self, media_s: float, captured_at_s: float) -> float:
        """Return the time of a frame on the process's timeline."""
        return captured_at_s if self.live else self.offset_s + media_s


class Camera:
    """One camera from source to events, in a thread of its own.

    Args:
        name: Its id in the config.
        open_source: Opens the source; called in the thread, so that a slow camera delays nobody.
        pipeline: The stages.
        timeline: Maps frame times; called once the source is open.
        emit: Takes events, with times on the process's timeline.
        observers: Called with each frame's result, in this thread.
        realtime: Play a recording at its own pace.
    """

    def __init__(
        self,
        name: str,
        open_source: Callable[[], Source],
        pipeline: Pipeline,
        timeline: Callable[[Source], Timeline],
        emit: Callable[[Sequence[AnyEvent]], None],
        observers: Sequence[Observer] = (),
        *,
        realtime: bool = False,
    ) -> None:
        self.name = name
        self.turned_at_s = time.monotonic()
        self.error: EdgeError | None = None
        self.frames = 0
        self.width = self.height = 0
        self._open_source, self._pipeline, self._timeline = open_source, pipeline, timeline
        self._emit, self._observers, self._realtime = emit, tuple(observers), realtime
        self._source: Source | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._guarded, name=f"camera-{name}", daemon=True)
        self._last_at_s = 0.0
        self._frame_at_s: float | None = None  # monotonic, of the last frame that came in
        self._lost = self._reading = False
        self._people = 0
        self._inference_at_s: float | None = None
        self._bug = False
        self._began = _Counts(time.monotonic())
        self._reported: dict[str, _Counts] = {}

    def add_observer(self, observer: Observer) -> None:
        """Show one more party each frame's result; before `start`."""
        self._observers = (*self._observers, observer)

    def switch_off(self, heads: Iterable[str]) -> None:
        """Silence these heads and no others, from any thread."""
        self._pipeline.attributes.switch_off(heads)

    @property
    def state(self) -> str:
        """Return where the source stands, or "failed"."""
        return "failed" if self.error else str(self._source.state) if self._source else "opening"

    @property
    def inferred(self) -> bool:
        """Tell whether a model has looked at a frame of this camera."""
        return self._inference_at_s is not None

    @property
    def capture_turned_at_s(self) -> float:
        """Return when the source's own loop, or its reconnecting, last turned.

        A recording's decoder matters only while a frame is waited for; otherwise it is our loop that turns.
        """
        if self._source is not None and (self._source.live or self._reading):
            return self._source.turned_at_s
        return self.turned_at_s

    def start(self) -> None:
        """Begin; returns at once."""
        self._thread.start()

    def stop(self) -> None:
        """Ask the thread to end; visits are closed as `SHUTDOWN`."""
        self._stop.set()

    def join(self, timeout_s: float) -> bool:
        """Wait for the thread; tell whether it is gone."""
        if self._thread.ident is not None:
            self._thread.join(timeout_s)
        return not self._thread.is_alive()

    @property
    def done(self) -> bool:
        """Tell whether the source came to its end, or the camera failed for good."""
        return self._thread.ident is not None and not self._thread.is_alive()

    def check(self) -> None:
        """Raise what ended the thread if it was a bug: not a lost camera, but one that only a restart brings back."""
        if self._bug and self.error is not None:
            raise EdgeError(f"camera {self.name} {self.error}") from self.error

    def _guarded(self) -> None:
        try:
            with self._open_source() as source:
                self._source = source
                self._run(source, self._timeline(source))
        except EdgeError as error:
            self.error = error
            log.error("camera %s: %s", self.name, error, extra={"CAMERA": self.name, "EVENT": "camera_failed"})
        except Exception as error:
            # A bug in one camera must not look like a quiet street: the app ends the process and systemd restarts it.
            log.exception("camera %s died", self.name, extra={"CAMERA": self.name, "EVENT": "camera_died"})
            self.error = EdgeError(f"died of {type(error).__name__}: {error}")
            self._bug = True

    def _run(self, source: Source, timeline: Timeline) -> None:
        started_s, first_media_s = time.monotonic(), None
        while not self._stop.is_set():
            self.turned_at_s = time.monotonic()
            self._reading = True
            frame = source.read(READ_S)
            self._reading = frame is None
            if frame is None:
                if source.state is SourceState.ENDED:
                    break
                if source.live:  # a recording that takes long to decode is still the same recording
                    self._check_lost(source)
                continue
            at_s = timeline.at_s(frame.media_s, frame.captured_at_s)
            if not source.live:
                first_media_s = frame.media_s if first_media_s is None else first_media_s
                # Nor may a recording that is longer than its container said run into the future: such events would
                # be put into quarantine by the bridge.
                due_s = max(started_s + frame.media_s - first_media_s, at_s) if self._realtime else at_s
                if not self._wait_until(due_s):
                    break
            self._frame_at_s, self._lost = time.monotonic(), False
            self._last_at_s = at_s
            seen = self._pipeline.step(frame, at_s)
            self.frames += 1
            self._people = seen.people
            self.height, self.width = frame.image.shape[:2]
            if seen.searched:
                self._inference_at_s = time.monotonic()
            if seen.events:
                self._emit(seen.events)
            for observe in self._observers:
                observe(self.name, seen)
        reason = EndReason.SHUTDOWN if self._stop.is_set() else EndReason.SOURCE_ENDED
        self._close_visits(reason)

    def _wait_until(self, due_s: float) -> bool:
        """Hold a recording back; False when asked to stop meanwhile."""
        if due_s - time.monotonic() > AHEAD_S:
            log.warning("camera %s: the recording goes on %.0f s later", self.name, due_s - time.monotonic())
        while (left_s := due_s - time.monotonic()) > 0:
            self.turned_at_s = time.monotonic()
            if self._stop.wait(min(left_s, READ_S)):
                return False
        return True

    def _close_visits(self, reason: EndReason) -> None:
        self._people = 0
        if events := self._pipeline.close(self._last_at_s, reason):
            self._emit(events)

    def _check_lost(self, source: Source) -> None:
        """End the visits of a camera that fell silent, once."""
        if self._lost or self._frame_at_s is None or time.monotonic() - self._frame_at_s < LOST_S:
            return
        self._lost = True
        log.warning("camera %s is lost: %s", self.name, source.last_error or "no frames", extra={"CAMERA": self.name})
        self._close_visits(EndReason.CAMERA_LOST)
        self._pipeline.reset()

    def health(self, now_s: float, reader: str = "") -> CameraHealth:
        """Return the state, and the rates since the same reader asked last: two readers do not disturb each other."""
        source, spent = self._source, self._pipeline.spent
        dropped = source.dropped if source else 0
        now = _Counts(now_s, self.frames, spent.searched, spent.frames, dropped, dict(spent.seconds))
        before, self._reported[reader] = self._reported.get(reader, self._began), now
        elapsed = max(now_s - before.at_s, 1e-6)
        processed = now.frames - before.frames
        return CameraHealth(
            state=self.state,
            error=str(self.error) if self.error else (source.last_error or None) if source else None,
            fps_in=round((processed + now.dropped - before.dropped) / elapsed, 2),
            fps_processed=round(processed / elapsed, 2),
            fps_skipped=round((processed - (now.searched - before.searched)) / elapsed, 2),
            dropped=dropped,
            reconnects=source.reconnects if source else 0,
            frame_age_s=None if self._frame_at_s is None else round(now_s - self._frame_at_s, 3),
            inference_age_s=None if self._inference_at_s is None else round(now_s - self._inference_at_s, 3),
            tracks=self._people,
            width=self.width or None,
            height=self.height or None,
            hardware_decode=not source.decoder.startswith("software") if source else None,
            stage_ms=_stages(before, now) if processed else None,
        )


@dataclass(frozen=True, slots=True)
class _Counts:
    at_s: float
    frames: int = 0
    searched: int = 0
    stepped: int = 0
    dropped: int = 0
    seconds: dict[str, float] | None = None


def _stages(before: _Counts, now: _Counts) -> StageMs:
    then, new = before.seconds or dict.fromkeys(STAGES, 0.0), now.seconds or {}
    frames = max(now.frames - before.frames, 1)
    return StageMs(**{name: round(1000 * (new[name] - then.get(name, 0.0)) / frames, 3) for name in STAGES})
