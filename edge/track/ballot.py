"""One head's ballot on one track: the best few answers, weighed, until they settle. Pure; `attributes` drives it."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class HeadParams:
    """How one head looks at a track.

    Attributes:
        name: the head's name in the config, such as `age`.
        min_face_px: side of the square of equal area below which a face is not asked about; smaller asks about more
            people and answers worse.
        crop_margin: instead of the manifest's.
        score_threshold: instead of the manifest's; a vote below it abstains.
        best_k: samples kept per track; more is steadier and slower to change.
        stable_after: stop looking after so many samples in a row that left a sure vote where it was.
        max_samples: stop looking after so many samples whatever they said; bounds the cost of an undecided face.
        better_by: once `best_k` samples are in, a new crop must promise so many times the worst of them.
        spacing: frames from one look at a track to the next; neighbours in time are nearly the same picture.
    """

    name: str
    min_face_px: int = 64
    crop_margin: float | None = None
    score_threshold: float | None = None
    best_k: int = 5
    stable_after: int = 4
    max_samples: int = 16
    better_by: float = 1.1
    spacing: int = 3


@dataclass(frozen=True, slots=True)
class Vote:
    """What a head says of a track: `label` None and `index` -1 when it abstains; `confidence` in [0, 1] of the best."""

    label: str | None
    index: int
    confidence: float
    samples: int


NOTHING = Vote(None, -1, 0.0, 0)  # nobody was seen well enough to ask


@dataclass(frozen=True, slots=True)
class Sample:
    """One crop's answer: `quality` ranks it among the track's, `area` (px²) weighs it in the vote."""

    quality: float
    area: float
    chances: Floats


@dataclass(slots=True)
class Ballot:
    """One head's samples of one track, best first."""

    samples: list[Sample] = field(default_factory=list)
    seen: int = 0
    unchanged: int = 0
    last: int = -1
    not_before: int = 0
    _vote: Vote | None = None

    def bar(self, params: HeadParams, turn: int) -> float:
        """Return the quality a crop must promise to be worth an inference; infinite when none would be."""
        if turn < self.not_before or self.unchanged >= params.stable_after or self.seen >= params.max_samples:
            return float("inf")
        return self.samples[-1].quality * params.better_by if len(self.samples) >= params.best_k else 0.0

    def add(self, sample: Sample, params: HeadParams, threshold: float, turn: int) -> None:
        """Take a sample in, the worst one out, and note whether the vote stayed."""
        self.samples = sorted([*self.samples, sample], key=lambda s: -s.quality)[: params.best_k]
        self.seen += 1
        self.not_before = turn + params.spacing
        mean = self.mean()
        winner = int(mean.argmax()) if mean.max() >= threshold else -1
        self.unchanged = self.unchanged + 1 if winner == self.last and winner >= 0 else 0
        self.last = winner
        self._vote = None

    def mean(self) -> Floats:
        """Return the area-weighted mean of the samples' probabilities, (C,)."""
        weights = np.array([s.area for s in self.samples], np.float32)
        chances = np.stack([s.chances for s in self.samples])
        return np.asarray(weights @ chances / weights.sum(), np.float32)

    def vote(self, labels: Sequence[str], threshold: float) -> Vote:
        """Return the label, or abstain below the threshold or without a sample.

        Asked on every frame and for every track, answered anew only after a sample: a head does not change its labels
        or its threshold.
        """
        if self._vote is None:
            self._vote = self._count(labels, threshold) if self.samples else NOTHING
        return self._vote

    def _count(self, labels: Sequence[str], threshold: float) -> Vote:
        mean = self.mean()
        best = int(mean.argmax())
        sure = float(mean[best])
        if sure < threshold:
            return Vote(None, -1, sure, self.seen)
        return Vote(labels[best], best, sure, self.seen)
