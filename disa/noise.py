"""Randomness: an image depends on its seed and settings alone.

A noise source is any object with `normal` and `orders`; the models ask nothing else of it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

import numpy as np
import torch
from torch import Tensor


class NoiseSource(Protocol):
    """What a model draws its randomness from."""

    def normal(self, ar_step: int, draws: int, tokens: int, channels: int) -> Tensor:
        """Standard normal noise of one AR step: float32 [draws, B, tokens, channels]."""

    def orders(self, length: int) -> Tensor:
        """A permutation of 0..length-1 per image: int64 [B, length]."""


class ImageNoise:
    """Noise from counter-based streams, one per image seed and AR step.

    Each (seed, AR step) is the key of a Philox generator (Salmon et al. 2011): what an image gets depends neither on
    its batch, its rank, nor earlier draws. A larger number of draws begins with the same values, so that two step
    schedules start from the same noise.

    Args:
        seeds: one integer in [0, 2^64) per image.
        device: where the noise is used.

    A seed out of range is a ValueError.
    """

    def __init__(self, seeds: Iterable[int] | Tensor, device: torch.device | str = "cpu") -> None:
        self.seeds = [int(seed) for seed in seeds]
        self.device = torch.device(device)
        if bad := next((seed for seed in self.seeds if not 0 <= seed < 2**64), None):
            raise ValueError(f"ImageNoise got the seed {bad}; seeds are integers in [0, 2^64)")

    def _stream(self, seed: int, purpose: int) -> np.random.Generator:
        return np.random.Generator(np.random.Philox(key=np.array([seed, purpose], np.uint64)))

    def normal(self, ar_step: int, draws: int, tokens: int, channels: int) -> Tensor:
        """Standard normal noise of one AR step: float32 [draws, B, tokens, channels]."""
        noise = np.empty((len(self.seeds), draws, tokens, channels), np.float32)
        for row, seed in zip(noise, self.seeds, strict=True):
            self._stream(seed, 1 + ar_step).standard_normal(out=row, dtype=np.float32)
        return torch.from_numpy(noise).to(self.device).transpose(0, 1)

    def orders(self, length: int) -> Tensor:
        """A random permutation of 0..length-1 per image: int64 [B, length]."""
        return torch.from_numpy(np.stack([self._stream(seed, 0).permutation(length) for seed in self.seeds])).to(
            self.device
        )
