"""What a generation reports after each AR step."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class StepTrace:
    """One AR step.

    Attributes:
        step: the AR step, from 0.
        tokens: tokens sampled for each image.
        diffusion_steps: nominal count from the step schedule.
        evaluations: evaluations of the diffusion or flow network: not always `diffusion_steps`, for samplers merge timesteps
            (DiSA), take two evaluations a step (Heun), and FlowAR's grid of times drops odd ones.
        seconds: wall-clock time of the AR step (on a GPU, of launching it).
    """

    step: int
    tokens: int
    diffusion_steps: int
    evaluations: int
    seconds: float
