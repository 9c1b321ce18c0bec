"""What a generation reports after each AR step."""

from __future__ import annotations

from dataclasses import dataclass


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
    """

    step: int
    tokens: int
    diffusion_steps: int
    evaluations: int
    seconds: float
