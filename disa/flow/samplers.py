"""Samplers along a learned velocity field, from time 1 (noise) to time 0 (data).

Every solver has one signature: `solver(velocity, noise, times, temperature)`. `velocity(x, t)` is the field at x [..., C] and
flow time t; guidance, if any, lies behind it. The state is float64, as the published results were made.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

Velocity = Callable[[Tensor, float], Tensor]


def linspace(start: float, end: float, count: int) -> tuple[float, ...]:
    """torch's, in float64: where a time lies next to a bound or a whole thousandth, the published results depend on its rounding."""
    return tuple(torch.linspace(start, end, count, dtype=torch.float64).tolist())


def _state(noise: Tensor) -> Tensor:
    """Noise as the state of a solver: float64, or float32 on Apple's GPUs, which have nothing wider."""
    return noise.float() if noise.device.type == "mps" else noise.double()


def euler(velocity: Velocity, noise: Tensor, times: Sequence[float], temperature: float = 1.0) -> Tensor:
    """Euler's method on dx = v dt.

    Args:
        velocity: (x, t) -> v, like x.
        noise: standard normal [draws, ..., C]: the start, then, for solvers that draw in between, one a step.
        times: descending, from the start to 0; one more than there are steps.
        temperature: factor on the noise that steps add; here there is none.

    Returns:
        Samples [..., C], in float64 (float32 on Apple's GPUs).
    """
    x = _state(noise[0])
    for t, after in zip(times[:-1], times[1:], strict=True):
        x = x + (after - t) * velocity(x, t).to(x.dtype)
    return x


def heun(velocity: Velocity, noise: Tensor, times: Sequence[float], temperature: float = 1.0) -> Tensor:
    """Heun's method on dx = v dt: the mean of the velocities at both ends of a step; the last step, to time 0, is Euler's.

    Arguments and result are those of `euler`.
    """
    x = _state(noise[0])
    for t, after in zip(times[:-1], times[1:], strict=True):
        v = velocity(x, t).to(x.dtype)
        if after > 0:
            v = (v + velocity(x + (after - t) * v, after).to(x.dtype)) / 2
        x = x + (after - t) * v
    return x


def euler_maruyama(velocity: Velocity, noise: Tensor, times: Sequence[float], temperature: float = 1.0) -> Tensor:
    """Euler–Maruyama on the reverse equation dx = ((2 - t) v + x) dt + sqrt(2 t) dw, whose marginals are those of dx = v dt
    (Ma et al., "SiT", 2024, eq. 4 with diffusion 2t); the last step adds no noise.

    Arguments and result are those of `euler`; `noise` has one draw a step.
    """
    x = _state(noise[0])
    last = len(times) - 2
    for i, (t, after) in enumerate(zip(times[:-1], times[1:], strict=True)):
        drift = (2 - t) * velocity(x, t).to(x.dtype) + x
        x = x + (after - t) * drift
        if i < last:
            x = x + temperature * math.sqrt(2 * t * (t - after)) * noise[i + 1].to(x.dtype)
    return x


@dataclass(frozen=True)
class FlowSampler:
    """A named way along the field.

    Attributes:
        solve: the solver.
        evaluations: steps -> evaluations of the field.
        draws: steps -> draws of noise.
    """

    solve: Callable[..., Tensor]
    evaluations: Callable[[int], int] = lambda steps: steps
    draws: Callable[[int], int] = lambda steps: 1


FLOW_SAMPLERS: dict[str, FlowSampler] = {
    "euler": FlowSampler(euler),
    "euler_maruyama": FlowSampler(euler_maruyama, draws=lambda steps: steps),
    "heun": FlowSampler(heun, evaluations=lambda steps: 2 * steps - 1),
}


def get_flow_sampler(name: str) -> FlowSampler:
    """The sampler called `name`.

    Raises:
        ValueError: there is none.
    """
    if name not in FLOW_SAMPLERS:
        raise ValueError(f"sampler is {name!r}; allowed are {', '.join(FLOW_SAMPLERS)}")
    return FLOW_SAMPLERS[name]
