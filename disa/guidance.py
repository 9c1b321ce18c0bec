"""Classifier-free guidance (Ho and Salimans 2022): its scale, where it applies, and how the two branches combine."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

SCHEDULES = ("linear", "constant")


@dataclass(frozen=True)
class Guidance:
    """Guidance of the conditional by the unconditional prediction.

    Attributes:
        scale: 1 is no guidance: the unconditional branch is then never computed.
        schedule: "linear" grows from 1 to `scale` with progress through the image; "constant" is `scale` throughout.
        max_time, min_time: times (1 is noise, 0 is data) above and below which guidance is off: "Applying Guidance in
            a Limited Interval" (Kynkäänniemi et al., 2024). A time is a flow time, or a thousandth of a timestep.
        skip_below: a scale from 1 up to this one counts as 1; the unconditional branch is not computed there. At 1 no
            other scale does.

    Raises:
        ValueError: a value is impossible.
    """

    scale: float = 1.0
    schedule: str = "linear"
    max_time: float = 1.0
    min_time: float = 0.0
    skip_below: float = 1.0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.scale) and self.scale >= 0):
            raise ValueError(f"Guidance.scale is {self.scale}; it must be a finite number ≥ 0 (1 is no guidance)")
        if self.schedule not in SCHEDULES:
            raise ValueError(f"Guidance.schedule is {self.schedule!r}; allowed are {', '.join(SCHEDULES)}")
        if not 0 <= self.max_time <= 1:
            raise ValueError(f"Guidance.max_time is {self.max_time}; a time in [0, 1] is needed")
        if not 0 <= self.min_time <= self.max_time:
            raise ValueError(
                f"Guidance.min_time is {self.min_time}; a time from 0 to max_time = {self.max_time} is needed"
            )
        if not (math.isfinite(self.skip_below) and self.skip_below >= 1):
            raise ValueError(f"Guidance.skip_below is {self.skip_below}; a finite scale ≥ 1 is needed (1 skips none)")

    @property
    def active(self) -> bool:
        """Whether any step is guided."""
        return self.at(1.0) != 1

    @property
    def interval(self) -> tuple[float, float]:
        """The times from and to which guidance applies."""
        return self.min_time, self.max_time

    def at(self, progress: float) -> float:
        """The scale at `progress` through the image, in [0, 1]."""
        scale = 1 + (self.scale - 1) * progress if self.schedule == "linear" else self.scale
        return 1.0 if 1 <= scale < self.skip_below else scale


def combine(conditional: Tensor, unconditional: Tensor, scale: float) -> Tensor:
    """`unconditional + scale · (conditional - unconditional)`."""
    return torch.lerp(unconditional, conditional, scale)


def guided_velocity(
    velocity: Callable[[Tensor, float], Tensor], scale: float, interval: tuple[float, float], dtype: torch.dtype
) -> Callable[[Tensor, float], Tensor]:
    """Guide a velocity field by `scale` at flow times in `interval`; elsewhere its conditional branch alone counts.

    Args:
        velocity: (x, t) -> v, for x [2B, T, C] of both branches, conditional first, or [B, T, C] of one.
        dtype: of the x that `velocity` takes.
    """
    return partial(_guided, velocity, scale, interval, dtype)


def _guided(
    velocity: Callable[[Tensor, float], Tensor],
    scale: float,
    interval: tuple[float, float],
    dtype: torch.dtype,
    x: Tensor,
    t: float,
) -> Tensor:
    x = x.to(dtype)
    if scale == 1 or not interval[0] <= t <= interval[1]:
        return velocity(x, t)
    conditional, unconditional = velocity(torch.cat([x, x]), t).float().chunk(2)
    return combine(conditional, unconditional, scale)
