"""Diffusion step annealing at one AR step: count from the schedule → times → noise → solve → trace.

A model's `generate` makes one `Annealing` and calls it at every AR step. The loop around it is the model's own.
"""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from .noise import NoiseSource
from .schedule import StepSchedule
from .solver import Solver, Times, get_solver
from .trace import StepTrace

# A diffusion network maps (x, t) to (epsilon, v), a flow network to the velocity.
Network = Callable[[Tensor, float], Tensor] | Callable[[Tensor, float], tuple[Tensor, Tensor]]


# Runs a function of tensors that writes into none of them: (function, its arguments) -> its result.
Run = Callable[..., Tensor]


def run(function: Callable[..., Tensor], *args: object) -> Tensor:
    """Call `function` as it is."""
    return function(*args)


class Annealing:
    """Samples the tokens of each AR step with the number of diffusion steps that the schedule grants it.

    Args:
        schedule: number of diffusion steps at each AR step.
        solver: how to integrate the network.
        ar_steps: AR steps of the generation.
        noise: where the randomness comes from.
        times: number of steps -> the times to visit, of models that choose them themselves.
        temperature: factor on the noise within the diffusion steps.
        on_step: called after each AR step.
        run: how the solver is run, such as `disa.acceleration.Captured`.

    Attributes:
        times: the times that each AR step visits.
        nfe: evaluations of the network at each AR step.

    Raises:
        ValueError: `ar_steps` or `temperature` is impossible.
    """

    def __init__(
        self,
        schedule: StepSchedule,
        solver: Solver,
        ar_steps: int,
        noise: NoiseSource,
        times: Callable[[int], Times] | None = None,
        *,
        temperature: float = 1.0,
        on_step: Callable[[StepTrace], None] | None = None,
        run: Run = run,
    ) -> None:
        check_temperature(temperature)
        self.solver, self.noise, self.temperature, self.on_step, self.run = (solver, noise, temperature, on_step, run)
        self.counts, self.times = _plan(schedule, solver, ar_steps, times)
        self.nfe = [solver.evaluations(visited) for visited in self.times]
        self._lap = time.perf_counter()

    def __call__(
        self,
        step: int,
        network: Network,
        tokens: int,
        channels: int,
        positions: Tensor | None = None,
        latents: Callable[[Tensor], Tensor] | None = None,
    ) -> Tensor:
        """Sample `tokens` tokens per image at AR step `step`.

        Args:
            network: the diffusion or flow network with its condition and guidance: (x [B, T, C], t) -> its prediction.
            positions, latents: as of `StepTrace`; `latents` takes what this call returns.

        Returns:
            [B, tokens, channels].
        """
        times = self.times[step]
        draws = self.noise.normal(step, self.solver.draws(times), tokens, channels)
        sample = self.run(self.solver.solve, network, draws, times, self.temperature)
        before, self._lap = self._lap, time.perf_counter()
        if self.on_step is not None:
            so_far = latents and functools.partial(latents, sample)
            took = self._lap - before
            self.on_step(StepTrace(step, tokens, self.counts[step], self.nfe[step], took, positions, so_far))
        return sample


class AnnealedModel(nn.Module):
    """A model that samples its tokens by `Annealing`.

    Attributes:
        solvers: what `sampler` may name.
        flow_times: number of steps -> the flow times to visit, of flow models.
        ar_steps: AR steps where the architecture fixes them; None where `num_iter` says how many.
        run: how solvers, and networks of one length, are run.
        act: makes the `Annealing` of each generation.
    """

    solvers: Mapping[str, Solver]
    flow_times: Callable[[int], Times] | None = None
    ar_steps: int | None = None
    run: Run = staticmethod(run)
    act: Callable[..., Annealing] = Annealing

    def generate(self, *args: Any, **kwargs: Any) -> Tensor:  # Any: labels or prompts, and what a family adds
        """Sample latents [B, C, H, W]."""
        raise NotImplementedError

    def annealing(
        self,
        schedule: StepSchedule,
        sampler: str,
        noise: NoiseSource,
        temperature: float,
        on_step: Callable[[StepTrace], None] | None,
        num_iter: int | None = None,
    ) -> Annealing:
        """Return the `Annealing` of one generation; arguments and errors are those of `generate`."""
        solver, ar_steps = (get_solver(self.solvers, sampler), self.ar_steps or num_iter or 0)
        schedule.check(sampler=sampler)
        return self.act(
            schedule,
            solver,
            ar_steps,
            noise,
            self.flow_times,
            temperature=temperature,
            on_step=on_step,
            run=self.run,
        )

    def nfe(self, schedule: StepSchedule, sampler: str, num_iter: int | None = None) -> list[int]:
        """Count the evaluations of the network at each AR step that `generate` makes with these settings."""
        solver = get_solver(self.solvers, sampler)
        schedule.check(sampler=sampler)
        _, times = _plan(schedule, solver, self.ar_steps or num_iter or 0, self.flow_times)
        return [solver.evaluations(visited) for visited in times]


def _plan(
    schedule: StepSchedule, solver: Solver, ar_steps: int, times: Callable[[int], Times] | None
) -> tuple[list[int], list[Times]]:
    """Number of diffusion steps, and the times they visit, at each AR step."""
    choose = solver.times or times
    if choose is None:
        raise ValueError(f"{solver.label} chooses no times; give `times`")
    if ar_steps < 1:
        raise ValueError(f"num_iter is {ar_steps}; at least 1 AR step is needed")
    counts = [schedule.steps(step, ar_steps) if solver.annealed else schedule.upper for step in range(ar_steps)]
    return counts, list(schedule.times) if schedule.times else [choose(count) for count in counts]


def check_temperature(temperature: float) -> None:
    """Refuse a temperature that is negative or not finite.

    Raises:
        ValueError: naming it.
    """
    if not (math.isfinite(temperature) and temperature >= 0):
        raise ValueError(f"temperature is {temperature}; it must be a finite number ≥ 0")


def check_finite(result: Tensor, what: str = "latents") -> None:
    """Refuse the result of a generation that holds NaN or infinity.

    Raises:
        FloatingPointError: naming what it is.
    """
    if not result.isfinite().all():
        raise FloatingPointError(
            f"generation ended with NaN or infinite {what}; check the checkpoint with `disa checkpoints verify`, "
            "or use --dtype float32"
        )


def check_latents(latents: Tensor) -> None:
    """`check_finite` on the CPU. On a GPU a look would wait for it; there the generator checks the decoded pixels."""
    if latents.device.type == "cpu":
        check_finite(latents)
