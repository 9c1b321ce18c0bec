"""Train xAR, or evaluate it with a fixed number of flow steps. See README.md in this folder."""

from __future__ import annotations

import argparse

from disa import Guidance, StepSchedule, flags
from disa.cli import run
from disa.commands import Family, run_family
from disa.flow import FLOW_SAMPLERS
from disa.sampling import Sampling


def family_parser(description: str) -> argparse.ArgumentParser:
    """The flags that eval.py has, too."""
    parser = flags.parser(description, model="xar_large", models=("xar_base", "xar_large", "xar_huge", "xar_fashion"))
    group = parser.add_argument_group("xAR")
    group.add_argument("--cells_per_side", default=2, type=int, help="cells a side of the latents; each is one AR step")
    group.add_argument("--flow_sampler", default="euler_maruyama", help=f"one of {', '.join(FLOW_SAMPLERS)}")
    group.add_argument("--temperature", default=1.0, type=float, help="factor on the noise that the sampler adds")
    return parser


def get_parser() -> argparse.ArgumentParser:
    parser = family_parser(__doc__.splitlines()[0])
    parser.add_argument("--num_sampling_steps", default="100", help="flow steps at every cell")
    parser.add_argument("--grad_clip", default=1.0, type=float, help="largest norm of the gradient; 0 does not clip")
    parser.add_argument("--num_iter", default=64, type=int, help="without effect: the cells are the AR steps")
    parser.set_defaults(cfg_schedule="cosine", min_lr=1e-5)
    return parser


def make_sampling(args: argparse.Namespace, schedule: StepSchedule) -> Sampling:
    # The released training script names a cosine schedule and computes the linear one.
    cfg_schedule = "linear" if args.cfg_schedule == "cosine" else args.cfg_schedule
    return Sampling(None, schedule, args.flow_sampler, Guidance(args.cfg, cfg_schedule), args.temperature, args.seed)


def fixed_steps(args: argparse.Namespace) -> StepSchedule:
    return StepSchedule(int(args.num_sampling_steps), int(args.num_sampling_steps), "constant")


FAMILY = Family(
    sampling=lambda args: make_sampling(args, fixed_steps(args)),
    model_flags={
        "img_size": "image_size",
        "vae_stride": "latent_stride",
        "vae_embed_dim": "latent_channels",
        "cells_per_side": "cells_per_side",
        "class_num": "num_classes",
    },
    training_flags={name: name for name in ("attn_dropout", "proj_dropout", "label_drop_prob")},
)


def main() -> None:
    run_family(get_parser(), FAMILY)


if __name__ == "__main__":
    run(main)
