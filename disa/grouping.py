"""Which tokens each AR step of a masked model samples: the order of their positions, and how many at a time."""

from __future__ import annotations

import functools
import math
from collections import Counter
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

ORDERS = ("random", "halton", "gtr")
TOKENS_PER_STEP = ("cosine", "stages")


@dataclass(frozen=True)
class Grouping:
    """Order and number of the tokens that AR steps sample; a name that is not known raises a ValueError.

    Attributes:
        order: "random"; "halton", along a sequence that fills the grid evenly from the start (Besnier et al., "Halton
            Scheduler for Masked Generative Image Transformer", 2025); or "gtr", by the three stages of "Generation
            then Reconstruction" (2026): every fourth diagonal, those half-way between, and all odd ones.
        tokens_per_step: "cosine", few at first and ever more; or "stages", of the AR steps three quarters for the first
            stage of "gtr", three sixteenths for the second and a sixteenth for the last, alike within each.
    """

    order: str = "random"
    tokens_per_step: str = "cosine"

    def __post_init__(self) -> None:
        for name, allowed in (("order", ORDERS), ("tokens_per_step", TOKENS_PER_STEP)):
            if (value := getattr(self, name)) not in allowed:
                raise ValueError(f"Grouping.{name} is {value!r}; allowed are {', '.join(allowed)}")

    def arrange(self, orders: Tensor, shape: tuple[int, int]) -> Tensor:
        """Turn permutations into orders of this kind.

        Args:
            orders: random permutations of the positions in a grid of `shape` (rows, columns), int64 [B, L].

        Returns:
            Of each permutation another one: what is random in the order depends on it alone.
        """
        if self.order == "halton":  # each image begins at a point of its own
            sequence = torch.from_numpy(halton_sequence(*shape)).to(orders.device, non_blocking=True)
            return sequence[(orders[:, :1] + torch.arange(orders.shape[1], device=orders.device)) % orders.shape[1]]
        if self.order == "gtr":
            diagonal = (orders // shape[1] + orders % shape[1]) % 4
            stage = torch.where(diagonal % 2 == 1, 2, diagonal // 2)
            return orders.gather(1, stage.argsort(dim=1, stable=True))
        return orders

    def left(self, shape: tuple[int, int], ar_steps: int, tokens: int | None = None) -> list[int]:
        """Tokens in a grid of `shape` that each AR step leaves to later ones: at least 1 fewer each time, 0 at last.

        `tokens` are to be sampled, by default all; there must be 1 to as many AR steps.
        """
        length = math.prod(shape)
        left = length if tokens is None else tokens
        share = left / length
        if self.tokens_per_step == "cosine":
            planned = [math.floor(length * math.cos(math.pi / 2 * (step + 1) / ar_steps)) for step in range(ar_steps)]
        else:
            planned = _stages(shape, ar_steps)
        return [left := min(max(int(plan * share), ar_steps - 1 - step), left - 1) for step, plan in enumerate(planned)]


def _stages(shape: tuple[int, int], ar_steps: int) -> list[int]:
    """Tokens that are left after each AR step if each stage spreads its own over its share of the AR steps."""
    diagonals = Counter((i + j) % 4 for i in range(shape[0]) for j in range(shape[1]))
    last = max(round(ar_steps / 16), 1)
    second = min(max(round(ar_steps * 3 / 16), 1), ar_steps - last)
    left, after = math.prod(shape), []
    stages = (diagonals[0], diagonals[2], diagonals[1] + diagonals[3])
    for tokens, steps in zip(stages, (ar_steps - last - second, second, last), strict=True):
        after += [left - tokens * (step + 1) // steps for step in range(steps)]
        left -= tokens
    return after


@functools.cache
def halton_sequence(rows: int, columns: int) -> np.ndarray:
    """Positions of a grid, int64 [rows · columns], as the Halton sequence in bases 2 and 3 first comes by them."""
    count = rows * columns
    while True:
        count *= 2
        numbers = np.arange(1, count + 1)
        cells = _mirrored(numbers, 2, rows) * columns + _mirrored(numbers, 3, columns)
        _, first = np.unique(cells, return_index=True)
        if len(first) == rows * columns:
            return cells[np.sort(first)]


def _mirrored(numbers: np.ndarray, base: int, size: int) -> np.ndarray:
    """The digits of `numbers` in reverse behind the point, times `size`, rounded down; in whole numbers, so exactly."""
    mirrored, power = np.zeros_like(numbers), 1
    while numbers.any():
        mirrored, numbers, power = mirrored * base + numbers % base, numbers // base, power * base
    return mirrored * size // power
