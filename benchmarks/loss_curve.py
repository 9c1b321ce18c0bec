"""Plot the loss of a training from its TensorBoard log.

`python -m benchmarks.loss_curve LOG_DIR OUT.png`
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from matplotlib.figure import Figure
from tensorboard.backend.event_processing.event_accumulator import SCALARS, EventAccumulator

from disa.runtime.files import atomic_write
from disa.tables.report import PALETTE, new_axes


def plot_loss(steps: Sequence[int], losses: Sequence[float], window: int = 100) -> Figure:
    """Plot a training loss, and its mean over `window` steps."""
    figure, axes = new_axes("training step", "loss")
    axes.plot(steps, losses, color="#cccccc", linewidth=0.4)
    values = torch.tensor(losses, dtype=torch.float64)
    mean = values.unfold(0, min(window, len(losses)), 1).mean(1)
    axes.plot(steps[len(steps) - len(mean) :], mean.numpy(), color=PALETTE[0], linewidth=1.5)
    axes.set_ylim(mean.min().item() * 0.9, values.quantile(0.995).item() * 1.1 if len(losses) > 20 else None)
    axes.locator_params(axis="x", integer=True)
    return figure


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="benchmarks.loss_curve", description=__doc__)
    parser.add_argument("log", help="folder of the log (--log_dir of the training)")
    parser.add_argument("out", type=Path, help="PNG file to write")
    args = parser.parse_args(argv)
    if not Path(args.log).is_dir():
        raise FileNotFoundError(f"there is no folder {args.log}")
    events = EventAccumulator(args.log, size_guidance={SCALARS: 0}).Reload()
    if "train/loss" not in events.Tags()["scalars"]:
        raise ValueError(f"{args.log} holds no training loss")
    scalars = events.Scalars("train/loss")
    with atomic_write(args.out) as beside:
        plot_loss([one.step for one in scalars], [one.value for one in scalars]).savefig(beside, dpi=160)
    print(args.out)


if __name__ == "__main__":
    from disa.commands.exit import run

    run(main)
