"""Where the time goes on a device that works asynchronously."""

from __future__ import annotations

import contextlib
import time
from collections import defaultdict
from collections.abc import Iterator

import torch

from .devices import synchronize


class Stopwatch:
    """Seconds spent so far in parts of a program, which do not overlap: `seconds`, by part."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds: dict[str, float] = defaultdict(float)

    @contextlib.contextmanager
    def __call__(self, part: str) -> Iterator[None]:
        """Count what happens in this context as `part`, `device` having finished what came before and what is in it."""
        synchronize(self.device)
        start = time.perf_counter()
        yield
        synchronize(self.device)
        self.seconds[part] += time.perf_counter() - start
