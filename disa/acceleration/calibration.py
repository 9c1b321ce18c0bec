"""How far samples with few diffusion steps are from samples with many, at each AR step of a model.

The conditions of an AR step are those of generations with many steps. For each, a set of samples with k steps and one
with many are compared by their energy distance (Székely and Rizzo 2013), token by token: D(s, k), in units of the
latents. What the tokens of a group have in common is not compared. A token inherits the errors of those before it, for
they are its condition: what a schedule is to make small is D summed over all AR steps that a token depends on.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..annealing import AnnealedModel, Annealing, Network
from ..diffusion import GaussianProcess
from ..runtime.devices import synchronize
from ..solver import Times, get_solver
from .allocation import decreasing, shortest_path

IMAGES = 8  # different ones in a generation
TOKENS = 2  # conditions that an image counts for at an AR step, at most: its tokens are alike
KINDS = ("own", "path")  # the times that the solver or the model chooses; those of the shortest path, too


@dataclass
class StepDistances:
    """What is known of one AR step.

    Attributes:
        tokens: how many it samples.
        seconds: of one evaluation for one image.
        distances: D of all counts at each kind of times, of each generation [images, kinds, counts].
        deviations: of one step from each time of the reference to each later one and the data, [times + 1, times + 1].
    """

    tokens: int = 0
    seconds: float = 0.0
    distances: list[Tensor] = field(default_factory=list)
    deviations: np.ndarray | None = None

    @property
    def conditions(self) -> int:
        """How many were compared."""
        return sum(map(len, self.distances)) * min(self.tokens, TOKENS)

    @property
    def mean(self) -> np.ndarray:
        """D, [kinds, counts]."""
        return torch.cat(self.distances).double().mean(0).numpy()

    @property
    def error(self) -> np.ndarray:
        """The standard error of D over images, [kinds, counts]."""
        every = torch.cat(self.distances).double()
        return (every.std(0) / len(every) ** 0.5).numpy()


class Calibration:
    """Measures D(s, k) while its `model` generates.

    Args:
        model: with a solver for `sampler`.
        counts: k, ascending, of the diffusion steps to compare.
        reference: the count that is many.
        copies: how often each image is in a generation.
        draws: samples per condition, rounded up to a multiple of `copies`.
        seed: of these samples.
        kinds: of times to compare, the first of `KINDS` or both.

    Attributes:
        steps: what is known of each AR step, once something is.
    """

    def __init__(
        self,
        model: AnnealedModel,
        sampler: str,
        counts: Sequence[int],
        reference: int,
        *,
        copies: int = 16,
        draws: int = 32,
        seed: int = 1,
        kinds: Sequence[str] = KINDS[:1],
    ) -> None:
        self.kinds = tuple(kinds)
        self.model, self.solver, self.counts, self.copies = model, get_solver(model.solvers, sampler), counts, copies
        self.rounds, self.steps = -(-draws // copies), list[StepDistances]()
        choose = self.solver.times or model.flow_times
        assert choose is not None  # a model has the one or the other
        self.choose = choose
        self.reference = choose(reference)
        self.generator = torch.Generator(next(model.parameters()).device).manual_seed(seed)

    def measure(
        self, generate: Callable[[int], object], conditions: int, progress: Callable[[int], object] = lambda _: None
    ) -> None:
        """Measure D with as many generations as it takes.

        Args:
            generate: makes generation number i of the model with the sampler: of IMAGES images, `copies` times each,
                the copies behind one another and with the same noise.
            conditions: to compare at each AR step, at least.
            progress: called with numbers of conditions, `conditions` per AR step in all.
        """
        visited = (self.reference, *map(self.choose, self.counts))
        with observing(self.model, visited, partial(self._observe, conditions, progress)):
            generation = 0
            while not self.steps or any(step.conditions < conditions for step in self.steps):
                generate(generation)
                generation += 1

    def _observe(
        self,
        conditions: int,
        progress: Callable[[int], object],
        step: int,
        network: Network,
        tokens: int,
        channels: int,
        temperature: float,
    ) -> Tensor:
        if step == len(self.steps):
            self.steps.append(StepDistances())
        known = self.steps[step]
        before = known.conditions
        sample = self.sample(step, network, tokens, channels, temperature, compare=before < conditions)
        progress(min(known.conditions, conditions) - min(before, conditions))
        return sample

    def length(self, count: int) -> int:
        """The steps that the solver takes for a nominal `count`."""
        return len(self.choose(count)) - self.is_flow

    def evaluations(self, count: int) -> int:
        """The evaluations of the network that a nominal `count` takes."""
        return self.solver.evaluations(self.choose(count))

    @property
    def heirs(self) -> np.ndarray:
        """The share of tokens that inherit the errors of an AR step, its own and all that come later: [AR steps]."""
        tokens = np.array([step.tokens for step in self.steps])
        return tokens[::-1].cumsum()[::-1] / tokens.sum()

    @property
    def is_flow(self) -> bool:
        """Whether times include the data's, 0."""
        return self.solver.times is None

    def times(self, step: int, count: int, kind: str) -> Times:
        """The times that `count` steps visit at an AR step."""
        if kind == "own":
            return self.choose(count)
        deviations = self.steps[step].deviations
        assert deviations is not None
        points = [*sorted(self.reference, reverse=True), 0.0][: len(deviations)]
        path = [points[i] for i in shortest_path(deviations, self.length(count))]
        times = path if self.is_flow else path[:-1]
        return tuple(times if self.reference[0] > self.reference[-1] else times[::-1])

    def distances(self, count: int, kinds: Sequence[str] | None = None) -> tuple[np.ndarray, list[list[str]]]:
        """Interpolate D to all counts from 1 to `count`, at those `kinds` of times (all) that are better.

        Between measured counts D is linear in 1/n², of n steps taken; where noise makes it rise, it is made flat.

        Returns:
            D [AR steps, count], and which times these are.
        """
        wanted, known = (
            np.array([-(self.length(k) ** -2.0) for k in counts]) for counts in (range(1, count + 1), self.counts)
        )
        kinds, values, better = kinds or self.kinds, [], []
        for step in self.steps:
            of_kind = dict(zip(self.kinds, step.mean, strict=True))
            every = np.stack([np.interp(wanted, known, decreasing(of_kind[kind])) for kind in kinds])
            values.append(every.min(0))
            better.append([kinds[i] for i in every.argmin(0)])
        return np.stack(values), better

    def sample(
        self, step: int, network: Network, tokens: int, channels: int, temperature: float, compare: bool
    ) -> Tensor:
        """Sample as a full count does, the same for all copies of an image [B, tokens, channels]; `compare` others."""
        known, device, rows = self.steps[step], self.generator.device, IMAGES * self.copies
        known.tokens = tokens

        def draw() -> Tensor:
            size = (self.solver.draws(self.reference), rows, tokens, channels)
            return torch.randn(size, generator=self.generator, device=device)

        def solve(noise: Tensor, times: Times) -> Tensor:
            found = self.solver.solve(network, noise, times, temperature)
            return found.float().unflatten(0, (IMAGES, self.copies)).transpose(1, 2)  # [images, tokens, copies, C]

        if compare and "path" in self.kinds and known.deviations is None:
            points = sorted(self.reference, reverse=True)
            known.deviations = path_deviations(network, draw()[0], points[: len(points) - self.is_flow])
        sets: list[list[Tensor]] = []
        for _ in range(self.rounds if compare else 1):
            noise = draw()
            synchronize(device)
            start = time.perf_counter()
            sets.append([solve(noise, self.reference)])
            synchronize(device)
            known.seconds = (time.perf_counter() - start) / self.solver.evaluations(self.reference) / rows
            for kind in self.kinds if compare else ():
                for count in self.counts:
                    times = self.times(step, count, kind)
                    sets[-1].append(solve(self._coarsen(noise, times), times))
        full, *others = (torch.cat(parts, dim=2) for parts in zip(*sets, strict=True))
        if compare:
            distances = torch.stack([energy_distance(one, full).mean(1) for one in others], dim=1).cpu()
            known.distances.append(distances.unflatten(1, (len(self.kinds), -1)))
        return full[:, :, :1].expand(-1, -1, self.copies, -1).transpose(1, 2).flatten(0, 1)

    def _coarsen(self, noise: Tensor, times: Times) -> Tensor:
        """Make noise for steps along `times` of that along the reference, so that both follow one Brownian motion.

        A step's draw is the sum, over the root of their number, of those that fall into it.
        """
        draws = self.solver.draws(times)
        if draws == 1:
            return noise[:1]
        fine, coarse = (sorted(visited, reverse=True) for visited in (self.reference, times))
        parts = [noise[0]]
        for start, end in zip(coarse, [*coarse[1:], -1.0], strict=True):
            within = [i for i, t in enumerate(fine, 1) if end < t <= start and i < len(noise)]
            own = torch.randn(noise.shape[1:], generator=self.generator, device=noise.device) if not within else None
            parts.append(noise[within].sum(0) / len(within) ** 0.5 if own is None else own)
        return torch.stack(parts[:draws])


def energy_distance(x: Tensor, y: Tensor) -> Tensor:
    """Estimate the energy distance of two distributions from samples [..., n, C] of each, without bias: [...].

    Sample i of the one and of the other may share their noise, which makes the estimate more precise: this pair is
    left out, as every sample's distance to itself is.
    """

    def mean(a: Tensor, b: Tensor) -> Tensor:
        pairs = torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist")
        others = pairs.sum((-2, -1)) - pairs.diagonal(dim1=-2, dim2=-1).sum(-1)
        return others / (a.shape[-2] * (a.shape[-2] - 1))

    return 2 * mean(x, y) - mean(x, x) - mean(y, y)


class Path(NamedTuple):
    """Points [B, T, C] from the noise to the data, the predictions at all but the last, and s and u of `follow`."""

    points: list[Tensor]
    predictions: list[Tensor]
    scale: np.ndarray
    u: np.ndarray


def follow(network: Network, start: Tensor, times: Sequence[float]) -> Path:
    """Follow a path by Euler's method on d(x / s) = prediction du.

    For flows s = 1 and u is the time; for Gaussian diffusion (DDIM) s = sqrt(alpha_bar) and
    u = sqrt(1 / alpha_bar - 1).

    Args:
        network: of a diffusion or a flow.
        start: noise [B, T, C].
        times: descending from the noise, without the data's.
    """
    x, points, predictions = start.float(), [start.float()], []
    scale = u = np.empty(0)
    for i, t in enumerate(times):
        found = network(x, t)
        if i == 0:
            scale, u = _coordinates(times, isinstance(found, tuple))
        predictions.append((found[0] if isinstance(found, tuple) else found).float())
        x = scale[i + 1] * (x / scale[i] + (u[i + 1] - u[i]) * predictions[-1])
        points.append(x)
    return Path(points, predictions, scale, u)


def path_deviations(network: Network, start: Tensor, times: Sequence[float]) -> np.ndarray:
    """Measure how far one step from a point of a fine path leads from each later point (GITS, eq. 9).

    Arguments and steps are those of `follow`.

    Returns:
        Mean norms of differences, float64 [times + 1, times + 1], the last point being the data; 0 on and below the
        diagonal.
    """
    points, predictions, scale, u = follow(network, start, times)
    deviations = np.zeros((len(points), len(points)))
    every = torch.stack(points)
    for i, prediction in enumerate(predictions):
        of_x, of_prediction = (
            torch.tensor(one, dtype=every.dtype, device=every.device).view(-1, *[1] * start.ndim)
            for one in (scale[i + 1 :] / scale[i], scale[i + 1 :] * (u[i + 1 :] - u[i]))
        )
        reached = of_x * points[i] + of_prediction * prediction
        deviations[i, i + 1 :] = (reached - every[i + 1 :]).norm(dim=-1).flatten(1).mean(1).tolist()
    return deviations


def _coordinates(times: Sequence[float], diffusion: bool) -> tuple[np.ndarray, np.ndarray]:
    """s and u at `times` and at the data."""
    if not diffusion:
        return np.ones(len(times) + 1), np.array([*times, 0.0])
    alpha_bar = GaussianProcess().alpha_bar
    alpha_bar = np.append(np.exp(np.interp(times, np.arange(len(alpha_bar)), np.log(alpha_bar))), 1.0)
    return np.sqrt(alpha_bar), np.sqrt(1 / alpha_bar - 1)


class Observed(Annealing):
    """An `Annealing` whose networks know the times in `visited`, and whose samples are those that `sample` makes.

    Args:
        sample: called as the `Annealing`, and with its temperature.
    """

    def __init__(
        self, visited: Sequence[Times], sample: Callable[..., Tensor], *args: object, **kwargs: object
    ) -> None:
        super().__init__(*args, **kwargs)  # type: ignore[arg-type]  # those of `Annealing`
        self.sample = sample
        self.times = [tuple(dict.fromkeys(t for times in visited for t in times))] * len(self.times)

    def __call__(self, step: int, network: Network, tokens: int, channels: int, *_: object, **__: object) -> Tensor:
        return self.sample(step, network, tokens, channels, self.temperature)


@contextmanager
def observing(model: AnnealedModel, visited: Sequence[Times], sample: Callable[..., Tensor]) -> Iterator[None]:
    """Let the generations of `model` be `Observed` for a while."""
    model.act = partial(Observed, visited, sample)
    try:
        yield
    finally:
        del model.act
