"""Dynamic programs of a calibration: diffusion steps for a budget, and times for a number of steps."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

# GITS's weight of what lies behind on a path, against the next step: errors of early steps shrink on their way.
LATER = 1.15


def decreasing(values: Sequence[float]) -> np.ndarray:
    """Fit a sequence that never rises to `values`, by least squares (pool adjacent violators): [N]."""
    pools: list[tuple[float, int]] = []  # mean and size
    for value in values:
        pools.append((value, 1))
        while len(pools) > 1 and pools[-1][0] > pools[-2][0]:
            (mean, size), (before, more) = pools.pop(), pools.pop()
            pools.append(((mean * size + before * more) / (size + more), size + more))
    return np.concatenate([np.full(size, mean) for mean, size in pools])


def allocate(errors: np.ndarray, costs: np.ndarray, budget: int, quality: float | None = None) -> list[int]:
    """Choose one option for each AR step, such that the sum of errors is the least that the budget allows.

    Args:
        errors, costs: of the options, [AR steps, options]; costs are whole numbers.
        budget: the largest sum of costs.
        quality: a sum of errors that will do; the cheapest options with at most as much are chosen. Where there are
            none, it is the least that the budget allows.

    Returns:
        The option of each AR step; of equally good ones the first.

    Raises:
        ValueError: no choice costs so little.
    """
    best, chosen = np.zeros(budget + 1), []  # the least error of the AR steps so far, at each cost
    for error, cost in zip(errors, costs, strict=True):
        sums = np.full((len(cost), budget + 1), np.inf)
        for option in np.flatnonzero(cost <= budget):
            sums[option, cost[option] :] = best[: budget + 1 - cost[option]] + error[option]
        chosen.append(sums.argmin(0))
        best = sums.min(0)
    if not np.isfinite(best[-1]):
        raise ValueError(f"the budget is {budget}; the cheapest options cost {sum(map(min, costs))}")
    options, left = [], budget if quality is None else int(np.argmax(best <= max(quality, best[-1])))
    for choice, cost in zip(reversed(chosen), costs[::-1], strict=True):
        options.append(int(choice[left]))
        left -= int(cost[options[-1]])
    return options[::-1]


def shortest_path(deviations: np.ndarray, steps: int) -> list[int]:
    """Find the way from the first point to the last with the least deviation: `steps` + 1 points, ascending.

    GITS (Chen et al., "On the Trajectory Regularity of ODE-based Diffusion Sampling", 2024), algorithm 1.

    Args:
        deviations: of one step from a point to a later one, [points, points].
        steps: at most as many as there are points behind the first.
    """
    points = len(deviations)
    best, following = np.full(points, np.inf), []
    best[-1] = 0.0
    later = np.triu(np.ones((points, points), bool), 1)
    for _ in range(steps):
        sums = np.where(later, deviations + LATER * best, np.inf)
        following.append(sums.argmin(1))
        best = sums.min(1)
    path = [0]
    for choice in reversed(following):
        path.append(int(choice[path[-1]]))
    return path
