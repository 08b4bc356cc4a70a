"""Tracks of one camera, frame by frame, into the few events that leave the box. Pure: time comes in as an argument.

A visit is a confirmed track's life. It is announced once, told again at most once a minute, and closed once; beside
it a presence count per slot of a fixed grid. Nothing is said per frame (docs/PROTOCOL.md, P33 and P34).
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from edge.track.sort import Tracks
from edge.wire import BOX_UNIT, SCORE_UNIT, AnyEvent, Confirmed, Ended, EndReason, Presence, Update

Flat = tuple[int, ...]  # head, label, confidence, head, …: as events carry attributes


@dataclass(frozen=True, slots=True)
class VisitParams:
    """How often a visit is told and how presence is counted.

    Attributes:
        min_hits: SORT's: until that many frames were searched SORT reports first sightings, which are not yet visits.
        update_s: Least time between two updates of a visit.
        presence_s: Length of a presence slot.
        grid_s: Timeline of the camera at a boundary of the presence grid, so that slots follow the wall clock.
        longest_gap_s: Time without a frame that still counts as the people before it being there.
    """

    min_hits: int = 3
    update_s: float = 60.0
    presence_s: float = 60.0
    grid_s: float = 0.0
    longest_gap_s: float = 2.0


@dataclass(slots=True)
class Visit:
    """What is known of one track so far; boxes are relative to the frame, cx cy w h."""

    track: int
    start_s: float
    reports: int = 0
    confirmed: bool = False
    told_s: float | None = None
    last_s: float = 0.0
    entry: NDArray[np.float64] = field(default_factory=lambda: np.zeros(4))
    last: NDArray[np.float64] = field(default_factory=lambda: np.zeros(4))
    best: NDArray[np.float64] = field(default_factory=lambda: np.zeros(4))
    best_score: float = 0.0


class Visits:
    """The visits of one camera.

    Args:
        camera: Index of the camera in the vocabulary.
        params: How often to tell.
        attributes: Returns what the heads say of a tracker id now, flat; () while they abstain.
        first_track: Random start of the track numbers on the wire, so that they cannot be joined across cameras.
    """

    def __init__(self, camera: int, params: VisitParams, attributes: Callable[[int], Flat], first_track: int) -> None:
        self.camera = camera
        self.params = params
        self._attributes = attributes
        self._first_track = first_track
        self._visits: dict[int, Visit] = {}
        self._frames = 0
        self._slot: _Slot | None = None
        self._last_frame_s: float | None = None

    def __len__(self) -> int:
        return sum(v.confirmed for v in self._visits.values())

    def dwell_s(self, track_id: int) -> float:
        """Return how long a track has been seen, 0 for one that is not known."""
        visit = self._visits.get(track_id)
        return visit.last_s - visit.start_s if visit else 0.0

    def frame(
        self,
        now_s: float,
        tracks: Tracks,
        scores: NDArray[np.float32],
        alive: frozenset[int],
        frame_wh: tuple[int, int],
        *,
        searched: bool = True,
    ) -> tuple[list[AnyEvent], list[int]]:
        """Take in one frame.

        Args:
            now_s: Time of the frame on the camera's timeline.
            tracks: What SORT reports.
            scores: (M,) scores of the detections `tracks.detection` points into.
            alive: Ids SORT still keeps, tentative and lost ones included.
            frame_wh: Size of the frame, px.
            searched: Whether the detector ran; False where SORT only predicted.

        Returns:
            The events due, and the tracker ids that are gone.
        """
        self._frames += searched
        events = self._presence(now_s)
        for track_id in alive - self._visits.keys():
            self._visits[track_id] = Visit((self._first_track + track_id) % 2**32, now_s)
        wh = np.array([*frame_wh, *frame_wh], dtype=np.float64)
        for track_id, xyxy, detection in zip(
            tracks.track_id.tolist(), tracks.xyxy / wh, tracks.detection.tolist(), strict=True
        ):
            if detection >= 0:
                self._seen(self._visits[track_id], now_s, xyxy, float(scores[detection]))
            events += self._tell(track_id, now_s)
        self._count(now_s, sum(self._visits[i].confirmed for i in tracks.track_id.tolist()))
        gone = [i for i in self._visits if i not in alive]
        for track_id in gone:
            events += self._end(track_id, EndReason.LEFT)
        return events, gone

    def close(self, now_s: float, reason: EndReason) -> list[AnyEvent]:
        """End every visit and the presence slot: the source ended, was lost, or the box stops."""
        events = [e for track_id in list(self._visits) for e in self._end(track_id, reason)]
        events += self._presence(now_s)
        if self._slot is not None and self._slot.frames:
            events.append(self._slot.event(self.camera, self.params.presence_s))
        self._slot = None
        self._last_frame_s = None
        self._frames = 0  # whoever goes on after this starts the tracker anew, and its first reports prove nothing
        return events

    def _seen(self, visit: Visit, now_s: float, xyxy: NDArray[np.float64], score: float) -> None:
        x0, y0, x1, y1 = xyxy.clip(0.0, 1.0)
        box = np.array([(x0 + x1) / 2, (y0 + y1) / 2, x1 - x0, y1 - y0])
        if visit.reports == 0:
            visit.entry = box
        visit.reports += 1
        visit.last, visit.last_s = box, now_s
        if score >= visit.best_score:
            visit.best, visit.best_score = box, score
        # In the tracker's first frames a report may be a first sighting; later it implies min_hits matches.
        visit.confirmed |= visit.reports >= self.params.min_hits or self._frames > self.params.min_hits

    def _tell(self, track_id: int, now_s: float) -> list[AnyEvent]:
        visit = self._visits[track_id]
        if not visit.confirmed:
            return []
        cx, cy, w, h = _units(visit.last)
        score = _score(visit.best_score)
        if visit.told_s is None:
            visit.told_s = now_s
            self._arrived()
            return [Confirmed(self.camera, visit.track, _ms(visit.start_s), cx, cy, w, h, score)]
        if now_s - visit.told_s < self.params.update_s:
            return []
        visit.told_s = now_s
        dwell_ms = _ms(visit.last_s - visit.start_s)
        attributes = self._attributes(track_id)
        return [Update(self.camera, visit.track, _ms(visit.start_s), dwell_ms, cx, cy, w, h, score, attributes)]

    def _end(self, track_id: int, reason: EndReason) -> list[AnyEvent]:
        visit = self._visits.pop(track_id)
        if not visit.confirmed:
            return []
        entry_x, entry_y, _, _ = _units(visit.entry)
        exit_x, exit_y, _, _ = _units(visit.last)
        _, _, w, h = _units(visit.best)
        return [
            Ended(
                self.camera,
                visit.track,
                _ms(visit.start_s),
                _ms(visit.last_s - visit.start_s),
                int(reason),
                entry_x,
                entry_y,
                exit_x,
                exit_y,
                w,
                h,
                _score(visit.best_score),
                visit.reports,
                self._attributes(track_id),
            )
        ]

    def _presence(self, now_s: float) -> list[AnyEvent]:
        """Close the slots that ended before `now_s`; a slot without a single frame says nothing."""
        period = self.params.presence_s
        start = self.params.grid_s + (now_s - self.params.grid_s) // period * period
        if self._slot is None:
            self._slot = _Slot(start)
        if start <= self._slot.start_s:
            return []
        done, self._slot = self._slot, _Slot(start)
        return [done.event(self.camera, period)] if done.frames else []

    def _count(self, now_s: float, people: int) -> None:
        slot = self._slot
        if slot is None:
            return
        gap = 0.0 if self._last_frame_s is None else min(now_s - self._last_frame_s, self.params.longest_gap_s)
        slot.frames += 1
        slot.most = max(slot.most, people)
        slot.person_s += people * max(0.0, gap)
        self._last_frame_s = now_s

    def _arrived(self) -> None:
        if self._slot is not None:
            self._slot.entered += 1


@dataclass(slots=True)
class _Slot:
    start_s: float
    frames: int = 0
    most: int = 0
    person_s: float = 0.0
    entered: int = 0

    def event(self, camera: int, period_s: float) -> Presence:
        return Presence(camera, _ms(self.start_s), _ms(period_s), self.most, _ms(self.person_s), self.entered)


def _ms(seconds: float) -> int:
    return round(seconds * 1000)


def _units(box: NDArray[np.float64]) -> tuple[int, int, int, int]:
    x, y, w, h = (int(v) for v in np.rint(box * BOX_UNIT))
    return x, y, w, h


def _score(score: float) -> int:
    return round(min(max(score, 0.0), 1.0) * SCORE_UNIT)
