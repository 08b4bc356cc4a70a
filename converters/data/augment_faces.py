"""Make training faces look like what a camera box cuts out: shifted, scaled, tilted, blurred, dark, tinted, grey.

One batch at a time in torch, driven by `training.student`; all randomness comes from the generator handed in.
"""

import torch
import torch.nn.functional as F  # noqa: N812 the name everybody reads
from torch import Tensor

from converters.data.attributes import CONTEXT


def augment(pictures: Tensor, inside: Tensor, size_px: int, margin: float, rng: torch.Generator) -> Tensor:
    """Return (N, 3, size, size) float32 RGB in [0, 1] from context crops.

    Args:
        pictures: (N, H, W, 3) uint8 BGR context crops.
        inside: (N, 4) xyxy part of each crop, in [0, 1], that is real picture and not repeated border.
        size_px: side of the network's input.
        margin: the crop margin around which shift and scale vary.
        rng: the source of all randomness.
    """
    x = pictures.permute(0, 3, 1, 2).flip(1).float() / 255
    grid = _jittered_grid(len(x), size_px, margin, rng)
    out = F.grid_sample(x, grid, mode="bilinear", padding_mode="border", align_corners=False)
    out = _fill_outside(out, grid, inside, rng)
    out = blur(out, rng)
    return light(out, rng)


def centred(pictures: Tensor, size_px: int, margin: float) -> Tensor:
    """Return the same crops without any jitter, as a box would cut them: (N, 3, size, size) float32 RGB in [0, 1]."""
    x = pictures.permute(0, 3, 1, 2).flip(1).float() / 255
    scale = (1 + 2 * margin) / (1 + 2 * CONTEXT)
    side = max(size_px, round(scale * x.shape[-1]))  # sample finely, then average: bilinear alone would alias
    theta = torch.tensor([[scale, 0.0, 0.0], [0.0, scale, 0.0]]).expand(len(x), 2, 3)
    grid = F.affine_grid(theta, [len(x), 3, side, side], align_corners=False)
    out = F.grid_sample(x, grid, mode="bilinear", padding_mode="border", align_corners=False)
    return F.interpolate(out, size=(size_px, size_px), mode="area")


def _jittered_grid(n: int, size_px: int, margin: float, rng: torch.Generator) -> Tensor:
    """Return an (N, size, size, 2) sampling grid: scale 0.8–1.3, aspect ±12 %, tilt ±12°, shift ±8 %, half mirrored."""
    base = (1 + 2 * margin) / (1 + 2 * CONTEXT)
    scale = base * torch.exp(uniform(n, -0.22, 0.26, rng))
    aspect = torch.exp(uniform(n, -0.12, 0.12, rng))
    mirror = torch.where(torch.rand(n, generator=rng) < 0.5, -1.0, 1.0)
    angle = uniform(n, -0.21, 0.21, rng)
    cos, sin = torch.cos(angle), torch.sin(angle)
    sx, sy = scale * aspect, scale / aspect
    shift = uniform(2 * n, -0.16, 0.16, rng).view(n, 2) * base  # the grid runs from -1 to 1
    rows = torch.stack([sx * cos * mirror, -sy * sin, shift[:, 0], sx * sin * mirror, sy * cos, shift[:, 1]], dim=1)
    return F.affine_grid(rows.view(n, 2, 3), [n, 3, size_px, size_px], align_corners=False)


def _fill_outside(x: Tensor, grid: Tensor, inside: Tensor, rng: torch.Generator) -> Tensor:
    """Paint what lies outside the source with a random colour and noise in half of the pictures.

    UTKFace's chips cut the forehead off; a real box has hair there. The student must not read the repeated border.
    """
    xy = (grid + 1) / 2
    box = inside.view(-1, 1, 1, 4)
    real = ((xy >= box[..., :2]) & (xy <= box[..., 2:])).all(dim=-1)
    paint = (~real & (torch.rand(len(x), 1, 1, generator=rng) < 0.5)).unsqueeze(1)
    colour = torch.rand(len(x), 3, 1, 1, generator=rng)
    coarse = torch.rand(len(x), 3, 8, 8, generator=rng) - 0.5
    noise = F.interpolate(coarse, size=x.shape[-2:], mode="bilinear") * torch.rand(len(x), 1, 1, 1, generator=rng)
    return torch.where(paint, (colour + noise).clamp(0, 1), x)


def blur(x: Tensor, rng: torch.Generator) -> Tensor:
    """Shrink and enlarge a third of the batch again, to one random size: small and soft faces."""
    n, size_px = len(x) // 3, x.shape[-1]
    small = int(torch.randint(size_px * 3 // 8, size_px, (1,), generator=rng))
    soft = F.interpolate(F.interpolate(x[:n], size=(small, small), mode="area"), size=x.shape[-2:], mode="bilinear")
    return torch.cat([soft, x[n:]])  # the sampler shuffles, so the first third is a random third


def light(x: Tensor, rng: torch.Generator) -> Tensor:
    """Vary gain, offset, gamma and tint; a tenth turns grey; a little noise on all."""
    n = len(x)
    x = x.clamp(1e-3, 1) ** torch.exp(uniform(n, -0.3, 0.3, rng)).view(n, 1, 1, 1)
    mean = x.mean(dim=(1, 2, 3), keepdim=True)
    x = (x - mean) * uniform(n, 0.7, 1.3, rng).view(n, 1, 1, 1) + mean + uniform(n, -0.12, 0.12, rng).view(n, 1, 1, 1)
    x = x * uniform(3 * n, 0.9, 1.1, rng).view(n, 3, 1, 1)
    grey = (x * torch.tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)).sum(dim=1, keepdim=True)
    blend = torch.where(torch.rand(n, generator=rng) < 0.1, 0.0, uniform(n, 0.6, 1.3, rng)).view(n, 1, 1, 1)
    x = grey + (x - grey) * blend
    return (x + torch.randn(x.shape, generator=rng) * 0.015).clamp(0, 1)


def hide(x: Tensor, rng: torch.Generator) -> Tensor:
    """Paint a patch of one colour over a third of the faces: glasses, a mask, a hand."""
    n, size_px = len(x), x.shape[-1]
    where, extent = torch.rand(n, 2, 1, generator=rng), 0.15 + 0.3 * torch.rand(n, 2, 1, generator=rng)
    along = (torch.arange(size_px) + 0.5).view(1, 1, size_px) / size_px
    covered = (along - where).abs() < extent / 2
    patch = covered[:, 0].unsqueeze(1) & covered[:, 1].unsqueeze(2) & (torch.rand(n, 1, 1, generator=rng) < 0.33)
    return torch.where(patch.unsqueeze(1), torch.rand(n, 3, 1, 1, generator=rng), x)


def uniform(n: int, low: float, high: float, rng: torch.Generator) -> Tensor:
    """Return (n,) float32 drawn evenly from [low, high)."""
    return torch.rand(n, generator=rng) * (high - low) + low
