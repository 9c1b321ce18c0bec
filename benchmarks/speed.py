"""How long a batch takes with and without diffusion step annealing, and where the time goes.

The settings of the demo take turns, so that whatever else the machine does meets them alike; medians are printed. Run
from the repository's root: `python -m benchmarks.speed --model mar_fashion --out benchmarks/results/speed_mar_fashion.md`.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from disa import ImageNoise, load_model
from disa.demo import SETTINGS
from disa.distributed import resolve_device
from disa.evaluation import describe_device, versions
from disa.files import atomic_write
from disa.flags import HelpFormatter
from disa.generation import image_seed
from disa.models.flowar import FlowAR
from disa.models.mar import MAR
from disa.report import Column, decimals, table
from disa.sampling import Sampling
from disa.timing import synchronize

COLUMNS = (
    Column("setting", "setting"),
    Column("evaluations", "head evaluations an image", decimals(0)),
    Column("seconds", "seconds a batch", decimals(2)),
    Column("speed_up", "speed-up", lambda value: f"{value:.1f}×"),
    Column("backbone", "backbone", lambda value: f"{100 * value:.1f} %"),
    Column("head", "head", lambda value: f"{100 * value:.1f} %"),
    Column("noise", "noise", lambda value: f"{100 * value:.1f} %"),
    Column("overhead", "loop and noise", lambda value: f"{100 * value:.1f} %"),
)


class Clock:
    """Seconds spent inside what it wraps."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.seconds = device, 0.0

    def wrap(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            synchronize(self.device)
            start = time.perf_counter()
            result = function(*args, **kwargs)
            synchronize(self.device)
            self.seconds += time.perf_counter() - start
            return result

        return timed


def time_batch(model: Any, sampling: Sampling, batch: int, device: torch.device, parts: dict[str, Clock]) -> dict[str, float]:
    """Seconds of one batch: the whole, and each of `parts`, which wrap the model and, under "noise", a noise source."""
    for clock in parts.values():
        clock.seconds = 0.0
    noise = ImageNoise([image_seed(sampling.seed, image_id) for image_id in range(batch)], device)
    if "noise" in parts:
        noise.normal, noise.orders = parts["noise"].wrap(noise.normal), parts["noise"].wrap(noise.orders)  # type: ignore[method-assign]
    synchronize(device)
    start = time.perf_counter()
    model.generate(
        torch.arange(batch, device=device) % model.num_classes,
        **sampling.steps,
        guidance=sampling.guidance,
        temperature=sampling.temperature,
        noise=noise,
    )
    synchronize(device)
    return {"seconds": time.perf_counter() - start, **{name: clock.seconds for name, clock in parts.items()}}


def instrument(model: Any, device: torch.device) -> dict[str, Clock]:
    """Clocks around every network call of `model`; what is outside them is the sampling loop. In xAR all of the network is the head."""
    parts = {name: Clock(device) for name in ("backbone", "head", "noise")}
    backbone, head = parts["backbone"].wrap, parts["head"].wrap
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
    return parts


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="benchmarks.speed", description=__doc__, formatter_class=HelpFormatter)
    parser.add_argument("--model", default="mar_fashion", choices=SETTINGS, metavar="NAME", help=f"one of {', '.join(SETTINGS)}")
    parser.add_argument("--batch_size", type=int, default=64, help="images a batch")
    parser.add_argument("--rounds", type=int, default=5, help="batches of each setting")
    parser.add_argument("--device", default="auto", help="auto, cuda, cpu or mps")
    parser.add_argument("--out", type=Path, default=None, help="Markdown file to write the table to")
    args = parser.parse_args(argv)

    device = resolve_device(args.device)
    settings = SETTINGS[args.model]
    plain, opened = (load_model(args.model).to(device) for _ in range(2))
    parts = instrument(opened, device)
    whole: dict[str, list[dict[str, float]]] = {name: [] for name in settings}
    split: dict[str, list[dict[str, float]]] = {name: [] for name in settings}
    with tqdm(total=2 * args.rounds * len(settings) + len(settings), unit="batch") as bar:
        for turn in range(args.rounds + 1):  # the first one warms up
            for name, sampling in settings.items():
                bar.set_postfix_str(name)
                whole[name].append(time_batch(plain, sampling, args.batch_size, device, {}))
                bar.update()
                if turn:
                    split[name].append(time_batch(opened, sampling, args.batch_size, device, parts))
                    bar.update()
    rows: list[dict[str, Any]] = []
    for name, sampling in settings.items():
        share = {part: statistics.median(one[part] / one["seconds"] for one in split[name]) for part in parts}
        rows.append(
            {
                "setting": name,
                "evaluations": sum(plain.evaluations(**sampling.steps)),
                "seconds": statistics.median(one["seconds"] for one in whole[name][1:]),
                **share,
                "overhead": statistics.median(1 - (one["backbone"] + one["head"]) / one["seconds"] for one in split[name]),
            }
        )
        rows[-1]["speed_up"] = rows[0]["seconds"] / rows[-1]["seconds"]
    machine = f"torch {versions()['torch']}, {describe_device(device)}"
    text = f"{args.model}, batches of {args.batch_size}, medians of {args.rounds} rounds; {machine}\n\n" + table(rows, COLUMNS) + "\n"
    print(text)
    if args.out is not None:
        with atomic_write(args.out) as beside:
            command = f"python -m benchmarks.speed --model {args.model} --batch_size {args.batch_size} --rounds {args.rounds}"
            beside.write_text(f"Written by `{command}`.\n\n{text}")


if __name__ == "__main__":
    from disa.cli import run

    run(main)
