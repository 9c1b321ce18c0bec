"""The models by name."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .flowar import FlowAR
from .mar import MAR
from .xar import XAR


@dataclass(frozen=True)
class Entry:
    """What a name stands for.

    Attributes:
        build: the model's class.
        arguments: its arguments that differ from the class's defaults.
        bundled: a small model of Fashion-MNIST, whose latents are `SpaceToDepth`'s, to come with the package.
    """

    build: type[MAR] | type[FlowAR] | type[XAR]
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
            **{"image_size": 32, "latent_stride": 4, "latent_channels": 16, "patch_size": 1, "num_classes": 10, "buffer_size": 4},
            **{"width": 144, "depth": 3, "num_heads": 4, "head_depth": 3, "head_width": 144},
        },
        bundled=True,
    ),
    "flowar": Entry(FlowAR, {}),
    "flowar_small": Entry(
        FlowAR, {"width": 768, "depth": 6, "num_heads": 12, "head_depth": 2, "head_width": 1024, "cross_attention": False}
    ),
    "flowar_large": Entry(FlowAR, {"width": 1024, "depth": 8, "num_heads": 16, "head_depth": 12, "head_width": 1024}),
    "flowar_huge": Entry(FlowAR, {"width": 1536, "depth": 15, "num_heads": 16, "head_depth": 12, "head_width": 1536}),
    "flowar_fashion": Entry(
        FlowAR,
        {
            **{"image_size": 32, "latent_stride": 4, "latent_channels": 16, "scales": (1, 2, 4, 8), "num_classes": 10},
            **{"width": 128, "depth": 3, "num_heads": 4, "head_depth": 3, "head_width": 128, "cross_attention": False},
        },
        bundled=True,
    ),
    "xar": Entry(XAR, {}),
    "xar_base": Entry(XAR, {"width": 768, "depth": 8, "num_heads": 12}),
    "xar_large": Entry(XAR, {"width": 1024, "depth": 16, "num_heads": 16}),
    "xar_huge": Entry(XAR, {"width": 1280, "depth": 20, "num_heads": 16}),
    "xar_fashion": Entry(
        XAR,
        {
            **{"image_size": 32, "latent_stride": 4, "latent_channels": 16, "cells_per_side": 2, "num_classes": 10},
            **{"width": 128, "depth": 4, "num_heads": 4},
        },
        bundled=True,
    ),
}


def build_model(name: str, **overrides: Any) -> Any:  # the name says which class
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
