"""Who was where in a recording: boxes and votes of every track, no pixels. It is cut and blurred by this."""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from edge.clips.stretches import Sighting
from edge.pipeline import Seen
from edge.track.ballot import NOTHING, Vote

Boxes = NDArray[np.float32]
NOWHERE: Boxes = np.zeros((0, 4), np.float32)


@dataclass(slots=True)
class Life:
    """One track: when and where it was first, was last thought to be, and when it was last really seen and reported."""

    born_s: float
    first: Boxes
    gone_s: float
    last: Boxes
    seen_s: float | None = None
    vote: Vote = NOTHING


@dataclass(slots=True)
class Whereabouts:
    """All tracks of a recording, as one head sees them; frames are numbered from 0 in the order they were added."""

    head: str
    lives: dict[int, Life] = field(default_factory=dict)
    end_s: float = 0.0
    _frames: list[tuple[NDArray[np.int64], Boxes]] = field(default_factory=list)
    _ends: tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]] | None = None  # ids, born, gone

    @property
    def frames(self) -> int:
        """Return how many frames were added."""
        return len(self._frames)

    @property
    def fps(self) -> float:
        """Return the mean rate of the frames."""
        return (self.frames - 1) / self.end_s if self.end_s > 0 else 25.0

    def add(self, seen: Seen, everyone: NDArray[np.int64]) -> None:
        """Take in what became of one frame; `everyone` are the ids of `seen.faces`."""
        at_s, boxes = seen.frame.media_s, seen.faces.astype(np.float32)
        self._frames.append((everyone, boxes))
        self.end_s, self._ends = at_s, None
        for track_id, box in zip(everyone.tolist(), boxes, strict=True):
            life = self.lives.setdefault(track_id, Life(at_s, box, at_s, box))
            life.gone_s, life.last = at_s, box
        for track_id, detection in zip(seen.tracks.track_id.tolist(), seen.tracks.detection.tolist(), strict=True):
            if detection >= 0:
                life = self.lives[track_id]
                life.seen_s = at_s
                life.vote = seen.votes[track_id].get(self.head, NOTHING)

    def tracks_of(self, label: str) -> frozenset[int]:
        """Return the tracks that the head, having seen all of each, calls so."""
        return frozenset(i for i, life in self.lives.items() if life.vote.label == label)

    def sightings(self, tracks: frozenset[int]) -> list[Sighting]:
        """Return when tracks were seen, and how sure the head is of each."""
        lives = [self.lives[i] for i in sorted(tracks)]
        return [Sighting(x.born_s, x.seen_s, x.vote.confidence) for x in lives if x.seen_s is not None]

    def others(self, frame: int, at_s: float, tracks: frozenset[int], lead_s: float) -> Boxes:
        """Return (N, 4) xyxy: every face in a frame but those of `tracks`.

        A face is there before the tracker knows it, and after it has given it up: where a track began and ended counts
        for `lead_s` before and after too.
        """
        ids, boxes = self._frames[frame]
        rows = [boxes[i] for i, track_id in enumerate(ids.tolist()) if track_id not in tracks]
        if self._ends is None:  # asked of every frame, of an evening with thousands of tracks
            lives = self.lives.values()
            born_gone = np.array([(life.born_s, life.gone_s) for life in lives], np.float64).reshape(-1, 2)
            self._ends = np.array(list(self.lives), np.int64), born_gone[:, 0], born_gone[:, 1]
        every, born, gone = self._ends
        early = set(every[(born - lead_s <= at_s) & (at_s < born)].tolist()) - tracks
        late = set(every[(gone < at_s) & (at_s <= gone + lead_s)].tolist()) - tracks
        rows += [self.lives[i].first for i in early] + [self.lives[i].last for i in late]
        return np.stack(rows) if rows else NOWHERE
