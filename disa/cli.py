"""`disa …`, and how every command of the project ends."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

import torch

from . import checkpoints, distributed
from .distributed import resolve_device
from .files import image_files
from .flags import DTYPES, HelpFormatter, add_metrics_flags
from .sweep import EXAMPLES


def run(main: Callable[[], int | None]) -> NoReturn:
    """End the process with what `main` returns.

    What a user can mend ends in one sentence on stderr and exit code 2; an interruption in exit code 130. Anything else is a defect,
    and keeps its traceback.
    """
    try:
        sys.exit(main())
    except KeyboardInterrupt as stop:
        print(f"\n{str(stop) or 'interrupted'}", file=sys.stderr)
        sys.exit(130)
    except torch.OutOfMemoryError as error:
        print(f"error: the GPU's memory is full; take a smaller batch ({str(error).splitlines()[0]})", file=sys.stderr)
        sys.exit(2)
    except BrokenPipeError:  # whoever reads, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except distributed.MENDABLE as error:
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
    from .features import missing
    from .metrics import image_statistics
    from .training.data import fashion_mnist

    if not args.out.endswith(".npz"):
        raise ValueError(f"--out is {args.out}; statistics are an .npz file")
    for name in ("batch_size", "image_size"):
        if (value := getattr(args, name)) is not None and value < 1:
            raise ValueError(f"--{name} is {value}; it must be at least 1")
    if args.image_size and args.data == "fashion-mnist":
        raise ValueError("--image_size is for a folder of images; Fashion-MNIST's are 32×32")
    images = fashion_mnist(False)[0] if args.data == "fashion-mnist" else image_files(args.data)
    device = resolve_device(args.device)
    distributed.setup(device)
    distributed.on_main(lambda: Path(args.out).parent.mkdir(parents=True, exist_ok=True))  # whether it can be is better known before
    if problem := distributed.on_main(lambda: missing(args.features)):  # may need a download, which one rank shall do
        raise FileNotFoundError(f"--features {args.features}: {problem}")
    found = image_statistics(
        images, args.features, keep_features=not args.no_features, batch_size=args.batch_size, device=device, crop=args.image_size
    )
    if found is not None:
        found.save(args.out)
        print(f"{args.out}: {found.count} images, {len(found.mu)} features of {found.extractor} (resized: {found.resize})")
    distributed.shutdown()


def _reproduce(args: argparse.Namespace) -> int:
    from .recipes import choose, list_tables, load_tables
    from .reproduce import reproduce

    tables = load_tables()
    if args.list:
        print(list_tables(tables))
        return 0
    if not args.name:
        raise ValueError("nothing is asked for; name tables or recipes, `disa reproduce --list` prints them")
    chosen = [table.change(num_images=args.images, batch_size=args.batch_size) for table in choose(tables, args.name)]
    return reproduce(chosen, args.out, title=f"Reproduced: {', '.join(args.name)}", **_measuring(args))


def _sweep(args: argparse.Namespace) -> int:
    from .recipes import load_tables
    from .reproduce import reproduce
    from .sweep import starting_point, sweep_table

    grid = {name: values for name, values in vars(args).items() if name in EXAMPLES}
    table = sweep_table(starting_point(load_tables(), args.model), grid)
    table = table.change(num_images=args.images, batch_size=args.batch_size, checkpoint=args.resume)
    out = args.out or Path("out/sweep", args.model)
    return reproduce([table], out, title=f"Sweep: {args.model}", front=True, **_measuring(args))


def _measuring(args: argparse.Namespace) -> dict[str, Any]:
    return {name: getattr(args, name) for name in ("metrics", "features", "reference", "device", "dtype")}


def _add_measuring_flags(command: argparse.ArgumentParser) -> None:
    command.add_argument("--images", type=int, metavar="N", help="images a row; by default as many as the recipe says")
    command.add_argument("--batch_size", type=int, metavar="N", help="images at a time on each rank; by default the recipe's")
    add_metrics_flags(command)
    command.add_argument("--device", default="auto", help="auto (what is there), cuda, cpu or mps")
    command.add_argument("--dtype", choices=DTYPES, default="float32", help="of the networks")


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

    command = commands.add_parser(
        "stats",
        help="reference statistics of images, for FID, KID, precision and recall",
        description="Mean, covariance and features of images, with the extractor and how it resizes named in the file. Runs alone or under "
        "torchrun (torchrun -m disa.cli stats …).",
        formatter_class=HelpFormatter,
    )
    command.add_argument("data", metavar="DATA", help="folder of images, or fashion-mnist for its test images")
    command.add_argument("--features", default="inception", help="inception, dinov2-vit-l-14, efficientnet-lite0 or fashion-classifier")
    command.add_argument("--image_size", type=int, metavar="SIDE", help="cut the central square of each image, so many pixels a side")
    command.add_argument("--out", default="stats.npz", help="file to write")
    command.add_argument("--no_features", action="store_true", help="store mean and covariance alone: no KID, precision and recall")
    command.add_argument("--batch_size", type=int, default=64, help="images at a time on each rank")
    command.add_argument("--device", default="auto", help="auto, cuda, cpu or mps")
    command.set_defaults(command=_stats)

    command = commands.add_parser(
        "reproduce",
        help="measure recipes, and put them beside what was published",
        description="Measure what is not measured, and write one table.md, table.csv and report.html. Interrupted, it goes on when it is "
        "started again. Runs alone or under torchrun (torchrun -m disa.cli reproduce …).",
        formatter_class=HelpFormatter,
    )
    command.add_argument("name", nargs="*", metavar="NAME", help="tables, recipes, or patterns such as 'ar_steps/mar_*'")
    command.add_argument("--list", action="store_true", help="print tables and recipes")
    command.add_argument("--out", type=Path, default=Path("out/reproduce"), help="folder of everything")
    _add_measuring_flags(command)
    command.set_defaults(command=_reproduce)

    command = commands.add_parser(
        "sweep",
        help="measure a grid of settings: where does quality start to drop?",
        description="Measure every combination of the values given, the other settings being those of the model's first annealed recipe, "
        "and mark the Pareto front. Goes on and runs as `disa reproduce` does.",
        formatter_class=HelpFormatter,
    )
    command.add_argument("model", metavar="MODEL", help="a model that has recipes, such as mar_fashion")
    for name, example in EXAMPLES.items():
        text = f"one value or several, like {example}"
        command.add_argument(f"--{name}", nargs="+", type=type(example), metavar="VALUE", default=argparse.SUPPRESS, help=text)
    command.add_argument("--resume", metavar="CHECKPOINT", help="weights; by default those of the recipe")
    command.add_argument("--out", type=Path, help="folder of everything; by default out/sweep/MODEL")
    _add_measuring_flags(command)
    command.set_defaults(command=_sweep)
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
