"""How long a batch takes on the CPU: with and without diffusion step annealing, or at two commits of this repository.

The settings of the table `bundled_beyond`, or the commits, take turns, so that whatever else the machine does affects
them alike; medians are printed. Run from the repository's root:
`python -m benchmarks.speed --model mar_fashion --out benchmarks/results/speed_mar_fashion.md` or
`python -m benchmarks.speed --against a064af6 --model mar_base --dtype bfloat16`.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from tqdm import tqdm

from benchmarks.checkouts import ROOT, worktree
from benchmarks.generations import SIDES, product_rate
from benchmarks.launches import count, find_recipe, models, wrap
from benchmarks.settings import compared
from disa import load_model
from disa.commands.flags import HelpFormatter
from disa.evaluation.run import versions
from disa.generation.generators import Generator, LabelGenerator
from disa.models.flowar import FlowAR
from disa.models.mar import MAR
from disa.runtime.devices import DTYPES, describe_device, resolve_device
from disa.runtime.timing import Stopwatch
from disa.tables.recipes import Recipe
from disa.tables.report import column, decimals, percent, table, times, write_text
from disa.weights.load import load_bundled_vae

PARTS = ("backbone", "head", "noise")
COLUMNS = (
    column("setting", "setting"),
    column("nfe", "NFE", decimals(0)),
    column("seconds", "seconds per batch", decimals(2)),
    column("speed_up", "speed-up", times),
    *(column(part, part, percent) for part in PARTS),
    column("overhead", "loop and noise", percent),
)
COMPARED = (
    column("model", "model"),
    column("batch", "batch"),
    column("before", "seconds before", decimals(2)),
    column("now", "seconds now", decimals(2)),
    column("speed_up", "speed-up", "{:.2f}×".format),
    column("difference", "largest relative difference of latents", "{:.1e}".format),
    column("share_before", "of the product rate before", percent),
    column("share", "now", percent),
)
AR_STEPS = 16  # of full-size models whose number of AR steps can be chosen: a CPU takes long


def timed(clock: Stopwatch, part: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Wrap functions so that `clock` counts the time in them as `part`."""

    def wrap(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            with clock(part):
                return function(*args, **kwargs)

        return call

    return wrap


def time_batch(generator: Generator, batch: int, clock: Stopwatch | None = None) -> dict[str, float]:
    """Time one batch in seconds: the whole, decoding not included, and the parts that `clock` is wrapped around."""
    noise = generator.noise(range(batch))
    if clock is not None:
        clock.seconds.clear()
        wrap = timed(clock, "noise")
        noise.normal, noise.orders = wrap(noise.normal), wrap(noise.orders)  # type: ignore[method-assign]
    generator.noise = lambda _: noise  # type: ignore[assignment, method-assign]
    generator.clock.seconds.clear()
    generator(range(batch))
    whole = {"seconds": generator.clock.seconds["generation"]}
    return {**whole, **({part: clock.seconds[part] for part in PARTS} if clock else {})}


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


class Checkout:
    """A process that generates with the code in `folder`, for a with statement; `words` are flags of `generations`."""

    def __init__(self, folder: Path, words: Sequence[str], latents: Path) -> None:
        command = [sys.executable, "-m", "benchmarks.generations", *words, "--latents", str(latents)]
        environment = {**os.environ, "PYTHONPATH": str(folder)}
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(command, cwd=folder, env=environment, stdin=pipe, stdout=pipe, text=True)
        self.latents = latents

    def __enter__(self) -> Checkout:
        return self

    def __exit__(self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None) -> None:
        if kind is not None:
            self.process.kill()
        self.process.communicate()  # closes its input, which ends it

    def answer(self) -> dict[str, Any]:  # Any: numbers and texts
        """Read one answer."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise ValueError(f"what generates with {' '.join(map(str, self.process.args))} has ended")  # type: ignore[arg-type]
        return json.loads(line)

    def generate(self, seed: int) -> float:
        """Generate a batch and return its seconds; `latents` holds the file of its latents."""
        assert self.process.stdin is not None
        print(seed, file=self.process.stdin, flush=True)
        return self.answer()["seconds"]


def compare(model: str, folder: Path, args: argparse.Namespace) -> tuple[dict[str, Any], str]:
    """Generate with the code in `folder` and with this, in turn: a row of the table, and the machine in words."""
    recipe = find_recipe(model)
    sampling, batch = recipe.sampling, args.batch_size or (64 if recipe.bundled else 1)
    if sampling.num_iter is not None and not recipe.bundled:
        sampling = dataclasses.replace(sampling, num_iter=args.num_iter or AR_STEPS)
    words = ["--model", model, "--batch", str(batch), "--sampling", json.dumps(sampling.to_dict())]
    more = ["--compiled"] if args.compiled else []
    with (
        tempfile.TemporaryDirectory() as place,
        Checkout(folder, [*words, "--dtype", args.dtype_before], Path(place) / "before.pt") as before,
        Checkout(ROOT, [*words, "--dtype", args.dtype, *more], Path(place) / "now.pt") as now,
    ):
        about_before, about = before.answer(), now.answer()
        if Path(about_before["disa"]).is_relative_to(ROOT) or not Path(about["disa"]).is_relative_to(ROOT):
            raise ValueError(f"the two sides run {about_before['disa']} and {about['disa']}")
        seconds, differences = [], []
        for seed in tqdm(range(args.rounds + 1), unit="round", desc=model):
            seconds.append((before.generate(seed), now.generate(seed)))
            expected, latents = (torch.load(one.latents, weights_only=True).double() for one in (before, now))
            differences.append(((latents - expected).norm() / expected.norm()).item())
    del seconds[0]  # which warmed up
    taken_before, taken = (statistics.median(side) for side in zip(*seconds, strict=True))
    steps: dict[str, Any] = {} if sampling.num_iter is None else {"num_iter": sampling.num_iter}
    flops = count(model, batch, args.dtype, **steps).total.flops
    rate_before, rate = (product_rate(torch.device("cpu"), DTYPES[dtype]) for dtype in (args.dtype_before, args.dtype))
    row = {
        "model": model,
        "batch": batch,
        "before": taken_before,
        "now": taken,
        "speed_up": statistics.median(one / other for one, other in seconds),
        "difference": max(differences),
        "share_before": flops / taken_before / rate_before,
        "share": flops / taken / rate,
    }
    rates = " and ".join(dict.fromkeys(f"{each / 1e9:.0f}" for each in (rate_before, rate)))
    return row, f"{about['device']}, products at {rates} GFLOP/s"


def against(args: argparse.Namespace) -> str:
    """Compare the models' times at a commit and now, as Markdown."""
    with worktree(args.against) as folder:
        found = [compare(model, folder, args) for model in args.model]
    now = f"{args.dtype}, blocks compiled" if args.compiled else args.dtype
    text = (
        f"Before: commit {args.against}, {args.dtype_before}; now: {now}. The same weights and seeds in turn, medians "
        f"of {args.rounds} rounds. Settings are those of the recipes with DiSA; full-size models have random weights, "
        f"and MAR {args.num_iter or AR_STEPS} AR steps. Decoding is not included. torch {versions()['torch']}, "
        f"{found[-1][1]}. Share: FLOPs of a generation by its seconds, of the best rate of products of square matrices "
        f"of {SIDES['cpu']} rows."
    )
    return f"{wrap(text)}\n\n{table([row for row, _ in found], COMPARED)}\n"


def by_setting(args: argparse.Namespace) -> str:
    """Compare a model's settings, and the parts of each, as Markdown."""
    device, (model,) = resolve_device(args.device), args.model
    batch = args.batch_size or 64
    settings = compared(model)
    clock, vae = Stopwatch(device), load_bundled_vae(model).to(device)
    plain, opened = (load_model(model).to(device) for _ in range(2))
    instrument(opened, clock)

    def generator(of: Any, recipe: Recipe) -> Generator:  # Any: any family's model
        return LabelGenerator(of, vae, recipe.sampling, device)

    whole: dict[str, list[dict[str, float]]] = {name: [] for name in settings}
    split: dict[str, list[dict[str, float]]] = {name: [] for name in settings}
    with tqdm(total=2 * args.rounds * len(settings) + len(settings), unit="batch") as bar:
        for turn in range(args.rounds + 1):  # the first one warms up
            for name, recipe in settings.items():
                bar.set_postfix_str(name)
                whole[name].append(time_batch(generator(plain, recipe), batch))
                bar.update()
                if turn:
                    split[name].append(time_batch(generator(opened, recipe), batch, clock))
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
        f"`{model}`, batches of {batch}, medians of {args.rounds} rounds; {machine}. NFE: network function evaluations"
    )
    return f"{wrap(f'{text} per image. Decoding is not included.')}\n\n{table(rows, COLUMNS)}\n"


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="benchmarks.speed", description=__doc__, formatter_class=HelpFormatter)
    classes = [name for name, recipe in models().items() if not recipe.takes_prompts]
    text = f"of {', '.join(classes)}; without --against, one of the bundled"
    parser.add_argument("--model", default=["mar_fashion"], nargs="+", choices=classes, metavar="NAME", help=text)
    parser.add_argument(
        "--batch_size", "--batch", type=int, default=None, help="images per batch; 64, or 1 of a full-size model"
    )
    parser.add_argument("--rounds", type=int, default=5, help="batches of each setting or commit")
    parser.add_argument("--device", default="auto", help="auto, cuda, cpu or mps; with --against the CPU")
    parser.add_argument("--out", type=Path, default=None, help="Markdown file to write the table to")
    group = parser.add_argument_group("two commits")
    group.add_argument("--against", default=None, metavar="COMMIT", help="the commit to compare with")
    group.add_argument("--dtype", default="float32", choices=DTYPES, help="of the networks now")
    group.add_argument("--dtype_before", default="float32", choices=DTYPES, help="of the networks before")
    group.add_argument("--compiled", action="store_true", help="compile blocks now")
    group.add_argument(
        "--num_iter", type=int, default=None, help=f"AR steps of full-size models, {AR_STEPS} if not given"
    )
    args = parser.parse_args(argv)
    for name in ("batch_size", "rounds", "num_iter"):
        if (value := getattr(args, name)) is not None and value < 1:
            raise ValueError(f"--{name} is {value}; at least 1 is needed")
    if not args.against and not (len(args.model) == 1 and find_recipe(args.model[0]).bundled):
        raise ValueError(f"--model is {' '.join(args.model)}; without --against, one bundled model is needed")
    text = against(args) if args.against else by_setting(args)
    print(text)
    if args.out is not None:
        words = " ".join(sys.argv[1:] if argv is None else argv)
        write_text(args.out, f"{wrap(f'Written by `python -m benchmarks.speed {words}`.')}\n\n{text}")


if __name__ == "__main__":
    from disa.commands.exit import run

    run(main)
