"""The landmark CNN: five heat maps over a face crop, each read as the mean place of its heat."""

import torch
from torch import Tensor, nn

from converters.nets.student import Block, fuse, fuse_block

POINTS = 5
WIDTHS = (16, 32, 40, 40)  # 0.12 million weights: 27 million multiply-adds at 64×64
REACH = 1.2  # the heat maps' grid is so much wider than the crop: a point may lie a little outside


class LandmarkNet(nn.Module):
    """(N, 3, S, S) float32 RGB in [0, 1] → (N, 10) float32: x, y of five points, 0–1 of the crop.

    A mean over heat moves with the face, where a linear layer over flattened features would have to learn every place
    anew: with a few thousand faces that is the difference. The heat lies at a quarter of the input's resolution and
    sees the whole face through the coarser level below it.

    Args:
        widths: channels of the stem and of the three levels at 1/2, 1/4 and 1/8 of the input.
    """

    def __init__(self, widths: tuple[int, int, int, int] = WIDTHS) -> None:
        super().__init__()
        stem, fine, middle, coarse = self.widths = widths
        self.stem = nn.Sequential(nn.Conv2d(3, stem, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(stem))
        self.fine = Block(stem, fine, pool=True)
        self.middle = Block(fine, middle, pool=False)
        self.pool = nn.MaxPool2d(2)
        self.coarse = nn.Sequential(Block(middle, coarse, pool=False), Block(coarse, coarse, pool=False))
        self.lift = nn.Sequential(nn.Conv2d(coarse, middle, 1), nn.Upsample(scale_factor=2.0, mode="nearest"))
        self.merge = Block(middle, fine, pool=False)
        self.heat = nn.Conv2d(fine, POINTS, 1)

    def forward(self, x: Tensor) -> Tensor:
        middle = self.middle(self.fine(torch.relu(self.stem(x))))
        heat = self.heat(self.merge(middle + self.lift(self.coarse(self.pool(middle)))))
        weight = torch.softmax(heat.flatten(2).float(), dim=2).unsqueeze(3)
        side = heat.shape[3]
        along = ((torch.arange(side, device=x.device, dtype=torch.float32) + 0.5) / side - 0.5) * REACH + 0.5
        grid = torch.stack([along.repeat(side), along.repeat_interleave(side)], dim=1)
        # Products and sums, not a matrix product: autocast and INT8 would both round the grid.
        return (weight * grid).sum(dim=2).flatten(1)

    def fused(self) -> "LandmarkNet":
        """Return a copy for export, in evaluation mode, every batch norm folded into its convolution."""
        net = LandmarkNet(self.widths)
        net.load_state_dict(self.state_dict())
        net.eval()
        net.stem = fuse(net.stem)
        for block in net.modules():
            if isinstance(block, Block):
                fuse_block(block)
        return net
