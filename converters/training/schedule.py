"""What every training run shares: the learning rate's course, the optimizer's groups, the averaged network."""

import math

import torch
from torch import nn


def rate_factor(share: float) -> float:
    """Return the learning rate's factor after `share` of a run: up in the first 4 %, then half a cosine down to 1 %."""
    if share < 0.04:
        return 0.05 + 0.95 * share / 0.04
    return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(1.0, (share - 0.04) / 0.96)))


def optimizer_of(net: nn.Module, rate: float, decay: float = 0.05) -> torch.optim.Optimizer:
    """Return AdamW that decays matrices and kernels, but neither biases nor norms."""
    groups = [
        {"params": [p for p in net.parameters() if p.ndim > 1], "weight_decay": decay},
        {"params": [p for p in net.parameters() if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=rate)


def follow(average: nn.Module, net: nn.Module, decay: float) -> None:
    """Let an averaged network follow; batch norm's running figures too. The average is what is shipped."""
    with torch.no_grad():
        for mean, now in zip(average.state_dict().values(), net.state_dict().values(), strict=True):
            if mean.is_floating_point():
                mean.lerp_(now, 1 - decay)
            else:
                mean.copy_(now)
