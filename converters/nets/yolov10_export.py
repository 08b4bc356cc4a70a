"""The part of YOLOv10 that a bundle carries: backbone and the head that answers, decoded to boxes and scores."""

from typing import cast

import torch
from torch import Tensor, nn

from converters.nets.yolov10 import YOLOv10, anchors
from converters.nets.yolov10_head import REG_MAX


class Exported(nn.Module):
    """The graph a bundle carries: the head that answers, decoded, cut before any top-k and suppression.

    Contract of the decoder `yolov10`, in this order: `boxes` (B, A, 4) float32 xyxy in pixels of the network's input,
    `scores` (B, A, C) float32 in [0, 1]. A = (W/8)(H/8) + (W/16)(H/16) + (W/32)(H/32).
    """

    def __init__(self, net: YOLOv10, width: int, height: int, sixteen_bit: bool = False) -> None:
        """Prepare the head's constants.

        Args:
            net: whose head `answers` is exported.
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
        boxes, scores = head.branches(self.net.answers)
        distances = torch.cat([_cells_first(m(f)) for m, f in zip(boxes, features, strict=True)], 1)
        logits = torch.cat([_cells_first(m(f)) for m, f in zip(scores, features, strict=True)], 1)
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
