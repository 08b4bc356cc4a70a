"""What a model's output tensors mean: one pure function per decoder name of the manifest.

The detector, the golden check and the converters' evaluation all read outputs through this module.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edge.geometry import nms
from edge.models.manifest import Input

Floats = NDArray[np.float32]

# Boxes kept after suppression: 300 is YOLOv10's own limit, and the most a 640 px frame of faces ever holds.
TOP_K = 300
# Boxes compared at all, best first: a dozen cells answer for one face.
CANDIDATES = 3000


@dataclass(frozen=True, slots=True)
class Detections:
    """Faces in one image, best score first; the pixels are those of whoever hands them out.

    `xyxy` is (N, 4) float32, `score` (N,) float32 in [0, 1], `landmarks` (N, 5, 2) float32 x, y of right eye,
    left eye, nose tip, right and left corner of the mouth (the person's own right), or None if the model has none.
    """

    xyxy: Floats
    score: Floats
    landmarks: Floats | None = None


Decode = Callable[[Sequence[Floats], Input, float], Detections]


def yolov10(outputs: Sequence[Floats], source: Input, threshold: float) -> Detections:
    """Read `boxes` (1, A, 4) xyxy in input pixels and `scores` (1, A, 1) in [0, 1].

    The one-to-many head gives some ten boxes a face; the one-to-one head is trained to give one, yet now and then
    gives two (THU-MIG/yolov10 issue 236). Boxes of IoU > 0.5 with a better one are suppressed: those of one face
    overlap by 0.55 and more, and would start a second track.
    """
    boxes, scores = outputs[0][0], outputs[1][0, :, 0]
    return _keep(boxes, scores, None, threshold, iou_threshold=0.5)


def yunet(outputs: Sequence[Floats], source: Input, threshold: float) -> Detections:
    """Read YuNet: `cls`, `obj` (1, A, 1), `bbox` (1, A, 4), `kps` (1, A, 10), each at strides 8, 16, 32, in this order.

    Source: Wu et al. 2023, YuNet: A Tiny Millisecond-level Face Detector, section 3; one anchor point per cell.
    """
    picked: list[tuple[Floats, Floats, Floats]] = []
    for level, stride in enumerate((8, 16, 32)):
        cls, obj, bbox, kps = (outputs[level + 3 * kind][0] for kind in range(4))
        score = np.sqrt(np.clip(cls[:, 0], 0, 1) * np.clip(obj[:, 0], 0, 1))
        cells = np.flatnonzero(score >= threshold)
        row, column = np.divmod(cells, source.width // stride)
        corner = np.stack([column, row], axis=1).astype(np.float32)
        centre = (corner + bbox[cells, :2]) * stride
        half = np.exp(bbox[cells, 2:]) * (stride / 2)
        points = (kps[cells].reshape(-1, 5, 2) + corner[:, None]) * stride
        picked.append((np.concatenate([centre - half, centre + half], axis=1), score[cells], points))
    boxes, scores, landmarks = (np.concatenate(parts) for parts in zip(*picked, strict=True))
    return _keep(boxes, scores, landmarks, threshold, iou_threshold=0.3)


def ssd(outputs: Sequence[Floats], source: Input, threshold: float) -> Detections:
    """Read Ultra-Light SSD: `scores` (1, A, 2) background and face, `boxes` (1, A, 4) xyxy in [0, 1] of the input."""
    scores, boxes = outputs[0][0, :, 1], outputs[1][0]
    return _keep(boxes * _input_size(source), scores, None, threshold, iou_threshold=0.3)


def single_box(outputs: Sequence[Floats], source: Input, threshold: float) -> Detections:
    """Read a one-face network: `score` (1, 1) after its sigmoid, `box` (1, 4) xyxy in [0, 1] of the input."""
    boxes = outputs[1].reshape(1, 4)
    return _keep(boxes * _input_size(source), outputs[0].reshape(1), None, threshold, iou_threshold=1.0)


DECODERS: dict[str, Decode] = {"yolov10": yolov10, "yunet": yunet, "ssd": ssd, "single_box": single_box}


def _input_size(source: Input) -> Floats:
    return np.array([source.width, source.height] * 2, np.float32)


def _keep(
    boxes: Floats, scores: Floats, landmarks: Floats | None, threshold: float, iou_threshold: float
) -> Detections:
    # Threshold first: of 8,400 anchors a handful is left, and everything after costs microseconds.
    kept = np.flatnonzero(scores >= threshold)
    kept = kept[np.argsort(-scores[kept], kind="stable")[:CANDIDATES]]
    kept = kept[nms(boxes[kept], scores[kept], iou_threshold)[:TOP_K]]
    return Detections(
        np.ascontiguousarray(boxes[kept], np.float32),
        np.ascontiguousarray(scores[kept], np.float32),
        None if landmarks is None else np.ascontiguousarray(landmarks[kept], np.float32),
    )


def probabilities(outputs: Sequence[Floats], decoder: str) -> Floats:
    """Turn a classifier's logits into probabilities.

    Args:
        outputs: one tensor of logits, (N, C), or (N, 1) for `sigmoid` with the logit of the second of two labels.
        decoder: `softmax` or `sigmoid`.

    Returns:
        (N, C) float32 in [0, 1], rows summing to 1 (not for a `sigmoid` with several labels, each on its own).
    """
    logits = outputs[0].reshape(len(outputs[0]), -1)
    if decoder == "softmax":
        shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
        return np.asarray(shifted / shifted.sum(axis=1, keepdims=True), np.float32)
    chance = np.float32(1) / (np.float32(1) + np.exp(-logits))
    return np.asarray(np.concatenate([1 - chance, chance], axis=1) if chance.shape[1] == 1 else chance, np.float32)


def points(outputs: Sequence[Floats], source: Input) -> Floats:
    """Read landmarks (N, 2K) in [0, 1] of the input; return (N, K, 2) in input pixels."""
    flat = outputs[0].reshape(len(outputs[0]), -1, 2)
    return np.asarray(flat * _input_size(source)[:2], np.float32)


def unit_vectors(outputs: Sequence[Floats]) -> Floats:
    """Return embeddings (N, D) scaled to length 1."""
    flat = outputs[0].reshape(len(outputs[0]), -1)
    return np.asarray(flat / np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), 1e-12), np.float32)
