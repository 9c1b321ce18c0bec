"""Randomness: an image depends on its seed and settings alone.

A noise source is any object with `normal` and `orders`; the models ask nothing else of it.
"""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

AHEAD = 2**14  # numbers from which an AR step's noise is drawn in a thread: these take about 0.2 ms


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
        # While a GPU computes an AR step, a thread of the host draws the next one's noise. A CPU has no time for it.
        self.ahead = self.device.type == "cuda"
        self._pinned = self.ahead and torch.cuda.is_available()  # a copy from pinned memory does not wait for the GPU
        self._next: tuple[int, Future[Tensor]] | None = None
        self._thread = ThreadPoolExecutor(1)  # starts with the first draw ahead, and ends with this object

    def _stream(self, seed: int, purpose: int) -> np.random.Generator:
        return np.random.Generator(np.random.Philox(key=np.array([seed, purpose], np.uint64)))

    def normal(self, ar_step: int, draws: int, tokens: int, channels: int) -> Tensor:
        """Standard normal noise of one AR step: float32 [draws, B, tokens, channels]."""
        size = draws * tokens * channels
        noise = self._drawn(ar_step, size).to(self.device, non_blocking=True)
        if self.ahead and noise.numel() >= AHEAD:
            # As much as now is a guess: streams begin with the same numbers, and the next AR step mostly takes fewer.
            self._next = (ar_step + 1, self._thread.submit(self._fill, *self._empty(size), ar_step + 1))
        return noise[:, :size].unflatten(1, (draws, tokens, channels)).transpose(0, 1)

    def _drawn(self, ar_step: int, size: int) -> Tensor:
        """The first numbers of one AR step's streams [B, at least size]: drawn ahead, or now."""
        ahead, self._next = self._next, None
        if ahead is not None and ahead[0] == ar_step and (noise := ahead[1].result()).shape[1] >= size:
            return noise
        return self._fill(*self._empty(size), ar_step)

    def _fill(self, noise: Tensor, rows: np.ndarray, ar_step: int) -> Tensor:
        for row, seed in zip(rows, self.seeds, strict=True):
            self._stream(seed, 1 + ar_step).standard_normal(out=row, dtype=np.float32)
        return noise

    def _empty(self, size: int) -> tuple[Tensor, np.ndarray]:
        """Memory for the noise of an AR step, [B, size]; the caller's thread pins it, the other one uses no GPU."""
        if self._pinned:
            noise = torch.empty(len(self.seeds), size, device="cpu", pin_memory=True)
            return noise, noise.numpy()
        rows = np.empty((len(self.seeds), size), np.float32)
        return torch.from_numpy(rows), rows

    def orders(self, length: int) -> Tensor:
        """A random permutation of 0..length-1 per image: int64 [B, length]."""
        orders = torch.from_numpy(np.stack([self._stream(seed, 0).permutation(length) for seed in self.seeds]))
        return (orders.pin_memory() if self._pinned else orders).to(self.device, non_blocking=True)
