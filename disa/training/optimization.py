"""What the optimiser is told: parameter groups, learning rate, and the moving average of the weights."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Parameters without and with weight decay: vectors (biases, norms) and MAR's diffusion head go without.

    The order, and with it the optimiser's state in a checkpoint, is that of the released MAR code.
    """
    decayed: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            (plain if parameter.ndim == 1 or name.endswith(".bias") or "diffloss" in name else decayed).append(parameter)
    return [{"params": plain, "weight_decay": 0.0}, {"params": decayed, "weight_decay": weight_decay}]


def learning_rate(epoch: float, *, lr: float, min_lr: float, warmup_epochs: float, epochs: int, schedule: str) -> float:
    """The learning rate at a fractional epoch: a linear warm-up, then constant or a half cosine down to `min_lr`."""
    if epoch < warmup_epochs:
        return lr * epoch / warmup_epochs
    if schedule == "constant":
        return lr
    progress = (epoch - warmup_epochs) / max(epochs - warmup_epochs, 1e-9)
    return min_lr + (lr - min_lr) * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))


class EMA:
    """Exponential moving average of a model's trained parameters, by their names."""

    def __init__(self, model: nn.Module, rate: float) -> None:
        self.rate = rate
        self.parameters = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
        self.average = {name: parameter.detach().clone() for name, parameter in self.parameters.items()}

    @torch.no_grad()
    def update(self) -> None:
        """Move towards the parameters as they are now."""
        torch._foreach_lerp_(list(self.average.values()), list(self.parameters.values()), 1 - self.rate)

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange the parameters and their average; a second call restores both."""
        for name, parameter in self.parameters.items():
            held = parameter.clone()
            parameter.copy_(self.average[name])
            self.average[name].copy_(held)

    @torch.no_grad()
    def load(self, state: dict[str, Tensor]) -> None:
        """Take the average from a checkpoint's state; buffers in it are passed over."""
        for name, average in self.average.items():
            average.copy_(state[name])
