"""A feature cache with extrapolation: within the steps of a solver, most passes through a stack of blocks are foretold.

After TaylorSeer (Liu et al., "From Reusing to Forecasting: Accelerating Diffusion Models with TaylorSeers", 2025): how
much blocks change their input is smooth in time, so that few passes show where it goes. With a fresh first block and
order 0 it is a first-block cache.

Which passes are full depends on times and shapes alone. A threshold on the first block's change, as in first-block
caches and TeaCache, would need a number on the host at every evaluation, and where a batch decides together an image
would depend on its company. Decided beforehand, by other images, it was no better than a fixed interval: on
`xar_fashion` with 50 to 15 steps the error was half as large again at as many passes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice

from torch import Tensor

from ..solver import Times

Layer = Callable[[Tensor], Tensor]  # [B, L, W] -> [B, L, W]


@dataclass(frozen=True)
class Extrapolation:
    """How often a stack of blocks is computed within the solver's steps: at 1 always, which is exact.

    It pays where counts are large; with few steps, fewer steps may do the same. Measure it: order 0 made images of
    `flowar_fashion` far worse than fewer steps do, and of `xar_fashion` so did a larger `every` than 2 at order 1.

    Attributes:
        every: evaluations from one full pass to the next.
        order: of the polynomial in time through the last `order` + 1 full passes, which stands for those in between; at
            0 the last one does. Until there are so many, all passes are full.
        fresh: blocks at the beginning that always run. They pay in deep stacks, for large `every`.

    Raises:
        ValueError: a number is impossible.
    """

    every: int = 1
    order: int = 1
    fresh: int = 0

    def __post_init__(self) -> None:
        for name, least in (("every", 1), ("order", 0), ("fresh", 0)):
            if (value := getattr(self, name)) < least:
                raise ValueError(f"Extrapolation.{name} is {value}; it must be at least {least}")

    def cache(self, times: Times) -> FeatureCache:
        """Make the cache of one AR step whose solver visits `times`, the last of which is the data's."""
        return FeatureCache(self, max(times), sorted(times)[1])


@dataclass(unsafe_hash=True)
class FeatureCache:
    """What the solver's evaluations at one AR step know of each other, along times that never rise.

    Nothing is decided by tensors' values: there is no synchronisation, and captured graphs hold the same decisions.
    Being callable, it is for `disa.acceleration.Captured` a value: that of its settings.

    Attributes:
        start, end: times of the solver's first and last evaluation. At the one whatever was kept is forgotten; after
            the other it is, too.
        kept: times of full passes and how much the blocks changed their input there, the last passes last.
        age: evaluations since the last full pass.
    """

    settings: Extrapolation
    start: float
    end: float
    kept: list[tuple[float, Tensor]] = field(default_factory=list, compare=False, repr=False)
    age: int = field(default=0, compare=False)

    def __call__(self, t: float, layers: Iterator[Layer], x: Tensor) -> Tensor:
        """Run `layers` on x [B, L, W] at time t, or foretell what they give.

        With guidance, the conditional rows of x come first, and may come alone. A pass is full, too, where too few
        passes had as many rows as x.
        """
        if self.settings.every == 1:
            return run_layers(layers, x)
        if t >= self.start:
            self.kept.clear()
        x = run_layers(islice(layers, self.settings.fresh), x)
        known = [(time, change[: len(x)]) for time, change in self.kept if len(change) >= len(x)]
        self.age += 1
        if self.age < self.settings.every and len(known) > self.settings.order:
            weights = extrapolate([time for time, _ in known], t)
            changes = (weight * change.float() for weight, (_, change) in zip(weights, known, strict=True))
            y = sum(changes, x.float()).to(x.dtype)
        else:
            y, self.age = run_layers(layers, x), 0
            earlier = [one for one in known if one[0] != t]  # some solvers evaluate twice at a time
            self.kept[:] = [*earlier, (t, y - x)][-self.settings.order - 1 :]
        if t <= self.end:
            self.kept.clear()
        return y


def run_layers(layers: Iterable[Layer], x: Tensor) -> Tensor:
    """Run one layer after the other."""
    for layer in layers:
        x = layer(x)
    return x


def extrapolate(nodes: Sequence[float], t: float) -> list[float]:
    """Weigh the values at different `nodes`, such that their sum is the polynomial through them at t.

    It is TaylorSeer's series Σ_i F⁽ⁱ⁾ xⁱ / i! around the last node, with x = t - node and F⁽ⁱ⁾ the polynomial's
    derivatives there: at even steps finite differences.
    """
    return [math.prod((t - other) / (node - other) for other in nodes if other != node) for node in nodes]
