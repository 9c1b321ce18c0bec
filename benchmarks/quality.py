"""Quality of a bundled model with and without diffusion step annealing, on 10,000 images per setting.

The settings of the table `bundled_beyond` in both feature spaces, whether their differences exceed the noise, how far
real images are from real images, and, with fewer images, fixed counts from low to full and other solvers. Run from the
repository's root; an interrupted run goes on where it stopped: `torchrun --standalone --nproc_per_node=2 -m
benchmarks.quality --model mar_fashion --results benchmarks/results --pictures assets`.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image

from benchmarks.features import Features, extract_features, measure, statistics_of
from benchmarks.launches import wrap
from benchmarks.settings import ROWS, compared
from disa import StepSchedule
from disa.commands.demo import COLUMNS, NAMES
from disa.commands.flags import HelpFormatter
from disa.data.fashion import fashion_mnist
from disa.evaluation.metrics import Images, Statistics, frechet_distance
from disa.evaluation.results import Results, Scores
from disa.evaluation.run import evaluate
from disa.generation.images import image_grid, image_path
from disa.runtime import distributed
from disa.runtime.devices import DTYPES
from disa.runtime.files import BUNDLED, atomic_write, write_json
from disa.runtime.start import start
from disa.tables.measure import load
from disa.tables.recipes import Recipe
from disa.tables.report import Column, Point, column, decimals, percent, plot_quality, plot_step_schedules, table
from disa.tables.show import Row, RowColumn, verdict

SPACES = ("efficientnet-lite0", "fashion-classifier")
FOLDS = 5
# Fixed counts besides those of the demo's settings.
CURVES = {
    "mar_fashion": (3, 5, 16, 30),
    "flowar_fashion": (2, 6, 8, 12),
    "xar_fashion": (3, 4, 8, 12),
    "harmon_fashion": (3, 5, 16, 30),
}


def named(recipe: Recipe, name: str, **changes: Any) -> Recipe:
    """The recipe called `name`, with another sampling."""
    return dataclasses.replace(recipe, row=name, sampling=dataclasses.replace(recipe.sampling, **changes))


def constant(count: int) -> StepSchedule:
    """The same count at every AR step."""
    return StepSchedule(count, count, "constant")


def curve(disa: Recipe) -> list[Recipe]:
    """Fixed counts, in as many AR steps as with DiSA."""
    return [named(disa, f"{count} everywhere", schedule=constant(count)) for count in CURVES[disa.model]]


def variants(disa: Recipe) -> list[Recipe]:
    """DiSA's setting with something else changed, too."""
    upper, lower = disa.sampling.schedule.upper, disa.sampling.schedule.lower
    if disa.sampling.num_iter is None:
        halved = StepSchedule((upper + 1) // 2, lower // 2)  # Heun's steps take two evaluations
        other = "euler" if disa.sampling.sampler == "euler_maruyama" else "euler_maruyama"
        return [
            named(disa, f"DiSA, heun {halved.upper} → {halved.lower}", sampler="heun", schedule=halved),
            named(disa, f"DiSA, {other}", sampler=other),
        ]
    # Less noise than it was trained with costs variety and gains in likeness.
    temperature = 1.0 if disa.sampling.temperature < 1 else 0.9
    return [
        named(disa, f"DiSA, temperature {temperature:g}", temperature=temperature),
        named(disa, f"{upper} everywhere, not clipped (default)", sampler="default", schedule=constant(upper)),
    ]


def features_of(images: Images, kept: Path, extractor: str, device: torch.device) -> Features:
    """Features of images, kept in a file, for they take long."""
    if kept.is_file():
        return Features(**torch.load(kept, weights_only=True))
    found = extract_features(images, extractor, device=device)
    distributed.barrier()  # nobody may see the file before everybody has looked for it
    if distributed.is_main():
        with atomic_write(kept) as beside:
            torch.save(dataclasses.asdict(found), beside)
    distributed.barrier()
    return found


def part(features: Features, rows: slice) -> Features:
    """Some of the images."""
    return Features(features.features[rows], features.logits[rows], features.extractor)


def scores(features: Features, labels: torch.Tensor, reference: Statistics) -> Scores:
    metrics = ("fid", "accuracy") if features.extractor == "fashion-classifier" else ("fid",)
    return measure(features, metrics, reference=reference, labels=labels)


def distance(features: Features, labels: torch.Tensor, reference: Statistics) -> float:
    found = scores(features, labels, reference).fid
    assert found is not None
    return found


def real_floor(extractor: str, folder: Path, device: torch.device) -> float:
    """Fréchet distance of real images from real images: between halves of the test images."""
    test = features_of(fashion_mnist(False)[0], folder / f"real-{extractor}.pt", extractor, device)
    order = torch.randperm(len(test.features), generator=torch.Generator().manual_seed(0))
    one, other = (statistics_of(Features(test.features[rows], test.logits[rows], extractor)) for rows in order.chunk(2))
    return frechet_distance(one, other)


def spread(all_features: Mapping[str, Features], labels: torch.Tensor, reference: Statistics) -> list[dict[str, Any]]:
    """Differences of settings over disjoint folds of the same image seeds: their mean and its standard error."""
    count = len(labels) // FOLDS
    folds = [slice(i * count, (i + 1) * count) for i in range(FOLDS)]
    distances = {
        name: [distance(part(features, rows), labels[rows], reference) for rows in folds]
        for name, features in all_features.items()
    }
    rows = []
    for one, other in pairs(list(all_features)):
        differences = [mine - its for mine, its in zip(distances[one], distances[other], strict=True)]
        mean, error = statistics.mean(differences), statistics.stdev(differences) / FOLDS**0.5
        rows.append({"setting": f"{one} minus {other}", "images": count, "difference": mean, "error": error})
        rows[-1]["verdict"] = verdict(mean, error)
    return rows


def pairs(names: Sequence[str]) -> list[tuple[str, str]]:
    """Settings to compare: each with the full count, with DiSA, and calibrated with constant counts."""
    others = [(name, other) for other in (ROWS["full"], ROWS["disa"]) for name in names[names.index(other) + 1 :]]
    calibrated = ROWS["calibrated"], ROWS["constant"]
    return others + [calibrated] * set(names).issuperset(calibrated)


def ratios(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Costs and distances over those of the first of `rows`."""
    keys = [key for key in ("nfe", *SPACES) if rows[0].get(key) is not None]
    return [{"setting": row["setting"], **{key: row[key] / rows[0][key] for key in keys}} for row in rows[1:]]


def record(row: Row) -> dict[str, Any]:
    """What the file of numbers has of a row."""
    costs = {"ar_steps": len(row.recipe.nfe_per_step), "nfe": row.recipe.nfe, "seconds_per_image": row.seconds}
    found = {space: row.scores(space).fid for space in SPACES if row.scores(space).fid is not None}
    accuracy = row.scores("fashion-classifier").label_accuracy
    return {
        "setting": row.recipe.row,
        **costs,
        **found,
        **({} if accuracy is None else {"label_accuracy": accuracy}),
        **({} if row.speed_up is None else {"speed_up": row.speed_up}),
    }


# Times are benchmarks/speed.py's to measure, where settings take turns.
SCORES: tuple[RowColumn, ...] = (
    Column("setting", lambda row: row.recipe.row),
    *(one for one in COLUMNS if one.header not in ("setting", "seconds per image", "speed-up")),
)
RATIOS = (
    column("setting", "over without DiSA"),
    column("nfe", "NFE", percent),
    *(column(space, f"Fréchet distance ({space})", decimals(3)) for space in SPACES),
)
DIFFERENCES = (
    column("setting", "Fréchet distance"),
    column("extractor", "features"),
    column("images", f"images in each of {FOLDS} folds"),
    column("difference", "difference", decimals(2)),
    column("error", "standard error", decimals(2)),
    column("verdict", "beyond two standard errors"),
)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="benchmarks.quality", description=__doc__, formatter_class=HelpFormatter)
    parser.add_argument(
        "--model", default="mar_fashion", choices=CURVES, metavar="NAME", help=f"one of {', '.join(CURVES)}"
    )
    parser.add_argument("--out", type=Path, default=Path("out/quality"), help="folder of the images")
    parser.add_argument("--num_images", type=int, default=10000, help="images of each of these settings")
    parser.add_argument(
        "--curve_images", type=int, default=2000, help="images of the other settings; 0 leaves them out"
    )
    parser.add_argument("--batch_size", type=int, default=50, help="images at a time on each rank")
    parser.add_argument("--features", nargs="+", default=SPACES, choices=SPACES, metavar="NAME", help="feature spaces")
    parser.add_argument("--dtype", default="float32", choices=DTYPES, help="of the networks")
    parser.add_argument("--results", type=Path, default=Path("out/quality"), help="folder of the tables")
    parser.add_argument("--pictures", type=Path, default=Path("out/quality"), help="folder of the pictures")
    parser.add_argument("--device", default="auto", help="auto, cuda, cpu or mps")
    args = parser.parse_args(argv)

    device = start(args.device)
    run_all(args, device)
    distributed.shutdown()


def run_all(args: argparse.Namespace, device: torch.device) -> None:
    """Generate, measure and write everything; every rank calls this."""
    spaces = args.features
    references = {space: Statistics.load(BUNDLED / f"fashion_test_{space}.npz") for space in spaces}
    few = min(args.curve_images, args.num_images)
    recipes = compared(args.model)
    shown = {name: dataclasses.replace(one, row=name, num_images=args.num_images) for name, one in recipes.items()}
    others = [*curve(shown["DiSA"]), *variants(shown["DiSA"])] if few else []
    asked = {**shown, **{one.row: one for one in others}}
    make = load(shown["DiSA"], device, DTYPES[args.dtype])
    labels = make(shown["DiSA"]).labels(range(args.num_images))
    assert labels is not None
    results: dict[str, Results] = {}
    features: dict[str, dict[str, Features]] = {}
    for name, recipe in asked.items():
        distributed.print_main(f"\n{args.model}, {name}")
        count, folder = args.num_images if name in shown else few, image_folder(args, recipe)
        results[name] = evaluate(
            make(recipe),
            folder,
            specs=[],
            settings={"model": args.model, "dtype": args.dtype},
            num_images=count,
            batch_size=args.batch_size,
            keep_images=True,
        )
        images = [image_path(folder / "images", image_id) for image_id in range(count)]
        features[name] = {space: features_of(images, folder / f"{space}-{count}.pt", space, device) for space in spaces}
    floors = {space: real_floor(space, args.out, device) for space in spaces}
    if not distributed.is_main():
        return

    def rows(names: Iterable[str], count: int) -> list[Row]:
        """Rows with the scores of the first `count` images; speed-ups are over the first."""
        found: list[Row] = []
        for name in names:
            parts = {space: part(features[name][space], slice(count)) for space in spaces}
            metrics = tuple(scores(parts[space], labels[:count], references[space]) for space in spaces)
            measured = dataclasses.replace(results[name], metrics=metrics)
            found.append(Row(asked[name], measured, found[0].results if found else measured))
        return found

    main_rows = rows(shown, args.num_images)
    all_rows = rows(asked, few) if few else []
    differences = [
        {**row, "extractor": space}
        for space in spaces
        for row in spread({name: features[name][space] for name in shown}, labels, references[space])
    ]
    write_results(args, results["DiSA"], main_rows, all_rows, differences, floors)
    write_pictures(args, shown)
    if few:
        names = [*NAMES.values(), ROWS["fastest"]]
        write_quality_picture(args, all_rows, floors, names, [one.row for one in curve(shown["DiSA"])])


def image_folder(args: argparse.Namespace, recipe: Recipe) -> Path:
    """Where the images of a setting lie."""
    return Path(args.out, args.model, recipe.sampling.name())


def write_results(
    args: argparse.Namespace,
    result: Results,
    main_rows: list[Row],
    all_rows: list[Row],
    differences: list[dict[str, Any]],
    floors: Mapping[str, float],
) -> None:
    """`quality_<model>.md`, and the numbers unrounded in `quality_<model>.json`; `result` is that of any setting."""
    shares = ratios([record(row) for row in main_rows])
    real = [f"- {space}: {floor:.2f} between halves of the test images, 5,000 each" for space, floor in floors.items()]
    parts = [
        wrap(
            f"Written by `python -m benchmarks.quality --model {args.model}` on {result.device}, {result.ranks} ranks, "
            f"{args.dtype}, torch {result.versions['torch']}. Fréchet distances are to the 10,000 test images of "
            "Fashion-MNIST; lower is better. NFE: network function evaluations per image."
        ),
        f"## {args.num_images:,} images, the same image seeds",
        table(main_rows, SCORES),
        table(shares, RATIOS),
        "## Beyond the noise?",
        "Below 0 the first is better.",
        table(differences, DIFFERENCES),
        "## Real images against real images",
        "\n".join(real),
    ]
    if all_rows:
        few = min(args.curve_images, args.num_images)
        parts += [
            f"## The first {few:,} images, other settings",
            "With fewer images every Fréchet distance is higher, in all rows alike.",
            table(all_rows, SCORES),
        ]
    text = "\n\n".join(parts)
    args.results.mkdir(parents=True, exist_ok=True)
    with atomic_write(args.results / f"quality_{args.model}.md") as beside:
        beside.write_text(f"# Quality of {args.model} with and without DiSA\n\n{text}\n")
    numbers = {
        "main": [record(row) for row in main_rows],
        "ratios": shares,
        "others": [record(row) for row in all_rows],
        "differences": differences,
        "real": floors,
    }
    machine = {"device": result.device, "ranks": result.ranks, "versions": result.versions}
    write_json(args.results / f"quality_{args.model}.json", {**numbers, **machine, "dtype": args.dtype})
    print(text)


def write_pictures(args: argparse.Namespace, recipes: Mapping[str, Recipe]) -> None:
    """The step schedules, and samples of each setting side by side."""
    args.pictures.mkdir(parents=True, exist_ok=True)
    counts = {name: recipe.nfe_per_step for name, recipe in recipes.items()}
    figure = plot_step_schedules(
        {name: counts[name] for name in (*NAMES.values(), ROWS["calibrated"]) if name in counts}
    )
    with atomic_write(args.pictures / f"{args.model}_step_schedules.png") as beside:
        figure.savefig(beside, dpi=160)
    columns, lines, panels = 10, 6, -(-len(recipes) // 4)
    figure = Figure(figsize=(13, 2.4 * panels), layout="constrained")
    every = figure.subplots(panels, 4, squeeze=False).ravel()
    for axes in every:
        axes.set_axis_off()
    for axes, (name, recipe) in zip(every, recipes.items(), strict=False):
        count = min(columns * lines, args.num_images)
        paths = [image_path(image_folder(args, recipe) / "images", image_id) for image_id in range(count)]
        images = torch.stack([torch.from_numpy(np.array(Image.open(path))) for path in paths])
        axes.imshow(image_grid(images, columns=columns))
        axes.set_title(f"{name}: NFE {recipe.nfe:,}", fontsize=11)
    with atomic_write(args.pictures / f"{args.model}_samples.png") as beside:
        figure.savefig(beside, dpi=160)


def write_quality_picture(
    args: argparse.Namespace,
    rows: Sequence[Row],
    floors: Mapping[str, float],
    shown: Sequence[str],
    fixed: Sequence[str],
) -> None:
    """Fréchet distance in the last feature space against NFE, of the settings `shown` and of `fixed` counts."""
    space = args.features[-1]
    points = {
        row.recipe.row: Point(row.recipe.row, row.recipe.nfe, fid)
        for row in rows
        if (fid := row.scores(space).fid) is not None
    }
    figure = plot_quality(
        [points[name] for name in shown],
        "NFE",
        "Fréchet distance",
        curve=[points[name] for name in fixed],
        floor=floors[space],
    )
    with atomic_write(args.pictures / f"{args.model}_quality.png") as beside:
        figure.savefig(beside, dpi=160)


if __name__ == "__main__":
    from disa.commands.exit import run

    torch.set_num_threads(1)  # one core per rank
    run(main)
