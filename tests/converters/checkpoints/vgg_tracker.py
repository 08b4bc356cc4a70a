"""A Keras single-face regressor for tests: VGG16's features at an eighth of the width, trained a little, on disk.

Trained in torch with batch norms, which are folded into the convolutions before the file is written, so that the file
holds what Keras' own VGG16 holds: 13 convolutions, 5 pools, and two heads of two Dense layers over the pooled map.
"""

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from tests.converters.checkpoints.keras_maker import Entry, input_layer, plain

SIDE = 120
STAGES = ((8, 8), (16, 16), (32, 32, 32), (64, 64, 64), (64, 64, 64))  # an eighth of VGG16's 64 to 512
HIDDEN = 128

Scene = tuple[np.ndarray, np.ndarray]  # (H, W, 3) uint8 BGR; (1, 4) xyxy in its pixels, (0, 4) without a face


class Tracker(nn.Module):
    """(N, 3, 120, 120) RGB in [0, 1] → logits: a face (N, 1); its box (N, 4), whose sigmoid is xyxy in [0, 1]."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stages = nn.ModuleList()
        c_in = 3
        for widths in STAGES:
            layers: list[nn.Module] = []
            for c_out in widths:
                layers += [nn.Conv2d(c_in, c_out, 3, padding=1), nn.BatchNorm2d(c_out), nn.ReLU()]
                c_in = c_out
            self.stages.append(nn.Sequential(*layers))
        features = c_in * 3 * 3
        self.score = nn.Sequential(nn.Linear(features, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, 1))
        self.box = nn.Sequential(nn.Linear(features, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, 4))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        for stage in self.stages:
            x = nn.functional.max_pool2d(stage(x), 2)
        row = x.permute(0, 2, 3, 1).flatten(1)  # as Keras flattens
        return self.score(row), self.box(row)


def scene(rng: np.random.Generator, face: tuple[np.ndarray, np.ndarray] | None, ground: np.ndarray) -> Scene:
    """Paste a picture with a face, scaled and shifted, on a ground of its own; (240, 240, 3) uint8 and its box."""
    side = 2 * SIDE
    canvas = cv2.resize(ground, (side, side), interpolation=cv2.INTER_AREA)
    if face is None:
        return canvas, np.zeros((0, 4), np.float32)
    image, box = face
    scale = rng.uniform(0.5, 1.0) * side / max(image.shape[:2])
    small = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    h, w = small.shape[:2]
    x, y = int(rng.integers(0, side - w + 1)), int(rng.integers(0, side - h + 1))
    canvas[y : y + h, x : x + w] = small
    return canvas, (box * scale + [x, y, x, y]).astype(np.float32)[None]


def train(scenes: Sequence[Scene], steps: int) -> Tracker:
    """Train on (240, 240) scenes with one face or none."""
    net, rng = Tracker(), np.random.default_rng(1)
    optimizer = torch.optim.AdamW(net.parameters(), lr=2e-3)
    small = np.stack([cv2.resize(s, (SIDE, SIDE), interpolation=cv2.INTER_AREA)[..., ::-1] for s, _ in scenes])
    pictures = torch.from_numpy(small.transpose(0, 3, 1, 2).copy()).float() / 255
    there = torch.tensor([[float(len(box) > 0)] for _, box in scenes])
    boxes = torch.stack([torch.from_numpy(b.reshape(-1)[:4] if len(b) else np.zeros(4, np.float32)) for _, b in scenes])
    boxes = boxes / (2 * SIDE)
    net.train()
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = 2e-3 * min(1.0, (step + 1) / 20, 1.05 - step / steps)
        pick = torch.from_numpy(rng.integers(0, len(scenes), 24))
        x = pictures[pick] * (0.7 + 0.6 * torch.from_numpy(rng.random((24, 1, 1, 1), np.float32)))
        score, box = net(x.clamp(0, 1))
        off = nn.functional.smooth_l1_loss(box.sigmoid(), boxes[pick], reduction="none", beta=0.05).mean(dim=1)
        loss = nn.functional.binary_cross_entropy_with_logits(score, there[pick]) * 0.3
        loss = loss + 5 * (off * there[pick, 0]).sum() / there[pick].sum().clamp(min=1)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return net.eval()


def layers_of(net: Tracker) -> list[Entry]:
    """Return the network as the Keras layers `block1_conv1` … `block5_pool`, `flatten`, and the two heads."""
    layers: list[Entry] = [input_layer(SIDE, SIDE, 3)]
    last = "input"
    for number, stage in enumerate(net.stages, 1):
        assert isinstance(stage, nn.Sequential)
        for k in range(0, len(stage), 3):
            conv, norm = stage[k], stage[k + 1]
            assert isinstance(conv, nn.Conv2d)
            assert isinstance(norm, nn.BatchNorm2d)
            fused = fuse_conv_bn_eval(conv, norm)
            assert fused.bias is not None
            name = f"block{number}_conv{k // 3 + 1}"
            config = {"name": name, "strides": [1, 1], "padding": "same", "use_bias": True, "activation": "relu"}
            weights = {"kernel": fused.weight.detach().permute(2, 3, 1, 0).numpy(), "bias": fused.bias.detach().numpy()}
            layers.append(("Conv2D", config, [last], weights))
            last = name
        pool = {"pool_size": [2, 2], "strides": [2, 2], "padding": "valid"}
        layers.append(plain("MaxPooling2D", f"block{number}_pool", last, **pool))
        last = f"block{number}_pool"
    layers.append(plain("Flatten", "flatten", last))
    for name, head in (("score", net.score), ("box", net.box)):
        for layer, short, activation in ((head[0], f"{name}_hidden", "relu"), (head[2], name, "sigmoid")):
            assert isinstance(layer, nn.Linear)
            config = {"name": short, "units": layer.out_features, "use_bias": True, "activation": activation}
            eats = "flatten" if activation == "relu" else f"{name}_hidden"
            weights = {"kernel": layer.weight.detach().T.numpy(), "bias": layer.bias.detach().numpy()}
            layers.append(("Dense", config, [eats], weights))
    return layers


def faces_and_grounds(data: Path) -> tuple[list[tuple[np.ndarray, np.ndarray]], list[np.ndarray]]:
    """Return FairFace's pictures with their pseudo boxes in pixels, and webcam pictures without a face."""
    from converters.data.detection import fairface, mik1i_negatives

    found = [(s.image, s.boxes[0]) for s in fairface(data) if len(s.boxes) == 1]
    return found, [s.image for s in mik1i_negatives(data)]
