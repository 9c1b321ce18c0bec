"""`disa demo`: what diffusion step annealing does, shown on the bundled models."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from PIL import Image

from ..evaluation.plan import plan_metrics
from ..evaluation.run import evaluate
from ..runtime import distributed
from ..runtime.devices import DTYPES, resolve_dtype
from ..runtime.distributed import print_main
from ..runtime.files import check_folder
from ..runtime.start import announce, start
from ..tables import report
from ..tables.measure import load
from ..tables.recipes import Recipe, load_tables
from ..tables.report import Column, Point, Section, decimals
from ..tables.show import Row, RowColumn, compare_budgets, machines

# Row of the table `bundled` -> its name here.
NAMES = {"full": "without DiSA", "disa": "DiSA", "even": "same NFE, evenly", "low": "low everywhere"}

EXPLANATION = """Each model generates an image in AR steps: MAR groups of tokens in random order, FlowAR ever finer \
grids, xAR cell by cell. Within each AR step it evaluates a diffusion or flow network, the head (in xAR the whole \
transformer), once per diffusion step; NFE counts these evaluations per image. Without DiSA, every AR step takes the \
full count; with DiSA, the first AR steps take many diffusion steps and the last ones few; the third row takes as many \
in all as with DiSA, but equally many in each AR step; the last row takes few everywhere. All rows of a model take as \
many AR steps and start from the same image seeds. `disa reproduce bundled_released` measures the models as released, \
with more AR steps or other solvers.

The Fréchet distance compares the images with the 10,000 test images of Fashion-MNIST, in features of \
EfficientNet-Lite0 and of the bundled classifier (lower is better; with few images it is biased upwards, alike in \
every row). A difference is called one only beyond two standard errors, and else a tie. Accuracy is how often that \
classifier sees the label that was asked for."""

COLUMNS: tuple[RowColumn, ...] = (
    Column("setting", lambda row: NAMES[row.recipe.row]),
    Column("AR steps", lambda row: len(row.recipe.nfe_per_step)),
    Column("NFE", lambda row: row.recipe.nfe, decimals(0)),
    Column("seconds per image", lambda row: row.seconds, decimals(3)),
    Column("speed-up", lambda row: row.speed_up, report.times),
    Column("Fréchet distance (EfficientNet-Lite0)", lambda row: row.scores("efficientnet-lite0").fid, decimals(1)),
    Column("Fréchet distance (classifier)", lambda row: row.scores("fashion-classifier").fid, decimals(1)),
    Column("label accuracy", lambda row: row.scores("fashion-classifier").label_accuracy, report.percent),
)


def bundled_recipes() -> dict[str, list[Recipe]]:
    """Read what is compared: the bundled models of class labels, each without DiSA, with it, evenly, and low."""
    recipes = [recipe for recipe in load_tables()["bundled"].recipes if not recipe.takes_prompts]
    return {model: [one for one in recipes if one.model == model] for model in dict.fromkeys(r.model for r in recipes)}


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Measure the bundled models without annealing, with it, with as many evaluations spread evenly, and with few, "
        "and write a report. Takes minutes; goes on where it stopped. Runs alone or under torchrun (`make demo`)."
    )
    models, text = list(bundled_recipes()), "what is shown"
    parser.add_argument("--models", nargs="+", default=models, choices=models, metavar="NAME", help=text)
    parser.add_argument("--out", type=Path, default=Path("out/demo"), help="folder of the report, and to go on in")
    parser.add_argument("--num_images", type=int, default=500, help="images per setting")
    parser.add_argument("--batch_size", type=int, default=25, help="images at a time on each rank")
    parser.add_argument("--device", default="auto", help="auto, cuda, cpu or mps")


def main(args: argparse.Namespace) -> None:
    """Compare the models, and write the report; every rank computes a share."""
    recipes, counts = bundled_recipes(), {"num_images": args.num_images, "batch_size": args.batch_size}
    device = start(args.device)
    distributed.on_main(lambda: check_folder(args.out, "--out"))
    shown = {name: [dataclasses.replace(one, **counts) for one in recipes[name]] for name in args.models}
    demonstrate(shown, args.out, device, "auto")
    distributed.shutdown()


def demonstrate(recipes: Mapping[str, Sequence[Recipe]], out: Path, device: torch.device, features: str) -> None:
    """Measure the recipes of each model, print their tables, and write the report; every rank calls this."""
    specs, left_out = plan_metrics("auto", features, "auto", bundled=True)
    dtype = resolve_dtype("auto", device)
    makes = {model: load(alike[0], device, DTYPES[dtype]) for model, alike in recipes.items()}
    announce(device, dtype)
    sections, tables = [Section[Row]("What is compared", EXPLANATION)], []
    for model, make in makes.items():
        rows: list[Row] = []
        for recipe in recipes[model]:
            generator = make(recipe)
            print_main(f"\n{model}, {NAMES[recipe.row]}: {len(generator.nfe_per_step)} AR steps, NFE {generator.nfe:,}")
            results = evaluate(
                generator,
                out / model / recipe.sampling.name(),
                specs=specs,
                settings={"model": model, "dtype": dtype},
                num_images=recipe.num_images,
                batch_size=recipe.batch_size,
                intervals=True,
            )
            rows.append(Row(recipe, results, rows[0].results if rows else results))
        tables.append("\n\n".join([model, report.table(rows, COLUMNS), "\n".join(compare_budgets(rows))]))
        if distributed.is_main():
            sections += describe(model, out / model, rows)
    if distributed.is_main():
        report.write_report(out / "report.html", "Diffusion step annealing", sections)
    print_main("\n" + "\n\n".join([*left_out, *tables, f"report: {out / 'report.html'}"]))


def describe(model: str, folder: Path, rows: Sequence[Row]) -> list[Section[Row]]:
    """Make the report's sections on one model, whose images lie in `folder`."""
    named = {NAMES[row.recipe.row]: row for row in rows}
    space = "fashion-classifier" if rows[0].scores("fashion-classifier").fid is not None else "efficientnet-lite0"
    costs = [(name, row.seconds, row.scores(space).fid) for name, row in named.items()]
    points = [Point(name, seconds, fid) for name, seconds, fid in costs if seconds and fid is not None]
    caption = f"Fréchet distance in {space} features against time"
    plots = {caption: report.plot_quality(points, "seconds per image", "Fréchet distance")} if points else {}
    schedules = report.plot_step_schedules({name: row.recipe.nfe_per_step for name, row in named.items()})
    plots["Evaluations of the head at each AR step, all settings stretched to the same width"] = schedules
    grids = {name: Image.open(folder / row.recipe.sampling.name() / "samples.png") for name, row in named.items()}
    text = f"{rows[0].recipe.num_images} images per setting, on {'; '.join(machines(rows))}."
    text += "".join(f"\n\n{sentence} (± two standard errors)." for sentence in compare_budgets(rows))
    samples = Section[Row](f"Samples of {model}", "The same seeds in every grid; a column is a class.", pictures=grids)
    return [Section(model, text, rows, COLUMNS, plots), samples]
