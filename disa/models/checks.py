"""Checks of arguments that the models share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ..noise import NoiseSource

Arguments = Mapping[str, Any]  # Any: of several types
SHARES = ("attn_dropout", "proj_dropout", "label_drop_prob", "mask_ratio_min")


def check_arguments(arguments: Mapping[str, object]) -> None:
    """Refuse whole numbers below 1, and probabilities and ratios outside [0, 1].

    Args:
        arguments: of a model's constructor, by name (its `locals()`).

    Raises:
        ValueError: naming the argument.
    """
    for name, value in arguments.items():
        if name in SHARES:
            if not (isinstance(value, (int, float)) and 0 <= value <= 1):
                raise ValueError(f"{name} is {value}; it must be in [0, 1]")
        elif isinstance(value, int) and not isinstance(value, bool) and value < 1:
            raise ValueError(f"{name} is {value}; it must be at least 1")


def check_labels(labels: Tensor, num_classes: int) -> None:
    """Refuse labels [B] outside 0..num_classes-1; those on a GPU are not looked at, for that would wait for it.

    Raises:
        ValueError: naming both ranges.
    """
    if labels.device.type == "cpu" and len(labels) and not (int(labels.min()) >= 0 and int(labels.max()) < num_classes):
        raise ValueError(
            f"labels are in {int(labels.min())}..{int(labels.max())}; this model knows 0..{num_classes - 1}"
        )


def check_noise(noise: NoiseSource, batch: int) -> None:
    """Refuse a noise source with another number of seeds than images are asked for: some would be alike.

    Raises:
        ValueError: naming both numbers.
    """
    seeds = getattr(noise, "seeds", None)  # of `ImageNoise`
    if seeds is not None and len(seeds) != batch:
        raise ValueError(f"the noise has {len(seeds)} seeds, and {batch} images are asked for; give one per image")
