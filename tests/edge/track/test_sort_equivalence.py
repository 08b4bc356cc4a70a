"""On recorded detections our tracker says what the reference implementation said: same rows, ids, boxes."""

from pathlib import Path

import numpy as np
import pytest

from edge.geometry import xywh_to_xyxy
from edge.track.sort import Sort, SortParams

SEQUENCES = [
    "ADL-Rundle-6",
    "ADL-Rundle-8",
    "ETH-Bahnhof",
    "ETH-Pedcross2",
    "ETH-Sunnyday",
    "KITTI-17",
    "PETS09-S2L1",
    "TUD-Stadtmitte",
]
PARAMS = {
    "default": SortParams(max_age=1, min_hits=3, iou_threshold=0.3),
    "seed": SortParams(max_age=100, min_hits=8, iou_threshold=0.3),
}
TOLERANCE_PX = 0.001  # the files have three decimals
Row = tuple[int, int, tuple[float, ...]]  # frame, track id, xyxy


def track(det: Path, params: SortParams) -> list[Row]:
    """Return what our tracker reports of a MOT detection file, frame by frame, each frame's rows by box."""
    table = np.loadtxt(det, delimiter=",", ndmin=2)
    boxes = xywh_to_xyxy(table[:, 2:6])
    sort = Sort(params)
    rows: list[Row] = []
    for frame in range(1, int(table[:, 0].max()) + 1):
        tracks = sort.update(boxes[table[:, 0] == frame])
        rows += [
            (frame, int(i), tuple(box)) for i, box in zip(tracks.track_id.tolist(), tracks.xyxy.tolist(), strict=True)
        ]
    return rows


def reference(path: Path) -> list[Row]:
    table = np.loadtxt(path, delimiter=",", skiprows=1, ndmin=2)
    return [(int(r[0]), int(r[1]), tuple(r[2:6])) for r in table.tolist()]


@pytest.mark.shared
@pytest.mark.parametrize("params", PARAMS)
@pytest.mark.parametrize("sequence", SEQUENCES)
def test_rows_frames_identities_and_boxes_are_those_of_the_reference(shared: Path, sequence: str, params: str) -> None:
    folder = shared / "tracking" / sequence
    ours = track(folder / "det.txt", PARAMS[params])
    theirs = reference(folder / f"reference_{params}.txt")
    assert len(theirs) > 300, "the sequence is too short to prove anything"
    assert [row[0] for row in ours] == [row[0] for row in theirs]

    # Ids may be named differently: rows of a frame are paired by box, and the pairing must be one renaming.
    renaming = set()
    for frame in {row[0] for row in theirs}:
        mine = [row for row in ours if row[0] == frame]
        yours = [row for row in theirs if row[0] == frame]
        apart = np.abs(np.array([r[2] for r in mine])[:, None] - np.array([r[2] for r in yours])[None]).max(axis=2)
        assert (apart <= TOLERANCE_PX).sum(axis=0).tolist() == [1] * len(yours), f"frame {frame}: boxes differ"
        renaming |= {(row[1], yours[k][1]) for row, k in zip(mine, apart.argmin(axis=1), strict=True)}
    assert len(renaming) == len({a for a, _ in renaming}) == len({b for _, b in renaming})
