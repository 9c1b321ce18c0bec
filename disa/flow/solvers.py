"""Solvers along a learned velocity field, from time 1 (noise) to time 0 (data).

Every solver has one signature: `solver(velocity, noise, times, temperature)`. `velocity(x, t)` is the field at
x [..., C] and flow time t, guidance included. The state is float64, as in the published results.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..multistep import multistep
from ..solver import Solver

Velocity = Callable[[Tensor, float], Tensor]


@functools.cache
def linspace(start: float, end: float, count: int) -> tuple[float, ...]:
    """`torch.linspace` in float64: next to a bound or a thousandth, the published results depend on rounding."""
    return tuple(torch.linspace(start, end, count, dtype=torch.float64, device="cpu").tolist())


def _state(noise: Tensor) -> Tensor:
    """The start noise in float64, or in float32 on Apple's GPUs, which have nothing wider."""
    return noise.float() if noise.device.type == "mps" else noise.double()


def euler(velocity: Velocity, noise: Tensor, times: Sequence[float], temperature: float = 1.0) -> Tensor:
    """Euler's method on dx = v dt.

    Args:
        velocity: (x, t) -> v, like x.
        noise: standard normal [draws, ..., C]: the start, then one per step for solvers that add noise.
        times: descending, from the start to 0; one more than there are steps.
        temperature: factor on the noise that steps add; here there is none.

    Returns:
        Samples [..., C], in float64 (float32 on Apple's GPUs).
    """
    x = _state(noise[0])
    for t, after in itertools.pairwise(times):
        x = torch.add(x, velocity(x, t), alpha=after - t)
    return x


def heun(velocity: Velocity, noise: Tensor, times: Sequence[float], temperature: float = 1.0) -> Tensor:
    """Heun's method on dx = v dt; the last step, to time 0, is Euler's.

    Arguments and result are those of `euler`.
    """
    x = _state(noise[0])
    for t, after in itertools.pairwise(times):
        v = velocity(x, t).to(x.dtype)
        if after > 0:
            v = (v + velocity(torch.add(x, v, alpha=after - t), after)) / 2
        x = torch.add(x, v, alpha=after - t)
    return x


def euler_maruyama(velocity: Velocity, noise: Tensor, times: Sequence[float], temperature: float = 1.0) -> Tensor:
    """Euler–Maruyama on the reverse equation dx = ((2 - t) v + x) dt + sqrt(2 t) dw; the last step adds no noise.

    Its marginals are those of dx = v dt (Ma et al., "SiT", 2024, eq. 4 with diffusion 2t).

    Arguments and result are those of `euler`; `noise` has one draw per step.
    """
    x = _state(noise[0])
    last = len(times) - 2
    for i, (t, after) in enumerate(itertools.pairwise(times)):
        step = after - t
        x = torch.add((1 + step) * x, velocity(x, t), alpha=step * (2 - t))
        if i < last:
            x = torch.add(x, noise[i + 1], alpha=temperature * math.sqrt(2 * t * (t - after)))
    return x


def adams_bashforth2(velocity: Velocity, noise: Tensor, times: Sequence[float], temperature: float = 1.0) -> Tensor:
    """Adams–Bashforth 2 on dx = v dt, with variable steps; the first step is Euler's.

    Arguments and result are those of `euler`.
    """
    return _multistep(velocity, noise, times, correct=False)


def unipc2(velocity: Velocity, noise: Tensor, times: Sequence[float], temperature: float = 1.0) -> Tensor:
    """UniPC (Zhao et al. 2023) of order 2 on dx = v dt: each step of `adams_bashforth2` but the last, then UniC-2.

    This equation has no linear part, so that the paper's phi-functions are those at 0.

    Arguments and result are those of `euler`.
    """
    return _multistep(velocity, noise, times, correct=True)


def _multistep(velocity: Velocity, noise: Tensor, times: Sequence[float], correct: bool) -> Tensor:
    def at(x: Tensor, i: int) -> Tensor:
        return velocity(x, times[i])

    return multistep(at, _state(noise[0]), times, [1.0] * len(times), order=2, correct=correct)


SOLVERS: dict[str, Solver] = {
    "euler": Solver(euler, "Euler", lambda times: len(times) - 1, lambda _: 1),
    "euler_maruyama": Solver(
        euler_maruyama, "Euler–Maruyama", lambda times: len(times) - 1, lambda times: len(times) - 1
    ),
    "heun": Solver(heun, "Heun", lambda times: 2 * len(times) - 3, lambda _: 1),
    "adams_bashforth2": Solver(adams_bashforth2, "Adams–Bashforth 2", lambda times: len(times) - 1, lambda _: 1),
    "unipc2": Solver(unipc2, "UniPC-2", lambda times: len(times) - 1, lambda _: 1),
}
