"""`disa calibrate`: find how many diffusion steps each AR step needs, and at which times."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import itertools
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from ..acceleration.allocation import allocate
from ..acceleration.calibration import IMAGES, KINDS, Calibration
from ..annealing import AnnealedModel
from ..generation.generators import Generator, LabelGenerator, Sampling, choose_attention
from ..models import MODELS
from ..models.harmon import Harmon
from ..models.vae import SpaceToDepth
from ..runtime.devices import DTYPES, resolve_dtype
from ..runtime.extras import extra
from ..runtime.files import atomic_write, check_folder
from ..runtime.fingerprint import fingerprint
from ..runtime.packed import PackedLinear
from ..runtime.start import announce, start
from ..tables import report
from ..tables.measure import check_weights, load_weights, prompt_generator
from ..tables.recipes import Recipe, load_tables
from ..tables.sweep import EXAMPLES, SOLVERS, starting_point
from .flags import add_device_flag, value

COUNTS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256)  # for which distances are measured
UNITS = 10_000  # of time in a budget of seconds
# Settings of a generation. What extrapolates features remembers the step before, which here is of another count.
GIVEN = {name: example for name, example in EXAMPLES.items() if not name.startswith(("step_schedule", "feature_"))}


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Measure at each AR step how far samples with few diffusion steps are from samples with many, D(s, k), and "
        "spend a budget of evaluations where it lowers D most, summed over all AR steps that a token depends on. "
        "Writes a file that every command takes as --step_schedule, and a picture beside it. Needs no images; minutes "
        "for a bundled model on a CPU, and for the others on a GPU. What is not given here is as in the model's first "
        "annealed recipe."
    )
    parser.add_argument("model", metavar="MODEL", help="a model that has recipes, such as mar_fashion")
    parser.add_argument("--checkpoint", help="weights; by default those of the recipe")
    parser.add_argument("--out", type=Path, default=Path("schedule.json"), help="the file; a picture comes beside it")
    group = parser.add_argument_group("what is wanted")
    either = group.add_mutually_exclusive_group()
    text = "evaluations per image (NFE) to spend; by default half of those of the model's annealed recipe"
    either.add_argument("--budget", type=int, metavar="NFE", help=text)
    text = "instead: the cheapest counts whose summed D is at most this; every run prints what it reaches"
    either.add_argument("--quality", type=float, metavar="EPS", help=text)
    text = "evaluations, which cost the same at all AR steps; or seconds as measured here, which grow with their tokens"
    group.add_argument("--cost", choices=("evaluations", "seconds"), default="evaluations", help=text)
    text = "the solver's own, or those of a shortest path over a fine grid (GITS) wherever D is lower there"
    group.add_argument("--times", choices=KINDS, default="own", help=text)
    group = parser.add_argument_group("measuring")
    value(group, "--max_steps", 32, "the most diffusion steps of an AR step; they are compared with twice as many")
    value(group, "--conditions", 64, "conditions at each AR step, at least; an image counts for two at the most")
    value(group, "--draws", 16, "samples per condition and count, at least")
    value(group, "--batch_size", 128, f"images at a time: copies of {IMAGES} different ones")
    add_device_flag(group)
    add_settings(parser)


def add_settings(parser: argparse.ArgumentParser) -> None:
    """Add flags of the settings that a recipe may be given."""
    group = parser.add_argument_group("settings of a generation, by default the recipe's")
    for name, example in GIVEN.items():
        text = f"such as {example}"
        group.add_argument(f"--{name}", type=type(example), metavar="VALUE", default=argparse.SUPPRESS, help=text)


def main(args: argparse.Namespace) -> int:
    recipe = get_recipe(args, args.conditions + IMAGES)
    linear = recipe.nfe_per_step
    if args.budget is None:
        args.budget = sum(linear) // 2
    check(args, recipe)
    device = start(args.device)
    model = load_weights(recipe)
    made_for = {
        "model": recipe.model,
        "weights": {name: fingerprint(model, dtype) for name, dtype in DTYPES.items()},
        "sampling": recipe.sampling.calibrated_for,
    }
    calibration = measure(args, make_generator(model, recipe, device))
    chosen = choose(args, calibration)
    limit = {"budget": args.budget} if args.quality is None else {"quality": args.quality}
    asked = {"cost": args.cost, "times": args.times, **limit}
    settings = {"settings": recipe.sampling.to_dict(), "asked": asked}
    write(args.out, {**made_for, **settings, **describe(calibration, chosen)})
    schedules = {"calibrated": [count for _, count, _ in chosen]}
    schedules[str(recipe.sampling.schedule.strategy)] = [
        recipe.sampling.schedule.steps(i, len(linear)) for i in range(len(linear))
    ]
    distances, _ = calibration.distances(args.max_steps)
    with atomic_write(args.out.with_suffix(".png")) as beside:
        report.plot_calibration(distances.tolist(), schedules).savefig(beside, dpi=160)
    print(summary(calibration, schedules))
    print(f"the schedule is in {args.out}, its picture in {args.out.with_suffix('.png')}")
    return 0


def make_generator(model: AnnealedModel, recipe: Recipe, device: torch.device) -> Generator:
    """Move `model` to `device` and make a generator of its latents, which are not to be decoded."""
    dtype = resolve_dtype("auto", device, MODELS[recipe.model].half)
    model.to(device, DTYPES[dtype])
    announce(device, dtype)
    if isinstance(model, Harmon):
        choose_attention(model.llm, device)
        return prompt_generator(model, recipe, device)
    return LabelGenerator(model, SpaceToDepth(), recipe.sampling, device)


def get_recipe(args: argparse.Namespace, images: int) -> Recipe:
    """Return the model's recipe with the settings and weights that the flags give, and prompts for `images` images."""
    recipe = starting_point(load_tables(), args.model)
    settings = {name: setting for name, setting in recipe.sampling.to_dict().items() if name in GIVEN}
    settings |= {name: setting for name, setting in vars(args).items() if name in GIVEN}
    recipe = dataclasses.replace(
        recipe,
        sampling=Sampling.from_dict(settings),
        num_images=images,
        prompts=tuple(itertools.islice(itertools.cycle(recipe.prompts), images)) if recipe.prompts else (),
        checkpoint=args.checkpoint or recipe.checkpoint,
    )
    recipe.check_ar_steps()
    return recipe


def check(args: argparse.Namespace, recipe: Recipe) -> None:
    """Refuse flags that are impossible, before weights are loaded.

    Raises:
        ValueError: naming one.
    """
    with extra("eval"):
        import matplotlib  # noqa: F401  # for the picture at the end
    for name, least, most in (("max_steps", 2, 256), ("conditions", 1, 10**6), ("draws", 2, 10**6)):
        if not least <= getattr(args, name) <= most:
            raise ValueError(f"{name} is {getattr(args, name)}; it must be in {least}..{most}")
    if args.batch_size < IMAGES:
        raise ValueError(f"batch_size is {args.batch_size}; it must be at least {IMAGES}")
    if args.quality is not None and not (math.isfinite(args.quality) and args.quality > 0):
        raise ValueError(f"quality is {args.quality}; a distance above 0 is needed")
    if not SOLVERS[recipe.sampling.sampler].annealed:
        raise ValueError(f"the sampler {recipe.sampling.sampler} takes the same count at all AR steps; choose another")
    ar_steps = len(recipe.nfe_per_step)
    if args.budget < ar_steps:
        raise ValueError(f"budget is {args.budget}; {ar_steps} AR steps take at least {ar_steps} evaluations")
    if args.out.suffix != ".json":
        raise ValueError(f"out is {args.out}; a name that ends in .json is needed")
    check_weights(recipe)
    check_folder(args.out.parent, "--out")


def measure(args: argparse.Namespace, generator: Generator) -> Calibration:
    """Measure D(s, k), with a progress bar."""
    model, sampling, ar_steps = generator.model, generator.sampling, len(generator.nfe_per_step)
    assert isinstance(model, AnnealedModel)
    calibration = Calibration(
        model,
        sampling.sampler,
        [count for count in COUNTS if count < args.max_steps] + [args.max_steps],
        2 * args.max_steps,
        copies=min(args.batch_size // IMAGES, args.draws),
        draws=args.draws,
        seed=sampling.seed,
        kinds=KINDS if args.times == "path" else KINDS[:1],
    )

    def generate(number: int) -> None:
        ids = [number * IMAGES + i for i in range(IMAGES) for _ in range(calibration.copies)]
        generator.latents(ids, generator.model)

    packed = PackedLinear() if generator.device.type == "cpu" else contextlib.nullcontext()
    with packed, tqdm(total=ar_steps * args.conditions, unit=" conditions", disable=None) as bar:
        calibration.measure(generate, args.conditions, bar.update)
    return calibration


def choose(args: argparse.Namespace, calibration: Calibration) -> list[tuple[int, int, str]]:
    """Allocate diffusion steps as the flags say: AR step, count and which times, for each AR step."""
    steps, counts = calibration.steps, range(1, args.max_steps + 1)
    distances, kinds = calibration.distances(args.max_steps)
    prices = np.array([step.seconds if args.cost == "seconds" else 1 for step in steps])  # of one evaluation
    costs = prices[:, None] * [calibration.evaluations(count) for count in counts]
    # A budget buys as many seconds as that many evaluations take, spread evenly over the AR steps.
    spent = costs.max(1).sum() if args.quality is not None else args.budget * prices.mean()
    unit = spent / UNITS if args.cost == "seconds" else 1
    errors = distances * calibration.heirs[:, None]
    options = allocate(errors, np.ceil(costs / unit).astype(int), round(spent / unit), args.quality)
    return [(i, counts[option], kinds[i][option]) for i, option in enumerate(options)]


def describe(calibration: Calibration, chosen: Sequence[tuple[int, int, str]]) -> dict[str, object]:
    """Describe what was chosen and measured, for the file."""
    steps = calibration.steps
    measured = {
        "counts": calibration.counts,
        "reference": len(calibration.reference) - calibration.is_flow,
        "images": [sum(map(len, step.distances)) for step in steps],
        "draws": calibration.rounds * calibration.copies,
    }
    return {
        "nfe": sum(calibration.evaluations(count) for _, count, _ in chosen),
        "counts": [count for _, count, _ in chosen],
        "kinds_of_times": [kind for _, _, kind in chosen],
        "times": [calibration.times(*one) for one in chosen],
        "tokens": [step.tokens for step in steps],
        "seconds_per_evaluation": [step.seconds for step in steps],
        "measured": measured,
        "distances": [dict(zip(calibration.kinds, step.mean.round(6).tolist(), strict=True)) for step in steps],
        "errors": [dict(zip(calibration.kinds, step.error.round(6).tolist(), strict=True)) for step in steps],
    }


def write(path: Path, content: Mapping[str, object]) -> None:
    """Write `content` as JSON, one entry per line."""
    lines = [f"  {json.dumps(name)}: {json.dumps(entry)}" for name, entry in content.items()]
    report.write_text(path, "{\n" + ",\n".join(lines) + "\n}\n")


def summary(calibration: Calibration, schedules: Mapping[str, Sequence[int]]) -> str:
    """Write NFE and summed D of schedules, the first with the better times, and of a constant count at its NFE."""
    most, known = max(map(max, schedules.values())), calibration.counts[-1]
    (best, _), (own, _) = calibration.distances(most), calibration.distances(most, KINDS[:1])
    first = next(iter(schedules.values()))
    nfe = sum(map(calibration.evaluations, first))
    same = max((k for k in range(1, most + 1) if len(first) * calibration.evaluations(k) <= nfe), default=1)
    lines = []
    for i, (name, counts) in enumerate({**schedules, "constant": [same] * len(first)}.items()):
        values = (own if i else best)[np.arange(len(counts)), np.array(counts) - 1]
        nfe = sum(map(calibration.evaluations, counts))
        beyond = f" (D as with {known} where there are more)" if max(counts) > known else ""
        total = values @ calibration.heirs
        lines.append(f"{name:10} NFE {nfe:4}, summed D {total:.5f}: {' '.join(map(str, counts))}{beyond}")
    return "\n".join(lines)
