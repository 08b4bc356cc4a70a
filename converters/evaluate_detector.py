"""Judge a face detector on labelled pictures: AP at IoU 0.5 and 0.5–0.95, by face size, recall and false boxes.

Everything goes through `edge`'s own letterbox and decoders, so that the figures are those of a box in the field.
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from converters.nets.yolov10 import Exported, YOLOv10
from edge.geometry import iou
from edge.models.decoders import DECODERS, Detections
from edge.models.manifest import Input
from edge.models.preprocess import to_tensor
from edge.track.letterbox import Letterbox

LOW_SCORE = 0.001  # AP needs the whole curve, not what a box would publish
IOUS = tuple(np.arange(0.5, 1.0, 0.05).round(2).tolist())

Scored = tuple[Detections, NDArray[np.float32]]


def average_precision(pictures: Sequence[Scored], iou_threshold: float, sides: tuple[float, float] = (0, 1e9)) -> float:
    """Return the area under the interpolated precision-recall curve (Everingham et al. 2010, all points).

    Args:
        pictures: per picture the detections and its (N, 4) float32 faces, in the same pixels.
        iou_threshold: a detection hits the best face not yet hit at or above this.
        sides: faces whose longer side, in pixels of the picture, is outside [low, high) neither help nor harm.
    """
    scores, hits, total = [np.zeros(0, np.float32)], [np.zeros(0, bool)], 0
    for found, faces in pictures:
        longer = (faces[:, 2:] - faces[:, :2]).max(1) if len(faces) else np.zeros(0, np.float32)
        counted = (longer >= sides[0]) & (longer < sides[1])
        total += int(counted.sum())
        hit, kept = match(found, faces, counted, iou_threshold, sides)
        scores.append(found.score[kept])
        hits.append(hit[kept])
    if total == 0:
        return float("nan")
    order = np.argsort(-np.concatenate(scores), kind="stable")
    hit = np.concatenate(hits)[order]
    recall = np.cumsum(hit) / total
    precision = np.cumsum(hit) / np.arange(1, len(hit) + 1)
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    return float(np.sum(np.diff(recall, prepend=0.0) * envelope))


def match(
    found: Detections,
    faces: NDArray[np.float32],
    counted: NDArray[np.bool_],
    iou_threshold: float,
    sides: tuple[float, float],
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Match detections, best first, to faces.

    Returns:
        (N,) bool: hit a counted face; (N,) bool: takes part (False: hit an uncounted face, or missed at another size).
    """
    hit, kept = np.zeros(len(found.score), bool), np.ones(len(found.score), bool)
    overlap = iou(found.xyxy, faces) if len(faces) else np.zeros((len(found.score), 0), np.float32)
    free = np.ones(len(faces), bool)
    longer = (found.xyxy[:, 2:] - found.xyxy[:, :2]).max(1) if len(found.xyxy) else np.zeros(0, np.float32)
    for row in np.argsort(-found.score, kind="stable"):
        fits = np.where(free, overlap[row], 0.0)
        best = int(fits.argmax()) if len(faces) else -1
        if best >= 0 and fits[best] >= iou_threshold:
            free[best] = False
            hit[row] = kept[row] = bool(counted[best])
        else:
            kept[row] = sides[0] <= longer[row] < sides[1]
    return hit, kept


def to_frame(found: Detections, letterbox: Letterbox) -> Detections:
    """Bring boxes from input pixels back to the picture that was last drawn."""
    corners = letterbox.placement.to_frame(found.xyxy.reshape(-1, 2, 2))
    return Detections(corners.reshape(-1, 4).astype(np.float32), found.score)


@torch.inference_mode()
def predict_torch(net: YOLOv10, image: NDArray[np.uint8], size: int, threshold: float = LOW_SCORE) -> Detections:
    """Run a float network in torch on one (H, W, 3) uint8 BGR picture; boxes in its pixels."""
    spec = Input(width=size, height=size)
    letterbox = Letterbox(size, size)
    tensor = torch.from_numpy(to_tensor(letterbox(image), spec))
    boxes, scores = Exported(net.eval(), size, size)(tensor)
    return to_frame(DECODERS["yolov10"]([boxes.numpy(), scores.numpy()], spec, threshold), letterbox)
