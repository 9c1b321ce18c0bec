"""Kill evaluations of the bundled models at random moments: do they end with the numbers of one that was not killed?

Each model is evaluated once by one process, undisturbed, and then again and again by one to three ranks of which one,
or all, are killed (`kill -9`) at a random moment, until it is through with its kills; then it may finish, on yet
another number of ranks. A kill counts if the run that it met had saved images, and others were missing. Run from the
repository's root: `python -m benchmarks.faults --results benchmarks/results`.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from disa.commands.flags import HelpFormatter
from disa.evaluation.plan import plan_metrics
from disa.evaluation.run import evaluate, versions
from disa.models import MODELS
from disa.runtime import distributed
from disa.runtime.devices import describe_device
from disa.runtime.files import atomic_write
from disa.tables.measure import load
from disa.tables.recipes import load_tables
from disa.tables.report import column, table

BUNDLED = [name for name, entry in MODELS.items() if entry.bundled]
TOLERANCE = 1e-6  # of any score
TRY = "see why with `python -m benchmarks.faults --work {} --folder DIR`"
BATCH = 4
KILLS_AT_MOST = 3  # in one evaluation
KILL_ALL = 0.3  # the share of kills that meet every rank
COLUMNS = (
    column("model", "model"),
    column("kills", "kills"),
    column("runs", "ranks of the runs"),
    column("victims", "ranks killed"),
    column("saved", "images saved when they were"),
    column("difference", "largest difference of a score", lambda value: f"{value:.1e}"),
    column("equal", "ends with the undisturbed numbers", lambda value: "yes" if value else "NO"),
)


def work(model: str, folder: Path, num_images: int) -> None:
    """What a rank does: an evaluation that saves after every block."""
    torch.set_num_threads(1)
    device = torch.device("cpu")
    distributed.setup(device)
    specs, _ = plan_metrics("auto", "fashion-classifier", "auto", bundled=True)
    recipe = next(recipe for recipe in load_tables()["bundled"].recipes if (recipe.model, recipe.row) == (model, "low"))
    recipe = dataclasses.replace(recipe, num_images=num_images)
    evaluate(
        load(recipe, device, torch.float32)(recipe),
        folder,
        specs=specs,
        settings={"model": model},
        num_images=num_images,
        batch_size=BATCH,
        intervals=True,
        save_seconds=0.0,
    )
    distributed.shutdown()


def worker(model: str, folder: Path, num_images: int, ranks: int = 1, *torchrun: str) -> subprocess.Popen[bytes]:
    """Start `work` on so many ranks; `torchrun` are more of its flags."""
    program = ["-m", "benchmarks.faults", "--work", model, "--folder", str(folder), "--images", str(num_images)]
    launcher = ["-m", "torch.distributed.run", f"--nproc_per_node={ranks}", *(torchrun or ["--standalone"])]
    environment = {
        name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")
    }
    return subprocess.Popen(
        [sys.executable, *launcher, *program],
        # The second: see docs/evaluate_2x8.sh.
        env={**environment, "OMP_NUM_THREADS": "1", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def alive(pid: int) -> bool:
    """Whether a process runs."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def rank_processes(agent: int) -> dict[int, int]:
    """Rank -> process of a torchrun."""
    found = {}
    for tasks in Path(f"/proc/{agent}/task").glob("*/children"):
        for child in tasks.read_text().split():
            try:
                rank = re.search(rb"\0RANK=(\d+)\0", Path(f"/proc/{child}/environ").read_bytes())
            except OSError:
                continue
            if rank:
                found[int(rank[1])] = int(child)
    return found


def wait_until(condition: Callable[[], Any], process: subprocess.Popen[bytes], seconds: float = 120) -> bool:
    """Wait for `condition` while `process` runs; whether it came."""
    end = time.monotonic() + seconds
    while process.poll() is None and time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.005)
    return False


def stop(process: subprocess.Popen[bytes]) -> None:
    """Kill everything that was started with `process`, and wait until it is gone."""
    ranks = rank_processes(process.pid)
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    for pid in ranks.values():
        if alive(pid):
            os.kill(pid, signal.SIGKILL)
        while alive(pid):
            time.sleep(0.005)


def largest_difference(one: Any, other: Any) -> float:
    """Between numbers in the same places of two records; infinite where the records differ otherwise."""
    if isinstance(one, Mapping) and isinstance(other, Mapping) and one.keys() == other.keys():
        return max((largest_difference(one[key], other[key]) for key in one), default=0.0)
    if isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)) and len(one) == len(other):
        return max(map(largest_difference, one, other), default=0.0)
    if isinstance(one, float) and isinstance(other, float):
        return abs(one - other)
    return 0.0 if one == other else float("inf")


def scores(folder: Path) -> list[dict[str, Any]]:
    """What an evaluation measured."""
    return json.loads((folder / "results.json").read_text())["metrics"]


def saved(folder: Path) -> int:
    """How many images the sums in `folder` hold."""
    for path in folder.glob("progress-*.npz"):
        with contextlib.suppress(FileNotFoundError), np.load(path) as file:  # the run removes it at its end
            return int(np.unpackbits(file["counted"]).sum())
    return 0


def strike(
    process: subprocess.Popen[bytes], folder: Path, num_images: int, seconds: float, draw: random.Random
) -> tuple[int, int] | None:
    """Kill one rank of a run, or all of them, at a random moment between its first saving and its last.

    Args:
        seconds: what an image takes on one rank.

    Returns:
        How many ranks were killed, and how many images were saved then; None, with nobody killed, if it was too late.
    """
    before = saved(folder)  # by earlier runs
    if not wait_until(lambda: saved(folder) > before, process):
        return None
    ranks = list(rank_processes(process.pid).values())
    left = (num_images - saved(folder)) * seconds / min(len(ranks), os.cpu_count() or 1)
    moment = time.monotonic() + draw.uniform(0, left)
    wait_until(lambda: time.monotonic() > moment, process)
    victims = ranks if draw.random() < KILL_ALL else [draw.choice(ranks)]
    found = saved(folder)
    if not before < found < num_images:
        return None
    for pid in victims:
        os.kill(pid, signal.SIGKILL)
    return len(victims), found


def disturbed(
    model: str, folder: Path, num_images: int, kills: int, seconds: float, draw: random.Random
) -> tuple[list[int], list[tuple[int, int]]]:
    """An evaluation that is killed at most so many times, on from one to three ranks each time.

    Returns:
        The ranks of each of its runs, and what `strike` did.
    """
    runs, struck = list[int](), list[tuple[int, int]]()
    while not (folder / "results.json").is_file():
        runs.append(draw.randint(1, 3))
        process = worker(model, folder, num_images, runs[-1])
        kill = strike(process, folder, num_images, seconds, draw) if len(struck) < kills else None
        # torchrun ends those that are left, as it would on a cluster.
        failed = process.wait() != 0
        stop(process)
        if failed and not kill:
            raise OSError(f"an evaluation of {model} failed though nobody killed it; {TRY.format(model)}")
        if kill:
            struck.append(kill)
            if (after := saved(folder)) < kill[1]:
                raise RuntimeError(f"a kill of {model} took {kill[1] - after} images that had been saved")
    return runs, struck


def undisturbed(model: str, folder: Path, num_images: int) -> tuple[list[dict[str, Any]], float]:
    """What an evaluation on one rank measures, and its seconds per image."""
    process = worker(model, folder, num_images)
    wait_until(lambda: saved(folder) > 0, process)
    first, start = saved(folder), time.monotonic()
    wait_until(lambda: saved(folder) == num_images, process)
    seconds = (time.monotonic() - start) / (num_images - first)
    if process.wait() != 0:
        raise OSError(f"{model} cannot be evaluated; {TRY.format(model)}")
    return scores(folder), seconds


def all_rows(place: Path, args: argparse.Namespace, bar: Any) -> Iterator[dict[str, Any]]:
    """One row per evaluation, until every model had its share of the kills."""
    draw = random.Random(args.seed)
    for number, model in enumerate(args.models):
        expected, seconds = undisturbed(model, place / model / "undisturbed", args.images)
        left = args.kills * (number + 1) // len(args.models) - args.kills * number // len(args.models)
        while left:
            folder = place / model / "disturbed"
            runs, struck = disturbed(model, folder, args.images, min(left, KILLS_AT_MOST), seconds, draw)
            difference = largest_difference(scores(folder), expected)
            shutil.rmtree(folder)
            bar.update(len(struck))
            left -= len(struck)
            if struck:
                victims, found = (", ".join(map(str, column)) for column in zip(*struck, strict=True))
                row = {"model": model, "kills": len(struck), "runs": ", ".join(map(str, runs)), "victims": victims}
                yield {
                    **row,
                    "saved": f"{found} of {args.images}",
                    "difference": difference,
                    "equal": difference <= TOLERANCE,
                }


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="benchmarks.faults", description=__doc__, formatter_class=HelpFormatter)
    parser.add_argument(
        "--models", nargs="+", default=BUNDLED, choices=BUNDLED, metavar="NAME", help="what is evaluated"
    )
    parser.add_argument("--kills", type=int, default=20, help="over all models")
    parser.add_argument("--images", type=int, default=200, help="images per evaluation")
    parser.add_argument("--seed", type=int, default=1, help="of the moments, and of who is killed")
    parser.add_argument("--results", type=Path, default=Path("out/faults"), help="folder of the table")
    parser.add_argument("--work", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.images <= BATCH:
        parser.error(
            f"--images is {args.images}; more than {BATCH} are needed, some to be saved and some to be missing"
        )
    if args.work:
        work(args.work, args.folder, args.images)
        return
    with tempfile.TemporaryDirectory() as place, tqdm(total=args.kills, unit="kill") as bar:
        rows = list(all_rows(Path(place), args, bar))
    kills = sum(row["kills"] for row in rows)
    right = sum(row["kills"] for row in rows if row["equal"])
    machine = f"{describe_device(torch.device('cpu'))}, torch {versions()['torch']}"
    explanation = (
        f"Written by `python -m benchmarks.faults` on {machine}. Evaluations ran on one to three ranks. One of them, "
        "or all, were killed at a random moment after the run had saved some images and before it had saved all; then "
        f"it was started again. {right} of {kills} kills were in evaluations that end within {TOLERANCE:g} of the "
        "undisturbed scores; an image lost or counted twice would change them."
    )
    text = f"# Evaluations killed at random\n\n{textwrap.fill(explanation, 120)}\n\n{table(rows, COLUMNS)}\n"
    with atomic_write(args.results / "faults.md") as beside:
        beside.write_text(text)
    print(text)


if __name__ == "__main__":
    from disa.commands.exit import run

    run(main)
