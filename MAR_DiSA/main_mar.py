"""Evaluate and train MAR, with and without diffusion step annealing. See README.md in this folder."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from disa import Guidance, StepSchedule, build_model, distributed, flags, load_model
from disa.checkpoints import load_tokenizer
from disa.cli import run
from disa.diffusion import SAMPLERS
from disa.distributed import resolve_device
from disa.evaluation import Space, choose_spaces, evaluate
from disa.flags import DTYPES, parse
from disa.models import MODELS
from disa.models.mar import MAR
from disa.models.tokenizer import SpaceToDepth, Tokenizer
from disa.sampling import LabelSampler, Sampling
from disa.training.checkpoint import LAST
from disa.training.data import TrainingData, cached_data, fashion_data, image_folder_data
from disa.training.loop import settings_from_flags, train

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


# The architecture and the data of a bundled model are its name's.
BUNDLED_DEFAULTS = {
    name: {
        **{flag: entry.arguments[argument] for flag, argument in MODEL_FLAGS.items()},
        **{"vae_path": "", "data_path": "", "diff_sampler": "DiSA", "num_workers": 0},
    }
    for name, entry in MODELS.items()
    if entry.bundled
}


def get_sampling(args: argparse.Namespace) -> Sampling:
    schedule = StepSchedule(args.diff_upper_steps, args.diff_lower_steps, args.diff_annealing_strategy)
    return Sampling(args.num_iter, schedule, args.diff_sampler, Guidance(args.cfg, args.cfg_schedule), args.temperature, args.seed)


def say(text: str) -> None:
    """Print on one rank."""
    if distributed.is_main():
        print(text, flush=True)


def evaluation(args: argparse.Namespace, sampler: LabelSampler, spaces: Sequence[Space], folder: Path, step: int = 0) -> dict[str, Any]:
    """Generate and measure what `sampler` makes."""
    return evaluate(
        sampler,
        folder,
        spaces=spaces,
        settings={name: getattr(args, name) for name in ("model", *MODEL_FLAGS, "dtype")},
        num_images=args.num_images,
        batch_size=args.eval_bsz,
        keep_images=args.keep_images,
        log=Path(args.log_dir) / folder.name,
        step=step,
    )


def get_tokenizer(args: argparse.Namespace, device: torch.device) -> Tokenizer:
    """KL-16 from its file, or the small tokenizer of the bundled models."""
    tokenizer = SpaceToDepth(args.vae_stride) if MODELS[args.model].bundled else load_tokenizer(args.vae_path, args.vae_embed_dim)
    return tokenizer.to(device)


def get_data(args: argparse.Namespace, device: torch.device) -> TrainingData:
    """What the flags say to train on."""
    if args.use_cached and not args.cached_path:
        raise ValueError("--use_cached needs --cached_path, the folder that main_cache.py filled")
    if args.use_cached:
        return cached_data(args.cached_path)
    if MODELS[args.model].bundled:
        return fashion_data(SpaceToDepth(args.vae_stride), args.data_path or None)
    return image_folder_data(load_tokenizer(args.vae_path, args.vae_embed_dim).to(device), args.data_path, args.img_size)


def note_uneven_classes(args: argparse.Namespace) -> None:
    if rest := args.num_images % args.class_num:
        say(f"note: {args.num_images} images are not a multiple of {args.class_num} classes; the first {rest} get one more")


def run_evaluation(args: argparse.Namespace, device: torch.device) -> None:
    spaces, left_out = choose_spaces(args.metrics, args.features, args.reference, bundled=MODELS[args.model].bundled)
    for sentence in left_out:
        say(f"note: {sentence}")
    architecture = {argument: getattr(args, flag) for flag, argument in MODEL_FLAGS.items()}
    model = load_model(args.model, args.resume or None, **architecture).to(device, DTYPES[args.dtype])
    tokenizer = get_tokenizer(args, device).to(DTYPES[args.dtype])
    sampler = LabelSampler(model, tokenizer, get_sampling(args), device)
    note_uneven_classes(args)
    folder = Path(args.output_dir) / sampler.sampling.name()
    say(summary(evaluation(args, sampler, spaces, folder)))
    say(f"everything is in {folder}: results.json, samples.png{', images' if args.keep_images else ''}")


def summary(results: dict[str, Any]) -> str:
    """The results in a few lines."""
    seconds = results["seconds_per_image"]
    speed = (
        f"{seconds:.4g} seconds an image ({results['images_per_second']:.4g} images/s, first batch excluded)"
        if seconds
        else "too few images to time"
    )
    lines = [f"{results['num_images']} images, {results['head_evaluations']} head evaluations an image, {speed} on {results['device']}"]
    for scores in results["metrics"]:
        numbers = ", ".join(f"{name} {value:.4f}" for name, value in scores.items() if isinstance(value, float))
        lines.append(f"{scores['extractor']}: {numbers}")
    return "\n".join(lines)


def run_training(args: argparse.Namespace, device: torch.device) -> None:
    spaces = choose_spaces(args.metrics, args.features, args.reference, bundled=MODELS[args.model].bundled)[0] if args.online_eval else []
    torch.manual_seed(args.seed)
    arguments = {argument: getattr(args, flag) for flag, argument in MODEL_FLAGS.items()}
    model = build_model(args.model, **arguments, **{flag: getattr(args, flag) for flag in TRAINING_FLAGS})
    data = get_data(args, device)
    tokenizer = get_tokenizer(args, device) if args.online_eval else None

    def online(averaged: nn.Module, epoch: int) -> dict[str, float]:
        assert tokenizer is not None and isinstance(averaged, MAR)
        sampler = LabelSampler(averaged, tokenizer, get_sampling(args), device)
        results = evaluation(args, sampler, spaces, Path(args.output_dir) / "online" / f"epoch{epoch:04d}", epoch)
        return {
            f"{scores['extractor']}/{name}": value
            for scores in results["metrics"]
            for name, value in scores.items()
            if isinstance(value, float)
        }

    output = Path(args.output_dir)
    resume = Path(args.resume) if args.resume else None
    if resume is not None and resume.is_dir():
        resume = resume / LAST
    if resume is not None and not resume.is_file():
        raise FileNotFoundError(f"there is no checkpoint {resume} to resume from")
    parameters = sum(parameter.numel() for parameter in model.parameters())
    say(f"{parameters:,} parameters, {len(data.dataset):,} images, {distributed.world_size()} ranks on {device.type}")
    train(
        model,
        data.dataset,
        data.to_latents,
        settings_from_flags(args),
        device=device,
        output=output,
        log=Path(args.log_dir),
        args=args,
        resume=resume,
        evaluate=online if args.online_eval else None,
    )
    say(f"done; weights are in {output / LAST}")


def main() -> None:
    args = parse(get_parser(), BUNDLED_DEFAULTS)
    device = resolve_device(args.device)
    distributed.setup(device)
    try:
        (run_evaluation if args.evaluate else run_training)(args, device)
    finally:
        distributed.shutdown()


if __name__ == "__main__":
    run(main)
