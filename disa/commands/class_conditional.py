"""Evaluation and training of a class-conditional family from the command line."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import nn

from ..acceleration import Acceleration
from ..data.fashion import fashion_mnist
from ..generation.generators import LabelGenerator, LabelModel, Sampling
from ..generation.images import check_counts
from ..models import MODELS, build_model
from ..models.mar import MAR
from ..models.vae import VAE
from ..runtime import distributed
from ..runtime.devices import DTYPES, resolve_dtype
from ..runtime.distributed import print_main
from ..runtime.files import check_folder
from ..runtime.start import announce, start
from ..runtime.tracking import check_tracker
from ..solver import get_solver
from ..tables.recipes import bundled_settings
from ..training.checkpoint import LAST, find_checkpoint
from ..training.data import TrainingData, cached_data, class_folders, fashion_data, image_folder_data
from ..training.loop import train
from ..training.optimization import TrainingSettings
from ..weights.load import find_model, find_vae, load_bundled_vae, load_model, load_vae
from .flags import Group, Parser, naming_flags, parser

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
        fixed: the flag of the count of flow steps at every AR step; none where there is an upper and a lower one.
        prog: what the command is called, where it is not a script.
    """

    name: str
    description: str
    add_flags: Callable[[Group], None]
    sampling: Callable[[Namespace], Sampling]
    model_flags: Mapping[str, str]
    training_flags: Mapping[str, str]
    fixed: str = ""
    prog: str | None = None

    def get_parser(self) -> Parser:
        prefix = f"{self.name.lower()}_"
        description = self.description + " See README.md in this folder." * (self.prog is None)
        models = [name for name in MODELS if name.startswith(prefix)]
        result = parser(description, f"{prefix}large", models, patches="patch_size" in self.model_flags)
        result.prog = self.prog or result.prog
        self.add_flags(result.add_argument_group(self.name))
        return result

    def parse(self, argv: Sequence[str] | None = None) -> Namespace:
        """Parse flags; a model brings the sizes of its name, and a bundled one its recipe, as defaults."""
        result, first = self.get_parser(), Parser(add_help=False)
        for flag in ("model", "output_dir"):
            first.add_argument(f"--{flag}", default=result.get_default(flag))
        early, _ = first.parse_known_args(argv)
        result.set_defaults(log_dir=early.output_dir)
        if spec := MODELS.get(early.model):
            own = {flag: spec.arguments[name] for flag, name in self.model_flags.items() if name in spec.arguments}
            result.set_defaults(**own)
            if spec.bundled and early.model.startswith(f"{self.name.lower()}_"):
                result.set_defaults(vae_path="", data_path="", num_workers=0, **self.recipe(early.model))
        return result.parse_args(argv)

    def recipe(self, model: str) -> dict[str, Any]:  # Any: of several types
        """Return the settings of a bundled model's recipe, under this command's flags."""
        settings = bundled_settings(model)["full" if self.fixed else "disa"].to_dict()
        if self.fixed:
            settings[self.fixed] = settings["flow_upper_steps"]
        return {flag: settings[flag] for flag in vars(self.get_parser().parse_args([])) if flag in settings}

    def arguments(self, args: Namespace, *, training: bool = False) -> dict[str, Any]:  # Any: of several types
        """Return the arguments of the model that the flags give."""
        flags = {**self.model_flags, **(self.training_flags if training else {})}
        return {argument: getattr(args, flag) for flag, argument in flags.items()}

    def main(self, argv: Sequence[str] | None = None) -> None:
        """Evaluate or train, as the flags say."""
        args = self.parse(argv)
        own = {argument: flag for flag, argument in {**self.model_flags, **self.training_flags}.items()}
        if args.evaluate:
            own["batch_size"] = "eval_bsz"
        with naming_flags(args, own):
            device = start(args.device)
            args.dtype = resolve_dtype(args.dtype, device, MODELS[args.model].half)
            (run_evaluation if args.evaluate else run_training)(args, self, device)
        distributed.shutdown()


def run_evaluation(args: Namespace, family: Family, device: torch.device) -> None:
    """Generate images with the weights of a checkpoint, and measure them."""
    from ..evaluation.run import check_evaluation

    distributed.on_main(lambda: check_evaluation_flags(args, family))
    specs, left_out = get_specs(args)
    if left_out and not specs and not args.keep_images:
        advice = "mend that, or give --keep_images, or --metrics none for times and samples alone"
        raise ValueError(f"{'; '.join(left_out)}; {advice}")
    for sentence in left_out:
        print_main(f"note: {sentence}")
    acceleration = Acceleration(args.compile, args.graphs)
    acceleration.check(device)
    check_evaluation(specs, args.num_images, args.eval_bsz, False)
    dtype, name = DTYPES[args.dtype], family.sampling(args).name()
    name = f"{args.model}-{name}-{args.num_images}images"
    model, vae = distributed.on_all(
        lambda: (load_model(args.model, args.resume or None, **family.arguments(args)), get_vae(args))
    )
    model, vae = model.to(device, dtype), vae.to(device, dtype)
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


def check_evaluation_flags(args: Namespace, family: Family) -> None:
    """Refuse flags that are impossible, files that are not there, and folders that cannot be written to.

    Raises:
        ValueError, FileNotFoundError: naming one.
    """
    check_counts(args.num_images, args.eval_bsz)
    check_tracker(args.tracker)
    check_sampling(args, family)
    find_model(args.model, args.resume or None)
    if not MODELS[args.model].bundled:
        find_vae(args.vae_path)
    for flag in ("output_dir", "log_dir"):
        check_folder(getattr(args, flag), f"--{flag}")


def check_sampling(args: Namespace, family: Family) -> None:
    """Refuse settings of a generation that the model cannot take; no weights are needed."""
    sampling = family.sampling(args)
    with torch.device("meta"):
        model = build_model(args.model, **family.arguments(args))
    get_solver(model.solvers, sampling.sampler)
    model.nfe(sampling.schedule, sampling.sampler, sampling.num_iter)
    if isinstance(model, MAR) and sampling.num_iter is not None and sampling.num_iter > (tokens := model.grid**2):
        needed = f"there must be 1 to {tokens} AR steps, for there are {tokens} tokens"
        raise ValueError(f"num_iter is {sampling.num_iter}; {needed}")


def run_training(args: Namespace, family: Family, device: torch.device) -> None:
    """Train, from scratch or from where an earlier run stopped."""
    settings, output = settings_from_flags(args), Path(args.output_dir)
    resume = find_checkpoint(args.resume) if args.resume else None
    if args.online_eval:
        check_counts(args.num_images, args.eval_bsz)
        check_sampling(args, family)
        family.sampling(args).schedule.check(weights="those in training")
    for flag in ("output_dir", "log_dir"):
        distributed.on_main(lambda flag=flag: check_folder(getattr(args, flag), f"--{flag}"))  # type: ignore[misc]
    specs = get_specs(args)[0] if args.online_eval else []
    args.arguments = family.arguments(args)  # for `Pipeline.from_pretrained`, in the checkpoint
    with torch.device("meta"):
        build_model(args.model, **family.arguments(args, training=True))  # refuses flags before files are read
    data = get_data(args, device)
    torch.manual_seed(args.seed)
    model = build_model(args.model, **family.arguments(args, training=True))
    vae = get_vae(args).to(device) if args.online_eval else None

    def online(averaged: nn.Module, epoch: int) -> dict[str, float]:
        assert vae is not None
        autocast = None if settings.dtype == torch.float32 else settings.dtype  # as in training
        folder = output / "online" / f"epoch{epoch:04d}"
        results = _evaluate(args, family, averaged, vae, specs, folder, autocast=autocast)
        return {f"{one.extractor}/{name}": score for one in results.metrics for name, score in one.numbers().items()}

    print_main(f"training {args.model} for {args.epochs} epochs, into {output}; --evaluate would generate and measure")
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
        exclusive=log is not None,
        log=log,
        tracker=args.tracker,
    )


def get_specs(args: Namespace) -> tuple[list[MetricSpec], list[str]]:
    """Choose what to measure, and say what is left out; on one rank, for what is possible may need a download."""
    from ..evaluation.plan import plan_metrics

    bundled = MODELS[args.model].bundled
    return distributed.on_main(lambda: plan_metrics(args.metrics, args.features, args.reference, bundled=bundled))


def get_vae(args: Namespace) -> VAE:
    """Load KL-16, or the VAE of a bundled model; raise ValueError if the flags speak of another one."""
    if not MODELS[args.model].bundled:
        return load_vae(args.vae_path, args.vae_embed_dim)
    vae = load_bundled_vae(args.model)
    for flag, given, own in (
        ("--vae_stride", args.vae_stride, vae.stride),
        ("--vae_embed_dim", args.vae_embed_dim, vae.latent_channels),
    ):
        if given != own:
            raise ValueError(f"{flag} is {given}; it is {own} for the VAE of {args.model}")
    return vae


def get_data(args: Namespace, device: torch.device) -> TrainingData:
    """Open what the flags say to train on.

    Raises:
        ValueError: it does not fit the flags.
        FileNotFoundError: it is not there.
    """
    if not args.use_cached:
        if MODELS[args.model].bundled:
            images, labels = fashion_mnist(True, args.data_path or None)  # before weights are loaded
            return fashion_data(images, labels, get_vae(args).to(device))
        if not args.data_path:
            raise ValueError("--data_path is empty; give a folder that holds one folder per class")
        distributed.on_main(lambda: class_folders(Path(args.data_path), "--data_path"))  # before weights are loaded
        data = image_folder_data(load_vae(args.vae_path, args.vae_embed_dim).to(device), args.data_path, args.img_size)
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
