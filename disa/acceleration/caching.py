"""Caches of a masked model's backbone: between full passes it computes few rows, and of one branch alone.

After LazyMAR (Yan et al., "LazyMAR: Accelerating Masked Autoregressive Models via Feature Caching", 2025): most tokens
change little from one AR step to the next, and so does the difference that guidance makes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

# (tokens [B, L, C], known [B, K], wanted [B, T], both branches, cache) -> conditions [B, T, W]; of both [2B, T, W],
# conditional first. In a pass that is not full, `known` are only the tokens that no earlier pass has seen.
Backbone = Callable[[Tensor, Tensor, Tensor, bool, "BackboneCache"], Tensor]


@dataclass(frozen=True)
class Caching:
    """How often a backbone is computed in full: at 1 always, which is exact. A number below 1 raises a ValueError.

    Attributes:
        tokens: AR steps from one full pass to the next. In between only the buffer, the tokens sampled last and those
            wanted now are computed; keys and values of all others are those of earlier passes.
        conditions: AR steps from one unconditional pass to the next. In between the unconditional conditions are the
            conditional ones plus the difference that there was, at the same positions, at the last one.
        first: AR steps at the beginning that are computed in full.
    """

    tokens: int = 1
    conditions: int = 1
    first: int = 5

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value < 1:
                raise ValueError(f"Caching.{name} is {value}; at least 1 AR step is needed")


class Slots:
    """Keys and values of one attention layer, [B, heads, S, D]: first the buffer's, then the tokens'."""

    keys: Tensor
    values: Tensor

    def __init__(self, buffer: int) -> None:
        self.buffer = buffer

    def open(self, full: bool, half: bool, places: Tensor | None) -> Slots:
        """Prepare for the next pass, `full` or not.

        Args:
            half: keep the first half of a full pass's images, the conditional ones.
            places: slots [B, Q] of the rows to come in a pass that is not full; without them, rows are the buffer's and
                those of new tokens.
        """
        self.full, self.half, self.places = full, half, places
        return self

    def update(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Take keys and values of the rows that are computed [B, heads, Q, D], and return all to attend to."""
        if self.full:
            kept = len(keys) // 2 if self.half else len(keys)
            # Copies: views would keep the memory of queries and of the other branch.
            self.keys, self.values = (one[:kept].clone(memory_format=torch.contiguous_format) for one in (keys, values))
            return keys, values
        self.keys, self.values = self._join(self.keys, keys), self._join(self.values, values)
        return self.keys, self.values

    def _join(self, old: Tensor, new: Tensor) -> Tensor:
        old = old[: len(new)]
        if self.places is None:
            return torch.cat([new[:, :, : self.buffer], old[:, :, self.buffer :], new[:, :, self.buffer :]], dim=2)
        return old.scatter_(2, self.places[:, None, :, None].expand_as(new), new)


class BackboneCache:
    """What one generation keeps of its backbone from one AR step to the next.

    Args:
        caching: how often what is computed in full.
        buffer: rows in front of the tokens, which every pass computes.

    Attributes:
        full: whether the present pass computes all rows.
        keeps: whether passes keep keys and values.
    """

    def __init__(self, caching: Caching, buffer: int) -> None:
        self.caching, self.buffer = caching, buffer
        self.full, self.keeps = True, caching.tokens > 1
        self._both = self._held_both = False
        self._slots: dict[nn.Module, Slots] = {}
        self._sampled_last: Tensor | None = None
        self._difference: Tensor | None = None  # of unconditional and conditional conditions [B, L, W]

    def slots(self, blocks: Iterable[nn.Module], places: Tensor | None = None) -> list[Slots] | None:
        """Return the keys and values of `blocks` for the present pass, None if none are kept; see `Slots.open`."""
        if not self.keeps:
            return None
        half = self._both and self.caching.conditions > 1
        return [self._slots.setdefault(one, Slots(self.buffer)).open(self.full, half, places) for one in blocks]

    def conditions(
        self, backbone: Backbone, step: int, tokens: Tensor, known: Tensor, wanted: Tensor, later: Tensor, guided: bool
    ) -> Tensor:
        """Compute the conditions of the tokens at `wanted`, all of them or what the step's pass leaves to compute.

        Args:
            tokens: sampled so far [B, L, C].
            known, wanted, later: positions sampled before, now and later, [B, K], [B, T] and [B, M].
            guided: whether conditions of both branches are needed.

        Returns:
            [B, T, W]; guided [2B, T, W], conditional first.
        """
        self._plan(step, guided)
        new = known if self.full or self._sampled_last is None else self._sampled_last
        self._sampled_last = wanted
        if self._both and self.caching.conditions > 1:
            rows = torch.cat([wanted, later], dim=1)
            z = backbone(tokens, new, rows, True, self)
            conditional, unconditional = z.chunk(2)
            everywhere = z.new_zeros(*tokens.shape[:2], z.shape[-1])
            self._difference = everywhere.scatter(1, _index(rows, z), unconditional - conditional)
            return z[:, : wanted.shape[1]]
        z = backbone(tokens, new, wanted, self._both, self)
        if guided and not self._both:
            assert self._difference is not None
            z = torch.cat([z, z + self._difference.gather(1, _index(wanted, z))])
        return z

    def _plan(self, step: int, guided: bool) -> None:
        """Decide what the pass of an AR step computes: all rows or few, both branches or one."""
        past, every = step + 1 - self.caching.first, self.caching
        self._both = guided and (past <= 0 or past % every.conditions == 0 or self._difference is None)
        self.full = past <= 0 or past % every.tokens == 0 or (self._both and not self._held_both)
        self._held_both = self._both and every.conditions == 1


def _index(rows: Tensor, like: Tensor) -> Tensor:
    """Index of `rows` [B, Q] for gather and scatter of [B, L, W]."""
    return rows[..., None].expand(-1, -1, like.shape[-1])
