"""MAR, FlowAR and xAR at the command line: their flags, and what these say."""

from __future__ import annotations

import dataclasses
from argparse import Namespace

from .. import diffusion, flow
from ..acceleration.caching import Caching
from ..acceleration.feature_cache import Extrapolation
from ..generation.generators import Sampling
from ..grouping import Grouping
from ..guidance import Guidance
from ..schedule import StepSchedule
from .class_conditional import Family
from .flags import Group, add_cache_flags, add_feature_flags, add_grouping_flags, switch, value

# flag -> argument of the model, in the order that results.json has.
_LATENTS = {"img_size": "image_size", "vae_stride": "latent_stride", "vae_embed_dim": "latent_channels"}
_HEAD = {"diffloss_d": "head_depth", "diffloss_w": "head_width"}
_DROPOUT = {name: name for name in ("attn_dropout", "proj_dropout", "label_drop_prob")}
_CLIP = "largest norm of the gradient; 0 does not clip"
_CHECKPOINTING = "compute activations again in the backward pass, to save memory"


def _add_head(group: Group, kind: str) -> None:
    value(group, "--diffloss_d", 12, f"depth of the {kind} head")
    value(group, "--diffloss_w", 1536, f"width of the {kind} head")


def _add_schedule(group: Group, flag: str, upper: int, lower: int, steps: str, ar_step: str) -> None:
    value(group, f"--{flag}_upper_steps", upper, f"{steps} at the first {ar_step}")
    value(group, f"--{flag}_lower_steps", lower, f"{steps} at the last {ar_step}; as many as upper: no annealing")
    value(group, f"--{flag}_annealing_strategy", "linear", "linear, cosine, two-stage, constant or even")


def _annealed(args: Namespace, flag: str) -> StepSchedule:
    names = ("upper_steps", "lower_steps", "annealing_strategy")
    return _loaded(args) or StepSchedule(*(getattr(args, f"{flag}_{name}") for name in names))


def _guidance(args: Namespace, schedule: str) -> Guidance:
    return Guidance(args.cfg, schedule, args.guidance, args.guidance_min_time, args.skip_guidance_below)


def _fixed(args: Namespace, count: int) -> StepSchedule:
    return _loaded(args) or StepSchedule(count, count, "constant")


def _loaded(args: Namespace) -> StepSchedule | None:
    return StepSchedule.load(args.step_schedule) if args.step_schedule else None


def _add_mar_flags(group: Group) -> None:
    value(group, "--buffer_size", 64, "slots for the class in front of the tokens")
    _add_head(group, "diffusion")
    value(group, "--num_iter", 64, "AR steps")
    add_grouping_flags(group)
    add_cache_flags(group)
    value(group, "--guidance", 1.0, "diffusion time above which guidance is off (1 is noise, 0 is data)")
    value(group, "--diff_sampler", "default", f"one of {', '.join(diffusion.SOLVERS)}")
    _add_schedule(group, "diff", 25, 5, "diffusion steps", "AR step")
    value(group, "--temperature", 1.0, "factor on the noise of diffusion steps")
    value(group, "--mask_ratio_min", 0.7, "smallest share of tokens masked in training")
    value(group, "--diffusion_batch_mul", 1, "noisy copies of each token in training")
    value(group, "--grad_clip", 3.0, _CLIP)
    switch(group, "--grad_checkpointing", _CHECKPOINTING)


def _mar_sampling(args: Namespace) -> Sampling:
    schedule, guidance = _annealed(args, "diff"), _guidance(args, args.cfg_schedule)
    settings = args.diff_sampler, guidance, args.temperature, args.seed
    grouping = Grouping(args.token_order, args.tokens_per_step)
    caching = Caching(args.cache_tokens, args.cache_conditions, args.cache_first)
    return Sampling(args.num_iter, schedule, *settings, grouping, caching=caching)


_MAR_SHAPE = {"patch_size": "patch_size", "class_num": "num_classes", "buffer_size": "buffer_size"}
MAR = Family(
    "MAR",
    "Evaluate and train MAR, with and without diffusion step annealing.",
    _add_mar_flags,
    _mar_sampling,
    model_flags={**_LATENTS, **_MAR_SHAPE, **_HEAD},
    training_flags=_DROPOUT | {name: name for name in ("mask_ratio_min", "diffusion_batch_mul", "grad_checkpointing")},
)


def _add_flowar_flags(group: Group) -> None:
    text = "sides of the grids, the last being the latents' own"
    group.add_argument("--scales", default=(1, 2, 4, 8, 16), type=int, nargs="+", help=text)
    _add_head(group, "flow")
    value(group, "--guidance", 0.9, "flow time above which guidance is off (1 is noise, 0 is data)")
    value(group, "--flow_sampler", "euler", f"one of {', '.join(flow.SOLVERS)}")
    value(group, "--temperature", 1.0, "factor on the noise that the solver euler_maruyama adds")
    add_feature_flags(group)
    value(group, "--grad_clip", 3.0, _CLIP)
    value(group, "--buffer_size", 0, "without effect: the class is the first scale's input")


def _add_flowar_training_flags(group: Group) -> None:
    _add_flowar_flags(group)
    value(group, "--num_step", 25, "flow steps at every scale")
    switch(group, "--use_checkpoint", _CHECKPOINTING)
    group.set_defaults(lr_schedule="cosine", min_lr=1e-5)


def _add_flowar_eval_flags(group: Group) -> None:
    _add_flowar_flags(group)
    _add_schedule(group, "flow", 50, 15, "flow steps", "scale")
    group.set_defaults(evaluate=True)


def _flowar_sampling(args: Namespace, schedule: StepSchedule) -> Sampling:
    return _flow_sampling(args, schedule, _guidance(args, args.cfg_schedule))


def _flow_sampling(args: Namespace, schedule: StepSchedule, guidance: Guidance) -> Sampling:
    extrapolation = Extrapolation(args.feature_every, args.feature_order, args.feature_fresh)
    settings = args.flow_sampler, guidance, args.temperature, args.seed
    return Sampling(None, schedule, *settings, extrapolation=extrapolation)


FLOWAR = Family(
    "FlowAR",
    "Train FlowAR, or evaluate it with a fixed number of flow steps.",
    _add_flowar_training_flags,
    lambda args: _flowar_sampling(args, _fixed(args, args.num_step)),
    model_flags={**_LATENTS, "scales": "scales", "class_num": "num_classes", **_HEAD},
    training_flags={**_DROPOUT, "use_checkpoint": "grad_checkpointing"},
    fixed="num_step",
)
FLOWAR_EVAL = dataclasses.replace(
    FLOWAR,
    description="Evaluate FlowAR, with and without diffusion step annealing.",
    add_flags=_add_flowar_eval_flags,
    sampling=lambda args: _flowar_sampling(args, _annealed(args, "flow")),
    fixed="",
)


def _add_xar_flags(group: Group) -> None:
    value(group, "--cells_per_side", 2, "cells per side of the latents; each is one AR step")
    value(group, "--guidance", 1.0, "flow time above which guidance is off (1 is noise, 0 is data)")
    value(group, "--flow_sampler", "euler_maruyama", f"one of {', '.join(flow.SOLVERS)}")
    value(group, "--temperature", 1.0, "factor on the noise that the solver adds")
    add_feature_flags(group)


def _add_xar_training_flags(group: Group) -> None:
    _add_xar_flags(group)
    group.add_argument("--num_sampling_steps", default="100", type=int, help="flow steps at every cell")
    value(group, "--grad_clip", 1.0, _CLIP)
    value(group, "--num_iter", 64, "without effect: the cells are the AR steps")
    group.set_defaults(cfg_schedule="cosine", min_lr=1e-5)


def _add_xar_eval_flags(group: Group) -> None:
    _add_xar_flags(group)
    _add_schedule(group, "flow", 50, 15, "flow steps", "cell")
    group.set_defaults(evaluate=True)


def _xar_sampling(args: Namespace, schedule: StepSchedule) -> Sampling:
    # The released training script names a cosine schedule and computes the linear one.
    return _flow_sampling(
        args, schedule, _guidance(args, "linear" if args.cfg_schedule == "cosine" else args.cfg_schedule)
    )


XAR = Family(
    "xAR",
    "Train xAR, or evaluate it with a fixed number of flow steps.",
    _add_xar_training_flags,
    lambda args: _xar_sampling(args, _fixed(args, args.num_sampling_steps)),
    model_flags={**_LATENTS, "cells_per_side": "cells_per_side", "class_num": "num_classes"},
    training_flags=_DROPOUT,
    fixed="num_sampling_steps",
)
XAR_EVAL = dataclasses.replace(
    XAR,
    description="Evaluate xAR, with and without diffusion step annealing.",
    add_flags=_add_xar_eval_flags,
    sampling=lambda args: _xar_sampling(args, _annealed(args, "flow")),
    fixed="",
)
