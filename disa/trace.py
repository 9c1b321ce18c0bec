"""What a generation reports after each AR step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class StepTrace:
    """One AR step.

    Attributes:
        step: the AR step, from 0.
        tokens: tokens sampled for each image.
        diffusion_steps: nominal number from the step schedule.
        evaluations: evaluations of the network (NFE). They differ from `diffusion_steps` where timesteps are merged
            (DiSA), a step takes two (Heun), or FlowAR's times drop one.
        seconds: wall-clock time of the AR step (on a GPU, of launching it).
        positions: where the new tokens lie in the image's grid, row by row, int64 [B, T]; None: everywhere.
        latents: returns the latents so far [B, C, H, W], 0 where no token is sampled; call it before the next AR step.
    """

    step: int
    tokens: int
    diffusion_steps: int
    evaluations: int
    seconds: float
    positions: Tensor | None = field(default=None, compare=False, repr=False)
    latents: Callable[[], Tensor] | None = field(default=None, compare=False, repr=False)
