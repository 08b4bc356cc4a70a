"""The student CNN: skip-connection blocks on a face crop, small enough for one head in well under a millisecond."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

WIDTHS = (16, 32, 64, 80)  # 0.2 million weights: about 200 kB in INT8, 47 million multiply-adds at 64×64


class Block(nn.Module):
    """3×3 conv → ReLU → 3×3 conv, plus the shortcut, → ReLU, then an optional 2×2 max-pool.

    The shortcut is the identity, or a 1×1 convolution where the width changes; batch norm follows every convolution
    until `Student.fused` folds it in.
    """

    def __init__(self, c_in: int, c_out: int, pool: bool) -> None:
        super().__init__()
        self.conv1 = _conv_bn(c_in, c_out, 3)
        self.conv2 = _conv_bn(c_out, c_out, 3)
        self.shortcut = nn.Identity() if c_in == c_out else _conv_bn(c_in, c_out, 1)
        self.pool = nn.MaxPool2d(2) if pool else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.conv1(x))
        return self.pool(torch.relu(self.conv2(y) + self.shortcut(x)))


class Student(nn.Module):
    """(N, 3, H, W) float32 RGB in [0, 1] → logits (N, classes) float32.

    Args:
        classes: number of logits; several heads trained together lie side by side and are cut apart by `head`.
        widths: channels of each block; every block but the last halves the picture.
        dropout: before the linear layer, while training.
    """

    def __init__(self, classes: int, widths: Sequence[int] = WIDTHS, dropout: float = 0.2) -> None:
        super().__init__()
        self.widths = tuple(widths)
        pairs = zip((3, *self.widths[:-1]), self.widths, strict=True)
        self.blocks = nn.Sequential(*(Block(a, b, i < len(self.widths) - 1) for i, (a, b) in enumerate(pairs)))
        self.dropout = nn.Dropout(dropout)
        self.classify = nn.Linear(self.widths[-1], classes)

    def forward(self, x: Tensor) -> Tensor:
        features = self.blocks(x).mean(dim=(2, 3), dtype=torch.float32)
        logits: Tensor = self.classify(self.dropout(features))
        return logits

    def head(self, first: int, classes: int) -> "Student":
        """Return a student of its own with the same blocks and only the logits `first` … `first + classes - 1`."""
        student = Student(classes, self.widths, self.dropout.p)
        student.blocks.load_state_dict(self.blocks.state_dict())
        with torch.no_grad():
            student.classify.weight.copy_(self.classify.weight[first : first + classes])
            student.classify.bias.copy_(self.classify.bias[first : first + classes])
        return student

    def fused(self) -> "Student":
        """Return a copy for export, in evaluation mode, every batch norm folded into its convolution."""
        student = self.head(0, self.classify.out_features).eval()
        for block in student.blocks:
            assert isinstance(block, Block)
            fuse_block(block)
        return student


def parameters(module: nn.Module) -> int:
    """Return the number of weights."""
    return sum(p.numel() for p in module.parameters())


def _conv_bn(c_in: int, c_out: int, kernel: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(c_in, c_out, kernel, padding=kernel // 2, bias=False), nn.BatchNorm2d(c_out))


def fuse_block(block: Block) -> None:
    """Fold the batch norms of one block, which must be in evaluation mode, into its convolutions."""
    block.conv1, block.conv2 = fuse(block.conv1), fuse(block.conv2)
    if isinstance(block.shortcut, nn.Sequential):
        block.shortcut = fuse(block.shortcut)


def fuse(pair: nn.Module) -> nn.Sequential:
    """Return (convolution, batch norm) as one convolution in a Sequential of its own."""
    assert isinstance(pair, nn.Sequential)
    conv, norm = pair
    assert isinstance(conv, nn.Conv2d)
    assert isinstance(norm, nn.BatchNorm2d)
    return nn.Sequential(fuse_conv_bn_eval(conv, norm))
