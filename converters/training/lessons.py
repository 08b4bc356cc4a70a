"""What the students are taught: soft targets and weights for every head, 0 where a face has no label for it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from converters.data.attributes import AGE_BANDS, HEADS, OTHER_RACE, Faces, Label

# How far rare classes are lifted: 0 not at all, 1 to equal weight. Only ~270 black faces are there to learn from.
LIFT = {"age": 0.3, "gender": 0.0, "race": 0.7, "emotion": 0.0}
SMOOTHING = 0.05
OUTSIDER_WEIGHT = 0.5
# Taught beside the age bands and dropped in the end: inside a band the bands say nothing, five-year steps still do.
YEARS = "years"
STEPS = tuple((low, low + 4) for low in range(1, 91, 5))
YEARS_WEIGHT = 0.5
CLASSES = {head: len(labels) for head, labels in HEADS.items()} | {YEARS: len(STEPS)}


def taught(heads: Sequence[str]) -> tuple[str, ...]:
    """Return the heads with the helper that is taught beside them, at the end."""
    return (*heads, YEARS) if "age" in heads else tuple(heads)


@dataclass(frozen=True)
class Lessons:
    """Training material as tensors: context crops, what part is real, soft targets and weights of every head."""

    pictures: Tensor
    inside: Tensor
    targets: Tensor
    weights: Tensor
    heads: tuple[str, ...]

    @property
    def outputs(self) -> int:
        """Return the number of logits of all heads."""
        return self.targets.shape[1]

    def used(self) -> Tensor:
        """Return the indices of the faces that any head has a label for."""
        return self.weights.sum(dim=1).nonzero().flatten()

    def loss(self, logits: Tensor, _x: Tensor, pick: Tensor) -> Tensor:
        """Return the loss of the faces `pick`; see the function."""
        return loss(logits, self.targets[pick], self.weights[pick], self.heads)


def lessons(faces: Faces, heads: Sequence[str]) -> Lessons:
    """Return crops with targets (N, classes of all heads) and weights (N, heads), 0 where a label is unknown."""
    targets = np.concatenate([np.stack([_target(label, head) for label in faces.labels]) for head in heads], axis=1)
    weights = np.stack([_weights(faces.labels, head) for head in heads], axis=1)
    return Lessons(
        torch.from_numpy(faces.pictures),
        torch.from_numpy(faces.inside),
        torch.from_numpy(targets).float(),
        torch.from_numpy(weights).float(),
        tuple(heads),
    )


def _target(label: Label, head: str) -> NDArray[np.float64]:
    """Return a probability row; age becomes a bell around the year, because 45 is nearly "46-60"."""
    n = CLASSES[head]
    right = _right(label, head)
    if _outsider(label, head):
        return np.full(n, 1 / n)
    if not right:
        return np.zeros(n)
    if head not in ("age", YEARS):
        return np.eye(n)[right[0]] * (1 - SMOOTHING) + SMOOTHING / n
    bands = AGE_BANDS if head == "age" else STEPS
    age = sum(label.ages) / 2
    width = 0.7 + 0.06 * age
    edges = [(low - 0.5 - age) / width for low, _ in bands] + [(bands[-1][1] + 0.5 - age) / width]
    row = np.diff([0.5 * (1 + math.erf(edge / math.sqrt(2))) for edge in edges])
    return np.asarray(row / row.sum())


def _weights(labels: Sequence[Label], head: str) -> NDArray[np.float64]:
    right = [_right(label, head) for label in labels]
    if head == YEARS:
        return np.array([YEARS_WEIGHT if r else 0.0 for r in right])
    counts = np.bincount([r[0] for r in right if r], minlength=CLASSES[head])
    lift = (counts.max() / np.maximum(counts, 1)) ** LIFT[head]
    weight = np.array([lift[r[0]] if r else 0.0 for r in right])
    if weight.any():
        weight /= weight[weight > 0].mean()
    weight[[_outsider(label, head) for label in labels]] = OUTSIDER_WEIGHT
    return weight


def _right(label: Label, head: str) -> tuple[int, ...]:
    """Return the right answers of a head; the helper has one wherever the age is known."""
    return label.classes("age" if head == YEARS else head)


def _outsider(label: Label, head: str) -> bool:
    """Tell faces of groups the race head has no class for: it learns to be unsure of them, and so abstains."""
    return head == "race" and label.race == OTHER_RACE


def loss(logits: Tensor, targets: Tensor, weights: Tensor, heads: Sequence[str]) -> Tensor:
    """Return the sum over heads of the weighted cross-entropy; a head without labels in the batch adds nothing."""
    total = logits.new_zeros(())
    for i, (first, n) in enumerate(spans(heads)):
        log_p = torch.log_softmax(logits[:, first : first + n].float(), dim=1)
        each = -(targets[:, first : first + n] * log_p).sum(dim=1)
        total = total + (each * weights[:, i]).sum() / weights[:, i].count_nonzero().clamp(min=1)
    return total


def spans(heads: Sequence[str]) -> list[tuple[int, int]]:
    """Return (first logit, number of logits) of each head lying side by side."""
    sizes = [CLASSES[head] for head in heads]
    return [(sum(sizes[:i]), n) for i, n in enumerate(sizes)]
