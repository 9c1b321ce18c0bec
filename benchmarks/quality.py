"""Quality of the bundled MAR with and without diffusion step annealing, on 10,000 images a setting.

The demo's three settings in both feature spaces, whether their differences are beyond the noise, how far real images are
from real images, and, with fewer images, fixed counts from low to full and the sampler without clipping. Run from the
repository's root; an interrupted run goes on where it stopped:
`torchrun --standalone --nproc_per_node=2 -m benchmarks.quality --out out/quality --results benchmarks/results --pictures assets`.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image

from disa import StepSchedule, distributed, load_model
from disa.demo import COLUMNS, SETTINGS, table_row
from disa.distributed import resolve_device
from disa.evaluation import BUNDLED_STATISTICS, evaluate
from disa.files import atomic_write, write_json
from disa.flags import HelpFormatter
from disa.generation import image_path
from disa.metrics import Features, Images, Statistics, extract_features, frechet_distance, measure
from disa.models.mar import MAR
from disa.models.tokenizer import SpaceToDepth
from disa.report import Column, decimals, image_grid, plot_step_schedules, table
from disa.sampling import LabelSampler, Sampling
from disa.training.data import fashion_mnist

SPACES = ("efficientnet-lite0", "fashion-classifier")
DISA = SETTINGS["DiSA"]
CURVE = {
    f"{count} everywhere": dataclasses.replace(DISA, schedule=StepSchedule(count, count, "constant"))
    for count in (3, 5, 20, DISA.schedule.upper)
}
# What the model can do: less noise than it was trained with costs variety and gains more in likeness.
COOLER = {"DiSA, temperature 0.9": dataclasses.replace(DISA, temperature=0.9)}
UNCLIPPED = {
    f"{DISA.schedule.upper} everywhere, not clipped (default)": dataclasses.replace(
        DISA, sampler="default", schedule=StepSchedule(DISA.schedule.upper, DISA.schedule.upper, "constant")
    )
}
FOLDS = 5


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


def scores(features: Features, labels: torch.Tensor, reference: Statistics) -> dict[str, Any]:
    metrics = ("fid", "accuracy") if features.extractor == "fashion-classifier" else ("fid",)
    return measure(features, metrics, reference=reference, labels=labels)


def real_floor(extractor: str, folder: Path, device: torch.device) -> float:
    """Fréchet distance of real images from real images: between halves of the test images."""
    test = features_of(fashion_mnist(False)[0], folder / f"real-{extractor}.pt", extractor, device)
    order = torch.randperm(len(test.features), generator=torch.Generator().manual_seed(0))
    one, other = (Statistics.of(Features(test.features[rows], test.logits[rows], extractor)) for rows in order.chunk(2))
    return frechet_distance(one, other)


def spread(all_features: Mapping[str, Features], labels: torch.Tensor, reference: Statistics) -> list[dict[str, Any]]:
    """Differences from DiSA over disjoint folds of the same image seeds: their mean and its standard error."""
    count = len(labels) // FOLDS
    folds = [slice(i * count, (i + 1) * count) for i in range(FOLDS)]
    distances = {
        name: [scores(part(features, rows), labels[rows], reference)["fid"] for rows in folds] for name, features in all_features.items()
    }
    rows = []
    for name in all_features:
        if name == "DiSA":
            continue
        differences = [other - disa for other, disa in zip(distances[name], distances["DiSA"], strict=True)]
        error = statistics.stdev(differences) / FOLDS**0.5
        rows.append({"setting": f"{name} minus DiSA", "images": count, "difference": statistics.mean(differences), "error": error})
    return rows


# Times are benchmarks/speed.py's to measure, where settings take turns.
SCORES = tuple(column for column in COLUMNS if column.key not in ("seconds_per_image", "speed_up"))
DIFFERENCES = (
    Column("setting", "Fréchet distance"),
    Column("extractor", "features"),
    Column("images", f"images in each of {FOLDS} folds"),
    Column("difference", "difference", decimals(2)),
    Column("error", "standard error", decimals(2)),
)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="benchmarks.quality", description=__doc__, formatter_class=HelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("out/quality"), help="folder of the images")
    parser.add_argument("--num_images", type=int, default=10000, help="images of each of the demo's settings")
    parser.add_argument("--curve_images", type=int, default=2000, help="images of the other settings; 0 leaves them out")
    parser.add_argument("--batch_size", type=int, default=50, help="images at a time on each rank")
    parser.add_argument("--results", type=Path, default=Path("out/quality"), help="folder of the tables")
    parser.add_argument("--pictures", type=Path, default=Path("out/quality"), help="folder of the pictures")
    parser.add_argument("--device", default="auto", help="auto, cuda, cpu or mps")
    args = parser.parse_args(argv)

    device = resolve_device(args.device)
    distributed.setup(device)
    run_all(args, device)
    distributed.shutdown()


def run_all(args: argparse.Namespace, device: torch.device) -> None:
    model, tokenizer = load_model("mar_fashion").to(device), SpaceToDepth().to(device)
    references = {space: Statistics.load(BUNDLED_STATISTICS / f"fashion_test_{space}.npz") for space in SPACES}
    few = min(args.curve_images, args.num_images)

    def generate(name: str, sampling: Sampling, count: int) -> dict[str, Any]:
        if distributed.is_main():
            print(f"\n{name}", flush=True)
        return evaluate(
            LabelSampler(model, tokenizer, sampling, device),
            args.out / sampling.name(),
            spaces=[],
            settings={"model": "mar_fashion"},
            num_images=count,
            batch_size=args.batch_size,
            keep_images=True,
        )

    all_labels = LabelSampler(model, tokenizer, DISA, device).labels(range(args.num_images))
    results, features = {}, {}
    others = {**COOLER, **CURVE, **UNCLIPPED} if few else {}
    for name, sampling in {**SETTINGS, **others}.items():
        count = args.num_images if name in SETTINGS else few
        folder = args.out / sampling.name()
        results[name] = generate(name, sampling, count)
        images = [image_path(folder / "images", image_id) for image_id in range(count)]
        features[name] = {space: features_of(images, folder / f"{space}-{count}.pt", space, device) for space in SPACES}
    floors = {space: real_floor(space, args.out, device) for space in SPACES}
    if not distributed.is_main():
        return

    def rows(names: Sequence[str], count: int) -> list[dict[str, Any]]:
        measured = {
            name: {
                **results[name],
                "metrics": [scores(part(features[name][space], slice(count)), all_labels[:count], references[space]) for space in SPACES],
            }
            for name in names
        }
        return [table_row(name, measured[name], measured["without DiSA"]) for name in names]

    main_rows = rows(list(SETTINGS), args.num_images)
    curve_rows = rows([*SETTINGS, *others], few) if few else []
    differences = [
        {**row, "extractor": space}
        for space in SPACES
        for row in spread({name: features[name][space] for name in SETTINGS}, all_labels, references[space])
    ]
    write_results(args, results, main_rows, curve_rows, differences, floors, few)
    write_pictures(args, model)


def write_results(
    args: argparse.Namespace,
    results: Mapping[str, Any],
    main_rows: list[dict[str, Any]],
    curve_rows: list[dict[str, Any]],
    differences: list[dict[str, Any]],
    floors: Mapping[str, float],
    few: int,
) -> None:
    """`quality.md`, and the numbers unrounded in `quality.json`."""
    first = results["DiSA"]
    real = [f"- {space}: {floor:.2f} between halves of the test images, 5,000 each" for space, floor in floors.items()]
    text = "\n\n".join(
        [
            f"Written by `benchmarks/quality.py` on {first['device']}, {first['ranks']} ranks, torch {first['versions']['torch']}. "
            "Fréchet distances are to the 10,000 test images of Fashion-MNIST; lower is better.",
            f"## {args.num_images:,} images, the same image seeds",
            table(main_rows, SCORES),
            "## Beyond the noise?",
            table(differences, DIFFERENCES),
            "## Real images against real images",
            "\n".join(real),
            *(
                [
                    f"## The first {few:,} images, 16 AR steps with other counts",
                    "With fewer images every Fréchet distance is higher, in all rows alike.",
                    table(curve_rows, SCORES),
                ]
                if few
                else []
            ),
        ]
    )
    args.results.mkdir(parents=True, exist_ok=True)
    with atomic_write(args.results / "quality.md") as beside:
        beside.write_text(f"# Quality of mar_fashion with and without DiSA\n\n{text}\n")
    numbers = {"main": main_rows, "curve": curve_rows, "differences": differences, "real": floors}
    write_json(
        args.results / "quality.json", {**numbers, "device": first["device"], "ranks": first["ranks"], "versions": first["versions"]}
    )
    print(text)


def write_pictures(args: argparse.Namespace, model: MAR) -> None:
    """The step schedules, and samples of each setting side by side."""
    args.pictures.mkdir(parents=True, exist_ok=True)
    figure = plot_step_schedules({name: model.evaluations(**sampling.steps) for name, sampling in SETTINGS.items()})
    with atomic_write(args.pictures / "mar_fashion_step_schedules.png") as beside:
        figure.savefig(beside, dpi=160)
    columns, lines = 10, 6
    figure = Figure(figsize=(13, 3.1), layout="constrained")
    for axes, (name, sampling) in zip(figure.subplots(1, len(SETTINGS)), SETTINGS.items(), strict=True):
        paths = [image_path(args.out / sampling.name() / "images", image_id) for image_id in range(columns * lines)]
        axes.imshow(image_grid(torch.stack([torch.from_numpy(np.array(Image.open(path))) for path in paths]), columns=columns))
        axes.set_title(f"{name}: {sum(model.evaluations(**sampling.steps)):,} head evaluations an image", fontsize=11)
        axes.set_axis_off()
    with atomic_write(args.pictures / "mar_fashion_samples.png") as beside:
        figure.savefig(beside, dpi=160)


if __name__ == "__main__":
    from disa.cli import run

    torch.set_num_threads(1)  # a rank a core
    run(main)
