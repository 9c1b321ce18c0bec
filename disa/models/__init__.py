"""The models by name."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .mar import MAR


@dataclass(frozen=True)
class Entry:
    """What a name stands for.

    Attributes:
        build: the model's class.
        arguments: its arguments that differ from the class's defaults.
        bundled: whether its weights come with the package; such a model works on Fashion-MNIST, through `SpaceToDepth`.
    """

    build: type[MAR]
    arguments: Mapping[str, Any]
    bundled: bool = False


MODELS: dict[str, Entry] = {
    "mar": Entry(MAR, {}),
    "mar_base": Entry(MAR, {"width": 768, "depth": 12, "num_heads": 12, "head_depth": 6, "head_width": 1024}),
    "mar_large": Entry(MAR, {"width": 1024, "depth": 16, "num_heads": 16, "head_depth": 8, "head_width": 1280}),
    "mar_huge": Entry(MAR, {"width": 1280, "depth": 20, "num_heads": 16, "head_depth": 12, "head_width": 1536}),
    "mar_fashion": Entry(
        MAR,
        {
            "image_size": 32,
            "latent_stride": 4,
            "latent_channels": 16,
            "patch_size": 1,
            "num_classes": 10,
            "width": 144,
            "depth": 3,
            "num_heads": 4,
            "buffer_size": 4,
            "head_depth": 3,
            "head_width": 144,
        },
        bundled=True,
    ),
}


def build_model(name: str, **overrides: Any) -> MAR:
    """The model called `name`, with random weights, in training mode.

    Args:
        name: a key of `MODELS`.
        overrides: arguments of the model's class that replace those of the name.

    Raises:
        ValueError: the name or an override is unknown, or the sizes do not fit together.
    """
    if name not in MODELS:
        raise ValueError(f"model is {name!r}; allowed are {', '.join(MODELS)}")
    entry = MODELS[name]
    allowed = inspect.signature(entry.build).parameters
    unknown = [key for key in overrides if key not in allowed]
    if unknown:
        raise ValueError(f"model {name} has no setting {', '.join(unknown)}; allowed are {', '.join(allowed)}")
    return entry.build(**{**entry.arguments, **overrides})
