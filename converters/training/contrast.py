"""What an embedder learns from: faces as tensors, who is shown beside whom, and what it costs to take one for another.

Driven by `training.embedder`.
"""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 the name everybody reads
from numpy.typing import NDArray
from torch import Tensor

from converters.data.attributes import Label
from converters.data.augment_identity import looks
from converters.data.identity import AlignedFaces
from converters.evaluation.verification import area, rate_at, roc
from converters.nets.embedder import Embedder
from converters.training.lessons import spans

TRAITS = ("age", "gender", "race")
CHECK_FACES = 600


@dataclass(frozen=True)
class Material:
    """Faces as tensors.

    Attributes:
        pictures: (N, H, W, 3) uint8 BGR aligned context crops.
        person, circle: (N,) int64 numbers for `AlignedFaces.people` and `circles`.
        traits: (N, 3) int64 class of age, gender, race, -1 where unknown.
        pictures_of: per person the rows of all pictures.
    """

    pictures: Tensor
    person: Tensor
    circle: Tensor
    traits: Tensor
    pictures_of: tuple[NDArray[np.intp], ...]


def material(faces: AlignedFaces) -> Material:
    """Return faces as tensors, people and circles as numbers."""
    person, circle = (np.unique(names, return_inverse=True)[1] for names in (faces.people, faces.circles))
    order = np.argsort(person, kind="stable")
    return Material(
        torch.from_numpy(faces.pictures),
        torch.from_numpy(person.astype(np.int64)),
        torch.from_numpy(circle.astype(np.int64)),
        torch.tensor([[_class(label, trait) for trait in TRAITS] for label in faces.labels], dtype=torch.int64),
        tuple(np.split(order, np.flatnonzero(np.diff(person[order])) + 1)),
    )


def _class(label: Label, trait: str) -> int:
    """Return the class of a face, -1 where unknown or where several would be right."""
    right = label.classes(trait)
    return right[0] if len(right) == 1 else -1


def contrast(looks_: Tensor, person: Tensor, circle: Tensor, others: Tensor, others_ids: Tensor, heat: float) -> Tensor:
    """Return the NT-Xent loss of two looks of each person.

    Args:
        looks_: (2B, D) of length 1; row i and row i + B are one person.
        person, circle: (B,) numbers; whoever shares a circle is no stranger.
        others: (K, D) earlier faces.
        others_ids: (K, 2) their person and circle; -1 for an empty place.
        heat: the temperature.

    Source: Chen et al. 2020, A simple framework for contrastive learning of visual representations, section 2.1; the
    queue after He et al. 2020, Momentum contrast.
    """
    n = len(person)
    people, circles = torch.cat([person, person, others_ids[:, 0]]), torch.cat([circle, circle, others_ids[:, 1]])
    logits = looks_ @ torch.cat([looks_, others]).T / heat
    own = people[: 2 * n].unsqueeze(1) == people.unsqueeze(0)
    near = circles[: 2 * n].unsqueeze(1) == circles.unsqueeze(0)
    partner = (torch.arange(2 * n) + n) % (2 * n)
    left_out = own | near | (people < 0).unsqueeze(0)
    left_out[torch.arange(2 * n), partner] = False
    return F.cross_entropy(logits.masked_fill(left_out, -1e4), partner)


def trait_loss(logits: Tensor, traits: Tensor) -> Tensor:
    """Return the sum of the cross-entropies of age, gender and race over the faces where they are known."""
    total = logits.new_zeros(())
    for column, (first, n) in enumerate(spans(TRAITS)):
        known = traits[:, column] >= 0
        if known.any():
            total = total + F.cross_entropy(logits[known, first : first + n], traits[known, column])
    return total


def split(faces: AlignedFaces) -> tuple[AlignedFaces, AlignedFaces]:
    """Return (to learn from, to check on): UTKFace's test part is never learnt from."""
    check = [
        i for i, label in enumerate(faces.labels) if faces.people[i].startswith("utkface/") and label.split == "test"
    ]
    held = set(check)
    return faces.subset([i for i in range(len(faces)) if i not in held]), faces.subset(check[:CHECK_FACES])


def pairs_of(learn: Material, epoch: int, *, seed: int, clip_share: float) -> NDArray[np.intp]:
    """Return (people, 2) rows of this epoch: everybody once, people with several pictures oftener, two of theirs.

    Args:
        learn: the faces.
        epoch: each has pairs of its own.
        seed: of the run.
        clip_share: share of the pairs that are two pictures of one person.
    """
    rng = np.random.default_rng((seed, epoch))
    several = [rows for rows in learn.pictures_of if len(rows) > 1]
    once = [rows for rows in learn.pictures_of if len(rows) == 1]
    extra = round(len(once) * clip_share / (1 - clip_share)) if several else 0
    pairs = [(rows[0], rows[0]) for rows in once]
    pairs += [tuple(rng.choice(several[k], 2, replace=False)) for k in rng.integers(len(several) or 1, size=extra)]
    return rng.permutation(np.array(pairs, np.intp))


def two_looks(net: Embedder, faces: Material) -> dict[str, float]:
    """Return how well two random looks of held-out faces find each other; says nothing about two real pictures."""
    net.eval()
    rng = torch.Generator().manual_seed(0)
    with torch.inference_mode():
        a, b = (torch.cat([net(looks(part, rng)) for part in faces.pictures.split(100)]) for _ in range(2))
        similarity = (a @ b.T).numpy()
    same = np.eye(len(a), dtype=bool)
    false, true = roc(similarity[same], similarity[~same])
    return {"auc": area(false, true), "tpr@0.01": rate_at(false, true, 0.01)}
