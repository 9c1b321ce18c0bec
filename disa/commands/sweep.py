"""`disa sweep`: measure a grid of settings."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..tables.recipes import load_tables
from ..tables.sweep import ACCELERATORS, EXAMPLES, starting_point, sweep_table
from ..weights.load import find_weights
from .reproduce import add_measuring_flags, measure


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Measure every combination of the values given, the other settings being those of the model's first annealed "
        "recipe, and mark the Pareto front. Goes on and runs as `disa reproduce` does."
    )
    parser.add_argument("model", metavar="MODEL", help="a model that has recipes, such as mar_fashion")
    for name, example in EXAMPLES.items():
        kind, text = type(example), f"one value or several, like {example}"
        parser.add_argument(f"--{name}", nargs="+", type=kind, metavar="VALUE", default=argparse.SUPPRESS, help=text)
    text = "run with each, with none, and with all their combinations: " + "; ".join(
        f"{name} ({', '.join(f'{setting} {value}' for setting, value in changes.items())})"
        for name, changes in ACCELERATORS.items()
    )
    parser.add_argument("--accelerate", nargs="+", choices=ACCELERATORS, metavar="NAME", default=[], help=text)
    parser.add_argument("--resume", metavar="CHECKPOINT", help="weights; by default those of the recipe")
    parser.add_argument("--out", type=Path, help="folder of everything; by default out/sweep/MODEL")
    add_measuring_flags(parser)


def main(args: argparse.Namespace) -> int:
    grid = {name: values for name, values in vars(args).items() if name in EXAMPLES}
    table = sweep_table(starting_point(load_tables(), args.model), grid, args.accelerate)
    table = table.change(num_images=args.images, batch_size=args.batch_size, checkpoint=args.resume)
    if args.resume:
        find_weights(args.resume)
    return measure(args, [table], args.out or Path("out/sweep", args.model), f"Sweep: {args.model}", front=True)
