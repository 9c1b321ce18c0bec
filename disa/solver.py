"""The type of every solver: one way to integrate a diffusion or flow network from noise to data."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

Times = Sequence[float]


@dataclass(frozen=True)
class Solver:
    """A numerical method with what it needs and costs.

    Attributes:
        solve: (network, noise [draws, ..., C], times, temperature) -> samples [..., C].
        label: the method in words, for tables.
        evaluations: times -> evaluations of the network (NFE).
        draws: times -> draws of noise, the start included.
        times: number of steps -> the times it visits; None where the model chooses them, as flow models do.
        annealed: whether the number of steps follows the step schedule; otherwise it is always `upper`.
    """

    solve: Callable[..., Tensor]
    label: str
    evaluations: Callable[[Times], int]
    draws: Callable[[Times], int]
    times: Callable[[int], Times] | None = None
    annealed: bool = True


def get_solver(solvers: Mapping[str, Solver], name: str) -> Solver:
    """Return the solver called `name`; a ValueError names what is allowed."""
    if name not in solvers:
        raise ValueError(f"sampler is {name!r}; allowed are {', '.join(solvers)}")
    return solvers[name]
