"""Token rows through the flow network per image with 50 → 15 flow steps, against computing both guidance halves always.

Counted, not timed, on narrow models: rows depend on grids, steps and guidance alone.
`python -m benchmarks.flow_rows --out benchmarks/results/flow_rows.md`
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from disa import Guidance, ImageNoise, StepSchedule
from disa.commands.flags import HelpFormatter
from disa.models.flowar import FlowAR, flow_times
from disa.models.xar import XAR
from disa.runtime.files import atomic_write
from disa.tables.report import column, decimals, percent, table

SCHEDULE = StepSchedule(50, 15)
COLUMNS = (
    column("setting", "setting"),
    column("always", "both halves always", decimals(0)),
    column("rows", "rows here", decimals(0)),
    column("share", "share", percent),
)


def count_rows(model: XAR | FlowAR, network: nn.Module, guidance: Guidance) -> int:
    """Count the rows [branches × tokens] through `network` over one image's generation."""
    rows: list[int] = []
    hook = network.register_forward_hook(lambda _, __, output: rows.append(output.shape[0] * output.shape[1]))
    model.generate(torch.tensor([0]), schedule=SCHEDULE, guidance=guidance, noise=ImageNoise([0]))
    hook.remove()
    return sum(rows)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="benchmarks.flow_rows", description=__doc__, formatter_class=HelpFormatter)
    parser.add_argument("--out", type=Path, default=None, help="Markdown file to write the table to")
    args = parser.parse_args(argv)

    xar = XAR(width=64, depth=1, num_heads=4).eval()
    flowar = FlowAR(width=64, depth=1, num_heads=4, head_depth=1, head_width=64).eval()
    counts = [SCHEDULE.steps(step, xar.cells) for step in range(xar.cells)]
    cell = xar.grid**2 // xar.cells
    # Every finished cell but the last goes through once more, to be cached as data.
    xar_always = 2 * cell * (sum(counts) + xar.cells - 1)
    scales = [
        (side**2, len(flow_times(SCHEDULE.steps(step, len(flowar.scales)))) - 1)
        for step, side in enumerate(flowar.scales)
    ]
    flowar_always = 2 * sum(tokens * evaluations for tokens, evaluations in scales)
    rows: list[dict[str, Any]] = [
        {"setting": "xAR, guidance 2.7", "always": xar_always, "rows": count_rows(xar, xar.pred, Guidance(2.7))},
        {
            "setting": "FlowAR, guidance 2.4 up to flow time 0.7",
            "always": flowar_always,
            "rows": count_rows(flowar, flowar.flownet, Guidance(2.4, max_time=0.7)),
        },
    ]
    for row in rows:
        row["share"] = row["rows"] / row["always"]
    text = table(rows, COLUMNS) + "\n"
    print(text)
    if args.out is not None:
        with atomic_write(args.out) as beside:
            what = "token rows through the flow network per image, 50 → 15 steps"
            beside.write_text(f"Written by `python -m benchmarks.flow_rows`: {what}.\n\n{text}")


if __name__ == "__main__":
    from disa.commands.exit import run

    run(main)
