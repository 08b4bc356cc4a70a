"""Make two different looks of one aligned face: what changes between two pictures of a person, where it can be drawn.

Head turns, expressions, light, sharpness, background and what hides a part of the face are changed; the proportions
and the texture of the inner face stay. This is all the embedder can learn sameness from where everybody appears once.
"""

import torch
import torch.nn.functional as F  # noqa: N812 the name everybody reads
from torch import Tensor

from converters.data.augment_faces import blur, hide, uniform
from converters.data.identity import CONTEXT

SIZE_PX = 112
GREY = torch.tensor([0.299, 0.587, 0.114])  # of red, green, blue: luma


def looks(pictures: Tensor, rng: torch.Generator) -> Tensor:
    """Return one random look of each face.

    Args:
        pictures: (N, H, W, 3) uint8 BGR aligned context crops.
        rng: the source of all randomness.

    Returns:
        (N, 3, 112, 112) float32 RGB in [0, 1].
    """
    x = pictures.permute(0, 3, 1, 2).flip(1).float() / 255
    x = F.grid_sample(x, _grid(len(x), rng), mode="bilinear", padding_mode="border", align_corners=False)
    x = _elsewhere(x, rng)
    return hide(_toned(blur(_lit_from_a_side(x, rng), rng), rng), rng)


def _grid(n: int, rng: torch.Generator) -> Tensor:
    """Return an (N, 112, 112, 2) grid: small shifts, scales and tilts, half mirrored, heads turned, faces moved."""
    base = 1 / (1 + 2 * CONTEXT)
    scale, angle = base * torch.exp(uniform(n, -0.1, 0.1, rng)), uniform(n, -0.12, 0.12, rng)
    stretch = torch.exp(uniform(n, -0.06, 0.06, rng))
    mirror = torch.where(torch.rand(n, generator=rng) < 0.5, -1.0, 1.0)
    cos, sin = torch.cos(angle), torch.sin(angle)
    shift = uniform(2 * n, -0.06, 0.06, rng).view(n, 2) * base
    sx, sy = scale * stretch * mirror, scale / stretch
    rows = torch.stack([sx * cos, -sy * sin, shift[:, 0], sx * sin, sy * cos, shift[:, 1]], dim=1)
    along = (torch.arange(SIZE_PX) + 0.5) / SIZE_PX * 2 - 1
    u = along.view(1, 1, SIZE_PX).expand(n, SIZE_PX, SIZE_PX)
    v = along.view(1, SIZE_PX, 1).expand(n, SIZE_PX, SIZE_PX)
    # A head that turns or nods carries its middle along and leaves its edges: seen from the front, a parabola.
    u = u + uniform(n, -0.16, 0.16, rng).view(n, 1, 1) * (1 - u.square())
    v = v + uniform(n, -0.1, 0.1, rng).view(n, 1, 1) * (1 - v.square())
    coarse = (torch.rand(n, 2, 5, 5, generator=rng) - 0.5) * uniform(n, 0.0, 0.16, rng).view(n, 1, 1, 1)
    moved = F.interpolate(coarse, size=(SIZE_PX, SIZE_PX), mode="bicubic", align_corners=False)
    place = torch.stack([u + moved[:, 0], v + moved[:, 1], torch.ones_like(u)], dim=3)
    return torch.einsum("nhwk,nck->nhwc", place, rows.view(n, 2, 3))


def _elsewhere(x: Tensor, rng: torch.Generator) -> Tensor:
    """Give most of the faces another's surroundings: hair and background must not be what makes a person."""
    n = len(x)
    along = (torch.arange(SIZE_PX) + 0.5) / SIZE_PX * 2 - 1
    radius = (along.view(1, -1) / 0.82).square() + ((along.view(-1, 1) - 0.05) / 1.02).square()
    outside = torch.sigmoid((radius - 1) * 8).view(1, 1, SIZE_PX, SIZE_PX)
    chosen = (torch.rand(n, 1, 1, 1, generator=rng) < 0.6).float()
    other = x[torch.randperm(n, generator=rng)]
    return x + (other - x) * outside * chosen


def _lit_from_a_side(x: Tensor, rng: torch.Generator) -> Tensor:
    n = len(x)
    along = (torch.arange(SIZE_PX) + 0.5) / SIZE_PX * 2 - 1
    angle, strength = uniform(n, 0.0, 6.2832, rng), uniform(n, 0.0, 0.45, rng)
    slope = torch.cos(angle).view(n, 1, 1, 1) * along.view(1, 1, 1, -1)
    slope = slope + torch.sin(angle).view(n, 1, 1, 1) * along.view(1, 1, -1, 1)
    return x * (1 + strength.view(n, 1, 1, 1) * slope)


def _toned(x: Tensor, rng: torch.Generator) -> Tensor:
    """Vary contrast, brightness, tint and saturation; a fifth turns grey. All linear: half the time of `light`."""
    n = len(x)
    blend = torch.where(torch.rand(n, generator=rng) < 0.2, 0.0, uniform(n, 0.5, 1.3, rng)).view(n, 1, 1)
    gain = uniform(n, 0.6, 1.4, rng).view(n, 1, 1) * uniform(3 * n, 0.88, 1.12, rng).view(n, 3, 1)
    mix = gain * (blend * torch.eye(3) + (1 - blend) * GREY)
    offset = mix @ (-x.mean(dim=(2, 3))).unsqueeze(2) + x.mean(dim=(1, 2, 3)).view(n, 1, 1)
    offset = offset + uniform(n, -0.12, 0.12, rng).view(n, 1, 1)
    return torch.baddbmm(offset, mix, x.flatten(2)).view_as(x).clamp(0, 1)
