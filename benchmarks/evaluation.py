"""What an evaluation costs besides the pictures: two processes against one, where the time goes, memory and disk.

The speed is that of `mar_fashion` with diffusion step annealing, on real runs. Memory and disk are those of one rank that evaluates made-up
images with features as wide as Inception's, whose sums are the largest. Run from the repository's root, on an idle machine:
`python -m benchmarks.evaluation --results benchmarks/results`.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.faults import largest_difference
from disa import StepSchedule, distributed, evaluation
from disa.demo import samplers_of
from disa.evaluation import describe_device, evaluate, versions
from disa.files import atomic_write
from disa.flags import HelpFormatter
from disa.metrics import Features, Statistics
from disa.report import Column, decimals, percent, table
from disa.sampling import Sampler, Sampling
from disa.spaces import Space, choose_spaces

FEATURES, LOGITS = 2048, 1008  # Inception's
MEGABYTE = 2**20
SPEED = (
    Column("ranks", "processes"),
    Column("images", "images", decimals(0)),
    Column("seconds", "seconds, start to end", decimals(0)),
    Column("rate", "images/s, start to end", decimals(2)),
    Column("sampling_rate", "images/s, sampling alone", decimals(2)),
    *(Column(part, part, percent) for part in ("generation", "decoding", "metrics", "other")),
    Column("overhead", "not sampling, start to end", percent),
)
ROOM = (
    Column("images", "images", decimals(0)),
    Column("memory", "memory of rank 0 (MB)", decimals(0)),
    Column("disk", "most on disk (MB)", decimals(1)),
)


def run_ranks(folder: Path, ranks: int, num_images: int) -> dict[str, Any]:
    """An evaluation of `mar_fashion` on so many processes: a row of SPEED, and the scores."""
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}"] if ranks > 1 else []
    program = ["-m", "benchmarks.evaluation", "--work", "speed", "--folder", str(folder), "--images", str(num_images)]
    start = time.monotonic()
    subprocess.run([sys.executable, *launcher, *program], check=True)
    seconds, results = time.monotonic() - start, json.loads((folder / "results.json").read_text())
    rates = {"rate": num_images / seconds, "sampling_rate": results["images_per_second"]}
    rates["overhead"] = 1 - rates["rate"] / rates["sampling_rate"]
    return {"ranks": ranks, "images": num_images, "seconds": seconds, **rates, **results["fractions"], "scores": results["metrics"]}


def work_speed(folder: Path, num_images: int) -> None:
    """What a rank of `run_ranks` does."""
    torch.set_num_threads(1)
    device = torch.device("cpu")
    distributed.setup(device)
    spaces, _ = choose_spaces("auto", "auto", "auto", bundled=True)
    sampler = samplers_of("mar_fashion", device)["DiSA"]
    evaluate(sampler, folder, spaces=spaces, settings={}, num_images=num_images, batch_size=50)
    distributed.shutdown()


class MadeUp(Sampler):
    """Noise, the images that the grid of samples shows as large as ImageNet's."""

    def __init__(self) -> None:
        super().__init__(nn.Identity(), nn.Identity(), Sampling(1, StepSchedule()), torch.device("cpu"))  # type: ignore[arg-type]

    head_evaluations = 0

    def labels(self, ids: Any) -> None:
        return None

    def __call__(self, ids: Sequence[int]) -> Tensor:
        side = 256 if ids[0] < evaluation.GRID_IMAGES else 8
        return torch.rand(len(ids), 3, side, side) * 2 - 1


def made_up_extractor(*_: Any) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    return lambda images: (torch.rand(len(images), FEATURES), torch.randn(len(images), LOGITS))


def resident() -> float:
    """Memory of this process, in MB."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


def work_room(folder: Path, num_images: int) -> None:
    """Evaluate made-up images, and print a row of ROOM."""
    torch.set_num_threads(1)
    evaluation.feature_extractor, evaluation.SAVE_SECONDS = made_up_extractor, 1.0  # type: ignore[assignment]
    reference = folder.parent / "reference.npz"
    rows = torch.rand(3000, FEATURES)
    Statistics.of(Features(rows, rows, "inception")).save(reference)
    most, ended = [0.0], threading.Event()

    def watch() -> None:
        while not ended.wait(0.02):
            sizes = []
            for path in folder.rglob("*"):
                try:
                    sizes.append(path.stat().st_size)
                except OSError:  # renamed in the meantime
                    continue
            most[0] = max(most[0], sum(sizes) / MEGABYTE)

    watcher = threading.Thread(target=watch)
    watcher.start()
    spaces = [Space("inception", ("fid", "isc"), str(reference))]
    evaluate(MadeUp(), folder, spaces=spaces, settings={}, num_images=num_images, batch_size=100)
    ended.set()
    watcher.join()
    print(json.dumps({"images": num_images, "memory": resident(), "disk": most[0]}))


def run_room(folder: Path, num_images: int) -> dict[str, Any]:
    """A row of ROOM, from a process of its own."""
    program = ["-m", "benchmarks.evaluation", "--work", "room", "--folder", str(folder), "--images", str(num_images)]
    ended = subprocess.run([sys.executable, *program], check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(ended.stdout.splitlines()[-1])


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
        speed = [run_ranks(Path(place, f"{ranks}ranks"), ranks, args.images) for ranks in (2, 1)]
    two, one = speed
    faster = {key: two[key] / one[key] for key in ("rate", "sampling_rate")}
    text = (
        "# What an evaluation costs besides the pictures\n\n"
        f"Written by `benchmarks/evaluation.py` on {describe_device(torch.device('cpu'))}, torch {versions()['torch']}.\n\n"
        f"`mar_fashion` with DiSA, in both bundled feature spaces, float32:\n\n{table([one, two], SPEED)}\n\n"
        f"Two processes make {faster['rate']:.2f}× the images a second from start to end, {faster['sampling_rate']:.2f}× in sampling "
        f"alone; their scores differ by {largest_difference(one['scores'], two['scores']):.1e} at most. Generation to other are parts "
        "of the time that counts, from the end of each process's first block, which warms up, to that of its last; writing, saving and "
        'waiting are "other". The last column has what the whole command takes besides sampling: these, starting Python, loading, '
        "warming up, the scores at the end.\n\n"
        f"Made-up images with features as wide as Inception's, no images kept:\n\n{table(room, ROOM)}\n\n"
        f"From {room[0]['images']:,} to {room[1]['images']:,} images, memory changes by {room[1]['memory'] - room[0]['memory']:+.0f} MB.\n"
    )
    with atomic_write(args.results / "evaluation.md") as beside:
        beside.write_text(text)
    print(text)


if __name__ == "__main__":
    from disa.cli import run

    run(main)
