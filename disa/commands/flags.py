"""Flags that the commands of several families share, under their released names and with their released defaults."""

from __future__ import annotations

import argparse
import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import NoReturn

from ..runtime.names import did_you_mean, user_name
from ..runtime.tracking import TRACKERS

Group = argparse._ActionsContainer  # a parser, or a group of its flags


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one sentence, printed by one rank, with what comes closest to a wrong name."""

    def error(self, message: str) -> NoReturn:
        words = message.removeprefix("unrecognized arguments: ").split() if "unrecognized" in message else []
        message += "".join(
            did_you_mean(word.partition("=")[0], self._flags()) for word in words if word.startswith("--")
        )
        said = f"error: {message} ({self.prog} --help)\n"
        if "RANK" in os.environ:
            from ..runtime.distributed import first_to_say  # imports torch

            self.exit(2, said if first_to_say(said) else None)
        self.exit(2, said)

    def _check_value(self, action: argparse.Action, value: object) -> None:
        if action.choices is not None and value not in action.choices:
            allowed = list(map(str, action.choices))
            listed = f"allowed are {', '.join(allowed)}"
            raise argparse.ArgumentError(
                action, f"{str(value)!r} is unknown{did_you_mean(str(value), allowed)}; {listed}"
            )

    def _flags(self) -> Iterator[str]:
        """Yield the flags of this parser and of its commands."""
        for action in self._actions:
            yield from action.option_strings
            for command in (action.choices or {}).values() if isinstance(action, argparse._SubParsersAction) else ():
                yield from command._flags()


@contextlib.contextmanager
def naming_flags(args: argparse.Namespace, own: Mapping[str, str] | None = None) -> Iterator[None]:
    """Name the flag in a ValueError that begins with a setting; `own`, flags by their settings, come before others."""
    try:
        yield
    except ValueError as error:
        if (found := user_name(str(error), vars(args), own)) is None:
            raise
        flag, said = found
        raise ValueError(f"--{flag}{said}") from error


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Help with defaults, as wide as the terminal."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=34)


def value(group: Group, flag: str, default: str | float, text: str) -> None:
    """Add a flag whose value has the type of `default`."""
    group.add_argument(flag, default=default, type=type(default), help=text)


def switch(group: Group, flag: str, text: str) -> None:
    """Add a flag that is given or not."""
    group.add_argument(flag, action="store_true", help=text)


def parser(description: str, model: str, models: Sequence[str], *, patches: bool) -> Parser:
    """Build a parser with the flags of every command on class labels; `patches` lets a token hold several latents."""
    result = Parser(description=description, formatter_class=HelpFormatter)
    group = result.add_argument_group("model")
    group.add_argument("--model", default=model, choices=models, metavar="NAME", help=f"one of {', '.join(models)}")
    text = (
        "checkpoint file, or a folder with checkpoint-last.pth; none to evaluate a model whose weights come with disa"
    )
    value(group, "--resume", "", text)
    value(group, "--img_size", 256, "pixels per side")
    value(group, "--vae_path", "pretrained_models/vae/kl16.ckpt", "KL-16's weights; bundled models need none")
    value(group, "--vae_embed_dim", 16, "channels of a latent")
    value(group, "--vae_stride", 16, "pixels per latent, on each side")
    allowed, text = None if patches else (1,), "latents per token, on each side"
    group.add_argument("--patch_size", default=1, type=int, choices=allowed, metavar="SIDE", help=text)
    value(group, "--class_num", 1000, "number of classes")
    value(group, "--attn_dropout", 0.1, "dropout of attention weights in training")
    value(group, "--proj_dropout", 0.1, "dropout of projections in training")

    group = result.add_argument_group("evaluation")
    switch(group, "--evaluate", "generate images and measure them instead of training")
    value(group, "--num_images", 50000, "images to generate")
    value(group, "--eval_bsz", 64, "images at a time on each rank")
    value(group, "--cfg", 1.0, "guidance scale; 1 is no guidance")
    value(group, "--cfg_schedule", "linear", "linear (from 1 to cfg) or constant")
    add_guidance_flags(group)
    add_step_schedule_flag(group)
    switch(group, "--keep_images", "write the images, which are measured as they are made, too")
    add_metrics_flags(group)

    group = result.add_argument_group("training")
    text = "ImageNet (its train folder holds one folder per class), or Fashion-MNIST's files"
    # An unset variable leaves the flag without a value, which matters in training alone.
    group.add_argument("--data_path", default="./data/imagenet", nargs="?", const="", help=text)
    switch(group, "--use_cached", "train on the latents in --cached_path")
    group.add_argument("--cached_path", default="", nargs="?", const="", help="folder of latents of main_cache.py")
    value(group, "--batch_size", 16, "images per step on each rank")
    value(group, "--epochs", 400, "passes over the data")
    text = "learning rate; by default blr · (images per step over all ranks) / 256"
    group.add_argument("--lr", default=None, type=float, help=text)
    value(group, "--blr", 1e-4, "learning rate for 256 images per step")
    value(group, "--min_lr", 0.0, "where the cosine schedule ends")
    group.add_argument("--lr_schedule", default="constant", choices=("constant", "cosine"), help="after the warm-up")
    group.add_argument("--warmup_epochs", default=100, type=float, help="epochs of linear warm-up")
    value(group, "--weight_decay", 0.02, "not on biases, norms and MAR's head")
    value(group, "--ema_rate", 0.9999, "rate of the weights' moving average")
    value(group, "--label_drop_prob", 0.1, "share of labels dropped, for guidance")
    switch(group, "--online_eval", "evaluate while training")
    value(group, "--eval_freq", 40, "epochs between evaluations")
    value(group, "--save_last_freq", 5, "epochs between checkpoints; one is also written every ten minutes")
    value(group, "--start_epoch", 0, "without effect: the checkpoint knows its epoch")

    group = result.add_argument_group("output")
    value(group, "--output_dir", "./output_dir", "where results and checkpoints go")
    value(group, "--log_dir", "./output_dir", "where the log goes; follows --output_dir")
    text = "of the log: TensorBoard's files, or Weights & Biases (disa[wandb])"
    group.add_argument("--tracker", default=TRACKERS[0], choices=TRACKERS, help=text)
    add_speed_flags(group, "; in training, of the autocast forward pass")
    add_running_flags(result, seed=1)
    return result


def add_guidance_flags(group: Group) -> None:
    """Add where guidance is off, for `Guidance`, besides `--guidance`."""
    value(group, "--guidance_min_time", 0.0, "time below which guidance is off (1 is noise, 0 is data)")
    text = "where the guidance scale, at least 1, is below this, it counts as 1 and saves the unconditional branch"
    value(group, "--skip_guidance_below", 1.0, text)


def add_grouping_flags(group: Group) -> None:
    """Add which tokens an AR step samples, for `Grouping`."""
    from ..grouping import ORDERS, TOKENS_PER_STEP  # imports torch

    text = "random; halton, evenly over the grid from the start; gtr, every fourth diagonal first, the odd ones last"
    group.add_argument("--token_order", default="random", choices=ORDERS, help=text)
    text = "cosine, ever more; stages, most AR steps for gtr's first quarter of the tokens, and few for the last half"
    group.add_argument("--tokens_per_step", default="cosine", choices=TOKENS_PER_STEP, help=text)


def add_cache_flags(group: Group) -> None:
    """Add how often the backbone is computed in full, for `Caching`."""
    text = "AR steps from one full pass of the backbone to the next; in between it computes few tokens"
    value(group, "--cache_tokens", 1, text)
    text = "AR steps from one unconditional pass to the next; in between its last difference is added to the other"
    value(group, "--cache_conditions", 1, text)
    value(group, "--cache_first", 5, "AR steps at the beginning without either cache")


def add_feature_flags(group: Group) -> None:
    """Add how often the blocks that flow steps evaluate are computed, for `Extrapolation`."""
    text = "flow steps from one full pass through the blocks to the next; what they would give in between is foretold"
    value(group, "--feature_every", 1, text)
    text = "of the polynomial through the last full passes that foretells it; 0: as the last one"
    value(group, "--feature_order", 1, text)
    value(group, "--feature_fresh", 0, "blocks at the beginning that always run; 1: a first-block cache")


def add_step_schedule_flag(group: Group) -> None:
    """Add a file for `StepSchedule.load`."""
    text = "of `disa calibrate`: the diffusion steps of every AR step, in place of the flags on their number; "
    value(group, "--step_schedule", "", f"{text}force:FILE where weights or guidance are others")


def add_metrics_flags(group: Group) -> None:
    """Add what to measure, for `plan_metrics`."""
    text = "fid, isc, kid, prc, accuracy (of the asked label), separated by commas; "
    value(group, "--metrics", "auto", f"{text}auto: what can be; none: times and samples")
    text = "feature spaces: inception, dinov2-vit-l-14, efficientnet-lite0, fashion-classifier, separated by commas; "
    value(group, "--features", "auto", f"{text}auto: by model")
    text = "what fid, kid and prc compare with: statistics (.npz with mu and sigma), or images in a folder or an .npz"
    value(group, "--reference", "auto", text)


def add_device_flag(group: Group) -> None:
    """Add where to run, for `resolve_device`."""
    value(group, "--device", "auto", "auto (what is there), cuda, cpu or mps")


def add_speed_flags(group: Group, more: str = "") -> None:
    """Add a number type, for `resolve_dtype`, and what makes networks faster, for `Acceleration`."""
    from ..acceleration import MODES  # imports torch, which `disa --help` need not wait for
    from ..runtime.devices import DTYPES

    text = f"of the networks{more}; auto: on CUDA float16, of Harmon bfloat16, elsewhere float32"
    group.add_argument("--dtype", default="auto", choices=("auto", *DTYPES), help=text)
    text = "torch.compile for the networks' blocks, in evaluation; auto: on CUDA, for some thousand images or more"
    group.add_argument("--compile", default="auto", choices=MODES, help=text)
    text = "CUDA graphs for the diffusion steps, in evaluation; auto: where batches are small"
    group.add_argument("--graphs", default="auto", choices=MODES, help=text)


def add_running_flags(parser: argparse.ArgumentParser, seed: int) -> None:
    """Add the flags of every command, training, evaluating or neither."""
    group = parser.add_argument_group("running")
    add_device_flag(group)
    value(group, "--seed", seed, "of images in evaluation, of everything in training; caching has no use for it")
    value(group, "--num_workers", 10, "processes that load data")
    group.add_argument("--pin_mem", action="store_true", default=True, help="pinned memory for loading")
    group.add_argument("--no_pin_mem", action="store_false", dest="pin_mem", help="no pinned memory")
    group = parser.add_argument_group("accepted, without effect")
    value(group, "--world_size", 1, "torchrun sets it")
    value(group, "--local_rank", -1, "torchrun sets it")
    switch(group, "--dist_on_itp", "a cluster's launcher; use torchrun")
    value(group, "--dist_url", "env://", "torchrun sets it")
