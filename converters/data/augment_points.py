"""Jitter crops and their points together: what a detector's box does to a face, and what a head does by itself."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812 the name everybody reads
from torch import Tensor

from converters.data.augment_faces import blur, hide, light, uniform
from converters.data.landmarks import CONTEXT, MIRRORED


@dataclass(frozen=True)
class Jitter:
    """How far crops stray from the detector's box.

    Attributes:
        scale: natural logarithm of the largest factor in size, both ways.
        aspect: the same for width against height.
        tilt: radians, both ways.
        shift: of the crop's side, both ways.
    """

    scale: float = 0.2
    aspect: float = 0.1
    tilt: float = 0.4
    shift: float = 0.1


STILL = Jitter(0.0, 0.0, 0.0, 0.0)


def crops_with_points(
    pictures: Tensor,
    points: Tensor,
    tallness: Tensor,
    size_px: int,
    margin: float,
    rng: torch.Generator,
    jitter: Jitter,
) -> tuple[Tensor, Tensor]:
    """Cut crops out of context crops, each strayed at random and half of them mirrored.

    Args:
        pictures: (N, H, W, 3) uint8 BGR context crops of `data.landmarks`.
        points: (N, 5, 2) float32 in [0, 1] of the context crop.
        tallness: (N,) height over width of each face box: a tilt turns the face, not the square it was stretched to.
        size_px: side of the crops.
        margin: the crop margin around which they vary.
        rng: the source of all randomness.
        jitter: how far; with STILL nothing strays and nothing is mirrored.

    Returns:
        (N, 3, size, size) float32 RGB in [0, 1] and (N, 5, 2) float32 in [0, 1] of the crop.
    """
    n = len(pictures)
    base = (1 + 2 * margin) / (1 + 2 * CONTEXT)
    scale = base * torch.exp(uniform(n, -jitter.scale, jitter.scale, rng))
    aspect = torch.exp(uniform(n, -jitter.aspect, jitter.aspect, rng))
    angle = uniform(n, -jitter.tilt, jitter.tilt, rng)
    mirrored = (torch.rand(n, generator=rng) < 0.5) & (jitter != STILL)
    sx, sy = scale * aspect * torch.where(mirrored, -1.0, 1.0), scale / aspect
    cos, sin = torch.cos(angle), torch.sin(angle)
    rows = [torch.stack([sx * cos, -sy * sin * tallness], 1), torch.stack([sx * sin / tallness, sy * cos], 1)]
    turn = torch.stack(rows, dim=1)  # (N, 2, 2): crop → context, both from -1 to 1
    shift = (2 * base * uniform(2 * n, -jitter.shift, jitter.shift, rng)).view(n, 2, 1)
    grid = F.affine_grid(torch.cat([turn, shift], 2), [n, 3, size_px, size_px], align_corners=False)
    x = pictures.permute(0, 3, 1, 2).flip(1).float() / 255
    crops = F.grid_sample(x, grid, mode="bilinear", padding_mode="border", align_corners=False)
    inside = torch.linalg.solve(turn, (points * 2 - 1).transpose(1, 2) - shift).transpose(1, 2)
    swapped = torch.where(mirrored.view(n, 1, 1), inside[:, MIRRORED], inside)
    return crops, (swapped + 1) / 2


def weathered(crops: Tensor, rng: torch.Generator) -> Tensor:
    """Return crops blurred, lit, tinted and partly hidden."""
    return hide(light(blur(crops, rng), rng), rng)
