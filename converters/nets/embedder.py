"""The embedder CNN: an aligned face becomes 128 numbers of length one; alike faces point the same way."""

import torch
from torch import Tensor, nn

from converters.nets.student import Block, fuse, fuse_block

DIMENSIONS = 128
WIDTHS = (16, 32, 64, 128)  # 0.3 million weights, 37 million multiply-adds at 112×112


class Embedder(nn.Module):
    """(N, 3, 112, 112) float32 RGB in [0, 1] → (N, 128) float32 of length 1.

    The last map is weighed place by place before it is summed: an eye's feature means another thing than the mouth's,
    and aligned faces have them in fixed places.

    Args:
        widths: channels of the stem at 1/2 and of the levels at 1/4, 1/8 and 1/16 of the input.
        traits: number of logits of the helping heads of training (age, gender, race); 0 leaves them away.
    """

    def __init__(self, widths: tuple[int, int, int, int] = WIDTHS, traits: int = 0) -> None:
        super().__init__()
        stem, fine, middle, coarse = self.widths = widths
        self.stem = nn.Sequential(nn.Conv2d(3, stem, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(stem))
        self.pool = nn.MaxPool2d(2)
        self.blocks = nn.Sequential(
            Block(stem, fine, pool=True), Block(fine, middle, pool=True), Block(middle, coarse, pool=False)
        )
        self.weigh = nn.Sequential(nn.Conv2d(coarse, coarse, 7, groups=coarse, bias=False), nn.BatchNorm2d(coarse))
        self.project = nn.Linear(coarse, DIMENSIONS)
        self.traits = nn.Linear(coarse, traits) if traits else None

    def features(self, x: Tensor) -> Tensor:
        """Return (N, C) features that both the embedding and the helping heads are read from."""
        return self.weigh(self.blocks(self.pool(torch.relu(self.stem(x))))).flatten(1).float()

    def embed(self, features: Tensor) -> Tensor:
        """Return (N, 128) of length 1."""
        raw = self.project(features).float()
        return raw / raw.square().sum(dim=1, keepdim=True).clamp(min=1e-12).sqrt()

    def forward(self, x: Tensor) -> Tensor:
        return self.embed(self.features(x))

    def fused(self) -> "Embedder":
        """Return a copy for export: evaluation mode, no helping heads, every batch norm folded into its convolution."""
        net = Embedder(self.widths)
        own = net.state_dict()
        net.load_state_dict({key: value for key, value in self.state_dict().items() if key in own})
        net.eval()
        net.stem, net.weigh = fuse(net.stem), fuse(net.weigh)
        for block in net.blocks:
            assert isinstance(block, Block)
            fuse_block(block)
        return net
