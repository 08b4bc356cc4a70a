"""Boxes: the arithmetic every stage shares, on plain float arrays.

A set of boxes is an (N, 4) array; no boxes is (0, 4). `xyxy` is left, top, right, bottom; `xywh` is left, top, width,
height; `cxcywh` is centre, width, height. Units are whatever the caller uses, as long as both sides use the same.
Float32 in gives float32 out, float64 gives float64.
"""

from collections.abc import Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

Float = TypeVar("Float", np.float32, np.float64)
Polygon = Sequence[tuple[float, float]]  # corners, 0–1 of the frame's width and height, (0, 0) top left
LEAST_AREA = 1e-6  # of the frame: two pixels of 1080p


def xywh_to_xyxy(xywh: NDArray[Float]) -> NDArray[Float]:
    """Turn (N, 4) left, top, width, height into left, top, right, bottom."""
    return np.concatenate((xywh[:, :2], xywh[:, :2] + xywh[:, 2:]), axis=1)


def xyxy_to_xywh(xyxy: NDArray[Float]) -> NDArray[Float]:
    """Turn (N, 4) left, top, right, bottom into left, top, width, height."""
    return np.concatenate((xyxy[:, :2], xyxy[:, 2:] - xyxy[:, :2]), axis=1)


def cxcywh_to_xyxy(cxcywh: NDArray[Float]) -> NDArray[Float]:
    """Turn (N, 4) centre x, centre y, width, height into left, top, right, bottom."""
    half = cxcywh[:, 2:] / 2
    return np.concatenate((cxcywh[:, :2] - half, cxcywh[:, :2] + half), axis=1)


def xyxy_to_cxcywh(xyxy: NDArray[Float]) -> NDArray[Float]:
    """Turn (N, 4) left, top, right, bottom into centre x, centre y, width, height."""
    return np.concatenate(((xyxy[:, :2] + xyxy[:, 2:]) / 2, xyxy[:, 2:] - xyxy[:, :2]), axis=1)


def area(xyxy: NDArray[Float]) -> NDArray[Float]:
    """Return the (N,) areas of (N, 4) boxes; 0 where right < left or bottom < top."""
    wh: NDArray[Float] = np.maximum(xyxy[:, 2:] - xyxy[:, :2], 0)
    return wh[:, 0] * wh[:, 1]


def clip(xyxy: NDArray[Float], frame_wh: tuple[int, int]) -> NDArray[Float]:
    """Return (N, 4) boxes cut to the frame; a box wholly outside becomes one without area on its edge.

    Args:
        xyxy: (N, 4), pixels of the frame.
        frame_wh: Width and height of the frame, pixels.
    """
    clipped: NDArray[Float] = np.clip(xyxy, 0, np.array(frame_wh * 2, dtype=xyxy.dtype))
    return clipped


def expand(xyxy: NDArray[Float], margin: float) -> NDArray[Float]:
    """Return (N, 4) boxes grown on each side by `margin` × their own width or height, not clipped.

    Args:
        xyxy: (N, 4).
        margin: Share of the box's side; 0.25 makes a box 1.5 times as wide and as high, a negative one shrinks it.
    """
    grow = (xyxy[:, 2:] - xyxy[:, :2]) * margin
    return np.concatenate((xyxy[:, :2] - grow, xyxy[:, 2:] + grow), axis=1)


def iou(a: NDArray[Float], b: NDArray[Float]) -> NDArray[Float]:
    """Return the pairwise intersection over union of two sets of boxes.

    Args:
        a: (N, 4), xyxy.
        b: (M, 4), xyxy, in the same coordinates as `a`.

    Returns:
        (N, M) in [0, 1]; 0 wherever either box has no area.
    """
    lt = np.maximum(a[:, None, :2], b[None, :, :2])
    rb = np.minimum(a[:, None, 2:], b[None, :, 2:])
    wh = np.maximum(rb - lt, 0)
    inter: NDArray[Float] = wh[..., 0] * wh[..., 1]
    union = area(a)[:, None] + area(b)[None, :] - inter
    overlap = np.zeros_like(inter)
    np.divide(inter, union, out=overlap, where=inter > 0)
    return overlap


def overlapping_pairs(
    a: NDArray[Float], b: NDArray[Float]
) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[Float]]:
    """Return only the pairs of boxes that overlap, with their intersection over union.

    The same values as the positive cells of `iou(a, b)`. In a picture nearly all pairs are disjoint; finding the few
    others by four comparisons per pair first is several times cheaper than the dense matrix at 200 boxes.

    Args:
        a: (N, 4), xyxy, every box with an area.
        b: (M, 4), xyxy, every box with an area, in the same coordinates as `a`.

    Returns:
        Index into `a` (P,), ascending; index into `b` (P,), ascending within each `a`; IoU (P,) in (0, 1].
    """
    # One row per coordinate, so that each comparison below is one long loop.
    at = np.ascontiguousarray(a.T)
    bt = np.ascontiguousarray(b.T)
    overlap = at[:2, :, None] < bt[2:, None, :]
    overlap &= at[2:, :, None] > bt[:2, None, :]
    i, j = np.nonzero(overlap[0] & overlap[1])
    ai, bj = at.take(i, axis=1), bt.take(j, axis=1)
    wh: NDArray[Float] = np.minimum(ai[2:], bj[2:]) - np.maximum(ai[:2], bj[:2])
    inter = wh[0] * wh[1]
    awh, bwh = ai[2:] - ai[:2], bj[2:] - bj[:2]
    union = awh[0] * awh[1] + bwh[0] * bwh[1] - inter
    return i, j, inter / union


def nms(xyxy: NDArray[Float], score: NDArray[Float], iou_threshold: float) -> NDArray[np.intp]:
    """Return the boxes that survive greedy non-maximum suppression, best first.

    Args:
        xyxy: (N, 4).
        score: (N,), higher is better; of equal scores the earlier box is kept.
        iou_threshold: A box is dropped when its IoU with a better kept one is above this. Around 0.5 for decoders
            that leave many boxes per face; 0.8 and more removes only near-identical ones.

    Returns:
        (K,) indices into `xyxy`, by descending score.
    """
    order = np.argsort(-score, kind="stable")
    boxes = xyxy[order]
    with np.errstate(invalid="ignore"):  # two boxes without area that cross: 0 / 0, and above no threshold
        i, j, overlap = overlapping_pairs(boxes, boxes)
    close = (i < j) & (overlap > iou_threshold)
    i, j = i[close], j[close]
    # One step for each box that is kept and has others near it, not for each pair: 55 µs instead of 320 for five faces
    # of fifteen boxes each.
    dropped = np.zeros(len(boxes), np.bool_)
    ends = np.searchsorted(i, np.arange(len(boxes) + 1)).tolist()
    for better in np.unique(i).tolist():  # by descending score
        if not dropped[better]:
            dropped[j[ends[better] : ends[better + 1]]] = True
    return order[~dropped]


def polygon_fault(polygon: Polygon) -> str | None:
    """Return what is wrong with a polygon that should hide a part of the frame, None when nothing is."""
    if len(polygon) < 3:
        return f"a polygon of {len(polygon)} points, expected at least 3"
    for x, y in polygon:
        if not (0 <= x <= 1 and 0 <= y <= 1):
            return f"a polygon that leaves the frame at ({x:g}, {y:g}), expected 0–1 of width and height"
    after = [*polygon[1:], polygon[0]]
    if abs(sum(x0 * y1 - x1 * y0 for (x0, y0), (x1, y1) in zip(polygon, after, strict=True))) / 2 < LEAST_AREA:
        return "a polygon without area, expected at least three corners around one"
    return None
