"""How long a batch takes with and without diffusion step annealing, and where the time goes.

The settings of the demo take turns, so that whatever else the machine does affects them alike; medians are printed.
Run from the repository's root:
`python -m benchmarks.speed --model mar_fashion --out benchmarks/results/speed_mar_fashion.md`.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from disa import ImageNoise, load_model
from disa.commands.demo import NAMES, bundled_recipes
from disa.commands.flags import HelpFormatter
from disa.evaluation.run import versions
from disa.generation.generators import Sampling, image_seed
from disa.models.flowar import FlowAR
from disa.models.mar import MAR
from disa.runtime.devices import describe_device, resolve_device
from disa.runtime.files import atomic_write
from disa.runtime.timing import Stopwatch
from disa.tables.report import column, decimals, percent, table, times

PARTS = ("backbone", "head", "noise")
COLUMNS = (
    column("setting", "setting"),
    column("nfe", "NFE", decimals(0)),
    column("seconds", "seconds per batch", decimals(2)),
    column("speed_up", "speed-up", times),
    *(column(part, part, percent) for part in PARTS),
    column("overhead", "loop and noise", percent),
)


def timed(clock: Stopwatch, part: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Wrap functions so that `clock` counts the time in them as `part`."""

    def wrap(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            with clock(part):
                return function(*args, **kwargs)

        return call

    return wrap


def time_batch(
    model: Any, sampling: Sampling, batch: int, device: torch.device, clock: Stopwatch | None = None
) -> dict[str, float]:
    """Time one batch in seconds: the whole, the noise, and the model's parts that `clock` is wrapped around."""
    noise = ImageNoise([image_seed(sampling.seed, image_id) for image_id in range(batch)], device)
    if clock is not None:
        clock.seconds.clear()
        wrap = timed(clock, "noise")
        noise.normal, noise.orders = wrap(noise.normal), wrap(noise.orders)  # type: ignore[method-assign]
    whole = Stopwatch(device)
    with whole("seconds"):
        model.generate(
            torch.arange(batch, device=device) % model.num_classes,
            **sampling.steps,
            guidance=sampling.guidance,
            temperature=sampling.temperature,
            noise=noise,
        )
    return {**whole.seconds, **({part: clock.seconds[part] for part in PARTS} if clock else {})}


def instrument(model: Any, clock: Stopwatch) -> None:
    """Have `clock` time every network call of `model`; the rest is the sampling loop. In xAR the head is all of it."""
    backbone, head = timed(clock, "backbone"), timed(clock, "head")
    if isinstance(model, MAR):
        net: Any = model.diffloss.net
        model.encode, model.decode, net.predict = backbone(model.encode), backbone(model.decode), head(net.predict)  # type: ignore[method-assign]
        for module in (net.cond_embed, net.time_embed, net.input_proj):
            module.forward = head(module.forward)
    elif isinstance(model, FlowAR):
        model.backbone = backbone(model.backbone)  # type: ignore[method-assign]
        model.flownet.prepare, model.flownet.forward = head(model.flownet.prepare), head(model.flownet.forward)  # type: ignore[method-assign]
    else:
        model.transform = head(model.transform)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="benchmarks.speed", description=__doc__, formatter_class=HelpFormatter)
    recipes = bundled_recipes()
    text = f"one of {', '.join(recipes)}"
    parser.add_argument("--model", default="mar_fashion", choices=recipes, metavar="NAME", help=text)
    parser.add_argument("--batch_size", type=int, default=64, help="images per batch")
    parser.add_argument("--rounds", type=int, default=5, help="batches of each setting")
    parser.add_argument("--device", default="auto", help="auto, cuda, cpu or mps")
    parser.add_argument("--out", type=Path, default=None, help="Markdown file to write the table to")
    args = parser.parse_args(argv)

    device = resolve_device(args.device)
    settings = {NAMES[recipe.row]: recipe for recipe in recipes[args.model]}
    plain, opened = (load_model(args.model).to(device) for _ in range(2))
    clock = Stopwatch(device)
    instrument(opened, clock)
    whole: dict[str, list[dict[str, float]]] = {name: [] for name in settings}
    split: dict[str, list[dict[str, float]]] = {name: [] for name in settings}
    with tqdm(total=2 * args.rounds * len(settings) + len(settings), unit="batch") as bar:
        for turn in range(args.rounds + 1):  # the first one warms up
            for name, recipe in settings.items():
                bar.set_postfix_str(name)
                whole[name].append(time_batch(plain, recipe.sampling, args.batch_size, device))
                bar.update()
                if turn:
                    split[name].append(time_batch(opened, recipe.sampling, args.batch_size, device, clock))
                    bar.update()
    rows: list[dict[str, Any]] = []
    for name, recipe in settings.items():
        share = {part: statistics.median(one[part] / one["seconds"] for one in split[name]) for part in PARTS}
        rows.append(
            {
                "setting": name,
                "nfe": recipe.nfe,
                "seconds": statistics.median(one["seconds"] for one in whole[name][1:]),
                **share,
                "overhead": statistics.median(
                    1 - (one["backbone"] + one["head"]) / one["seconds"] for one in split[name]
                ),
            }
        )
        rows[-1]["speed_up"] = rows[0]["seconds"] / rows[-1]["seconds"]
    machine = f"torch {versions()['torch']}, {describe_device(device)}"
    text = (
        f"{args.model}, batches of {args.batch_size}, medians of {args.rounds} rounds; {machine}\n\n"
        + table(rows, COLUMNS)
        + "\n"
    )
    print(text)
    if args.out is not None:
        with atomic_write(args.out) as beside:
            command = (
                f"python -m benchmarks.speed --model {args.model} --batch_size {args.batch_size} --rounds {args.rounds}"
            )
            beside.write_text(f"Written by `{command}`.\n\n{text}")


if __name__ == "__main__":
    from disa.commands.exit import run

    run(main)
