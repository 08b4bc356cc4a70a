"""The embedder CNN: an aligned face becomes 128 numbers of length one; alike faces point the same way."""

from torch import Tensor, nn

from converters.nets.student import Block, fuse, fuse_block

DIMENSIONS = 128
WIDTHS = (16, 32, 64, 80, 128)  # 0.5 million weights, 50 million multiply-adds at 112×112
PLACES = 7  # the side of the last map for 112×112


class Embedder(nn.Module):
    """(N, 3, 112, 112) float32 RGB in [0, 1] → (N, 128) float32 of length 1.

    The first blocks are a student's (`nets.student`), on the picture at half its size: they may be taken over from one
    that has learnt age, gender, race and emotion. The last map is weighed place by place before it is summed: an eye's
    feature means another thing than the mouth's, and aligned faces have them in fixed places.

    Args:
        widths: channels of each block; the first three halve the picture.
        traits: number of logits of the helping heads of training (age, gender, race); 0 leaves them away.
    """

    def __init__(self, widths: tuple[int, ...] = WIDTHS, traits: int = 0) -> None:
        super().__init__()
        self.widths = tuple(widths)
        self.shrink = nn.AvgPool2d(2)
        pairs = zip((3, *self.widths[:-1]), self.widths, strict=True)
        self.blocks = nn.Sequential(*(Block(a, b, pool=i < 3) for i, (a, b) in enumerate(pairs)))
        last = self.widths[-1]
        self.weigh = nn.Sequential(nn.Conv2d(last, last, PLACES, groups=last, bias=False), nn.BatchNorm2d(last))
        self.project = nn.Linear(last, DIMENSIONS)
        self.traits = nn.Linear(last, traits) if traits else None

    def features(self, x: Tensor) -> Tensor:
        """Return (N, C) features that both the embedding and the helping heads are read from."""
        return self.weigh(self.blocks(self.shrink(x))).flatten(1).float()

    def embed(self, features: Tensor) -> Tensor:
        """Return (N, 128) of length 1."""
        raw = self.project(features).float()
        return raw / raw.square().sum(dim=1, keepdim=True).clamp(min=1e-12).sqrt()

    def forward(self, x: Tensor) -> Tensor:
        return self.embed(self.features(x))

    def bare(self) -> "Embedder":
        """Return a copy in evaluation mode without the helping heads."""
        net = Embedder(self.widths)
        own = net.state_dict()
        net.load_state_dict({key: value for key, value in self.state_dict().items() if key in own})
        return net.eval()

    def fused(self) -> "Embedder":
        """Return a bare copy for export, every batch norm folded into its convolution."""
        net = self.bare()
        net.weigh = fuse(net.weigh)
        for block in net.blocks:
            assert isinstance(block, Block)
            fuse_block(block)
        return net
