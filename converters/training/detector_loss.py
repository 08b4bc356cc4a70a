"""The detector's training loss: consistent dual assignment (YOLOv10, section 3.1), CIoU, DFL and BCE.

One class only: a face is a face. Both heads are scored with the same metric, so that the single anchor of the
one-to-one head is the best of the one-to-many head's ten.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from converters.nets.yolov10_head import DFL, REG_MAX

ALPHA, BETA = 0.5, 6.0  # task-aligned metric: score^α · IoU^β (Feng et al. 2021, TOOD)
TOP_K_MANY, TOP_K_ONE = 10, 1
GAIN_BOX, GAIN_DFL, GAIN_SCORE = 7.5, 1.5, 0.5
MIN_REACH_PX = 10.0  # a face smaller than the finest cell still has an anchor to claim


def ciou(a: Tensor, b: Tensor) -> Tensor:
    """Return the complete IoU of boxes pair by pair (Zheng et al. 2020), (N,) from two (N, 4) xyxy."""
    eps = 1e-7
    wh_a, wh_b = (a[:, 2:] - a[:, :2]).clamp(min=eps), (b[:, 2:] - b[:, :2]).clamp(min=eps)
    overlap = (torch.minimum(a[:, 2:], b[:, 2:]) - torch.maximum(a[:, :2], b[:, :2])).clamp(min=0).prod(1)
    iou = overlap / (wh_a.prod(1) + wh_b.prod(1) - overlap + eps)
    hull = torch.maximum(a[:, 2:], b[:, 2:]) - torch.minimum(a[:, :2], b[:, :2])
    centres = (a[:, :2] + a[:, 2:] - b[:, :2] - b[:, 2:]) / 2
    distance = centres.square().sum(1) / (hull.square().sum(1) + eps)
    v = 4 / math.pi**2 * (torch.atan(wh_b[:, 0] / wh_b[:, 1]) - torch.atan(wh_a[:, 0] / wh_a[:, 1])).square()
    with torch.no_grad():
        alpha = v / (v - iou + 1 + eps)
    return iou - distance - alpha * v


@dataclass(frozen=True)
class Pairs:
    """Candidate (anchor, face) pairs of a batch: the anchor's centre lies within the face.

    Attributes:
        image, face, anchor: (P,) int64 indices; `face` counts within its image.
        faces: (B, M, 4) float32 xyxy pixels, zero-padded.
    """

    image: Tensor
    face: Tensor
    anchor: Tensor
    faces: Tensor


def candidates(faces: Tensor, counts: Tensor, points_px: Tensor) -> Pairs:
    """Find the pairs that may be assigned.

    Args:
        faces: (B, M, 4) float32 xyxy pixels, zero-padded.
        counts: (B,) int64, how many of M are real.
        points_px: (A, 2) anchor centres in pixels.
    """
    centres, half = (faces[..., :2] + faces[..., 2:]) / 2, (faces[..., 2:] - faces[..., :2]) / 2
    half = half.clamp(min=MIN_REACH_PX / 2)
    low, high = centres - half, centres + half
    real = torch.arange(faces.shape[1])[None] < counts[:, None]
    x, y = points_px[:, 0], points_px[:, 1]
    inside = (x > low[..., :1]) & (x < high[..., :1]) & (y > low[..., 1:]) & (y < high[..., 1:]) & real[..., None]
    image, face, anchor = inside.nonzero(as_tuple=True)
    return Pairs(image, face, anchor, faces)


@dataclass(frozen=True)
class Assignment:
    """Which anchors answer for which face, and how well they should score.

    Attributes:
        image, anchor: (P,) int64, the positives; boxes: (P, 4) their faces, pixels; target: (P,) float32 in (0, 1].
    """

    image: Tensor
    anchor: Tensor
    boxes: Tensor
    target: Tensor


@torch.no_grad()
def assign(pairs: Pairs, scores: Tensor, boxes: Tensor, top_k: int) -> Assignment:
    """Give each face its `top_k` best aligned anchors; an anchor wanted twice goes to the face it fits better.

    Args:
        pairs: the candidates.
        scores: (B, A) float32 in [0, 1].
        boxes: (B, A, 4) float32 xyxy pixels.
        top_k: anchors per face.
    """
    batch, faces, total = pairs.faces.shape[0], pairs.faces.shape[1], boxes.shape[1]
    i, f, a = pairs.image, pairs.face, pairs.anchor
    fit = ciou(boxes[i, a], pairs.faces[i, f]).clamp(min=0)
    metric = scores[i, a].pow(ALPHA) * fit.pow(BETA)
    dense = torch.full((batch, faces, total), -1.0)
    dense[i, f, a] = metric
    overlap = torch.full((batch, faces, total), -1.0)
    overlap[i, f, a] = fit
    values, best = dense.topk(min(top_k, total), dim=2)
    chosen = torch.zeros_like(dense, dtype=torch.bool).scatter_(2, best, values >= 0)
    overlap_chosen = torch.where(chosen, overlap, torch.full_like(overlap, -1.0))
    owner_fit, owner = overlap_chosen.max(1)  # (B, A)
    image, anchor = (owner_fit >= 0).nonzero(as_tuple=True)
    face = owner[image, anchor]
    mine = dense[image, face, anchor]
    peak = torch.zeros(batch * faces).scatter_reduce_(0, image * faces + face, mine, "amax").view(batch, faces)
    height = torch.zeros(batch * faces).scatter_reduce_(0, image * faces + face, owner_fit[image, anchor], "amax")
    target = mine / (peak[image, face] + 1e-9) * height.view(batch, faces)[image, face]
    return Assignment(image, anchor, pairs.faces[image, face], target)


def distances_to_boxes(logits: Tensor, points: Tensor, strides: Tensor, dfl: DFL) -> Tensor:
    """Decode (B, 64, A) logits to (B, A, 4) xyxy pixels."""
    left_top, right_bottom = dfl(logits).transpose(1, 2).chunk(2, 2)
    return torch.cat((points - left_top, points + right_bottom), 2) * strides


def dfl_loss(logits: Tensor, distances: Tensor) -> Tensor:
    """Return the cross entropy to the two bins around each distance, (P,) from (P, 64) and (P, 4) in strides."""
    distances = distances.clamp(0, REG_MAX - 1 - 0.01)
    low = distances.long()
    share = distances - low
    log_p = functional.log_softmax(logits.view(-1, 4, REG_MAX), 2)
    left = log_p.gather(2, low[..., None])[..., 0]
    right = log_p.gather(2, low[..., None] + 1)[..., 0]
    return -(left * (1 - share) + right * share).mean(1)


class DualLoss:
    """The sum of both heads' losses for one input size.

    Args:
        points: (A, 2) anchor centres in strides.
        strides: (A, 1).
        dfl: the head's fixed expectation.
    """

    def __init__(self, points: Tensor, strides: Tensor, dfl: DFL) -> None:
        self._points, self._strides, self._dfl = points, strides, dfl

    def __call__(
        self, heads: tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]], faces: Tensor, counts: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return the loss, and its (6,) parts box, DFL, score of the one-to-many and of the one-to-one head.

        Args:
            heads: logits as `YOLOv10.forward` gives them.
            faces: (B, M, 4) float32 xyxy pixels, zero-padded.
            counts: (B,) int64.
        """
        pairs = candidates(faces, counts, self._points * self._strides)
        parts = [self._head(d, s, pairs, k) for (d, s), k in zip(heads, (TOP_K_MANY, TOP_K_ONE), strict=True)]
        flat = torch.cat(parts)
        return flat.sum(), flat.detach()

    def _head(self, logits: Tensor, class_logits: Tensor, pairs: Pairs, top_k: int) -> Tensor:
        logits, class_logits = logits.float(), class_logits.float().squeeze(1)
        boxes = distances_to_boxes(logits, self._points, self._strides, self._dfl)
        found = assign(pairs, class_logits.detach().sigmoid(), boxes.detach(), top_k)
        i, a = found.image, found.anchor
        target = torch.zeros_like(class_logits)
        target[i, a] = found.target
        total = found.target.sum().clamp(min=1.0)
        score = functional.binary_cross_entropy_with_logits(class_logits, target, reduction="sum") / total
        box = ((1 - ciou(boxes[i, a], found.boxes)) * found.target).sum() / total
        points, strides = self._points[a], self._strides[a]
        wanted = torch.cat((points - found.boxes[:, :2] / strides, found.boxes[:, 2:] / strides - points), 1)
        spread = (dfl_loss(logits[i, :, a], wanted) * found.target).sum() / total
        return torch.stack((GAIN_BOX * box, GAIN_DFL * spread, GAIN_SCORE * score))
