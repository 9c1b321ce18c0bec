"""Evaluation and training of a class-conditional family from the command line."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import nn

from ..acceleration import Acceleration
from ..generation.generators import LabelGenerator, LabelModel, Sampling
from ..models import MODELS, build_model
from ..models.vae import VAE, SpaceToDepth
from ..runtime import distributed
from ..runtime.devices import DTYPES, resolve_dtype
from ..runtime.distributed import print_main
from ..runtime.start import announce, start
from ..training.checkpoint import LAST, find_checkpoint
from ..training.data import TrainingData, cached_data, fashion_data, image_folder_data
from ..training.loop import train
from ..training.optimization import TrainingSettings
from ..weights.load import load_model, load_vae
from .flags import Group, parser

if TYPE_CHECKING:  # evaluation needs disa[eval], training does not
    from ..evaluation.plan import MetricSpec
    from ..evaluation.results import Results


@dataclass(frozen=True)
class Family:
    """One command of a family.

    Attributes:
        name: of the family; the names of its models begin with it.
        description: of the command.
        add_flags: adds the flags that other families lack.
        sampling: the parsed flags -> the settings of a generation.
        model_flags: flag -> argument of the model, of what shapes the model.
        training_flags: the same, of what matters in training alone.
        bundled_defaults: defaults of flags for the models that come with the package, besides those of `model_flags`.
    """

    name: str
    description: str
    add_flags: Callable[[Group], None]
    sampling: Callable[[Namespace], Sampling]
    model_flags: Mapping[str, str]
    training_flags: Mapping[str, str]
    bundled_defaults: Mapping[str, object] = field(default_factory=dict)

    def get_parser(self) -> ArgumentParser:
        prefix, description = f"{self.name.lower()}_", f"{self.description} See README.md in this folder."
        models = [name for name in MODELS if name.startswith(prefix)]
        result = parser(description, f"{prefix}large", models, patches="patch_size" in self.model_flags)
        self.add_flags(result.add_argument_group(self.name))
        return result

    def parse(self, argv: Sequence[str] | None = None) -> Namespace:
        """Parse flags; a bundled model brings defaults of its own."""
        result, first = self.get_parser(), ArgumentParser(add_help=False)
        first.add_argument("--model", default=result.get_default("model"))
        spec = MODELS.get(first.parse_known_args(argv)[0].model)
        if spec and spec.bundled:
            own = {flag: spec.arguments[name] for flag, name in self.model_flags.items() if name in spec.arguments}
            result.set_defaults(**own, vae_path="", data_path="", num_workers=0, **self.bundled_defaults)
        return result.parse_args(argv)

    def arguments(self, args: Namespace, *, training: bool = False) -> dict[str, Any]:  # Any: of several types
        """Return the arguments of the model that the flags give."""
        flags = {**self.model_flags, **(self.training_flags if training else {})}
        return {argument: getattr(args, flag) for flag, argument in flags.items()}

    def main(self, argv: Sequence[str] | None = None) -> None:
        """Evaluate or train, as the flags say."""
        args = self.parse(argv)
        device = start(args.device)
        args.dtype = resolve_dtype(args.dtype, device, MODELS[args.model].half)
        (run_evaluation if args.evaluate else run_training)(args, self, device)
        distributed.shutdown()


def run_evaluation(args: Namespace, family: Family, device: torch.device) -> None:
    """Generate images with the weights of a checkpoint, and measure them."""
    specs, left_out = get_specs(args)
    if left_out and not specs and not args.keep_images:
        advice = "mend that, or give --keep_images, or --metrics none for times and samples alone"
        raise ValueError(f"{'; '.join(left_out)}; {advice}")
    for sentence in left_out:
        print_main(f"note: {sentence}")
    acceleration = Acceleration(args.compile, args.graphs)
    acceleration.check(device)
    dtype, name = DTYPES[args.dtype], family.sampling(args).name()
    model = load_model(args.model, args.resume or None, **family.arguments(args)).to(device, dtype)
    vae = get_vae(args).to(device, dtype)
    if rest := args.num_images % args.class_num:
        uneven = f"{args.num_images} images are not a multiple of {args.class_num} classes"
        print_main(f"note: {uneven}; the first {rest} get one more")
    folder, log = Path(args.output_dir, name), Path(args.log_dir, name)
    announce(device, args.dtype)
    share = -(-args.num_images // distributed.world_size())
    for sentence in acceleration.apply(model, vae, device=device, batch_size=args.eval_bsz, images=share):
        print_main(sentence)
    print_main(_evaluate(args, family, model, vae, specs, folder, log).summary())
    print_main(f"everything is in {folder}: results.json, samples.png{', images' if args.keep_images else ''}")


def run_training(args: Namespace, family: Family, device: torch.device) -> None:
    """Train, from scratch or from where an earlier run stopped."""
    specs, settings = get_specs(args)[0] if args.online_eval else [], settings_from_flags(args)
    if args.online_eval:
        family.sampling(args).schedule.check(weights="those in training")
    torch.manual_seed(args.seed)
    model = build_model(args.model, **family.arguments(args, training=True))
    resume = find_checkpoint(args.resume) if args.resume else None
    output, data = Path(args.output_dir), get_data(args, device)
    vae = get_vae(args).to(device) if args.online_eval else None

    def online(averaged: nn.Module, epoch: int) -> dict[str, float]:
        assert vae is not None
        autocast = None if settings.dtype == torch.float32 else settings.dtype  # as in training
        folder = output / "online" / f"epoch{epoch:04d}"
        results = _evaluate(args, family, averaged, vae, specs, folder, autocast=autocast)
        return {f"{one.extractor}/{name}": score for one in results.metrics for name, score in one.numbers().items()}

    print_main(f"{sum(one.numel() for one in model.parameters()):,} parameters, {len(data.dataset):,} images")
    train(
        model,
        data.dataset,
        data.prepare,
        settings,
        device=device,
        output=output,
        log=Path(args.log_dir),
        args=args,
        resume=resume,
        evaluate=online if args.online_eval else None,
    )
    print_main(f"done; weights are in {output / LAST}")


def _evaluate(
    args: Namespace,
    family: Family,
    model: nn.Module,
    vae: VAE,
    specs: Sequence[MetricSpec],
    folder: Path,
    log: Path | None = None,
    autocast: torch.dtype | None = None,
) -> Results:
    from ..evaluation.run import evaluate

    weights = next(model.parameters())
    settings = {name: getattr(args, name) for name in ("model", *family.model_flags)}
    dtype = str(autocast or weights.dtype).removeprefix("torch.") + " autocast" * (autocast is not None)
    return evaluate(
        LabelGenerator(cast(LabelModel, model), vae, family.sampling(args), weights.device, autocast),
        folder,
        specs=specs,
        settings={**settings, "dtype": dtype},
        num_images=args.num_images,
        batch_size=args.eval_bsz,
        keep_images=args.keep_images,
        log=log,
    )


def get_specs(args: Namespace) -> tuple[list[MetricSpec], list[str]]:
    """Choose what to measure, and say what is left out; on one rank, for what is possible may need a download."""
    from ..evaluation.plan import plan_metrics

    bundled = MODELS[args.model].bundled
    return distributed.on_main(lambda: plan_metrics(args.metrics, args.features, args.reference, bundled=bundled))


def get_vae(args: Namespace) -> VAE:
    """Load KL-16, or build the stand-in of the bundled models."""
    if MODELS[args.model].bundled:
        return SpaceToDepth(args.vae_stride)
    return load_vae(args.vae_path, args.vae_embed_dim)


def get_data(args: Namespace, device: torch.device) -> TrainingData:
    """Open what the flags say to train on.

    Raises:
        ValueError: it does not fit the flags.
        FileNotFoundError: it is not there.
    """
    if not args.use_cached:
        vae = get_vae(args).to(device)
        if isinstance(vae, SpaceToDepth):
            return fashion_data(vae, args.data_path or None)
        data = image_folder_data(vae, args.data_path, args.img_size)
    elif args.cached_path:
        data = cached_data(args.cached_path)
        side = args.img_size // args.vae_stride
        found, needed = list(data.dataset[0][0].shape[1:]), [2 * args.vae_embed_dim, side, side]
        if found != needed:
            raise ValueError(f"the cached latents' moments are {found}; {needed} are needed, cache again")
    else:
        raise ValueError("--use_cached needs --cached_path, the folder that main_cache.py filled")
    classes = len(getattr(data.dataset, "classes", ()))
    if classes > args.class_num:
        raise ValueError(f"the data has {classes} class folders; the model has --class_num {args.class_num}")
    return data


def settings_from_flags(args: Namespace) -> TrainingSettings:
    """Return the settings of training that the flags give."""
    renamed = {"save_epochs": args.save_last_freq, "eval_epochs": args.eval_freq, "pin_memory": args.pin_mem}
    renamed["dtype"] = DTYPES[args.dtype]
    same = {one.name: getattr(args, one.name) for one in fields(TrainingSettings) if one.name not in renamed}
    return TrainingSettings(**same, **renamed)
