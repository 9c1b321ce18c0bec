"""Measure the overhead of an evaluation: two processes against one, where the time goes, memory and disk.

The speed is that of `mar_fashion` with diffusion step annealing, on real runs. Memory and disk are those of one rank
that evaluates synthetic images with features as wide as Inception's, whose sums are the largest. Run from the
repository's root, on an idle machine: `python -m benchmarks.evaluation --results benchmarks/results`.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.faults import largest_difference
from benchmarks.features import Features, statistics_of
from disa import StepSchedule, load_model
from disa.commands.flags import HelpFormatter
from disa.evaluation.extractors import Extractor
from disa.evaluation.plan import MetricSpec, plan_metrics
from disa.evaluation.results import Results
from disa.evaluation.run import GRID_IMAGES, evaluate, versions
from disa.generation.generators import Generator, LabelGenerator, Sampling
from disa.runtime import distributed
from disa.runtime.devices import describe_device
from disa.runtime.files import atomic_write
from disa.tables.recipes import bundled_settings
from disa.tables.report import column, decimals, percent, table
from disa.weights.load import load_bundled_vae

FEATURES, LOGITS = 2048, 1008  # Inception's
MEGABYTE = 2**20
SPEED = (
    column("ranks", "processes"),
    column("images", "images", decimals(0)),
    column("seconds", "seconds, start to end", decimals(0)),
    column("rate", "images/s, start to end", decimals(2)),
    column("sampling_rate", "images/s, sampling alone", decimals(2)),
    *(column(part, part, percent) for part in ("generation", "decoding", "metrics", "other")),
    column("overhead", "not sampling, start to end", percent),
)
ROOM = (
    column("images", "images", decimals(0)),
    column("memory", "memory of rank 0 (MB)", decimals(0)),
    column("disk", "most on disk (MB)", decimals(1)),
)


def run_ranks(folder: Path, ranks: int, num_images: int) -> dict[str, Any]:
    """An evaluation of `mar_fashion` on so many processes: a row of SPEED, and the scores."""
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}"] if ranks > 1 else []
    program = ["-m", "benchmarks.evaluation", "--work", "speed", "--folder", str(folder), "--images", str(num_images)]
    start = time.monotonic()
    subprocess.run([sys.executable, *launcher, *program], check=True)
    seconds, results = time.monotonic() - start, Results.read(folder / "results.json")
    assert results is not None
    assert results.images_per_second is not None
    rates = {"rate": num_images / seconds, "sampling_rate": results.images_per_second}
    rates["overhead"] = 1 - rates["rate"] / rates["sampling_rate"]
    return {
        "ranks": ranks,
        "images": num_images,
        "seconds": seconds,
        **rates,
        **results.fractions,
        "scores": [scores.to_dict() for scores in results.metrics],
    }


def work_speed(folder: Path, num_images: int) -> None:
    """What a rank of `run_ranks` does."""
    torch.set_num_threads(1)
    device = torch.device("cpu")
    distributed.setup(device)
    specs, _ = plan_metrics("auto", "auto", "auto", bundled=True)
    sampling = bundled_settings("mar_fashion")["disa"]
    generator = LabelGenerator(load_model("mar_fashion"), load_bundled_vae("mar_fashion"), sampling, device)
    evaluate(generator, folder, specs=specs, settings={}, num_images=num_images, batch_size=50)
    distributed.shutdown()


class Synthetic(Generator):
    """Noise, the images that the grid of samples shows as large as ImageNet's."""

    def __init__(self) -> None:
        super().__init__(nn.Identity(), nn.Identity(), Sampling(1, StepSchedule()), torch.device("cpu"))  # type: ignore[arg-type]

    nfe = 0

    def labels(self, ids: Iterable[int]) -> None:
        del ids

    def __call__(self, ids: Sequence[int]) -> Tensor:
        side = 256 if ids[0] < GRID_IMAGES else 8
        return torch.rand(len(ids), 3, side, side) * 2 - 1


class SyntheticFeatures(nn.Module):
    """Noise as wide as Inception's features and logits."""

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        return torch.rand(len(images), FEATURES), torch.randn(len(images), LOGITS)


def resident() -> float:
    """Memory of this process, in MB."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


def work_room(folder: Path, num_images: int) -> None:
    """Evaluate synthetic images, and print a row of ROOM."""
    torch.set_num_threads(1)
    reference = folder.parent / "reference.npz"
    rows = torch.rand(3000, FEATURES)
    statistics_of(Features(rows, rows, "inception")).save(reference)
    most, ended = [0.0], threading.Event()

    def watch() -> None:
        while not ended.wait(0.02):
            size = 0
            for path in folder.rglob("*"):
                with contextlib.suppress(OSError):  # renamed in the meantime
                    size += path.stat().st_size
            most[0] = max(most[0], size / MEGABYTE)

    watcher = threading.Thread(target=watch)
    watcher.start()
    synthetic = Extractor(SyntheticFeatures, lambda: None, FEATURES, "none")
    evaluate(
        Synthetic(),
        folder,
        specs=[MetricSpec("inception", ("fid", "isc"), str(reference))],
        settings={},
        num_images=num_images,
        batch_size=100,
        save_seconds=1.0,
        extractors={"inception": synthetic},
    )
    ended.set()
    watcher.join()
    print(json.dumps({"images": num_images, "memory": resident(), "disk": most[0]}))


def run_room(folder: Path, num_images: int) -> dict[str, Any]:
    """A row of ROOM, from a process of its own."""
    program = ["-m", "benchmarks.evaluation", "--work", "room", "--folder", str(folder), "--images", str(num_images)]
    ended = subprocess.run([sys.executable, *program], check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(ended.stdout.splitlines()[-1])


def page(two: dict[str, Any], one: dict[str, Any], room: Sequence[dict[str, Any]]) -> str:
    """Write rows of SPEED and ROOM as Markdown."""
    faster = {key: two[key] / one[key] for key in ("rate", "sampling_rate")}
    machine = f"{describe_device(torch.device('cpu'))}, torch {versions()['torch']}"
    explanation = (
        f"Two processes make {faster['rate']:.2f}× the images per second from start to end, "
        f"{faster['sampling_rate']:.2f}× in sampling alone; their scores differ by at most "
        f"{largest_difference(one['scores'], two['scores']):.1e}. The columns from generation to other are shares of "
        "the time between the end of each process's first block, which warms up, and the end of its last; writing, "
        'saving and waiting are "other". The last column is the share of the whole command that is not sampling: '
        "these, starting Python, loading, warming up, and the scores at the end."
    )
    return (
        "# Overhead of an evaluation\n\n"
        f"Written by `python -m benchmarks.evaluation` on {machine}.\n\n"
        f"`mar_fashion` with DiSA, in both bundled feature spaces, float32:\n\n{table([one, two], SPEED)}\n\n"
        f"{textwrap.fill(explanation, 120)}\n\n"
        f"Synthetic images with features as wide as Inception's; no images are kept:\n\n{table(room, ROOM)}\n\n"
        f"From {room[0]['images']:,} to {room[1]['images']:,} images, memory changes by "
        f"{room[1]['memory'] - room[0]['memory']:+.0f} MB.\n"
    )


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="benchmarks.evaluation", description=__doc__, formatter_class=HelpFormatter)
    parser.add_argument("--images", type=int, default=10000, help="images of each run of mar_fashion")
    parser.add_argument("--results", type=Path, default=Path("out/evaluation"), help="folder of the table")
    parser.add_argument("--work", choices=("speed", "room"), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.work:
        (work_speed if args.work == "speed" else work_room)(args.folder, args.images)
        return
    with tempfile.TemporaryDirectory() as place:
        room = [run_room(Path(place, str(count), "run"), count) for count in (1000, 50000)]
        two, one = (run_ranks(Path(place, f"{ranks}ranks"), ranks, args.images) for ranks in (2, 1))
    text = page(two, one, room)
    with atomic_write(args.results / "evaluation.md") as beside:
        beside.write_text(text)
    print(text)


if __name__ == "__main__":
    from disa.commands.exit import run

    run(main)
