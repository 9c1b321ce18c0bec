"""Diffusion step annealing: how many diffusion steps each autoregressive step gets.

The more tokens of an image are known, the more the next ones are constrained, and the fewer diffusion steps suffice to
sample them (Zhao et al., "DiSA: Diffusion Step Annealing in Autoregressive Image Generation", 2025).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

# Weight of (upper - lower) at AR step s, where u is the last one. Written in s and u rather than in s/u because the
# released counts follow from this very rounding.
STRATEGIES: dict[str, Callable[[int, int], float]] = {
    "linear": lambda s, u: (u - s) / u,
    "cosine": lambda s, u: (math.cos(math.pi * s / u) + 1) / 2,
    "two-stage": lambda s, u: float(s < u / 2),
    "constant": lambda *_: 0.0,
}


@dataclass(frozen=True)
class StepSchedule:
    """Number of diffusion steps at each AR step, from `upper` at the first down to `lower` at the last.

    Attributes:
        upper: diffusion steps at the first AR step.
        lower: diffusion steps at the last AR step, 1 ≤ lower ≤ upper.
        strategy: "linear", "cosine", "two-stage" (upper in the first half, lower in the second), "constant" (lower
            throughout), or a function from progress (0 at the first AR step, 1 at the last) to the weight in [0, 1]
            that `upper - lower` has there.

    Raises:
        ValueError: a count is impossible or the strategy unknown.
    """

    upper: int = 50
    lower: int = 5
    strategy: str | Callable[[float], float] = "linear"

    def __post_init__(self) -> None:
        for name in ("upper", "lower"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int):
                raise ValueError(f"StepSchedule.{name} is {value!r}; it must be a whole number of diffusion steps")
        if self.lower < 1:
            raise ValueError(f"StepSchedule.lower is {self.lower}; at least 1 diffusion step is needed")
        if self.upper < self.lower:
            raise ValueError(
                f"StepSchedule.upper is {self.upper}, below lower = {self.lower}; upper must be at least lower"
            )
        if not callable(self.strategy) and self.strategy not in STRATEGIES:
            raise ValueError(
                f"StepSchedule.strategy is {self.strategy!r}; allowed are {', '.join(STRATEGIES)}, "
                "or a function of progress"
            )

    def steps(self, ar_step: int, ar_steps: int) -> int:
        """The nominal number of diffusion steps at AR step `ar_step` of `ar_steps` (counted from 0).

        A single AR step is a first step: it gets `upper`, unless the strategy is "constant".

        Raises:
            ValueError: `ar_step` is not in 0..ar_steps-1, or a strategy function left [0, 1].
        """
        if not 0 <= ar_step < ar_steps:
            raise ValueError(f"ar_step is {ar_step}; with ar_steps = {ar_steps} it must be in 0..{ar_steps - 1}")
        return self.lower + int(self._weight(ar_step, ar_steps - 1) * (self.upper - self.lower))

    def _weight(self, step: int, last: int) -> float:
        if callable(self.strategy):
            progress = step / last if last else 0.0
            weight = float(self.strategy(progress))
            if not 0 <= weight <= 1:
                raise ValueError(
                    f"StepSchedule.strategy gave {weight} at progress {progress:g}; a weight in [0, 1] is needed"
                )
            return weight
        if last == 0:
            return float(self.strategy != "constant")
        return STRATEGIES[self.strategy](step, last)
