"""`disa reproduce`: measure recipes."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from collections.abc import Sequence
from pathlib import Path

from ..tables.recipes import Table, choose, list_rows, list_tables, load_tables
from .flags import HelpFormatter, add_device_flag, add_metrics_flags, add_speed_flags

# Tested as it stands. Values hold for everything within their level, unless an inner level gives another.
EXAMPLE = """\
[mine]                        # a table: disa reproduce --recipes FILE.toml mine
title = "Where my model begins to lose quality"
num_images = 1000
batch_size = 100
diff_sampler = "DiSA"         # settings carry the names of main_mar.py's flags
diff_annealing_strategy = "linear"
cfg = 2.0
cfg_schedule = "linear"
temperature = 1.0
seed = 1

[mine.mar_fashion]            # a model; `checkpoint = "PATH"` is for own weights
num_iter = 16
diff_upper_steps = 40
baseline = "full"             # the row that speed-ups are over
rows.full = { diff_lower_steps = 40 }
rows.disa = { diff_lower_steps = 8 }
grid = { diff_lower_steps = [2, 4], cfg = [1.5, 2.0] }  # a row for every combination
"""


def add_flags(parser: ArgumentParser) -> None:
    parser.description = (
        "Measure what is not measured, and write one table.md, table.csv and report.html. Interrupted, it goes on when "
        "it is started again. Runs alone or under torchrun (torchrun -m disa reproduce …)."
    )
    parser.add_argument("name", nargs="*", metavar="NAME", help="tables, recipes, or patterns such as 'ar_steps/mar_*'")
    text = "print tables, or the rows of those named, and measure nothing"
    parser.add_argument("--list", action="store_true", help=text)
    text = "file of own rows; without NAME all of them are measured. See the end of this help"
    parser.add_argument("--recipes", type=Path, metavar="FILE.toml", help=text)
    parser.add_argument("--out", type=Path, default=Path("out/reproduce"), help="folder of everything")
    add_measuring_flags(parser)
    parser.formatter_class, parser.epilog = _Formatter, f"own rows, for --recipes:\n\n{EXAMPLE}"


class _Formatter(HelpFormatter, RawDescriptionHelpFormatter):
    """Help with an example, whose lines stay as they are."""


def main(args: Namespace) -> int:
    tables, names = load_tables(own=args.recipes), args.name
    if args.recipes and not names:
        package = {recipe.name for table in load_tables().values() for recipe in table.recipes}
        every = (recipe.name for table in tables.values() for recipe in table.recipes)
        names = [name for name in every if name not in package]
    if args.list:
        print(list_rows(choose(tables, names)) if names else list_tables(tables.values()))
        return 0
    if not names:
        raise ValueError("nothing is asked for; name tables or recipes, `disa reproduce --list` prints them")
    chosen = [table.change(num_images=args.images, batch_size=args.batch_size) for table in choose(tables, names)]
    return measure(args, chosen, args.out, f"Reproduced: {', '.join(args.name or [str(args.recipes)])}")


def add_measuring_flags(parser: ArgumentParser) -> None:
    """Add the flags of every command that measures recipes."""
    for name, text in (("images", "images per row"), ("batch_size", "images at a time on each rank")):
        parser.add_argument(f"--{name}", type=int, metavar="N", help=f"{text}; by default as many as the recipe says")
    add_metrics_flags(parser)
    add_device_flag(parser)
    add_speed_flags(parser)


def measure(args: Namespace, tables: Sequence[Table], out: Path, title: str, *, front: bool = False) -> int:
    """Measure `tables` as the flags say; arguments and exit code are those of `tables.reproduce.reproduce`."""
    from ..acceleration import Acceleration
    from ..tables.reproduce import reproduce  # needs disa[eval], which the list does not

    for recipe in (recipe for table in tables for recipe in table.shown):
        recipe.check_ar_steps()
    return reproduce(
        tables,
        out,
        title=title,
        metrics=args.metrics,
        features=args.features,
        reference=args.reference,
        device=args.device,
        dtype=args.dtype,
        acceleration=Acceleration(args.compile, args.graphs),
        front=front,
    )
