"""What YOLOv10 is built of (Wang et al. 2024, arXiv 2405.14458); sections named here are the paper's.

The activation is a parameter: ReLU quantizes and runs better on CPUs, SiLU is what published checkpoints use.
"""

from collections.abc import Sequence
from typing import Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

Activation = Literal["relu", "silu"]


def activation(name: Activation | None) -> nn.Module:
    """Return the activation layer, identity for None."""
    return nn.Identity() if name is None else {"relu": nn.ReLU, "silu": nn.SiLU}[name](inplace=True)


class Conv(nn.Module):
    """Convolution, batch norm, activation; `fuse` folds the norm into the weights."""

    def __init__(self, c1: int, c2: int, k: int = 1, s: int = 1, g: int = 1, act: Activation | None = "relu") -> None:
        super().__init__()
        self.conv = nn.Conv2d(c1, c2, k, s, k // 2, groups=g, bias=False)
        self.bn: nn.Module = nn.BatchNorm2d(c2, eps=1e-3, momentum=0.03)
        self.act = activation(act)

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.act(self.bn(self.conv(x))))

    @torch.no_grad()
    def fuse(self) -> None:
        """Fold the batch norm's running statistics into weight and bias; the layer is then for inference only."""
        if not isinstance(self.bn, nn.BatchNorm2d):
            return
        bn, conv = self.bn, self.conv
        assert bn.running_mean is not None
        assert bn.running_var is not None
        gain = bn.weight / torch.sqrt(bn.running_var + bn.eps)
        conv.weight.mul_(gain[:, None, None, None])
        conv.bias = nn.Parameter(bn.bias - bn.running_mean * gain)
        self.bn = nn.Identity()


class Bottleneck(nn.Module):
    """Two 3×3 convolutions with a residual."""

    def __init__(self, c: int, shortcut: bool, act: Activation) -> None:
        super().__init__()
        self.cv1 = Conv(c, c, 3, act=act)
        self.cv2 = Conv(c, c, 3, act=act)
        self.shortcut = shortcut

    def forward(self, x: Tensor) -> Tensor:
        y = cast(Tensor, self.cv2(self.cv1(x)))
        return x + y if self.shortcut else y


class RepVGGDW(nn.Module):
    """A 7×7 and a 3×3 depthwise convolution in parallel, one 7×7 after `fuse` (section 3.3, large kernels)."""

    def __init__(self, c: int, act: Activation) -> None:
        super().__init__()
        self.conv = Conv(c, c, 7, g=c, act=None)
        self.conv1: Conv | None = Conv(c, c, 3, g=c, act=None)
        self.act = activation(act)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x) if self.conv1 is None else self.conv(x) + self.conv1(x)
        return cast(Tensor, self.act(y))

    @torch.no_grad()
    def fuse(self) -> None:
        """Add the padded 3×3 kernel to the 7×7 one."""
        if self.conv1 is None:
            return
        self.conv.fuse()
        self.conv1.fuse()
        large, small = self.conv.conv, self.conv1.conv
        assert large.bias is not None
        assert small.bias is not None
        large.weight.add_(functional.pad(small.weight, [2, 2, 2, 2]))
        large.bias.add_(small.bias)
        self.conv1 = None


class CIB(nn.Module):
    """Compact inverted block: depthwise for space, pointwise for channels (section 3.2)."""

    def __init__(self, c: int, shortcut: bool, large_kernel: bool, act: Activation) -> None:
        super().__init__()
        self.cv1 = nn.Sequential(
            Conv(c, c, 3, g=c, act=act),
            Conv(c, 2 * c, act=act),
            RepVGGDW(2 * c, act) if large_kernel else Conv(2 * c, 2 * c, 3, g=2 * c, act=act),
            Conv(2 * c, c, act=act),
            Conv(c, c, 3, g=c, act=act),
        )
        self.shortcut = shortcut

    def forward(self, x: Tensor) -> Tensor:
        y = cast(Tensor, self.cv1(x))
        return x + y if self.shortcut else y


class C2f(nn.Module):
    """Cross-stage block: split, n blocks in a row, concatenate every stage."""

    def __init__(self, c1: int, c2: int, blocks: Sequence[nn.Module], act: Activation) -> None:
        super().__init__()
        self.c = c2 // 2
        self.cv1 = Conv(c1, 2 * self.c, act=act)
        self.cv2 = Conv((2 + len(blocks)) * self.c, c2, act=act)
        self.m = nn.ModuleList(blocks)

    def forward(self, x: Tensor) -> Tensor:
        stages = list(self.cv1(x).split(self.c, 1))
        for block in self.m:
            stages.append(block(stages[-1]))
        return cast(Tensor, self.cv2(torch.cat(stages, 1)))


class SCDown(nn.Module):
    """Downsample with pointwise and depthwise decoupled (section 3.2)."""

    def __init__(self, c1: int, c2: int, act: Activation) -> None:
        super().__init__()
        self.cv1 = Conv(c1, c2, act=act)
        self.cv2 = Conv(c2, c2, 3, 2, g=c2, act=None)

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.cv2(self.cv1(x)))


class SPPF(nn.Module):
    """Three 5×5 max-pools in a row, concatenated."""

    def __init__(self, c1: int, c2: int, act: Activation) -> None:
        super().__init__()
        self.cv1 = Conv(c1, c1 // 2, act=act)
        self.cv2 = Conv(c1 // 2 * 4, c2, act=act)

    def forward(self, x: Tensor) -> Tensor:
        stages = [self.cv1(x)]
        for _ in range(3):
            stages.append(functional.max_pool2d(stages[-1], 5, 1, 2))
        return cast(Tensor, self.cv2(torch.cat(stages, 1)))


class Attention(nn.Module):
    """Multi-head self-attention over positions, keys half as wide as values (section 3.3)."""

    def __init__(self, c: int) -> None:
        super().__init__()
        self.heads = max(c // 64, 1)
        self.head_dim = c // self.heads
        self.key_dim = self.head_dim // 2
        self.qkv = Conv(c, c + 2 * self.key_dim * self.heads, act=None)
        self.proj = Conv(c, c, act=None)
        self.pe = Conv(c, c, 3, g=c, act=None)

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        qkv = self.qkv(x).reshape(b, self.heads, 2 * self.key_dim + self.head_dim, h * w)
        q, k, v = qkv.split([self.key_dim, self.key_dim, self.head_dim], dim=2)
        weights = (q.transpose(-2, -1) @ k * self.key_dim**-0.5).softmax(dim=-1)
        mixed = (v @ weights.transpose(-2, -1)).reshape(b, c, h, w)
        return cast(Tensor, self.proj(mixed + self.pe(v.reshape(b, c, h, w))))


class PSA(nn.Module):
    """Partial self-attention: half of the channels attend, the other half pass (section 3.3)."""

    def __init__(self, c: int, act: Activation) -> None:
        super().__init__()
        self.c = half = c // 2
        self.cv1 = Conv(c, 2 * half, act=act)
        self.cv2 = Conv(2 * half, c, act=act)
        self.attn = Attention(half)
        self.ffn = nn.Sequential(Conv(half, 2 * half, act=act), Conv(2 * half, half, act=None))

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.cv1(x).split(self.c, 1)
        b = b + self.attn(b)
        b = b + self.ffn(b)
        return cast(Tensor, self.cv2(torch.cat((a, b), 1)))


class Concat(nn.Module):
    """Concatenate along channels; a module only because it occupies an index of `model`."""

    def forward(self, xs: Sequence[Tensor]) -> Tensor:
        return torch.cat(list(xs), 1)
