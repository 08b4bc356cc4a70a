"""One camera's thread with a source that is a list: what it emits, how it fares, and how it ends."""

import threading
import time
from collections.abc import Callable, Sequence
from typing import Self

import numpy as np
import pytest
from numpy.typing import NDArray

from edge.camera import Camera, Timeline
from edge.capture.frames import Frame, SourceState
from edge.capture.gate import Gate, GateParams
from edge.capture.masks import Masks
from edge.errors import CameraError, EdgeError
from edge.pipeline import Pipeline, Seen
from edge.track.attributes import Attributes
from edge.track.detector import Detections
from edge.track.sort import Sort, SortParams
from edge.track.visits import VisitParams, Visits
from edge.wire import AnyEvent, Confirmed, Ended, EndReason

FACE = np.array([[10, 10, 30, 34]], np.float32)


class Script:
    """A source that plays frames from a list; None stands for a read in which nothing came."""

    dropped = reconnects = damaged = 0
    last_error = ""
    duration_s = None

    def __init__(self, frames: Sequence[Frame | None], *, live: bool = False, decoder: str = "software") -> None:
        self.live, self.decoder = live, decoder
        self.state = SourceState.STREAMING
        self.turned_at_s = time.monotonic()
        self._frames = list(frames)

    def read(self, timeout_s: float) -> Frame | None:
        self.turned_at_s = time.monotonic()
        if not self._frames:
            self.state = SourceState.ENDED
            return None
        return self._frames.pop(0)

    def close(self) -> None: ...

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


class OneFace:
    """A detector that always finds the same face."""

    letterbox_s = infer_s = decode_s = 0.0

    def __init__(self) -> None:
        self.looked_at: list[NDArray[np.uint8]] = []

    def __call__(self, frame: NDArray[np.uint8]) -> Detections:
        self.looked_at.append(frame.copy())
        return Detections(FACE, np.array([0.9], np.float32), None)


def frames(count: int, period_s: float = 0.04, start_s: float = 0.0) -> list[Frame | None]:
    times = [start_s + i * period_s for i in range(count)]
    return [Frame(np.full((48, 64, 3), 200, np.uint8), i, t, t) for i, t in enumerate(times)]


def pipeline(detector: OneFace | None = None, masks: Masks | None = None) -> Pipeline:
    return Pipeline(
        masks=masks or Masks([]),
        gate=Gate(GateParams(enabled=False)),
        detector=detector or OneFace(),
        sort=Sort(SortParams(max_age=3, min_hits=3)),
        attributes=Attributes({}),
        visits=Visits(0, VisitParams(), lambda _: (), first_track=0),
    )


class Watched:
    """A camera and what came out of it."""

    def __init__(
        self,
        source: Script | Callable[[], Script],
        offset_s: float | None = None,
        observe: Callable[[str, Seen], None] | None = None,
        stages: Pipeline | None = None,
    ) -> None:
        self.events: list[AnyEvent] = []
        self.seen: list[Seen] = []
        at_s = time.monotonic() - 1000 if offset_s is None else offset_s
        self.camera = Camera(
            "door",
            (lambda: source) if isinstance(source, Script) else source,
            stages or pipeline(),
            lambda opened: Timeline(at_s, live=opened.live),
            self.events.extend,
            [observe or (lambda _, seen: self.seen.append(seen))],
        )

    def run(self) -> Self:
        self.camera.start()
        assert self.camera.join(10)
        return self

    def of(self, kind: type[AnyEvent]) -> list[AnyEvent]:
        return [event for event in self.events if isinstance(event, kind)]


def test_a_recording_gives_one_visit_that_ends_with_it() -> None:
    watched = Watched(Script(frames(20))).run()
    [ended] = watched.of(Ended)
    assert isinstance(ended, Ended)
    assert ended.reason == EndReason.SOURCE_ENDED
    assert watched.camera.frames == 20
    assert watched.camera.state == "ended"
    watched.camera.check()


def test_a_recording_longer_than_it_said_does_not_run_into_the_future() -> None:
    began_s = time.monotonic()
    watched = Watched(Script(frames(11, period_s=0.05)), offset_s=began_s).run()
    assert time.monotonic() - began_s >= 0.5
    assert len(watched.seen) == 11


def test_a_recording_that_waits_turns_and_ends_when_asked() -> None:
    watched = Watched(Script(frames(2, start_s=3600.0)), offset_s=time.monotonic())
    watched.camera.start()
    time.sleep(0.7)
    assert time.monotonic() - watched.camera.turned_at_s < 0.6
    assert time.monotonic() - watched.camera.capture_turned_at_s < 0.6
    watched.camera.stop()
    assert watched.camera.join(2)
    assert watched.camera.frames == 0


def test_masks_are_painted_before_detector_and_viewers_see_a_frame() -> None:
    detector = OneFace()
    masks = Masks([((0.5, 0.0), (1.0, 0.0), (1.0, 1.0), (0.5, 1.0))])
    watched = Watched(Script(frames(2)), stages=pipeline(detector, masks)).run()
    for image in [*detector.looked_at, *(seen.frame.image for seen in watched.seen)]:
        assert not image[:, 33:].any()
        assert image[:, :31].all()


def test_a_face_is_somewhere_from_the_first_frame_on_and_while_it_is_hidden() -> None:
    watched = Watched(Script(frames(1))).run()
    assert np.allclose(watched.seen[0].faces, FACE)


def test_a_lost_camera_ends_its_visits_once_and_whoever_comes_next_is_somebody_else(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("edge.camera.LOST_S", 0.0)
    now_s = time.monotonic()
    script = [*frames(10, start_s=now_s), None, None, None, *frames(1, start_s=now_s + 60)]
    watched = Watched(Script(script, live=True)).run()
    [confirmed], [ended] = watched.of(Confirmed), watched.of(Ended)
    assert isinstance(ended, Ended)
    assert ended.reason == EndReason.CAMERA_LOST
    assert confirmed is not None
    health = watched.camera.health(time.monotonic())
    assert health.frame_age_s is not None  # known although the camera was lost meanwhile
    assert health.tracks == 0


def test_two_readers_of_health_do_not_disturb_each_others_rates() -> None:
    watched = Watched(Script(frames(50)))
    began_s = time.monotonic()
    watched.run()
    assert watched.camera.health(time.monotonic(), "page").fps_processed > 0
    assert watched.camera.health(time.monotonic(), "page").fps_processed == 0
    published = watched.camera.health(time.monotonic(), "published")
    assert published.fps_processed * (time.monotonic() - began_s) == pytest.approx(50, rel=0.5)


@pytest.mark.parametrize(
    ("decoder", "hardware"),
    [("software", False), ("software (hardware was asked for)", False), ("VA-API", True)],
)
def test_health_says_what_really_decodes(decoder: str, hardware: bool) -> None:
    camera = Watched(Script(frames(1), decoder=decoder)).run().camera
    assert camera.health(time.monotonic()).hardware_decode is hardware


def test_a_source_that_cannot_be_opened_is_a_state_and_no_bug() -> None:
    def refuse() -> Script:
        raise CameraError("clip.mp4: no such file")

    camera = Watched(refuse).run().camera
    assert camera.state == "failed"
    assert camera.done
    camera.check()


def test_a_bug_in_a_camera_is_raised_where_the_process_can_end_of_it(caplog: pytest.LogCaptureFixture) -> None:
    def stumble(_: str, __: Seen) -> None:
        raise ZeroDivisionError("by zero")

    camera = Watched(Script(frames(3)), observe=stumble).run().camera
    with pytest.raises(EdgeError, match="camera door died of ZeroDivisionError: by zero"):
        camera.check()
    assert "camera door died" in caplog.text


def test_a_camera_that_was_never_started_can_be_joined() -> None:
    assert Watched(Script([])).camera.join(0.1)
    assert not [thread for thread in threading.enumerate() if thread.name == "camera-door"]
