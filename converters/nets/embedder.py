"""The embedder CNN: an aligned face becomes 128 numbers of length one; alike faces point the same way."""

from torch import Tensor, nn

from converters.nets.student import WIDTHS, Block, fuse_block

DIMENSIONS = 128
PLACES = 7  # the side of the last map for 112×112


class Embedder(nn.Module):
    """(N, 3, 112, 112) float32 RGB in [0, 1] → (N, 128) float32 of length 1.

    The blocks are a student's (`nets.student`), on the picture at half its size: they may be taken over from one that
    has learnt age, gender, race and emotion. Every place of the last map has weights of its own: aligned faces have
    eyes and mouth in fixed places.

    Args:
        widths: channels of each block, 0.7 million weights and 36 million multiply-adds in all.
        traits: number of logits of the helping heads of training (age, gender, race); 0 leaves them away.
    """

    def __init__(self, widths: tuple[int, ...] = WIDTHS, traits: int = 0) -> None:
        super().__init__()
        self.widths = tuple(widths)
        self.shrink = nn.AvgPool2d(2)
        pairs = zip((3, *self.widths[:-1]), self.widths, strict=True)
        self.blocks = nn.Sequential(*(Block(a, b, pool=i < 3) for i, (a, b) in enumerate(pairs)))
        seen = self.widths[-1] * PLACES * PLACES
        self.project = nn.Linear(seen, DIMENSIONS)
        self.traits = nn.Linear(seen, traits) if traits else None

    def features(self, x: Tensor) -> Tensor:
        """Return (N, C) features that both the embedding and the helping heads are read from."""
        return self.blocks(self.shrink(x)).flatten(1).float()

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
        for block in net.blocks:
            assert isinstance(block, Block)
            fuse_block(block)
        return net
