"""What diffusion step annealing does, shown on the bundled models: `make demo`, or `torchrun --nproc_per_node=2 -m disa.demo`."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from . import distributed
from .checkpoints import load_model
from .distributed import resolve_device
from .evaluation import evaluate
from .flags import HelpFormatter
from .guidance import Guidance
from .models.tokenizer import SpaceToDepth
from .report import Column, Point, Section, decimals, percent, plot_quality, plot_step_schedules, table, times, write_report
from .sampling import LabelSampler, Sampling
from .schedule import StepSchedule
from .spaces import choose_spaces


def everywhere(count: int) -> StepSchedule:
    """The same count at every AR step."""
    return StepSchedule(count, count, "constant")


def comparison(full: Sampling, annealed: StepSchedule, num_iter: int | None = None) -> dict[str, Sampling]:
    """`full`, and the same image seeds with `annealed` steps and with the last of them everywhere, both in `num_iter` AR steps."""
    disa = dataclasses.replace(full, schedule=annealed, num_iter=num_iter)
    return {"without DiSA": full, "DiSA": disa, "low everywhere": dataclasses.replace(disa, schedule=everywhere(annealed.lower))}


# model -> setting -> how it samples
SETTINGS = {
    "mar_fashion": comparison(Sampling(64, everywhere(50), guidance=Guidance(2.5)), StepSchedule(40, 8), num_iter=16),
    "flowar_fashion": comparison(Sampling(None, everywhere(16), "euler", Guidance(2.0)), StepSchedule(16, 5)),
    # Euler–Maruyama, as xAR is released, leaves noise in small images at such counts: the quality benchmark shows it.
    "xar_fashion": comparison(Sampling(None, everywhere(16), "euler", Guidance(2.5)), StepSchedule(16, 5)),
}
EXPLANATION = """Each model generates an image in AR steps: MAR groups of tokens in random order, FlowAR finer and finer grids, xAR cell \
by cell. Within each AR step it evaluates a diffusion or flow network, the head (in xAR the whole transformer), once a diffusion step. The \
way without DiSA always takes the full count; DiSA starts with many diffusion steps and ends with few; the last row takes few everywhere. \
With DiSA, MAR also gets by with fewer AR steps. All rows start from the same image seeds.

The Fréchet distance compares the images with the 10,000 test images of Fashion-MNIST, in features of EfficientNet-Lite0 and of the \
bundled classifier (lower is better; it is biased upwards with few images, alike in every row). Accuracy is how often that classifier sees \
the label that was asked for."""

COLUMNS = (
    Column("setting", "setting"),
    Column("ar_steps", "AR steps"),
    Column("head_evaluations", "head evaluations an image", decimals(0)),
    Column("seconds_per_image", "seconds an image", decimals(3)),
    Column("speed_up", "speed-up", times),
    Column("efficientnet-lite0", "Fréchet distance (EfficientNet-Lite0)", decimals(1)),
    Column("fashion-classifier", "Fréchet distance (classifier)", decimals(1)),
    Column("label_accuracy", "label accuracy", percent),
)


def samplers_of(name: str, device: torch.device, dtype: torch.dtype = torch.float32) -> dict[str, LabelSampler]:
    """The settings of the bundled model called `name`, ready to run."""
    model, tokenizer = load_model(name).to(device, dtype), SpaceToDepth().to(device, dtype)
    return {setting: LabelSampler(model, tokenizer, sampling, device) for setting, sampling in SETTINGS[name].items()}


def table_rows(samplers: Mapping[str, LabelSampler], results: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Each setting's results under the keys of `COLUMNS`; speed-ups are over the first."""
    rows: list[dict[str, Any]] = []
    for setting, result in results.items():
        row = {"setting": setting, "ar_steps": len(samplers[setting].step_counts)}
        row |= {key: result[key] for key in ("head_evaluations", "seconds_per_image")}
        for scores in result["metrics"]:
            row[scores["extractor"]] = scores.get("fid")
            row["label_accuracy"] = scores.get("label_accuracy", row.get("label_accuracy"))
        rows.append(row)
        if row["seconds_per_image"] and rows[0]["seconds_per_image"]:
            row["speed_up"] = rows[0]["seconds_per_image"] / row["seconds_per_image"]
    return rows


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="disa.demo", description=__doc__, formatter_class=HelpFormatter)
    parser.add_argument("--models", nargs="+", default=list(SETTINGS), choices=SETTINGS, metavar="NAME", help="what is shown")
    parser.add_argument("--out", type=Path, default=Path("out/demo"), help="folder of the report; an interrupted demo goes on there")
    parser.add_argument("--num_images", type=int, default=500, help="images a setting")
    parser.add_argument("--batch_size", type=int, default=25, help="images at a time on each rank")
    parser.add_argument("--device", default="auto", help="auto, cuda, cpu or mps")
    args = parser.parse_args(argv)

    device = resolve_device(args.device)
    distributed.setup(device)
    spaces, left_out = choose_spaces("auto", "auto", "auto", bundled=True)
    models = {name: samplers_of(name, device) for name in args.models}
    sections, tables = [Section("What is compared", EXPLANATION)], []
    for name, samplers in models.items():
        results = {}
        for setting, sampler in samplers.items():
            if distributed.is_main():
                counts = f"{len(sampler.step_counts)} AR steps, {sampler.head_evaluations} head evaluations an image"
                print(f"\n{name}, {setting}: {counts}", flush=True)
            results[setting] = evaluate(
                sampler,
                args.out / name / sampler.sampling.name(),
                spaces=spaces,
                settings={"model": name},
                num_images=args.num_images,
                batch_size=args.batch_size,
                keep_images=False,
            )
        rows = table_rows(samplers, results)
        tables.append(f"{name}\n\n{table(rows, COLUMNS)}")
        if distributed.is_main():
            sections += describe(name, args.out / name, samplers, results["DiSA"], rows)
    if distributed.is_main():
        write_report(args.out / "report.html", "Diffusion step annealing", sections)
        print("\n" + "\n\n".join([*left_out, *tables, f"report: {args.out / 'report.html'}"]))
    distributed.shutdown()


def describe(
    name: str, folder: Path, samplers: Mapping[str, LabelSampler], result: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]
) -> list[Section]:
    """The report's sections on one model, whose images lie in `folder`; `result` is that of any setting."""
    space = next((space for space in ("fashion-classifier", "efficientnet-lite0") if rows[0].get(space) is not None), None)
    points = [Point(row["setting"], row["seconds_per_image"], row[space]) for row in rows if space and row["seconds_per_image"]]
    machine = f"on {result['device']}, {result['ranks']} ranks, torch {result['versions']['torch']}"
    schedules = plot_step_schedules({setting: sampler.step_counts for setting, sampler in samplers.items()})
    plots = {"Evaluations of the head at each AR step, all settings stretched to the same width": schedules}
    if points:
        quality = plot_quality(points, "seconds an image", "Fréchet distance")
        plots = {f"Fréchet distance in {space} features against time": quality, **plots}
    grids = {setting: Image.open(folder / sampler.sampling.name() / "samples.png") for setting, sampler in samplers.items()}
    return [
        Section(name, f"{result['num_images']} images a setting, {machine}.", rows, COLUMNS, plots),
        Section(f"Samples of {name}", "The same image seeds in every grid; a column is a class.", pictures=grids),
    ]


if __name__ == "__main__":
    from .cli import run

    torch.set_num_threads(1)  # a rank a core
    run(main)
