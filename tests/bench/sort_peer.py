"""SORT as it is usually written, as the peer of `edge.track.sort`: in benchmarks for speed, in tests for results.

One object per track with a 7 × 7 Kalman filter in matrices, a dense IoU matrix, one assignment over all of it.

Source: Bewley et al. 2016, Simple Online and Realtime Tracking.
"""

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from edge.track.sort import SortParams

Array = NDArray[np.float64]

F = np.eye(7) + np.eye(7, k=4)
H = np.eye(4, 7)
Q = np.diag([1, 1, 1, 1, 1e-2, 1e-2, 1e-4])
R = np.diag([1.0, 1, 10, 10])
P0 = np.diag([10.0, 10, 10, 10, 1e4, 1e4, 1e4])


class PeerTrack:
    """One track: its filter and its counters."""

    def __init__(self, track_id: int, box: Array) -> None:
        self.track_id = track_id
        self.x = np.zeros(7)
        self.x[:4] = measure(box)
        self.P = P0.copy()
        self.time_since_update = 0
        self.hit_streak = 0

    def predict(self) -> None:
        if self.x[2] + self.x[6] <= 0:
            self.x[6] = 0
        self.x = F @ self.x
        self.P = F @ self.P @ F.T + Q
        if self.time_since_update > 0:
            self.hit_streak = 0
        self.time_since_update += 1

    def update(self, box: Array) -> None:
        K = self.P @ H.T @ np.linalg.inv(H @ self.P @ H.T + R)
        self.x = self.x + K @ (measure(box) - H @ self.x)
        I_KH = np.eye(7) - K @ H
        self.P = I_KH @ self.P @ I_KH.T + K @ R @ K.T
        self.time_since_update = 0
        self.hit_streak += 1

    def xyxy(self) -> Array:
        u, v, s, r = self.x[:4]
        w = np.sqrt(s * r)
        h = s / w
        return np.array([u - w / 2, v - h / 2, u + w / 2, v + h / 2])


class PeerSort:
    """The tracker, as a loop over tracks."""

    def __init__(self, params: SortParams) -> None:
        self.params = params
        self.tracks: list[PeerTrack] = []
        self.frame_count = 0
        self.born = 0

    def update(self, xyxy: Array) -> list[tuple[int, Array]]:
        """Return (track id, box) of every confirmed track that a detection of this frame matched, youngest first."""
        self.frame_count += 1
        for track in self.tracks:
            track.predict()
        matches = self.associate(xyxy)
        for d, t in matches:
            self.tracks[t].update(xyxy[d])
        matched = {d for d, _ in matches}
        for d, box in enumerate(xyxy):
            if d not in matched:
                self.born += 1
                self.tracks.append(PeerTrack(self.born, box))
        reported = [
            (track.track_id, track.xyxy())
            for track in reversed(self.tracks)
            if track.time_since_update == 0
            and (track.hit_streak >= self.params.min_hits or self.frame_count <= self.params.min_hits)
        ]
        self.tracks = [track for track in self.tracks if track.time_since_update <= self.params.max_age]
        return reported

    def associate(self, xyxy: Array) -> list[tuple[int, int]]:
        if not self.tracks or not len(xyxy):
            return []
        overlap = iou(xyxy, np.stack([track.xyxy() for track in self.tracks]))
        above = overlap > self.params.iou_threshold
        if above.sum(0).max() == 1 and above.sum(1).max() == 1:
            pairs = np.nonzero(above)
        else:
            pairs = linear_sum_assignment(overlap, maximize=True)
        return [(int(d), int(t)) for d, t in zip(*pairs, strict=True) if overlap[d, t] >= self.params.iou_threshold]


def measure(box: Array) -> Array:
    w, h = box[2] - box[0], box[3] - box[1]
    return np.array([box[0] + w / 2, box[1] + h / 2, w * h, w / h])


def iou(a: Array, b: Array) -> Array:
    a, b = a[:, None], b[None]
    w = np.maximum(0, np.minimum(a[..., 2], b[..., 2]) - np.maximum(a[..., 0], b[..., 0]))
    h = np.maximum(0, np.minimum(a[..., 3], b[..., 3]) - np.maximum(a[..., 1], b[..., 1]))
    area_a = (a[..., 2] - a[..., 0]) * (a[..., 3] - a[..., 1])
    area_b = (b[..., 2] - b[..., 0]) * (b[..., 3] - b[..., 1])
    result: Array = w * h / (area_a + area_b - w * h)
    return result
