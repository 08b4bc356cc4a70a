"""The embedder's last layer in closed form: what stays the same between two looks of a face and differs between faces.

Driven by `training.embedder` before any gradient. A minute of computing gives what an hour of descent begins with.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from converters.nets.embedder import DIMENSIONS, Embedder

KEPT = 384  # principal directions in which the two kinds of scatter are told apart
SHRINKAGE = 0.1  # of the scatter within a person towards equal in all directions


@dataclass(frozen=True)
class Looked:
    """Features of many faces: (N, C), and of another look of the same faces, (N, C)."""

    one: Tensor
    other: Tensor


def discriminant(looked: Looked, kept: int = KEPT, dimensions: int = DIMENSIONS) -> tuple[Tensor, Tensor]:
    """Return weight (dimensions, C) and bias (dimensions,) of the linear layer.

    The features are reduced to their principal directions, whitened by the scatter between two looks of one face
    (WCCN, Hatch et al. 2006), and turned to the directions in which faces differ most then (Fisher 1936).

    Args:
        looked: the features; row i of both is one person.
        kept: principal directions; at most half of the rows.
        dimensions: of the embedding.
    """
    both = torch.cat([looked.one, looked.other])
    mean = both.mean(dim=0)
    kept = min(kept, both.shape[1], len(looked.one) // 2)
    _, _, principal = torch.pca_lowrank(both - mean, q=kept, center=False, niter=1)  # (C, kept)
    one, other = ((part - mean) @ principal for part in (looked.one, looked.other))
    off = (one - other) / 2**0.5
    within = off.T @ off / len(off)
    within = (1 - SHRINKAGE) * within + SHRINKAGE * within.diagonal().mean() * torch.eye(kept)
    values, vectors = torch.linalg.eigh(within)
    whiten = vectors / values.clamp(min=1e-12).sqrt()
    faces = (one + other) / 2 @ whiten
    spread, turned = torch.linalg.eigh(faces.T @ faces / len(faces))  # ascending
    best = turned[:, -dimensions:].flip(1) * _weight(spread[-dimensions:].flip(0))
    weight = (principal @ whiten @ best).T
    if len(weight) < dimensions:  # fewer faces than dimensions: the rest says nothing
        weight = torch.cat([weight, torch.zeros(dimensions - len(weight), weight.shape[1])])
    return weight, -(weight @ mean)


def _weight(spread: Tensor) -> Tensor:
    """Return how much each direction counts in a cosine: its share of variance that is not looks, square-rooted.

    The mean of two whitened looks has half a unit of scatter left from the looks themselves.
    """
    return ((spread - 0.5).clamp(min=0) / spread.clamp(min=1e-6)).sqrt()


def set_project(net: Embedder, looked: Looked) -> None:
    """Give an embedder's last layer the closed form."""
    weight, bias = discriminant(looked)
    # Batch norm and weight decay expect numbers around one; a common factor does not change a cosine.
    size = (looked.one[:256] @ weight.T + bias).norm(dim=1).mean()
    with torch.no_grad():
        net.project.weight.copy_(weight / size)
        net.project.bias.copy_(bias / size)
