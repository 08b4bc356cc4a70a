"""One camera: a frame goes in, boxes with ids come out, and now and then an event. A page long on purpose."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from edge.capture.frames import Frame
from edge.capture.gate import Gate
from edge.capture.masks import Masks
from edge.track.attributes import Attributes, Vote
from edge.track.detector import Detections
from edge.track.recording import Recorder
from edge.track.sort import Sort, Tracks
from edge.track.visits import Flat, Visits
from edge.wire import SCORE_UNIT, AnyEvent, EndReason

NO_SCORES = np.zeros(0, dtype=np.float32)
STAGES = ("mask", "gate", "letterbox", "infer", "boxes", "sort", "attributes", "events")


class FindsFaces(Protocol):
    """A detector: (H, W, 3) uint8 BGR in, boxes in pixels of that frame out; says how long its three parts took."""

    letterbox_s: float
    infer_s: float
    decode_s: float

    def __call__(self, frame: NDArray[np.uint8]) -> Detections: ...


@dataclass(frozen=True, slots=True)
class Seen:
    """What became of one frame: for the live page, the annotated video, the recorder and the benchmark.

    `faces` is (K, 4) float64, xyxy: wherever a face may be, those of tentative and lost tracks included. What blurs
    must blur all of them.
    """

    frame: Frame
    tracks: Tracks
    faces: NDArray[np.float64]
    scores: NDArray[np.float32]
    searched: bool
    events: tuple[AnyEvent, ...]
    votes: dict[int, dict[str, Vote]]
    people: int


@dataclass(slots=True)
class Spent:
    """Seconds per stage, added up over `frames`; reset by whoever reports them."""

    frames: int = 0
    searched: int = 0
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(STAGES, 0.0))

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Add the time inside the block to a stage."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] += time.perf_counter() - start


class Pipeline:
    """The stages of one camera in the order of the data flow; `recorder` keeps what the detector found."""

    def __init__(
        self,
        *,
        masks: Masks,
        gate: Gate,
        detector: FindsFaces,
        sort: Sort,
        attributes: Attributes,
        visits: Visits,
        recorder: Recorder | None = None,
    ) -> None:
        self.masks, self.gate, self.detector = masks, gate, detector
        self.sort, self.attributes, self.visits = sort, attributes, visits
        self.recorder = recorder
        self.spent = Spent()

    def step(self, frame: Frame, at_s: float) -> Seen:
        """Take one frame through all stages; `at_s` is its time on the process's timeline."""
        image, spent = frame.image, self.spent
        with spent.stage("mask"):
            self.masks.paint(image)
        with spent.stage("gate"):
            searched = self.gate.decide(image, at_s, has_tracks=len(self.visits) > 0)
        found = self._detect(image) if searched else None
        with spent.stage("sort"):
            tracks = self.sort.predict() if found is None else self.sort.update(found.xyxy)
        if found is not None:
            with spent.stage("attributes"):
                self._observe(image, found, tracks)
        faces = self.sort.everywhere()
        scores = NO_SCORES if found is None else found.score
        height, width = image.shape[:2]
        with spent.stage("events"):
            alive = self.sort.alive()
            events, gone = self.visits.frame(at_s, tracks, scores, alive, (width, height), searched=searched)
        votes = {i: self.attributes.votes(i) for i in tracks.track_id.tolist()}
        for track_id in gone:
            self.attributes.forget(track_id)
        if self.recorder is not None:
            self.recorder.write(at_s, (width, height), found)
        spent.frames += 1
        spent.searched += searched
        return Seen(frame, tracks, faces, scores, searched, tuple(events), votes, len(self.visits))

    def close(self, at_s: float, reason: EndReason) -> list[AnyEvent]:
        """End what is open."""
        return self.visits.close(at_s, reason)

    def reset(self) -> None:
        """Start over after the camera was lost: whoever comes next is somebody else."""
        for track_id in self.sort.alive():
            self.attributes.forget(track_id)
        self.sort = Sort(self.sort.params, first_id=self.sort.next_id)

    def _detect(self, image: NDArray[np.uint8]) -> Detections:
        found = self.detector(image)
        self.spent.seconds["letterbox"] += self.detector.letterbox_s
        self.spent.seconds["infer"] += self.detector.infer_s
        self.spent.seconds["boxes"] += self.detector.decode_s
        return found

    def _observe(self, image: NDArray[np.uint8], found: Detections, tracks: Tracks) -> None:
        """Show the heads the faces as detected, not as smoothed: crops must match how the students were trained."""
        matched = tracks.detection >= 0
        index = tracks.detection[matched]
        landmarks = None if found.landmarks is None else found.landmarks[index]
        self.attributes.observe(image, tracks.track_id[matched], found.xyxy[index], landmarks)


def flat_attributes(votes: dict[str, Vote], heads: tuple[str, ...]) -> Flat:
    """Return votes as events carry them: head, label, confidence, …; abstentions are left out."""
    flat: list[int] = []
    for i, name in enumerate(heads):
        vote = votes.get(name)
        if vote is not None and vote.index >= 0:
            flat += [i, vote.index, round(vote.confidence * SCORE_UNIT)]
    return tuple(flat)
