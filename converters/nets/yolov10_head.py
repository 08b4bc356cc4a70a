"""The dual head of YOLOv10 (Wang et al. 2024, arXiv 2405.14458, section 3.1): distances and classes of every cell."""

from collections.abc import Sequence
from typing import Literal, cast

import torch
from torch import Tensor, nn

from converters.nets.yolov10_blocks import Activation, Conv

STRIDES = (8, 16, 32)
REG_MAX = 16


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


Head = Literal["one", "many"]  # how many cells answer for one object


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
        many = self._branch(features, *self.branches("many"))
        one = self._branch([x.detach() for x in features], *self.branches("one"))
        return many, one

    def branches(self, head: Head) -> tuple[nn.ModuleList, nn.ModuleList]:
        """Return the branches for boxes and for scores of one of the heads, one per level."""
        return (self.one2one_cv2, self.one2one_cv3) if head == "one" else (self.cv2, self.cv3)

    def one_to_one(self, features: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Return the one-to-one head's logits alone, shapes as in `forward`."""
        return self._branch(features, *self.branches("one"))
