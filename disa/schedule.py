"""Diffusion step annealing: how many diffusion steps each autoregressive step gets.

The more tokens of an image are known, the more the next ones are constrained, and the fewer diffusion steps suffice to
sample them (Zhao et al., "DiSA: Diffusion Step Annealing in Autoregressive Image Generation", 2025).
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

# Weight of (upper - lower) at AR step s, where u is the last one. Written in s and u rather than in s/u because the
# released counts follow from this very rounding.
STRATEGIES: dict[str, Callable[[int, int], float]] = {
    "linear": lambda s, u: (u - s) / u,
    "cosine": lambda s, u: (math.cos(math.pi * s / u) + 1) / 2,
    "two-stage": lambda s, u: float(s < u / 2),
    "constant": lambda *_: 0.0,
}


FORCE = "force:"  # before a file's name: what it was made for does not matter, but its solver


@dataclass(frozen=True)
class StepSchedule:
    """Number of diffusion steps at each AR step, from `upper` at the first down to `lower` at the last, or as listed.

    Attributes:
        upper: diffusion steps at the first AR step.
        lower: diffusion steps at the last AR step, 1 ≤ lower ≤ upper.
        strategy: "linear", "cosine", "two-stage" (upper in the first half, lower in the second), "constant" (lower
            throughout), "even" (as many steps in all as with "linear", spread such that counts differ by 1 at most), or
            a function from progress (0 at the first AR step, 1 at the last) to the weight in [0, 1] that
            `upper - lower` has there.
        counts: diffusion steps at each AR step of a generation with as many; `upper` and `lower` are then the largest
            and the smallest of them, and `strategy` is a name that tells them apart from others.
        times: with `counts`, the times that each AR step visits, in the solver's order.
        made_for: name -> values, of settings and weights that `check` lets pass; of other names all values.
        file: what was loaded.

    Raises:
        ValueError: a count is impossible or the strategy unknown.
    """

    upper: int = 50
    lower: int = 5
    strategy: str | Callable[[float], float] = "linear"
    counts: tuple[int, ...] | None = None
    times: tuple[tuple[float, ...], ...] | None = None
    made_for: Mapping[str, Sequence[object]] = field(default_factory=dict, compare=False)
    file: str = field(default="", compare=False)

    def __post_init__(self) -> None:
        if self.counts is not None:
            self._take_counts(self.counts)
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
        if self.counts is None and not callable(self.strategy) and self.strategy not in (*STRATEGIES, "even"):
            raise ValueError(
                f"StepSchedule.strategy is {self.strategy!r}; allowed are {', '.join(STRATEGIES)}, even, "
                "or a function of progress"
            )

    def _take_counts(self, counts: tuple[int, ...]) -> None:
        if not counts or any(type(count) is not int for count in counts):
            raise ValueError(f"StepSchedule.counts is {counts!r}; whole numbers of diffusion steps are needed")
        if self.times is not None and (len(self.times) != len(counts) or not all(self.times)):
            raise ValueError(f"StepSchedule.times is for {len(self.times)} AR steps, and counts for {len(counts)}")
        digest = hashlib.sha256(repr((counts, self.times)).encode()).hexdigest()[:6]
        for name, value in (("upper", max(counts)), ("lower", min(counts)), ("strategy", f"calibrated-{digest}")):
            object.__setattr__(self, name, value)  # the dataclass is frozen

    @classmethod
    def load(cls, name: str) -> StepSchedule:
        """Load a schedule that `disa calibrate` wrote.

        Args:
            name: a file; or the name of a bundled model, whose schedule comes with the package. With FORCE in front it
                serves other weights and other settings, too, except for another sampler.

        Raises:
            FileNotFoundError: there is none.
            ValueError: it is no such file.
        """
        path = Path(name.removeprefix(FORCE))
        if not path.suffix:
            path = Path(__file__).parent / "bundled" / f"{path}_schedule.json"
        if not path.is_file():
            raise FileNotFoundError(f"there is no step schedule {path}; `disa calibrate` makes one")
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            made_for = {key: (value,) for key, value in content["sampling"].items()}
            made_for["weights"] = tuple(content["weights"].values())
            if name.startswith(FORCE):
                made_for = {"sampler": made_for["sampler"]}
            counts, times = tuple(content["counts"]), tuple(tuple(map(_number, one)) for one in content["times"])
            return cls(counts=counts, times=times, made_for=made_for, file=name)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{path} is no step schedule of `disa calibrate` ({error})") from error

    def check(self, **settings: object) -> None:
        """Refuse `settings` that differ from those that the schedule was made for.

        Raises:
            ValueError: naming them.
        """
        wrong = {name: value for name, value in settings.items() if value not in self.made_for.get(name, [value])}
        if wrong:
            said = "; ".join(f"{k} {' or '.join(map(str, self.made_for[k]))}, not {v}" for k, v in wrong.items())
            other = "choose that sampler" if "sampler" in wrong else f"give {FORCE}{self.file}"
            raise ValueError(
                f"the step schedule {self.file} was made for {said}; {other}, or make another with `disa calibrate`"
            )

    def steps(self, ar_step: int, ar_steps: int) -> int:
        """The nominal number of diffusion steps at AR step `ar_step` of `ar_steps` (counted from 0).

        A single AR step is a first step: it gets `upper`, unless the strategy is "constant".

        Raises:
            ValueError: `ar_step` is not in 0..ar_steps-1, a strategy function left [0, 1], or there are `counts` for
                another number of AR steps.
        """
        if not 0 <= ar_step < ar_steps:
            raise ValueError(f"ar_step is {ar_step}; with ar_steps = {ar_steps} it must be in 0..{ar_steps - 1}")
        if self.counts is not None:
            if len(self.counts) != ar_steps:
                raise ValueError(
                    f"the step schedule {self.file} is for {len(self.counts)} AR steps, and there are {ar_steps}; "
                    "take as many, or make another with `disa calibrate`"
                )
            return self.counts[ar_step]
        if self.strategy == "even":
            linear = StepSchedule(self.upper, self.lower)
            total = sum(linear.steps(step, ar_steps) for step in range(ar_steps))
            return total * (ar_step + 1) // ar_steps - total * ar_step // ar_steps
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


def _number(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError(f"a time is {value!r}; a number is needed")
    return value
