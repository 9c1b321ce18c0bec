"""Settings of a training, parameter groups, and the moving average of the weights."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields

import torch
from torch import Tensor, nn

from ..runtime.tracking import check_tracker


@dataclass(frozen=True)
class TrainingSettings:
    """How to train. A setting that is impossible raises a ValueError."""

    batch_size: int = 16  # images per step on each rank
    epochs: int = 1
    warmup_epochs: float = 0.0
    lr: float | None = None  # at its peak; None takes `blr` · (images per step over all ranks) / 256
    blr: float = 1e-4
    min_lr: float = 0.0
    lr_schedule: str = "constant"  # or "cosine", down to `min_lr`
    weight_decay: float = 0.02
    grad_clip: float = 1.0  # largest norm of the gradient; 0 does not clip
    ema_rate: float = 0.9999
    seed: int = 1
    dtype: torch.dtype = torch.float32  # of the autocast forward pass; float32 is none
    save_epochs: int = 1
    eval_epochs: int = 1  # where there is something to evaluate with
    num_workers: int = 0
    pin_memory: bool = False
    tracker: str = "tensorboard"  # or "wandb"

    def __post_init__(self) -> None:
        for one in fields(self):
            value = getattr(self, one.name)
            if one.type == "int" and type(value) is not int:
                raise ValueError(f"{one.name} is {value!r}; a whole number is needed")
            if one.type == "bool" and type(value) is not bool:
                raise ValueError(f"{one.name} is {value!r}; it must be True or False")
            given = one.type == "float" or (one.type == "float | None" and value is not None)
            if given and not (type(value) in (int, float) and math.isfinite(value) and value >= 0):
                raise ValueError(f"{one.name} is {value!r}; it must be at least 0, and finite")
        if self.lr_schedule not in ("constant", "cosine"):
            raise ValueError(f"lr_schedule is {self.lr_schedule!r}; allowed are constant and cosine")
        least = {"batch_size": 1, "epochs": 1, "save_epochs": 1, "eval_epochs": 1, "seed": 0, "num_workers": 0}
        for name, value in least.items():
            if not getattr(self, name) >= value:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least {value}")
        if not 0 <= self.ema_rate < 1:
            raise ValueError(f"ema_rate is {self.ema_rate}; it must be in [0, 1)")
        check_tracker(self.tracker)

    def learning_rate(self, epoch: float, ranks: int = 1) -> float:
        """Learning rate at a fractional epoch: a linear warm-up, then constant or a half cosine down to `min_lr`."""
        peak = self.blr * (self.batch_size * ranks) / 256 if self.lr is None else self.lr
        if epoch < self.warmup_epochs:
            return peak * epoch / self.warmup_epochs
        if self.lr_schedule == "constant":
            return peak
        progress = (epoch - self.warmup_epochs) / max(self.epochs - self.warmup_epochs, 1e-9)
        return self.min_lr + (peak - self.min_lr) * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, list[nn.Parameter] | float]]:
    """Group parameters without and with weight decay: vectors (biases, norms) and MAR's diffusion head go without.

    The order, and with it the optimiser's state in a checkpoint, is that of the released MAR code.
    """
    groups: dict[bool, list[nn.Parameter]] = {False: [], True: []}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            groups[parameter.ndim != 1 and not name.endswith(".bias") and "diffloss" not in name].append(parameter)
    return [{"params": groups[False], "weight_decay": 0.0}, {"params": groups[True], "weight_decay": weight_decay}]


class EMA:
    """Exponential moving average of a model's trained parameters, by name."""

    def __init__(self, model: nn.Module, rate: float) -> None:
        self.rate = rate
        self.parameters = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
        self.average = {name: parameter.detach().clone() for name, parameter in self.parameters.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Compute average ← rate · average + (1 - rate) · parameters; in the first steps, `rate` is less."""
        rate = min(self.rate, (1 + step) / (10 + step))
        torch._foreach_lerp_(list(self.average.values()), list(self.parameters.values()), 1 - rate)

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange the parameters and their average; a second call restores both."""
        for name, parameter in self.parameters.items():
            held = parameter.clone()
            parameter.copy_(self.average[name])
            self.average[name].copy_(held)

    @torch.no_grad()
    def load(self, state: Mapping[str, Tensor]) -> None:
        """Take the average from a checkpoint's state; its buffers are ignored."""
        for name, average in self.average.items():
            average.copy_(state[name])
