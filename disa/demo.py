"""What diffusion step annealing does, shown on the bundled model: `make demo`, or `torchrun --nproc_per_node=2 -m disa.demo`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from . import distributed
from .checkpoints import load_model
from .distributed import resolve_device
from .evaluation import choose_spaces, evaluate
from .flags import HelpFormatter
from .guidance import Guidance
from .models.tokenizer import SpaceToDepth
from .report import Column, Point, Section, decimals, plot_quality_time, plot_step_schedules, table, write_report
from .sampling import LabelSampler, Sampling
from .schedule import StepSchedule

GUIDANCE = Guidance(2.5, "linear")
# Ancestral and clipped alike, with the same image seeds: only the schedule differs.
SETTINGS = {
    "without DiSA": Sampling(64, StepSchedule(50, 50, "constant"), guidance=GUIDANCE),
    "DiSA": Sampling(16, StepSchedule(40, 8, "linear"), guidance=GUIDANCE),
    "low everywhere": Sampling(16, StepSchedule(8, 8, "constant"), guidance=GUIDANCE),
}
EXPLANATION = """Each image has 64 tokens, sampled in groups by AR steps; within each AR step a small diffusion network (the head) is \
evaluated once a diffusion step. The way without DiSA takes many AR steps and always the full count; DiSA starts with many diffusion steps \
and ends with few; the last row takes few everywhere. All rows start from the same image seeds.

The Fréchet distance compares the images with the 10,000 test images of Fashion-MNIST, in features of EfficientNet-Lite0 and of the \
bundled classifier (lower is better; it is biased upwards with few images, alike in every row). Accuracy is how often that classifier sees \
the label that was asked for."""

COLUMNS = (
    Column("setting", "setting"),
    Column("num_iter", "AR steps"),
    Column("head_evaluations", "head evaluations an image", decimals(0)),
    Column("seconds_per_image", "seconds an image", decimals(3)),
    Column("speed_up", "speed-up", lambda value: f"{value:.1f}×"),
    Column("efficientnet-lite0", "Fréchet distance (EfficientNet-Lite0)", decimals(1)),
    Column("fashion-classifier", "Fréchet distance (classifier)", decimals(1)),
    Column("label_accuracy", "label accuracy", lambda value: f"{100 * value:.1f} %"),
)


def table_row(name: str, results: dict[str, Any], baseline: dict[str, Any]) -> dict[str, Any]:
    """One setting's results under the keys of `COLUMNS`."""
    row = {
        "setting": name,
        "num_iter": results["settings"]["num_iter"],
        **{key: results[key] for key in ("head_evaluations", "seconds_per_image")},
    }
    if baseline["seconds_per_image"] and results["seconds_per_image"]:
        row["speed_up"] = baseline["seconds_per_image"] / results["seconds_per_image"]
    for scores in results["metrics"]:
        row[scores["extractor"]] = scores.get("fid")
        row["label_accuracy"] = scores.get("label_accuracy", row.get("label_accuracy"))
    return row


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="disa.demo", description=__doc__, formatter_class=HelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("out/demo"), help="folder of the report; an interrupted demo goes on there")
    parser.add_argument("--num_images", type=int, default=500, help="images a setting")
    parser.add_argument("--batch_size", type=int, default=25, help="images at a time on each rank")
    parser.add_argument("--device", default="auto", help="auto, cuda, cpu or mps")
    args = parser.parse_args(argv)

    device = resolve_device(args.device)
    distributed.setup(device)
    rows, results = [], {}
    spaces, left_out = choose_spaces("auto", "auto", "auto", bundled=True)
    model, tokenizer = load_model("mar_fashion").to(device), SpaceToDepth().to(device)
    samplers = {name: LabelSampler(model, tokenizer, sampling, device) for name, sampling in SETTINGS.items()}
    for name, sampler in samplers.items():
        if distributed.is_main():
            print(f"\n{name}: {len(sampler.step_counts)} AR steps, {sampler.head_evaluations} head evaluations an image", flush=True)
        results[name] = evaluate(
            sampler,
            args.out / sampler.sampling.name(),
            spaces=spaces,
            settings={"model": "mar_fashion"},
            num_images=args.num_images,
            batch_size=args.batch_size,
            keep_images=False,
        )
        rows.append(table_row(name, results[name], next(iter(results.values()))))
    if distributed.is_main():
        write(args.out, rows, args.num_images, results, samplers)
        print("\n" + "\n".join([*left_out, table(rows, COLUMNS), "", f"report: {args.out / 'report.html'}"]))
    distributed.shutdown()


def write(
    out: Path, rows: list[dict[str, Any]], num_images: int, results: dict[str, dict[str, Any]], samplers: dict[str, LabelSampler]
) -> None:
    """Write the report."""
    space = next((name for name in ("fashion-classifier", "efficientnet-lite0") if rows[0].get(name) is not None), None)
    points = [Point(row["setting"], row["seconds_per_image"], row[space]) for row in rows if space and row["seconds_per_image"]]
    first = next(iter(results.values()))
    machine = f"{num_images} images a setting, on {first['device']}, {first['ranks']} ranks, torch {first['versions']['torch']}."
    sections = [
        Section("What is compared", EXPLANATION + "\n\n" + machine, rows, COLUMNS),
        Section(
            "Quality and time",
            pictures={f"Fréchet distance in {space} features against time": plot_quality_time(points, "Fréchet distance")}
            if points
            else {},
        ),
        Section(
            "Step schedules",
            pictures={
                "Evaluations of the head at each AR step, all settings stretched to the same width": plot_step_schedules(
                    {name: sampler.step_counts for name, sampler in samplers.items()}
                )
            },
        ),
        Section(
            "Samples",
            "The same image seeds in every grid; a column is a class.",
            pictures={name: Image.open(out / sampler.sampling.name() / "samples.png") for name, sampler in samplers.items()},
        ),
    ]
    write_report(out / "report.html", "Diffusion step annealing on mar_fashion", sections)


if __name__ == "__main__":
    from .cli import run

    torch.set_num_threads(1)  # a rank a core
    run(main)
