"""YOLOv10 (Wang et al. 2024, arXiv 2405.14458) as plain torch modules, trained and exported by `converters`.

Sub-modules carry the names under which the field stores its weights (`model.0.conv.weight` … `model.23.one2one_cv3`),
so that a foreign state dict loads without a table of renames.
"""

import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast

import torch
from torch import Tensor, nn

from converters.errors import ConvertError
from converters.nets.yolov10_blocks import CIB, PSA, SPPF, Activation, Bottleneck, C2f, Concat, Conv, RepVGGDW, SCDown
from converters.nets.yolov10_head import STRIDES, Detect, Head

Scale = Literal["n", "s", "m", "b", "l", "x"]


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


class YOLOv10(nn.Module):
    """The network of one size; `forward` gives the raw logits of both heads for training.

    Args:
        scale: one of the paper's sizes n, s, m, b, l, x.
        classes: number of classes.
        act: activation of every block.
        answers: the head that is asked in the end. "one" is the paper's choice and leaves next to nothing to suppress;
            a face whose centre lies between two cells can lose there, because each leaves it to the other. "many"
            has ten cells that answer for a face, and needs suppression.
    """

    def __init__(self, scale: Scale = "n", classes: int = 1, act: Activation = "relu", answers: Head = "one") -> None:
        super().__init__()
        shape = SHAPES[scale]
        self.scale, self.classes, self.act = scale, classes, act
        self.answers: Head = answers

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


def anchors(width: int, height: int) -> tuple[Tensor, Tensor]:
    """Return the cell centres (A, 2) in strides and the stride (A, 1) of each, levels from fine to coarse."""
    points, strides = [], []
    for stride in STRIDES:
        h, w = height // stride, width // stride
        y, x = torch.meshgrid(torch.arange(h) + 0.5, torch.arange(w) + 0.5, indexing="ij")
        points.append(torch.stack((x, y), -1).view(-1, 2))
        strides.append(torch.full((h * w, 1), float(stride)))
    return torch.cat(points), torch.cat(strides)


def detector() -> YOLOv10:
    """Return our face detector, untrained: YOLOv10n, one class, ReLU, one-to-many head."""
    return YOLOv10(answers="many")


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
    net = detector()
    try:
        net.load_state_dict(state)
    except RuntimeError as error:
        raise ConvertError(f"{path}: not a YOLOv10n of one class: {error}") from error
    return net
