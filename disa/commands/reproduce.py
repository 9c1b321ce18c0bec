"""`disa reproduce`: measure recipes."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from pathlib import Path

from ..tables.recipes import Table, choose, list_tables, load_tables
from .flags import add_device_flag, add_metrics_flags, add_speed_flags


def add_flags(parser: ArgumentParser) -> None:
    parser.description = (
        "Measure what is not measured, and write one table.md, table.csv and report.html. Interrupted, it goes on when "
        "it is started again. Runs alone or under torchrun (torchrun -m disa reproduce …)."
    )
    parser.add_argument("name", nargs="*", metavar="NAME", help="tables, recipes, or patterns such as 'ar_steps/mar_*'")
    parser.add_argument("--list", action="store_true", help="print tables and recipes")
    parser.add_argument("--out", type=Path, default=Path("out/reproduce"), help="folder of everything")
    add_measuring_flags(parser)


def main(args: Namespace) -> int:
    tables = load_tables()
    if args.list:
        print(list_tables(tables))
        return 0
    if not args.name:
        raise ValueError("nothing is asked for; name tables or recipes, `disa reproduce --list` prints them")
    chosen = [table.change(num_images=args.images, batch_size=args.batch_size) for table in choose(tables, args.name)]
    return measure(args, chosen, args.out, f"Reproduced: {', '.join(args.name)}")


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
