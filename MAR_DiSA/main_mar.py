"""Evaluate and train MAR, with and without diffusion step annealing. See README.md in this folder."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from a checkout without installation, too

from disa import Guidance, ImageNoise, StepSchedule, StepTrace, build_model, distributed, flags  # noqa: E402
from disa.checkpoints import load_model, load_tokenizer  # noqa: E402
from disa.cli import run  # noqa: E402
from disa.diffusion import SAMPLERS  # noqa: E402
from disa.evaluation import Evaluation, evaluate  # noqa: E402
from disa.generation import image_seed  # noqa: E402
from disa.models import BUNDLED  # noqa: E402
from disa.training.data import training_data  # noqa: E402
from disa.training.loop import settings_from_flags, train  # noqa: E402

# flag -> argument of the model
MODEL_FLAGS = {
    "img_size": "image_size",
    "vae_stride": "latent_stride",
    "vae_embed_dim": "latent_channels",
    "patch_size": "patch_size",
    "class_num": "num_classes",
    "buffer_size": "buffer_size",
    "diffloss_d": "head_depth",
    "diffloss_w": "head_width",
}
TRAINING_FLAGS = ("attn_dropout", "proj_dropout", "label_drop_prob", "mask_ratio_min", "diffusion_batch_mul", "grad_checkpointing")


def get_parser() -> argparse.ArgumentParser:
    parser = flags.parser(__doc__.splitlines()[0], model="mar_large", models=("mar_base", "mar_large", "mar_huge", "mar_fashion"))
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


def bundled_defaults() -> dict[str, dict[str, object]]:
    """The architecture of a bundled model is its name's; its flags' defaults say so."""
    return {
        name: {**{flag: model.arguments[argument] for flag, argument in MODEL_FLAGS.items()}, "vae_path": "", "data_path": ""}
        for name, model in BUNDLED.items()
    }


class Generator:
    """Ids to images, with the settings that the flags ask for."""

    def __init__(self, args: argparse.Namespace, model: nn.Module, tokenizer: nn.Module, device: torch.device) -> None:
        self.args, self.model, self.tokenizer, self.device = args, model, tokenizer, device
        self.schedule = StepSchedule(args.diff_upper_steps, args.diff_lower_steps, args.diff_annealing_strategy)
        self.guidance = Guidance(args.cfg, args.cfg_schedule)
        self.traces: list[StepTrace] = []

    def __call__(self, ids: Sequence[int]) -> Tensor:
        """Images [B, C, H, W] in [-1, 1]."""
        self.traces = []
        latents = self.model.generate(
            torch.tensor([image_id % self.args.class_num for image_id in ids], device=self.device),
            num_iter=self.args.num_iter,
            schedule=self.schedule,
            sampler=self.args.diff_sampler,
            guidance=self.guidance,
            temperature=self.args.temperature,
            noise=ImageNoise([image_seed(self.args.seed, image_id) for image_id in ids], self.device),
            on_step=self.traces.append,
        )
        return self.tokenizer.decode(latents.to(next(self.model.parameters()).dtype))
