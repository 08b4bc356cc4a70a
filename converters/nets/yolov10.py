"""YOLOv10 (Wang et al. 2024, arXiv 2405.14458) as plain torch modules, trained and exported by `converters`.

Sub-modules carry the names under which the field stores its weights (`model.0.conv.weight` … `model.23.one2one_cv3`),
so that a foreign state dict loads without a table of renames. The activation is a parameter: ReLU quantizes and runs
better on CPUs, SiLU is what published checkpoints use.
"""

import pickle
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from converters.errors import ConvertError

Scale = Literal["n", "s", "m", "b", "l", "x"]
Activation = Literal["relu", "silu"]

STRIDES = (8, 16, 32)
REG_MAX = 16


@dataclass(frozen=True)
class Shape:
    """How one of the paper's six sizes differs from the common plan.

    `cib` are the layers built of compact inverted blocks, `large_kernel` those whose block has the 7×7 depthwise pair.
    """

    depth: float
    width: float
    max_channels: int
    cib: tuple[int, ...]
    large_kernel: tuple[int, ...] = ()


SHAPES: dict[str, Shape] = {
    "n": Shape(0.33, 0.25, 1024, (22,), (22,)),
    "s": Shape(0.33, 0.50, 1024, (8, 22), (8, 22)),
    "m": Shape(0.67, 0.75, 768, (8, 19, 22)),
    "b": Shape(0.67, 1.00, 512, (8, 13, 19, 22)),
    "l": Shape(1.00, 1.00, 512, (8, 13, 19, 22)),
    "x": Shape(1.00, 1.25, 512, (6, 8, 13, 19, 22)),
}


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


class DFL(nn.Module):
    """Expectation of the distribution over side lengths, in strides (Li et al. 2020, generalized focal loss)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(REG_MAX, 1, 1, bias=False).requires_grad_(False)
        self.conv.weight.data[:] = torch.arange(REG_MAX, dtype=torch.float32).view(1, REG_MAX, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Turn (B, 4·16, A) logits into (B, 4, A) distances left, top, right, bottom in strides."""
        b, _, a = x.shape
        return cast(Tensor, self.conv(x.view(b, 4, REG_MAX, a).transpose(2, 1).softmax(1)).view(b, 4, a))


class Detect(nn.Module):
    """The dual head: one-to-many branches teach the backbone, one-to-one branches need no NMS (section 3.1).

    The one-to-one branches see detached features, so that their sparse targets do not disturb the backbone.
    """

    def __init__(self, channels: Sequence[int], classes: int, act: Activation) -> None:
        super().__init__()
        self.classes = classes
        c2 = max(16, channels[0] // 4, REG_MAX * 4)
        c3 = max(channels[0], min(classes, 100))
        self.cv2 = nn.ModuleList(self._box_branch(c, c2, act) for c in channels)
        self.cv3 = nn.ModuleList(self._class_branch(c, c3, classes, act) for c in channels)
        self.one2one_cv2 = nn.ModuleList(self._box_branch(c, c2, act) for c in channels)
        self.one2one_cv3 = nn.ModuleList(self._class_branch(c, c3, classes, act) for c in channels)
        self.dfl = DFL()
        self._initialise()

    @staticmethod
    def _box_branch(c1: int, c2: int, act: Activation) -> nn.Sequential:
        return nn.Sequential(Conv(c1, c2, 3, act=act), Conv(c2, c2, 3, act=act), nn.Conv2d(c2, 4 * REG_MAX, 1))

    @staticmethod
    def _class_branch(c1: int, c3: int, classes: int, act: Activation) -> nn.Sequential:
        return nn.Sequential(
            nn.Sequential(Conv(c1, c1, 3, g=c1, act=act), Conv(c1, c3, act=act)),
            nn.Sequential(Conv(c3, c3, 3, g=c3, act=act), Conv(c3, c3, act=act)),
            nn.Conv2d(c3, classes, 1),
        )

    def _initialise(self) -> None:
        """Start with the same weights in both heads and with the prior of few objects per image."""
        for boxes, scores, stride in zip(self.cv2, self.cv3, STRIDES, strict=True):
            cast(nn.Conv2d, cast(nn.Sequential, boxes)[-1]).bias.data[:] = 1.0  # type: ignore[union-attr]
            prior = 5 / self.classes / (640 / stride) ** 2
            bias = cast(nn.Conv2d, cast(nn.Sequential, scores)[-1]).bias
            assert bias is not None
            bias.data[:] = torch.logit(torch.tensor(prior))
        self.one2one_cv2.load_state_dict(self.cv2.state_dict())
        self.one2one_cv3.load_state_dict(self.cv3.state_dict())

    @staticmethod
    def _branch(features: Sequence[Tensor], boxes: nn.ModuleList, scores: nn.ModuleList) -> tuple[Tensor, Tensor]:
        distances = torch.cat([m(x).flatten(2) for m, x in zip(boxes, features, strict=True)], 2)
        logits = torch.cat([m(x).flatten(2) for m, x in zip(scores, features, strict=True)], 2)
        return distances, logits

    def forward(self, features: Sequence[Tensor]) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """Return (distance logits (B, 64, A), class logits (B, C, A)) of the one-to-many and the one-to-one head."""
        many = self._branch(features, self.cv2, self.cv3)
        one = self._branch([x.detach() for x in features], self.one2one_cv2, self.one2one_cv3)
        return many, one

    def one_to_one(self, features: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Return the one-to-one head's logits alone, shapes as in `forward`."""
        return self._branch(features, self.one2one_cv2, self.one2one_cv3)


def anchors(width: int, height: int) -> tuple[Tensor, Tensor]:
    """Return the cell centres (A, 2) in strides and the stride (A, 1) of each, levels from fine to coarse."""
    points, strides = [], []
    for stride in STRIDES:
        h, w = height // stride, width // stride
        y, x = torch.meshgrid(torch.arange(h) + 0.5, torch.arange(w) + 0.5, indexing="ij")
        points.append(torch.stack((x, y), -1).view(-1, 2))
        strides.append(torch.full((h * w, 1), float(stride)))
    return torch.cat(points), torch.cat(strides)


class YOLOv10(nn.Module):
    """The network of one size; `forward` gives the raw logits of both heads for training.

    Args:
        scale: one of the paper's sizes n, s, m, b, l, x.
        classes: number of classes.
        act: activation of every block.
    """

    def __init__(self, scale: Scale = "n", classes: int = 1, act: Activation = "relu") -> None:
        super().__init__()
        shape = SHAPES[scale]
        self.scale, self.classes, self.act = scale, classes, act

        def c(channels: int) -> int:
            scaled = min(channels, shape.max_channels) * shape.width
            return int((scaled + 7) // 8) * 8

        def stage(index: int, c1: int, c2: int, n: int, shortcut: bool) -> C2f:
            cib, half = index in shape.cib, c2 // 2
            blocks: list[nn.Module] = [
                CIB(half, True, index in shape.large_kernel, act) if cib else Bottleneck(half, shortcut, act)
                for _ in range(max(round(n * shape.depth), 1))
            ]
            return C2f(c1, c2, blocks, act)

        c64, c128, c256, c512, c1024 = c(64), c(128), c(256), c(512), c(1024)
        self.model = nn.ModuleList(
            [
                Conv(3, c64, 3, 2, act=act),
                Conv(c64, c128, 3, 2, act=act),
                stage(2, c128, c128, 3, True),
                Conv(c128, c256, 3, 2, act=act),
                stage(4, c256, c256, 6, True),
                SCDown(c256, c512, act),
                stage(6, c512, c512, 6, True),
                SCDown(c512, c1024, act),
                stage(8, c1024, c1024, 3, True),
                SPPF(c1024, c1024, act),
                PSA(c1024, act),
                nn.Upsample(scale_factor=2),
                Concat(),
                stage(13, c1024 + c512, c512, 3, False),
                nn.Upsample(scale_factor=2),
                Concat(),
                stage(16, c512 + c256, c256, 3, False),
                Conv(c256, c256, 3, 2, act=act),
                Concat(),
                stage(19, c256 + c512, c512, 3, False),
                SCDown(c512, c512, act),
                Concat(),
                stage(22, c512 + c1024, c1024, 3, True),
                Detect((c256, c512, c1024), classes, act),
            ]
        )

    @property
    def head(self) -> Detect:
        """The dual head, layer 23."""
        return cast(Detect, self.model[23])

    def features(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the maps at strides 8, 16 and 32 of images (B, 3, H, W), sides divisible by 32."""
        m = self.model
        x = m[3](m[2](m[1](m[0](x))))
        p3 = m[4](x)
        p4 = m[6](m[5](p3))
        p5 = m[10](m[9](m[8](m[7](p4))))
        n4 = m[13](m[12]((m[11](p5), p4)))
        n3 = m[16](m[15]((m[14](n4), p3)))
        n4 = m[19](m[18]((m[17](n3), n4)))
        n5 = m[22](m[21]((m[20](n4), p5)))
        return n3, n4, n5

    def forward(self, x: Tensor) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """Return the logits of both heads (see `Detect.forward`) for float images in [0, 1], RGB, NCHW."""
        return cast(tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]], self.head(self.features(x)))

    def fuse(self) -> "YOLOv10":
        """Fold norms and parallel kernels in place for inference, and return self."""
        for module in list(self.modules()):
            if isinstance(module, RepVGGDW):
                module.fuse()
        for module in self.modules():
            if isinstance(module, Conv):
                module.fuse()
        return self


class Exported(nn.Module):
    """The graph a bundle carries: one-to-one head, decoded, cut before any top-k.

    Contract of the decoder `yolov10`, in this order: `boxes` (B, A, 4) float32 xyxy in pixels of the network's input,
    `scores` (B, A, C) float32 in [0, 1]. A = (W/8)(H/8) + (W/16)(H/16) + (W/32)(H/32).
    """

    def __init__(self, net: YOLOv10, width: int, height: int, sixteen_bit: bool = False) -> None:
        """Prepare the head's constants.

        Args:
            net: whose one-to-one head is exported.
            width: of the input, divisible by 32.
            height: of the input, divisible by 32.
            sixteen_bit: the graph may be computed in 16-bit floats, where the exponentials of the fast way overflow.
        """
        super().__init__()
        if width % 32 or height % 32:
            raise ValueError(f"input is {width}×{height}, both sides must be divisible by 32")
        self.net, self.sixteen_bit = net, sixteen_bit
        points, strides = anchors(width, height)
        self.register_buffer("centres", (points * strides).repeat(1, 2)[None], persistent=False)
        self.register_buffer("reach", torch.cat((-strides, -strides, strides, strides), 1)[None], persistent=False)
        bins = torch.arange(REG_MAX, dtype=torch.float32)
        self.register_buffer("bins", torch.stack((bins, torch.ones(REG_MAX)), 1), persistent=False)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        features, head = self.net.features(x), self.net.head
        distances = torch.cat([_cells_first(m(f)) for m, f in zip(head.one2one_cv2, features, strict=True)], 1)
        logits = torch.cat([_cells_first(m(f)) for m, f in zip(head.one2one_cv3, features, strict=True)], 1)
        sides = self._expectation(distances.reshape(x.shape[0], -1, REG_MAX)).reshape(x.shape[0], -1, 4)
        centres, reach = cast(Tensor, self.centres), cast(Tensor, self.reach)
        return centres + reach * sides, logits.sigmoid()

    def _expectation(self, logits: Tensor) -> Tensor:
        """Return the DFL's mean distance (B, 4A, 1) in strides, of logits (B, 4A, 16).

        As a quotient of two sums it is one matrix product: 0.25 ms instead of 1.04 of onnxruntime's softmax over
        another axis (320 px, 2 threads), 0.44 instead of 0.49 on OpenVINO.
        """
        bins = cast(Tensor, self.bins)
        if self.sixteen_bit:
            return logits.softmax(-1) @ bins[:, :1]
        # Float32 holds exp(±80) and its sums; no head of ours or of others came near ±30.
        sums = logits.clamp(-80.0, 80.0).exp() @ bins
        return sums[..., :1] / sums[..., 1:]


def _cells_first(x: Tensor) -> Tensor:
    """Turn (B, C, H, W) into (B, H·W, C): channels last is how the runtimes keep it, so nothing moves."""
    b, c, h, w = x.shape
    return x.permute(0, 2, 3, 1).reshape(b, h * w, c)


def load_weights(path: Path) -> YOLOv10:
    """Return our detector (n, one class, ReLU) with the weights of a training run or of a bundle's checkpoint.

    Raises:
        ConvertError: the file is not a file of tensors, or they belong to another network.
    """
    try:
        state = torch.load(path, weights_only=True)
        state = {name: value.float() for name, value in state.get("average", state).items()}
    except (OSError, RuntimeError, pickle.UnpicklingError, AttributeError) as error:
        raise ConvertError(f"{path}: not a file of tensors ({error}); give a checkpoint.pt") from error
    net = YOLOv10()
    try:
        net.load_state_dict(state)
    except RuntimeError as error:
        raise ConvertError(f"{path}: not a YOLOv10n of one class: {error}") from error
    return net
