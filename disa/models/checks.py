"""What every model refuses, in one sentence each."""

from __future__ import annotations

import math

from torch import Tensor


def check_sizes(**sizes: int) -> None:
    """Counts and widths are at least 1."""
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(f"{name} is {size}; it must be at least 1")


def check_shares(**shares: float) -> None:
    """Probabilities and ratios are in [0, 1]."""
    for name, share in shares.items():
        if not 0 <= share <= 1:
            raise ValueError(f"{name} is {share}; it must be in [0, 1]")


def check_labels(labels: Tensor, num_classes: int) -> None:
    """Labels [B] are known classes."""
    if len(labels) and not (int(labels.min()) >= 0 and int(labels.max()) < num_classes):
        raise ValueError(f"labels are in {int(labels.min())}..{int(labels.max())}; this model knows 0..{num_classes - 1}")


def check_temperature(temperature: float) -> None:
    """A factor on noise is a number that is not negative."""
    if not (math.isfinite(temperature) and temperature >= 0):
        raise ValueError(f"temperature is {temperature}; it must be a finite number ≥ 0")


def check_finite(result: Tensor, what: str = "latents") -> None:
    """A generation ended with numbers."""
    if not result.isfinite().all():
        raise FloatingPointError(
            f"generation ended with NaN or infinite {what}; check the checkpoint with `disa checkpoints verify`, or use --dtype float32"
        )
