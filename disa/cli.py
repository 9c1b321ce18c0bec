"""`disa …`, and how every command of the project ends."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

import torch

from . import checkpoints
from .distributed import resolve_device
from .files import image_files
from .flags import DTYPES, HelpFormatter


def run(main: Callable[[], int | None]) -> NoReturn:
    """End the process with what `main` returns.

    What a user can mend (a wrong setting, a missing or broken file, a full disk or memory, a NaN) ends in one sentence on stderr
    and exit code 2; an interruption in exit code 130. Anything else is a defect, and keeps its traceback.
    """
    try:
        sys.exit(main())
    except KeyboardInterrupt as stop:
        print(f"\n{str(stop) or 'interrupted'}", file=sys.stderr)
        sys.exit(130)
    except torch.OutOfMemoryError as error:
        print(f"error: the GPU's memory is full; take a smaller batch ({str(error).splitlines()[0]})", file=sys.stderr)
        sys.exit(2)
    except (ValueError, OSError, FloatingPointError) as error:
        message = str(error)
        if "Original Traceback" in message:  # raised in a process that loads data: its last line is "Type: message"
            message = message.strip().splitlines()[-1].partition(": ")[2]
        print(f"error: {message}", file=sys.stderr)
        sys.exit(2)


def download(description: str, files: Sequence[str]) -> None:
    """A family's `util/download.py`: fetch some of `files`, or all."""
    parser = argparse.ArgumentParser(description=description, formatter_class=HelpFormatter)
    parser.add_argument("name", nargs="*", default=files, help=f"some of {', '.join(files)}; by default all")
    parser.add_argument("--out", default="pretrained_models", help="folder")
    args = parser.parse_args()
    for name in args.name:
        print(checkpoints.fetch(name, args.out))


def _list(args: argparse.Namespace) -> None:
    for entry in checkpoints.CATALOGUE.values():
        size = f"{entry.megabytes} MB" if entry.megabytes else "-"
        print(f"{entry.name:16} {size:>8}  {entry.licence:32} {entry.origin}")


def _fetch(args: argparse.Namespace) -> None:
    for name in args.name:
        print(checkpoints.fetch(name, args.out))


def _verify(args: argparse.Namespace) -> int:
    name, problems = checkpoints.verify(args.path, args.manifest)
    for problem in problems:
        print(problem)
    print(f"{args.path} {'does not match' if problems else 'matches'} {name}")
    return 1 if problems else 0


def _export(args: argparse.Namespace) -> None:
    checkpoints.export(args.path, args.out, args.weights, DTYPES[args.dtype])
    print(args.out)


def _stats(args: argparse.Namespace) -> None:
    from .metrics import Statistics, extract_features
    from .training.data import fashion_mnist

    images = fashion_mnist(False)[0] if args.data == "fashion-mnist" else image_files(args.data)
    Statistics.of(extract_features(images, args.features, device=resolve_device(args.device))).save(args.out, features=args.keep_features)
    print(args.out)


def get_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="disa", description="Diffusion step annealing: weights, and what the package can do by itself.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    group = commands.add_parser("checkpoints", help="published weights: list, fetch, verify").add_subparsers(
        required=True, metavar="COMMAND"
    )

    command = group.add_parser("list", help="name, size, licence and origin of every published file")
    command.set_defaults(command=_list)

    command = group.add_parser(
        "fetch", help="download published files; a broken download goes on where it stopped", formatter_class=HelpFormatter
    )
    command.add_argument("name", nargs="+", metavar="NAME", help="one of `disa checkpoints list`")
    command.add_argument("--out", default="pretrained_models", help="folder")
    command.set_defaults(command=_fetch)

    command = group.add_parser("verify", help="compare a file with what was published: names, shapes, finite values")
    command.add_argument("path", metavar="PATH")
    command.add_argument("--manifest", metavar="NAME", help=f"one of {', '.join(checkpoints.manifests())}; by default the closest")
    command.set_defaults(command=_verify)

    command = group.add_parser("export", help="a checkpoint's weights as safetensors", formatter_class=HelpFormatter)
    command.add_argument("path", metavar="PATH", help="checkpoint file, or a folder with checkpoint-last.pth")
    command.add_argument("out", metavar="OUT", help="file to write")
    command.add_argument("--weights", choices=("ema", "model"), default="ema", help="which of the checkpoint's weights")
    command.add_argument("--dtype", choices=DTYPES, default="float32", help="to store them in")
    command.set_defaults(command=_export)

    command = commands.add_parser("stats", help="reference statistics of images, for FID", formatter_class=HelpFormatter)
    command.add_argument("data", metavar="DATA", help="folder of images, or fashion-mnist for its test images")
    command.add_argument("--features", default="inception", help="inception, efficientnet-lite0 or fashion-classifier")
    command.add_argument("--out", default="stats.npz", help="file to write")
    command.add_argument("--keep_features", action="store_true", help="store the features too, for precision and recall")
    command.add_argument("--device", default="auto", help="auto, cuda, cpu or mps")
    command.set_defaults(command=_stats)
    return parser


def main(argv: Sequence[str] | None = None) -> int | None:
    """Run one command; returns its exit code."""
    args = get_parser().parse_args(argv)
    return args.command(args)


def entry() -> NoReturn:
    """The `disa` script."""
    run(main)


if __name__ == "__main__":
    entry()
