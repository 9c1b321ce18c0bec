"""A training's loss from its TensorBoard log, as a picture.

`python -m benchmarks.loss_curve LOG_DIR OUT.png`
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from tensorboard.backend.event_processing.event_accumulator import SCALARS, EventAccumulator

from disa.files import atomic_write
from disa.report import plot_loss


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="benchmarks.loss_curve", description=__doc__)
    parser.add_argument("log", help="folder of the log (--log_dir of the training)")
    parser.add_argument("out", type=Path, help="PNG file to write")
    args = parser.parse_args(argv)
    events = EventAccumulator(args.log, size_guidance={SCALARS: 0}).Reload()
    if "train/loss" not in events.Tags()["scalars"]:
        raise ValueError(f"{args.log} holds no training loss")
    scalars = events.Scalars("train/loss")
    with atomic_write(args.out) as beside:
        plot_loss([one.step for one in scalars], [one.value for one in scalars]).savefig(beside, dpi=160)
    print(args.out)


if __name__ == "__main__":
    from disa.cli import run

    run(main)
