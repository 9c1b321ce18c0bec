"""Evaluate and train MAR, with and without diffusion step annealing. See README.md in this folder."""

from __future__ import annotations

import argparse

from disa import Guidance, StepSchedule, flags
from disa.cli import run
from disa.commands import Family, run_family
from disa.diffusion import SAMPLERS
from disa.sampling import Sampling


def get_parser() -> argparse.ArgumentParser:
    models = ("mar_base", "mar_large", "mar_huge", "mar_fashion")
    parser = flags.parser(__doc__.splitlines()[0], model="mar_large", models=models, patches=True)
    group = parser.add_argument_group("MAR")
    group.add_argument("--buffer_size", default=64, type=int, help="slots for the class in front of the tokens")
    group.add_argument("--diffloss_d", default=12, type=int, help="depth of the diffusion head")
    group.add_argument("--diffloss_w", default=1536, type=int, help="width of the diffusion head")
    group.add_argument("--num_iter", default=64, type=int, help="AR steps")
    group.add_argument("--diff_sampler", default="default", help=f"one of {', '.join(SAMPLERS)}")
    group.add_argument("--diff_upper_steps", default=25, type=int, help="diffusion steps at the first AR step")
    group.add_argument("--diff_lower_steps", default=5, type=int, help="diffusion steps at the last AR step")
    group.add_argument("--diff_annealing_strategy", default="linear", help="linear, cosine, two-stage or constant")
    group.add_argument("--temperature", default=1.0, type=float, help="factor on the noise of diffusion steps")
    group.add_argument("--mask_ratio_min", default=0.7, type=float, help="smallest share of tokens masked in training")
    group.add_argument("--diffusion_batch_mul", default=1, type=int, help="noisy copies of each token in training")
    group.add_argument("--grad_clip", default=3.0, type=float, help="largest norm of the gradient; 0 does not clip")
    group.add_argument("--grad_checkpointing", action="store_true", help="compute activations again in the backward pass, to save memory")
    return parser


def get_sampling(args: argparse.Namespace) -> Sampling:
    schedule = StepSchedule(args.diff_upper_steps, args.diff_lower_steps, args.diff_annealing_strategy)
    return Sampling(args.num_iter, schedule, args.diff_sampler, Guidance(args.cfg, args.cfg_schedule), args.temperature, args.seed)


FAMILY = Family(
    sampling=get_sampling,
    model_flags={
        "img_size": "image_size",
        "vae_stride": "latent_stride",
        "vae_embed_dim": "latent_channels",
        "patch_size": "patch_size",
        "class_num": "num_classes",
        "buffer_size": "buffer_size",
        "diffloss_d": "head_depth",
        "diffloss_w": "head_width",
    },
    training_flags={
        name: name
        for name in ("attn_dropout", "proj_dropout", "label_drop_prob", "mask_ratio_min", "diffusion_batch_mul", "grad_checkpointing")
    },
    bundled_defaults={"diff_sampler": "DiSA"},
)


def main() -> None:
    run_family(get_parser(), FAMILY)


if __name__ == "__main__":
    run(main)
