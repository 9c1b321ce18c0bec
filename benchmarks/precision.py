"""What half precision changes: Fréchet distances of the bundled models in each number type, with the same image seeds.

Run from the repository's root; an interrupted run goes on where it stopped: `torchrun --standalone --nproc_per_node=2
-m benchmarks.precision --results benchmarks/results`.
"""

from __future__ import annotations

import argparse
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from disa.commands.exit import run
from disa.commands.flags import HelpFormatter
from disa.evaluation.results import Results
from disa.evaluation.run import evaluate
from disa.runtime import distributed
from disa.runtime.devices import DTYPES
from disa.runtime.files import atomic_write
from disa.runtime.start import announce, start
from disa.tables.measure import load, plan_recipe
from disa.tables.recipes import Recipe, load_tables
from disa.tables.report import Column, decimals, table

MODELS = ("mar_fashion", "flowar_fashion", "xar_fashion", "harmon_fashion")

EXPLANATION = """Written by `python -m benchmarks.precision`. Each bundled model with its DiSA recipe, {images:,} images
with the same seeds in each number type, on {machine}. The standard error is that of the float32 distance, from random
halves of the images; a difference below it is within the noise of the image seeds."""


@dataclass(frozen=True)
class Line:
    """A distance in a feature space, beside that of the same images in float32."""

    model: str
    dtype: str
    space: str
    distance: float
    difference: float
    error: float  # standard error of the float32 distance

    @property
    def inside(self) -> str:
        """Whether the difference is within one standard error."""
        return "yes" if abs(self.difference) <= self.error else "no"


COLUMNS: tuple[Column[Line, Any], ...] = (  # Any: the types of the fields
    Column("model", lambda line: line.model),
    Column("features", lambda line: line.space),
    Column("type", lambda line: line.dtype),
    Column("Fréchet distance", lambda line: line.distance, decimals(3)),
    Column("minus float32's", lambda line: line.difference, lambda number: f"{number:+.3f}"),
    Column("standard error", lambda line: line.error, decimals(3)),
    Column("within it", lambda line: line.inside),
)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="benchmarks.precision", description=__doc__, formatter_class=HelpFormatter)
    parser.add_argument("--models", nargs="+", default=MODELS, choices=MODELS, metavar="NAME", help="what to measure")
    parser.add_argument("--num_images", type=int, default=10000, help="images of each model in each type")
    parser.add_argument("--batch_size", type=int, default=50, help="images at a time on each rank")
    parser.add_argument("--out", type=Path, default=Path("out/precision"), help="folder to go on in")
    parser.add_argument("--results", type=Path, default=Path("out/precision"), help="folder of the table")
    parser.add_argument("--device", default="auto", help="auto, cuda, cpu or mps")
    args = parser.parse_args(argv)
    device = start(args.device)
    announce(device)
    recipes = {one.model: one for one in load_tables()["bundled"].recipes if one.row == "disa"}
    found: dict[str, dict[str, Results]] = {}
    for model in args.models:
        recipe = replace(recipes[model], num_images=args.num_images, batch_size=args.batch_size)
        found[model] = {}
        for dtype in DTYPES:
            distributed.print_main(f"\n{model} in {dtype}")
            found[model][dtype] = measure(recipe, dtype, args.out, device)
    if distributed.is_main():
        text = describe(found, args.num_images)
        with atomic_write(args.results / "precision.md") as beside:
            beside.write_text(text, encoding="utf-8")
        print(text)
    distributed.shutdown()


def measure(recipe: Recipe, dtype: str, out: Path, device: torch.device) -> Results:
    """Evaluate a recipe in one number type; in float32 with intervals."""
    specs, _ = distributed.on_main(lambda: plan_recipe(recipe, "fid", "auto", "auto"))
    return evaluate(
        load(recipe, device, DTYPES[dtype])(recipe),
        out / f"{recipe.model}-{dtype}",
        specs=specs,
        settings={"model": recipe.model, "dtype": dtype},
        num_images=recipe.num_images,
        batch_size=recipe.batch_size,
        intervals=dtype == "float32",
    )


def lines(model: str, found: dict[str, Results]) -> Iterator[Line]:
    """The distances of one model in every type and space."""
    for exact in found["float32"].metrics:
        assert exact.fid is not None
        assert exact.fid_interval is not None
        low, high = exact.fid_interval
        for dtype, results in found.items():
            scores = results.scores(exact.extractor)
            assert scores is not None
            assert scores.fid is not None
            yield Line(model, dtype, exact.extractor, scores.fid, scores.fid - exact.fid, (high - low) / 2 / 1.96)


def describe(found: dict[str, dict[str, Results]], images: int) -> str:
    """The table as Markdown."""
    one = next(iter(found.values()))["float32"]
    machine = f"{one.machine}, torch {one.versions['torch']}"
    rows = [line for model, results in found.items() for line in lines(model, results)]
    said = textwrap.fill(EXPLANATION.format(images=images, machine=machine), 120)
    return f"# Precision\n\n{said}\n\n{table(rows, COLUMNS)}\n"


if __name__ == "__main__":
    torch.set_num_threads(1)  # one core per rank
    run(main)
