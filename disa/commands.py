"""Evaluation and training from the command line, alike for every class-conditional family."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from . import distributed
from .checkpoints import load_model, load_tokenizer
from .distributed import resolve_device
from .evaluation import evaluate
from .flags import DTYPES, parse
from .models import MODELS, build_model
from .models.tokenizer import SpaceToDepth, Tokenizer
from .sampling import LabelSampler, Sampling
from .spaces import Space, choose_spaces
from .training.checkpoint import LAST, find_checkpoint
from .training.data import TrainingData, cached_data, fashion_data, image_folder_data
from .training.loop import settings_from_flags, train


@dataclass(frozen=True)
class Family:
    """What the commands of one family differ in.

    Attributes:
        sampling: the parsed flags -> the settings of a generation.
        model_flags: flag -> the model's argument, of what shapes the model.
        training_flags: the same, of what matters in training alone.
        bundled_defaults: for the models that come with the package, flags' defaults besides the model's own.
    """

    sampling: Callable[[argparse.Namespace], Sampling]
    model_flags: Mapping[str, str]
    training_flags: Mapping[str, str]
    bundled_defaults: Mapping[str, Any] = field(default_factory=dict)

    def defaults(self) -> dict[str, dict[str, Any]]:
        """Defaults by model: the architecture and the data of a bundled model are its name's."""
        return {
            name: {
                **{flag: entry.arguments[argument] for flag, argument in self.model_flags.items() if argument in entry.arguments},
                **{"vae_path": "", "data_path": "", "num_workers": 0},
                **self.bundled_defaults,
            }
            for name, entry in MODELS.items()
            if entry.bundled
        }


def run_family(parser: argparse.ArgumentParser, family: Family, argv: Sequence[str] | None = None) -> None:
    """Evaluate or train, as the flags say."""
    args = parse(parser, family.defaults(), argv)
    device = resolve_device(args.device)
    distributed.setup(device)
    (run_evaluation if args.evaluate else run_training)(args, family, device)
    distributed.shutdown()


def say(text: str) -> None:
    """Print on one rank."""
    if distributed.is_main():
        print(text, flush=True)


def evaluation(
    args: argparse.Namespace, family: Family, sampler: LabelSampler, spaces: Sequence[Space], folder: Path, dtype: str, log: Path | None
) -> dict[str, Any]:
    """Generate and measure what `sampler` makes, in `dtype`."""
    return evaluate(
        sampler,
        folder,
        spaces=spaces,
        settings={**{name: getattr(args, name) for name in ("model", *family.model_flags)}, "dtype": dtype},
        num_images=args.num_images,
        batch_size=args.eval_bsz,
        keep_images=args.keep_images,
        log=log,
    )


def get_spaces(args: argparse.Namespace) -> tuple[list[Space], list[str]]:
    """What to measure, and what was left out; chosen on one rank, for what is possible may need a download."""
    return distributed.on_main(lambda: choose_spaces(args.metrics, args.features, args.reference, bundled=MODELS[args.model].bundled))


def get_tokenizer(args: argparse.Namespace, device: torch.device) -> Tokenizer:
    """KL-16 from its file, or the small tokenizer of the bundled models."""
    tokenizer = SpaceToDepth(args.vae_stride) if MODELS[args.model].bundled else load_tokenizer(args.vae_path, args.vae_embed_dim)
    return tokenizer.to(device)


def get_data(args: argparse.Namespace, device: torch.device) -> TrainingData:
    """What the flags say to train on.

    Raises:
        ValueError: it does not fit the flags.
        FileNotFoundError: it is not there.
    """
    data = _open_data(args, device)
    classes = len(getattr(data.dataset, "classes", ()))
    if classes > args.class_num:
        raise ValueError(f"the data has {classes} class folders; the model has --class_num {args.class_num}")
    if args.use_cached:
        side, found = args.img_size // args.vae_stride, data.dataset[0][0].shape
        if found[1:] != (2 * args.vae_embed_dim, side, side):
            raise ValueError(
                f"the cached latents' moments are {list(found[1:])}; {[2 * args.vae_embed_dim, side, side]} are needed, cache again"
            )
    return data


def _open_data(args: argparse.Namespace, device: torch.device) -> TrainingData:
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


def run_evaluation(args: argparse.Namespace, family: Family, device: torch.device) -> None:
    """Images of a checkpoint, and their scores."""
    spaces, left_out = get_spaces(args)
    if left_out and not spaces and not args.keep_images:
        raise ValueError(f"{'; '.join(left_out)}; mend that, or give --keep_images, or --metrics none for times and samples alone")
    for sentence in left_out:
        say(f"note: {sentence}")
    architecture = {argument: getattr(args, flag) for flag, argument in family.model_flags.items()}
    model = load_model(args.model, args.resume or None, **architecture).to(device, DTYPES[args.dtype])
    tokenizer = get_tokenizer(args, device).to(DTYPES[args.dtype])
    sampler = LabelSampler(model, tokenizer, family.sampling(args), device)
    note_uneven_classes(args)
    folder = Path(args.output_dir) / sampler.sampling.name()
    say(summary(evaluation(args, family, sampler, spaces, folder, args.dtype, Path(args.log_dir) / folder.name)))
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
    if results["fractions"]:
        lines.append("time: " + ", ".join(f"{part} {100 * share:.1f} %" for part, share in results["fractions"].items()))
    for scores in results["metrics"]:
        numbers = ", ".join(f"{name} {value:.4f}" for name, value in scores.items() if isinstance(value, float))
        lines.append(f"{scores['extractor']}: {numbers}")
    return "\n".join(lines)


def run_training(args: argparse.Namespace, family: Family, device: torch.device) -> None:
    """Train, from scratch or from where an earlier run stopped."""
    spaces = get_spaces(args)[0] if args.online_eval else []
    torch.manual_seed(args.seed)
    flags = {**family.model_flags, **family.training_flags}
    model = build_model(args.model, **{argument: getattr(args, flag) for flag, argument in flags.items()})
    data = get_data(args, device)
    tokenizer = get_tokenizer(args, device) if args.online_eval else None

    def online(averaged: nn.Module, epoch: int) -> dict[str, float]:
        assert tokenizer is not None
        sampler = LabelSampler(averaged, tokenizer, family.sampling(args), device)
        # The weights are float32 whatever the forward passes of training are; the training's own log gets the scores.
        results = evaluation(args, family, sampler, spaces, Path(args.output_dir) / "online" / f"epoch{epoch:04d}", "float32", None)
        return {
            f"{scores['extractor']}/{name}": value
            for scores in results["metrics"]
            for name, value in scores.items()
            if isinstance(value, float)
        }

    output = Path(args.output_dir)
    resume = find_checkpoint(args.resume) if args.resume else None
    parameters = sum(parameter.numel() for parameter in model.parameters())
    say(f"{parameters:,} parameters, {len(data.dataset):,} images, {distributed.world_size()} ranks on {device.type}")
    train(
        model,
        data.dataset,
        data.prepare,
        settings_from_flags(args),
        device=device,
        output=output,
        log=Path(args.log_dir),
        args=args,
        resume=resume,
        evaluate=online if args.online_eval else None,
    )
    say(f"done; weights are in {output / LAST}")
