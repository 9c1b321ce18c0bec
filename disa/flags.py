"""Flags that the commands of several families share, under the names and with the defaults their users know."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from typing import Any

import torch

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Help with defaults, as wide as the terminal."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=34)


def parser(description: str, *, model: str, models: Sequence[str], patches: bool = False) -> argparse.ArgumentParser:
    """A parser with the flags of every command that evaluates and trains on class labels.

    Args:
        model, models: the default model, and all of them.
        patches: whether a token may hold more than one latent.
    """
    result = argparse.ArgumentParser(description=description, formatter_class=HelpFormatter)
    group = result.add_argument_group("model")
    group.add_argument("--model", default=model, choices=models, metavar="NAME", help=f"one of {', '.join(models)}")
    group.add_argument(
        "--resume",
        default="",
        help="checkpoint file, or a folder with checkpoint-last.pth; to evaluate a model whose weights come with the package, none",
    )
    group.add_argument("--img_size", default=256, type=int, help="pixels a side")
    group.add_argument("--vae_path", default="pretrained_models/vae/kl16.ckpt", help="KL-16 tokenizer; bundled models need none")
    group.add_argument("--vae_embed_dim", default=16, type=int, help="channels of a latent")
    group.add_argument("--vae_stride", default=16, type=int, help="pixels a latent")
    group.add_argument(
        "--patch_size", default=1, type=int, choices=None if patches else (1,), metavar="SIDE", help="latents a token's side"
    )
    group.add_argument("--class_num", default=1000, type=int, help="number of classes")
    group.add_argument("--attn_dropout", default=0.1, type=float, help="dropout of attention weights in training")
    group.add_argument("--proj_dropout", default=0.1, type=float, help="dropout of projections in training")

    group = result.add_argument_group("evaluation")
    group.add_argument("--evaluate", action="store_true", help="generate images and measure them instead of training")
    group.add_argument("--num_images", default=50000, type=int, help="images to generate")
    group.add_argument("--eval_bsz", default=64, type=int, help="images at a time on each rank")
    group.add_argument("--cfg", default=1.0, type=float, help="guidance scale; 1 is no guidance")
    group.add_argument("--cfg_schedule", default="linear", help="linear (from 1 to cfg) or constant")
    group.add_argument("--keep_images", action="store_true", help="write the images, which are measured as they are made, too")
    add_metrics_flags(group)

    group = result.add_argument_group("training")
    group.add_argument(
        "--data_path", default="./data/imagenet", help="ImageNet (its train folder holds a folder a class), or Fashion-MNIST's files"
    )
    group.add_argument("--use_cached", action="store_true", help="train on the latents in --cached_path")
    group.add_argument("--cached_path", default="", help="folder of latents that main_cache.py wrote")
    group.add_argument("--batch_size", default=16, type=int, help="images a step on each rank")
    group.add_argument("--epochs", default=400, type=int, help="passes over the data")
    group.add_argument("--lr", default=None, type=float, help="learning rate; by default blr · (images a step over all ranks) / 256")
    group.add_argument("--blr", default=1e-4, type=float, help="learning rate for 256 images a step")
    group.add_argument("--min_lr", default=0.0, type=float, help="where the cosine schedule ends")
    group.add_argument("--lr_schedule", default="constant", choices=("constant", "cosine"), help="after the warm-up")
    group.add_argument("--warmup_epochs", default=100, type=float, help="epochs of linear warm-up")
    group.add_argument("--weight_decay", default=0.02, type=float, help="not on biases, norms and MAR's head")
    group.add_argument("--ema_rate", default=0.9999, type=float, help="rate of the weights' moving average")
    group.add_argument("--label_drop_prob", default=0.1, type=float, help="share of labels dropped, for guidance")
    group.add_argument("--online_eval", action="store_true", help="evaluate while training")
    group.add_argument("--eval_freq", default=40, type=int, help="epochs between evaluations")
    group.add_argument("--save_last_freq", default=5, type=int, help="epochs between checkpoints; one is also written every ten minutes")

    group.add_argument("--start_epoch", default=0, type=int, help="without effect: the checkpoint knows its epoch")

    group = result.add_argument_group("output")
    group.add_argument("--output_dir", default="./output_dir", help="where results and checkpoints go")
    group.add_argument("--log_dir", default="./output_dir", help="where TensorBoard's log goes")
    group.add_argument("--dtype", default="float32", choices=DTYPES, help="of the networks; in training, of the autocast forward pass")
    add_running_flags(result, seed=1)
    return result


def add_metrics_flags(group: argparse._ActionsContainer) -> None:
    """What to measure, for `spaces.choose_spaces`."""
    group.add_argument(
        "--metrics",
        default="auto",
        help="fid, isc, kid, prc, accuracy (of the asked label), separated by commas; auto: what can be; none: times and samples",
    )
    group.add_argument(
        "--features",
        default="auto",
        help="feature spaces: inception, dinov2-vit-l-14, efficientnet-lite0, fashion-classifier, separated by commas; auto: by model",
    )
    group.add_argument(
        "--reference",
        default="auto",
        help="what fid, kid and prc compare with: a statistics file (.npz with mu and sigma) or a folder of images",
    )


def add_running_flags(parser: argparse.ArgumentParser, seed: int) -> None:
    """The flags of every command, training, evaluating or neither."""
    group = parser.add_argument_group("running")
    group.add_argument("--device", default="auto", help="auto (what is there), cuda, cpu or mps")
    group.add_argument(
        "--seed", default=seed, type=int, help="of images in evaluation, of everything in training; caching has no use for it"
    )
    group.add_argument("--num_workers", default=10, type=int, help="processes that load data")
    group.add_argument("--pin_mem", action="store_true", default=True, help="pinned memory for loading")
    group.add_argument("--no_pin_mem", action="store_false", dest="pin_mem", help="no pinned memory")
    group = parser.add_argument_group("accepted, without effect")
    group.add_argument("--world_size", default=1, type=int, help="torchrun sets it")
    group.add_argument("--local_rank", default=-1, type=int, help="torchrun sets it")
    group.add_argument("--dist_on_itp", action="store_true", help="a cluster's launcher; use torchrun")
    group.add_argument("--dist_url", default="env://", help="torchrun sets it")


def parse(
    parser: argparse.ArgumentParser, defaults: Mapping[str, Mapping[str, Any]], argv: Sequence[str] | None = None
) -> argparse.Namespace:
    """Parse `argv`; `defaults` holds, for some models, flags' defaults that replace the common ones."""
    first = argparse.ArgumentParser(add_help=False)
    first.add_argument("--model", default=parser.get_default("model"))
    parser.set_defaults(**defaults.get(first.parse_known_args(argv)[0].model, {}))
    return parser.parse_args(argv)
