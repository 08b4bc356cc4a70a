"""SORT: detections of one frame in, tracks with stable ids out. Driven by `pipeline.py`, one instance per camera.

A detection starts a tentative track at once; a track is confirmed, and from then on reported, after `min_hits`
consecutive further matches; it is lost while nothing matches it, and dies after `max_age` such frames.

Source: Bewley et al. 2016, Simple Online and Realtime Tracking, section 3.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from edge.geometry import overlapping_pairs
from edge.track.assignment import linear_sum_assignment
from edge.track.kalman import Kalman, measure

Indices = NDArray[np.intp]

# No object of any picture is outside these, and within them no area overflows or vanishes.
MIN_SIDE_PX: Final = 1e-3
MAX_SIDE_PX: Final = 1e6


@dataclass(frozen=True, slots=True)
class SortParams:
    """How patient and how strict the tracker is.

    Attributes:
        max_age: Detected frames a track survives without a match; higher survives occlusion for longer, but hands
            its id to a stranger more often. 0 or more.
        min_hits: Consecutive matches after birth until a track is reported; higher drops more false detections, but
            shows a face later. 0 or more. The first `min_hits` frames of a stream report every match.
        iou_threshold: Least overlap of prediction and detection to match; higher swaps ids less, but loses fast
            movers. Above 0, at most 1.
    """

    max_age: int = 1
    min_hits: int = 3
    iou_threshold: float = 0.3

    def __post_init__(self) -> None:
        if self.max_age < 0:
            raise ValueError(f"max_age is {self.max_age}, must be 0 or more frames")
        if self.min_hits < 0:
            raise ValueError(f"min_hits is {self.min_hits}, must be 0 or more matches")
        if not 0 < self.iou_threshold <= 1:
            raise ValueError(f"iou_threshold is {self.iou_threshold}, must be above 0 and at most 1")


@dataclass(frozen=True, slots=True)
class Tracks:
    """The confirmed tracks of one frame, youngest first.

    Attributes:
        track_id: (N,) int64, unique within the tracker instance, from 1, in order of birth.
        xyxy: (N, 4) float64, estimated box, pixels of the frame; may reach outside it.
        detection: (N,) int64, index into the detections of this frame; -1 on a frame that was only predicted.
    """

    track_id: NDArray[np.int64]
    xyxy: NDArray[np.float64]
    detection: NDArray[np.int64]


class Sort:
    """The tracker of one camera and one class of object; `first_id` lets a new one go on where another stopped."""

    def __init__(self, params: SortParams, first_id: int = 1) -> None:
        self.params = params
        self.next_id = first_id
        self._frame_count = 0
        # One entry per live track, oldest first; the columns of the filters run along.
        self._filters = Kalman()
        self._track_id: NDArray[np.int64] = np.empty(0, dtype=np.int64)
        self._hit_streak: NDArray[np.int64] = np.empty(0, dtype=np.int64)
        self._time_since_update: NDArray[np.int64] = np.empty(0, dtype=np.int64)

    def update(self, xyxy: NDArray[np.float64] | NDArray[np.float32]) -> Tracks:
        """Follow all tracks into a frame on which the detector ran.

        Args:
            xyxy: (N, 4) detections, pixels of the frame. A box without an area, or not finite, is ignored.
        """
        self._frame_count += 1
        boxes, row = _usable(xyxy.astype(np.float64))
        z = measure(boxes)

        self._filters.predict()
        matched_box, matched_track = associate(boxes, self._filters.xyxy(), self.params.iou_threshold)
        self._hit(matched_track, z.take(matched_box, axis=1))
        detection = np.full(len(self._filters), -1, dtype=np.int64)
        detection[matched_track] = matched_box
        if len(matched_box) < len(boxes):
            born = np.delete(np.arange(len(boxes)), matched_box)
            self._birth(z.take(born, axis=1))
            detection = np.concatenate((detection, born))
        if row is not None:
            detection = np.where(detection < 0, -1, row.take(detection))
        tracks = self._report(detection)
        if len(matched_track) < len(detection):
            self._death()
        return tracks

    def predict(self) -> Tracks:
        """Advance all tracks into a frame that nobody searched, and report those of the last `update` there.

        No track ages, gains or loses a streak: that the detector did not run says nothing about the face.
        """
        self._filters.predict()
        return self._report(np.full(len(self._filters), -1, dtype=np.int64))

    def alive(self) -> frozenset[int]:
        """Return the ids of all tracks not dead yet: tentative, confirmed and lost."""
        return frozenset(self._track_id.tolist())

    def everywhere(self) -> NDArray[np.float64]:
        """Return (N, 4) xyxy, where each track not dead yet is thought to be; in the order of `everyone`."""
        return self._filters.xyxy()

    def everyone(self) -> NDArray[np.int64]:
        """Return (N,) the ids of all tracks not dead yet, those of `alive`, in the order of `everywhere`."""
        return self._track_id.copy()

    def _hit(self, track: Indices, z: NDArray[np.float64]) -> None:
        self._hit_streak[self._time_since_update > 0] = 0
        self._time_since_update += 1
        self._hit_streak[track] += 1
        self._time_since_update[track] = 0
        self._filters.update(track, z)

    def _birth(self, z: NDArray[np.float64]) -> None:
        count = z.shape[1]
        fresh = np.zeros(count, dtype=np.int64)
        self._filters.birth(z)
        self._track_id = np.concatenate((self._track_id, np.arange(self.next_id, self.next_id + count)))
        self._hit_streak = np.concatenate((self._hit_streak, fresh))
        self._time_since_update = np.concatenate((self._time_since_update, fresh))
        self.next_id += count

    def _report(self, detection: NDArray[np.int64]) -> Tracks:
        reported = self._time_since_update == 0
        if self._frame_count > self.params.min_hits:
            reported &= self._hit_streak >= self.params.min_hits
        index = np.flatnonzero(reported)[::-1]
        return Tracks(self._track_id.take(index), self._filters.xyxy().take(index, axis=0), detection.take(index))

    def _death(self) -> None:
        kept = np.flatnonzero(self._time_since_update <= self.params.max_age)
        if len(kept) < len(self._filters):
            self._filters.keep(kept)
            self._track_id = self._track_id.take(kept)
            self._hit_streak = self._hit_streak.take(kept)
            self._time_since_update = self._time_since_update.take(kept)


def associate(
    detections: NDArray[np.float64], tracks: NDArray[np.float64], iou_threshold: float
) -> tuple[Indices, Indices]:
    """Match detections with predicted tracks, each at most once, for the largest sum of IoU.

    Like the authors' implementation, pairs above the threshold are taken as they are if no box is in two of them;
    only else the sum is maximized, over pairs below the threshold too, which are dropped afterwards.

    Args:
        detections: (N, 4) xyxy, each with an area.
        tracks: (M, 4) xyxy, each with an area.
        iou_threshold: Least IoU of a match.

    Returns:
        Index into `detections` and index into `tracks` of each match, (K,) both.
    """
    i, j, iou = overlapping_pairs(detections, tracks)
    above = iou > iou_threshold
    i_above, j_above = i[above], j[above]
    if _unique(i_above) and _unique(j_above) and i_above.size:
        return i_above, j_above
    pair = assign(i, j, iou)
    pair = pair[iou[pair] >= iou_threshold]
    return i[pair], j[pair]


def assign(i: Indices, j: Indices, weight: NDArray[np.float64]) -> Indices:
    """Return the pairs of the assignment with the largest sum of weights; pairs not listed weigh 0.

    A pair that outweighs all others of its row and of its column together is in every best assignment: whatever
    would replace it weighs less. Those are taken first, and this leaves of most frames little or nothing to solve.
    The rest is solved in one piece: 200 × 200 take 0.1–0.2 ms, finding its connected groups would cost as much.

    Args:
        i: (P,) row of each pair.
        j: (P,) column of each pair; no pair comes twice.
        weight: (P,) positive.

    Returns:
        (K,) indices into the pairs.
    """
    if not i.size:
        return i
    rival = np.bincount(i, weight).take(i) + np.bincount(j, weight).take(j)
    sure = 3 * weight > rival  # weight > (row - weight) + (column - weight)
    rest = np.flatnonzero(~(_members(i, i[sure]) | _members(j, j[sure])))
    if not rest.size:
        return np.flatnonzero(sure)
    row, column = _renumber(i[rest]), _renumber(j[rest])
    shape = row.max() + 1, column.max() + 1
    dense, number = np.zeros(shape), np.full(shape, -1)
    dense[row, column], number[row, column] = weight[rest], rest
    solved = number[linear_sum_assignment(dense, maximize=True)]
    return np.concatenate((np.flatnonzero(sure), solved[solved >= 0]))


def _members(index: Indices, of: Indices) -> NDArray[np.bool_]:
    """Return `np.isin(index, of)` for small non-negative integers, ten times faster."""
    member = np.zeros(index.max() + 1, dtype=np.bool_)
    member[of] = True
    return member[index]


def _renumber(index: Indices) -> Indices:
    """Return the rank of each entry among the distinct ones, from 0."""
    return (np.cumsum(np.bincount(index) > 0) - 1).take(index)


def _unique(index: Indices) -> bool:
    return not index.size or bool(np.bincount(index).max() == 1)


def _usable(xyxy: NDArray[np.float64]) -> tuple[NDArray[np.float64], Indices | None]:
    """Return the boxes that can be measured, and their rows unless that is all of them."""
    wh = xyxy[:, 2:] - xyxy[:, :2]
    good = (wh > MIN_SIDE_PX) & (wh < MAX_SIDE_PX)  # NaN fails both
    if good.all():
        return xyxy, None
    row = np.flatnonzero(good.all(axis=1))
    return xyxy[row], row
