"""Quality of a bundled model with and without diffusion step annealing, on 10,000 images a setting.

The demo's three settings in both feature spaces, whether their differences are beyond the noise, how far real images are
from real images, and, with fewer images, fixed counts from low to full and other samplers. Run from the repository's root; an
interrupted run goes on where it stopped:
`torchrun --standalone --nproc_per_node=2 -m benchmarks.quality --model mar_fashion --results benchmarks/results --pictures assets`.
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

from disa import StepSchedule, distributed
from disa.demo import COLUMNS, SETTINGS, everywhere, samplers_of, table_rows
from disa.distributed import resolve_device
from disa.evaluation import evaluate
from disa.files import atomic_write, write_json
from disa.flags import DTYPES, HelpFormatter
from disa.generation import image_path
from disa.metrics import Features, Images, Statistics, extract_features, frechet_distance, measure
from disa.report import Column, Point, decimals, image_grid, percent, plot_quality, plot_step_schedules, table
from disa.sampling import LabelSampler, Sampling
from disa.spaces import BUNDLED_STATISTICS
from disa.training.data import fashion_mnist

SPACES = ("efficientnet-lite0", "fashion-classifier")
FOLDS = 5
# Fixed counts besides those of the demo's settings; about 10 everywhere cost the flow models what DiSA does.
CURVES = {"mar_fashion": (3, 5, 20, 40), "flowar_fashion": (3, 4, 8, 10), "xar_fashion": (3, 4, 8, 10)}


def curve(name: str) -> dict[str, Sampling]:
    """Fixed counts, in as many AR steps as with DiSA."""
    disa = SETTINGS[name]["DiSA"]
    return {f"{count} everywhere": dataclasses.replace(disa, schedule=everywhere(count)) for count in CURVES[name]}


def variants(name: str) -> dict[str, Sampling]:
    """DiSA's setting with something else changed, too."""
    disa = SETTINGS[name]["DiSA"]
    upper, lower = disa.schedule.upper, disa.schedule.lower
    if disa.num_iter is None:
        halved = StepSchedule((upper + 1) // 2, lower // 2)  # Heun's steps take two evaluations
        other = "euler" if disa.sampler == "euler_maruyama" else "euler_maruyama"
        return {
            f"DiSA, heun {halved.upper} → {halved.lower}": dataclasses.replace(disa, sampler="heun", schedule=halved),
            f"DiSA, {other}": dataclasses.replace(disa, sampler=other),
        }
    return {
        # What the model can do: less noise than it was trained with costs variety and gains more in likeness.
        "DiSA, temperature 0.9": dataclasses.replace(disa, temperature=0.9),
        f"{upper} everywhere, not clipped (default)": dataclasses.replace(disa, sampler="default", schedule=everywhere(upper)),
    }


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


def ratios(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Costs and distances over those of the first of `rows`."""
    keys = [key for key in ("head_evaluations", *SPACES) if rows[0].get(key) is not None]
    return [{"setting": row["setting"], **{key: row[key] / rows[0][key] for key in keys}} for row in rows[1:]]


# Times are benchmarks/speed.py's to measure, where settings take turns.
SCORES = tuple(column for column in COLUMNS if column.key not in ("seconds_per_image", "speed_up"))
RATIOS = (
    Column("setting", "over without DiSA"),
    Column("head_evaluations", "head evaluations", percent),
    *(Column(space, f"Fréchet distance ({space})", decimals(3)) for space in SPACES),
)
DIFFERENCES = (
    Column("setting", "Fréchet distance"),
    Column("extractor", "features"),
    Column("images", f"images in each of {FOLDS} folds"),
    Column("difference", "difference", decimals(2)),
    Column("error", "standard error", decimals(2)),
)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="benchmarks.quality", description=__doc__, formatter_class=HelpFormatter)
    parser.add_argument("--model", default="mar_fashion", choices=SETTINGS, metavar="NAME", help=f"one of {', '.join(SETTINGS)}")
    parser.add_argument("--out", type=Path, default=Path("out/quality"), help="folder of the images")
    parser.add_argument("--num_images", type=int, default=10000, help="images of each of the demo's settings")
    parser.add_argument("--curve_images", type=int, default=2000, help="images of the other settings; 0 leaves them out")
    parser.add_argument("--batch_size", type=int, default=50, help="images at a time on each rank")
    parser.add_argument("--features", nargs="+", default=SPACES, choices=SPACES, metavar="NAME", help="feature spaces")
    parser.add_argument("--dtype", default="float32", choices=DTYPES, help="of the networks")
    parser.add_argument("--results", type=Path, default=Path("out/quality"), help="folder of the tables")
    parser.add_argument("--pictures", type=Path, default=Path("out/quality"), help="folder of the pictures")
    parser.add_argument("--device", default="auto", help="auto, cuda, cpu or mps")
    args = parser.parse_args(argv)

    device = resolve_device(args.device)
    distributed.setup(device)
    run_all(args, device)
    distributed.shutdown()


def run_all(args: argparse.Namespace, device: torch.device) -> None:
    """Generate, measure and write everything; every rank calls this."""
    spaces = args.features
    references = {space: Statistics.load(BUNDLED_STATISTICS / f"fashion_test_{space}.npz") for space in spaces}
    few = min(args.curve_images, args.num_images)
    shown = samplers_of(args.model, device, DTYPES[args.dtype])
    disa = shown["DiSA"]
    others = {**curve(args.model), **variants(args.model)} if few else {}
    samplers = {**shown, **{name: LabelSampler(disa.model, disa.tokenizer, sampling, device) for name, sampling in others.items()}}
    labels = disa.labels(range(args.num_images))
    results, features = {}, {}
    for name, sampler in samplers.items():
        if distributed.is_main():
            print(f"\n{args.model}, {name}", flush=True)
        count = args.num_images if name in shown else few
        folder = image_folder(args, sampler)
        results[name] = evaluate(
            sampler,
            folder,
            spaces=[],
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

    def rows(names: Sequence[str], count: int) -> list[dict[str, Any]]:
        measured = {
            name: {
                **results[name],
                "metrics": [scores(part(features[name][space], slice(count)), labels[:count], references[space]) for space in spaces],
            }
            for name in names
        }
        return table_rows(samplers, measured)

    main_rows = rows(list(shown), args.num_images)
    all_rows = rows(list(samplers), few) if few else []
    differences = [
        {**row, "extractor": space}
        for space in spaces
        for row in spread({name: features[name][space] for name in shown}, labels, references[space])
    ]
    write_results(args, results["DiSA"], main_rows, all_rows, differences, floors)
    write_pictures(args, shown)
    if few:
        write_quality_picture(args, all_rows, floors)


def image_folder(args: argparse.Namespace, sampler: LabelSampler) -> Path:
    """Where the images of a setting lie."""
    return args.out / args.model / sampler.sampling.name()


def write_results(
    args: argparse.Namespace,
    result: Mapping[str, Any],
    main_rows: list[dict[str, Any]],
    all_rows: list[dict[str, Any]],
    differences: list[dict[str, Any]],
    floors: Mapping[str, float],
) -> None:
    """`quality_<model>.md`, and the numbers unrounded in `quality_<model>.json`; `result` is that of any setting."""
    real = [f"- {space}: {floor:.2f} between halves of the test images, 5,000 each" for space, floor in floors.items()]
    parts = [
        f"Written by `benchmarks/quality.py --model {args.model}` on {result['device']}, {result['ranks']} ranks, {args.dtype}, "
        f"torch {result['versions']['torch']}. Fréchet distances are to the 10,000 test images of Fashion-MNIST; lower is better.",
        f"## {args.num_images:,} images, the same image seeds",
        table(main_rows, SCORES),
        table(ratios(main_rows), RATIOS),
        "## Beyond the noise?",
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
    numbers = {"main": main_rows, "ratios": ratios(main_rows), "others": all_rows, "differences": differences, "real": floors}
    machine = {key: result[key] for key in ("device", "ranks", "versions")}
    write_json(args.results / f"quality_{args.model}.json", {**numbers, **machine, "dtype": args.dtype})
    print(text)


def write_pictures(args: argparse.Namespace, samplers: Mapping[str, LabelSampler]) -> None:
    """The step schedules, and samples of each setting side by side."""
    args.pictures.mkdir(parents=True, exist_ok=True)
    figure = plot_step_schedules({name: sampler.step_counts for name, sampler in samplers.items()})
    with atomic_write(args.pictures / f"{args.model}_step_schedules.png") as beside:
        figure.savefig(beside, dpi=160)
    columns, lines = 10, 6
    figure = Figure(figsize=(13, 3.1), layout="constrained")
    for axes, (name, sampler) in zip(figure.subplots(1, len(samplers)), samplers.items(), strict=True):
        paths = [image_path(image_folder(args, sampler) / "images", image_id) for image_id in range(columns * lines)]
        axes.imshow(image_grid(torch.stack([torch.from_numpy(np.array(Image.open(path))) for path in paths]), columns=columns))
        axes.set_title(f"{name}: {sampler.head_evaluations:,} head evaluations an image", fontsize=11)
        axes.set_axis_off()
    with atomic_write(args.pictures / f"{args.model}_samples.png") as beside:
        figure.savefig(beside, dpi=160)


def write_quality_picture(args: argparse.Namespace, rows: Sequence[Mapping[str, Any]], floors: Mapping[str, float]) -> None:
    """Fréchet distance, in the last of the feature spaces, of the demo's settings and of fixed counts against evaluations of the head."""
    space = args.features[-1]
    points = {row["setting"]: Point(row["setting"], row["head_evaluations"], row[space]) for row in rows}
    figure = plot_quality(
        [points[name] for name in SETTINGS[args.model]],
        "head evaluations an image",
        "Fréchet distance",
        curve=[points[name] for name in curve(args.model)],
        floor=floors[space],
    )
    with atomic_write(args.pictures / f"{args.model}_quality.png") as beside:
        figure.savefig(beside, dpi=160)


if __name__ == "__main__":
    from disa.cli import run

    torch.set_num_threads(1)  # a rank a core
    run(main)
