"""Multistep methods with one evaluation per step: Adams–Bashforth, DEIS and UniPC are one formula.

All integrate d(x / s) = exp(r u) f(x, u) du, in which s and u are functions of the time and r is a number:

| method          | f        | u                   | s     | r |
|-----------------|----------|---------------------|-------|---|
| flow            | velocity | time                | 1     | 0 |
| DEIS            | epsilon  | sigma / alpha       | alpha | 0 |
| UniPC           | x0       | log(alpha / sigma)  | sigma | 1 |

f is replaced by the polynomial in u through its last values (a predictor), or through these and the value at the end
of the step (a corrector). The weight exp(r u) is integrated exactly.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

# Gauss–Legendre: to rounding for the polynomials of the methods, times exp(r u) over steps of up to 10.
_POINTS, _WEIGHTS = np.polynomial.legendre.leggauss(16)


@functools.lru_cache(maxsize=2**14)
def lagrange_weights(nodes: tuple[float, ...], start: float, end: float, rate: float) -> list[float]:
    """Integrate exp(rate · (u - end)) times the Lagrange polynomial of each node, from `start` to `end`."""
    half = (end - start) / 2
    u = start + half * (1 + _POINTS)
    measure = half * _WEIGHTS * np.exp(rate * (u - end))
    factors = ([(u - other) / (node - other) for other in nodes if other != node] for node in nodes)
    return [float((measure * np.prod(factor, axis=0)).sum()) for factor in factors]


def multistep(
    function: Callable[[Tensor, int], Tensor],
    x: Tensor,
    grid: Sequence[float],
    scales: Sequence[float],
    *,
    order: int,
    rate: float = 0.0,
    correct: bool = False,
) -> Tensor:
    """Integrate from the first to the last point of `grid`.

    The first steps have fewer values behind them and are of a lower order. Where `rate` is not 0, so are the last ones:
    in log(alpha / sigma), they are by far the longest, and extrapolation overshoots.

    Args:
        function: (x, i) -> f at point i, like x; called once at each point but the last.
        x: the start [..., C].
        grid, scales: u and s at each point.
        order: the number of values that a step extrapolates.
        rate: r.
        correct: take each step but the last again, with the value at its end, one order higher. This value is not
            computed again.

    Returns:
        The end [..., C].
    """

    def step(x: Tensor, i: int, values: list[Tensor], last: int) -> Tensor:
        """Step from point i to the next with the values at the points up to `last`."""
        nodes = tuple(grid[last + 1 - len(values) : last + 1])
        factor = scales[i + 1] * math.exp(rate * grid[i + 1])
        x = (scales[i + 1] / scales[i]) * x
        for value, weight in zip(values, lagrange_weights(nodes, grid[i], grid[i + 1], rate), strict=True):
            x = torch.add(x, value, alpha=factor * weight)
        return x

    steps = len(grid) - 1
    before, values = x, list[Tensor]()
    for i in range(steps):
        values = [*values[-order:], function(x, i)]
        if correct and i > 0:
            x = step(before, i - 1, values, i)
        before, x = x, step(x, i, values[-(min(order, steps - i) if rate else order) :], i)
    return x
