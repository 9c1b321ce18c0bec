"""The models by name."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .flowar import FlowAR
from .harmon import Harmon
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

    build: type[MAR] | type[FlowAR] | type[XAR] | type[Harmon]
    arguments: Mapping[str, Any]
    bundled: bool = False


def _qwen2(width: int, depth: int, num_heads: int, mlp_width: int) -> dict[str, Any]:
    """Of Qwen2.5's configurations, what the sizes differ in and what they share."""
    return {
        **{"hidden_size": width, "num_hidden_layers": depth, "num_attention_heads": num_heads, "intermediate_size": mlp_width},
        **{"num_key_value_heads": 2, "vocab_size": 151936, "max_position_embeddings": 32768},
        **{"rope_theta": 1e6, "rms_norm_eps": 1e-6},
    }


_MAR_BASE = {"width": 768, "depth": 12, "num_heads": 12, "head_depth": 6, "head_width": 1024}
_MAR_LARGE = {"width": 1024, "depth": 16, "num_heads": 16, "head_depth": 8, "head_width": 1280}
_MAR_HUGE = {"width": 1280, "depth": 20, "num_heads": 16, "head_depth": 12, "head_width": 1536}
_MAR_FASHION = {
    **{"image_size": 32, "latent_stride": 4, "latent_channels": 16, "patch_size": 1, "num_classes": 10, "buffer_size": 4},
    **{"width": 144, "depth": 3, "num_heads": 4, "head_depth": 3, "head_width": 144},
}

MODELS: dict[str, Entry] = {
    "mar": Entry(MAR, {}),
    "mar_base": Entry(MAR, _MAR_BASE),
    "mar_large": Entry(MAR, _MAR_LARGE),
    "mar_huge": Entry(MAR, _MAR_HUGE),
    "mar_fashion": Entry(MAR, _MAR_FASHION, bundled=True),
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
            **{"width": 128, "depth": 2, "num_heads": 4, "head_depth": 2, "head_width": 128, "cross_attention": False},
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
            **{"width": 128, "depth": 3, "num_heads": 4},
        },
        bundled=True,
    ),
    "harmon": Entry(Harmon, {"mar": {}, "llm": {}}),
    "harmon_0.5b": Entry(Harmon, {"mar": _MAR_BASE, "llm": _qwen2(896, 24, 14, 4864)}),
    "harmon_1.5b": Entry(Harmon, {"mar": _MAR_HUGE, "llm": _qwen2(1536, 28, 12, 8960)}),
    "harmon_fashion": Entry(
        Harmon,
        {
            "mar": _MAR_FASHION,
            "llm": {
                **{**_qwen2(128, 3, 4, 384), "vocab_size": 512, "max_position_embeddings": 512, "rope_theta": 1e4},
                # Qwen2's 0.02 is for widths of a thousand: here, with it, what a prompt says would vanish on its way to the image.
                "initializer_range": 0.09,
            },
            "image_tokenizer": "space_to_depth",
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
    # An override of a part of a model (Harmon's `mar` and `llm`) changes what it names there.
    nested = {key: {**entry.arguments.get(key, {}), **value} for key, value in overrides.items() if isinstance(value, Mapping)}
    return entry.build(**{**entry.arguments, **overrides, **nested})
