"""Train FlowAR, or evaluate it with a fixed number of flow steps. See README.md in this folder."""

from __future__ import annotations

import argparse

from disa import Guidance, StepSchedule, flags
from disa.cli import run
from disa.commands import Family, run_family
from disa.flow import FLOW_SAMPLERS
from disa.sampling import Sampling


def family_parser(description: str) -> argparse.ArgumentParser:
    """The flags that eval.py has, too."""
    models = ("flowar_small", "flowar_large", "flowar_huge", "flowar_fashion")
    parser = flags.parser(description, model="flowar_large", models=models)
    group = parser.add_argument_group("FlowAR")
    group.add_argument(
        "--scales", default=(1, 2, 4, 8, 16), type=int, nargs="+", help="sides of the grids, the last being the latents' own"
    )
    group.add_argument("--diffloss_d", default=12, type=int, help="depth of the flow head")
    group.add_argument("--diffloss_w", default=1536, type=int, help="width of the flow head")
    group.add_argument("--guidance", default=0.9, type=float, help="flow time above which guidance is off (1 is noise, 0 is data)")
    group.add_argument("--flow_sampler", default="euler", help=f"one of {', '.join(FLOW_SAMPLERS)}")
    group.add_argument("--temperature", default=1.0, type=float, help="factor on the noise that the sampler euler_maruyama adds")
    group.add_argument("--grad_clip", default=3.0, type=float, help="largest norm of the gradient; 0 does not clip")
    group.add_argument("--buffer_size", default=0, type=int, help="without effect: the class is the first scale's input")
    return parser


def get_parser() -> argparse.ArgumentParser:
    parser = family_parser(__doc__.splitlines()[0])
    parser.add_argument("--num_step", default=25, type=int, help="flow steps at every scale")
    parser.add_argument("--use_checkpoint", action="store_true", help="compute activations again in the backward pass, to save memory")
    parser.set_defaults(lr_schedule="cosine", min_lr=1e-5)
    return parser


def make_sampling(args: argparse.Namespace, schedule: StepSchedule) -> Sampling:
    guidance = Guidance(args.cfg, args.cfg_schedule, args.guidance)
    return Sampling(None, schedule, args.flow_sampler, guidance, args.temperature, args.seed)


FAMILY = Family(
    sampling=lambda args: make_sampling(args, StepSchedule(args.num_step, args.num_step, "constant")),
    model_flags={
        "img_size": "image_size",
        "vae_stride": "latent_stride",
        "vae_embed_dim": "latent_channels",
        "scales": "scales",
        "class_num": "num_classes",
        "diffloss_d": "head_depth",
        "diffloss_w": "head_width",
    },
    training_flags={
        **{name: name for name in ("attn_dropout", "proj_dropout", "label_drop_prob")},
        "use_checkpoint": "grad_checkpointing",
    },
)


def main() -> None:
    run_family(get_parser(), FAMILY)


if __name__ == "__main__":
    run(main)
