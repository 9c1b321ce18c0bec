"""Registry: the name of a model -> its class and sizes."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..annealing import AnnealedModel
from .checks import Arguments
from .flowar import FlowAR
from .harmon import Harmon
from .mar import MAR
from .xar import XAR


@dataclass(frozen=True)
class ModelSpec:
    """What a name stands for.

    Attributes:
        build: the model's class.
        arguments: its arguments that differ from the class's defaults.
        vae: what its latents come from, a key of `VAES`.
        bundled: whether it is a small model of Fashion-MNIST that comes with the package.
    """

    build: type[MAR] | type[FlowAR] | type[XAR] | type[Harmon]
    arguments: Arguments
    vae: str = "kl16"
    bundled: bool = False

    @property
    def half(self) -> str:
        """The half-precision type that suits it: that of the released commands, or of Harmon's released weights."""
        return "bfloat16" if self.build is Harmon else "float16"


def _qwen2(width: int, depth: int, num_heads: int, mlp_width: int) -> Arguments:
    """Arguments of a Qwen2.5 configuration."""
    sizes = dict(hidden_size=width, num_hidden_layers=depth, num_attention_heads=num_heads, intermediate_size=mlp_width)
    shared = dict(vocab_size=151936, max_position_embeddings=32768, rope_theta=1e6, rms_norm_eps=1e-6)
    return {**sizes, "num_key_value_heads": 2, **shared}


_MAR_BASE = dict(width=768, depth=12, num_heads=12, head_depth=6, head_width=1024)
_MAR_LARGE = dict(width=1024, depth=16, num_heads=16, head_depth=8, head_width=1280)
_MAR_HUGE = dict(width=1280, depth=20, num_heads=16, head_depth=12, head_width=1536)
_FLOWAR_SMALL = dict(width=768, depth=6, num_heads=12, head_depth=2, head_width=1024, cross_attention=False)
_FLOWAR_LARGE = dict(width=1024, depth=8, num_heads=16, head_depth=12, head_width=1024)
_FLOWAR_HUGE = dict(width=1536, depth=15, num_heads=16, head_depth=12, head_width=1536)

_FASHION = dict(image_size=32, latent_stride=4, latent_channels=8, num_classes=10)
_MAR_FASHION = dict(
    **_FASHION, patch_size=1, buffer_size=4, width=144, depth=3, num_heads=4, head_depth=3, head_width=144
)
_FLOWAR_FASHION = dict(
    **dict(**_FASHION, scales=(1, 2, 4, 8), width=128, depth=2, num_heads=4),
    **dict(head_depth=2, head_width=128, cross_attention=False),
)
_XAR_FASHION = dict(**_FASHION, cells_per_side=2, width=128, depth=3, num_heads=4)
_QWEN2_FASHION = {
    **_qwen2(128, 3, 4, 384),
    **dict(vocab_size=512, max_position_embeddings=512, rope_theta=1e4),
    # Qwen2's 0.02 is for widths of a thousand: here, with it, a prompt would hardly reach the image.
    "initializer_range": 0.09,
}

MODELS: dict[str, ModelSpec] = {
    "mar": ModelSpec(MAR, {}),
    "mar_base": ModelSpec(MAR, _MAR_BASE),
    "mar_large": ModelSpec(MAR, _MAR_LARGE),
    "mar_huge": ModelSpec(MAR, _MAR_HUGE),
    "mar_fashion": ModelSpec(MAR, _MAR_FASHION, vae="fashion", bundled=True),
    "flowar": ModelSpec(FlowAR, {}),
    "flowar_small": ModelSpec(FlowAR, _FLOWAR_SMALL),
    "flowar_large": ModelSpec(FlowAR, _FLOWAR_LARGE),
    "flowar_huge": ModelSpec(FlowAR, _FLOWAR_HUGE),
    "flowar_fashion": ModelSpec(FlowAR, _FLOWAR_FASHION, vae="fashion", bundled=True),
    "xar": ModelSpec(XAR, {}),
    "xar_base": ModelSpec(XAR, dict(width=768, depth=8, num_heads=12)),
    "xar_large": ModelSpec(XAR, dict(width=1024, depth=16, num_heads=16)),
    "xar_huge": ModelSpec(XAR, dict(width=1280, depth=20, num_heads=16)),
    "xar_fashion": ModelSpec(XAR, _XAR_FASHION, vae="fashion", bundled=True),
    "harmon": ModelSpec(Harmon, {"mar": {}, "llm": {}}),
    "harmon_0.5b": ModelSpec(Harmon, {"mar": _MAR_BASE, "llm": _qwen2(896, 24, 14, 4864)}),
    "harmon_1.5b": ModelSpec(Harmon, {"mar": _MAR_HUGE, "llm": _qwen2(1536, 28, 12, 8960)}),
    "harmon_fashion": ModelSpec(Harmon, {"mar": _MAR_FASHION, "llm": _QWEN2_FASHION}, vae="fashion", bundled=True),
}


def build_model(name: str, **overrides: Any) -> AnnealedModel:  # Any: as `Arguments`
    """Build the model called `name` with random weights, in training mode.

    Args:
        name: a key of `MODELS`.
        overrides: arguments of the model's class that replace those of the name; of a part of a model (Harmon's `mar`
            and `llm`) those that they name.

    Raises:
        ValueError: the name or an override is unknown, or the sizes do not fit together.
    """
    if name not in MODELS:
        raise ValueError(f"model is {name!r}; allowed are {', '.join(MODELS)}")
    spec = MODELS[name]
    allowed = inspect.signature(spec.build).parameters
    if unknown := [key for key in overrides if key not in allowed]:
        raise ValueError(f"model {name} has no setting {', '.join(unknown)}; allowed are {', '.join(allowed)}")
    parts = {k: {**spec.arguments.get(k, {}), **v} for k, v in overrides.items() if isinstance(v, Mapping)}
    vae = {"vae": spec.vae} if "vae" in allowed else {}
    return spec.build(**{**vae, **spec.arguments, **overrides, **parts})
