"""`disa …`, and how every command of the project ends."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

from . import checkpoints
from .flags import HelpFormatter


def run(main: Callable[[], int | None]) -> NoReturn:
    """End the process with what `main` returns.

    What a user can mend (a wrong setting, a missing or broken file, a full disk, a NaN) ends in one sentence on stderr
    and exit code 2; an interruption in exit code 130. Anything else is a defect, and keeps its traceback.
    """
    try:
        sys.exit(main())
    except KeyboardInterrupt as stop:
        print(f"\n{stop or 'interrupted'}", file=sys.stderr)
        sys.exit(130)
    except (ValueError, OSError, FloatingPointError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


def _list(args: argparse.Namespace) -> None:
    for entry in checkpoints.CATALOGUE.values():
        print(f"{entry.name:16} {entry.megabytes:6} MB  {entry.licence:34} {entry.origin}")


def _fetch(args: argparse.Namespace) -> None:
    for name in args.name:
        print(checkpoints.fetch(name, args.out))


def _verify(args: argparse.Namespace) -> int:
    name, problems = checkpoints.verify(args.path, args.manifest)
    for problem in problems:
        print(problem)
    print(f"{args.path} {'does not match' if problems else 'matches'} {name}")
    return 1 if problems else 0


def get_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="disa", description="Diffusion step annealing: weights, and what the package can do by itself.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    group = commands.add_parser("checkpoints", help="published weights: list, fetch, verify").add_subparsers(required=True, metavar="COMMAND")

    command = group.add_parser("list", help="name, size, licence and origin of every published file")
    command.set_defaults(command=_list)

    command = group.add_parser("fetch", help="download published files; a broken download goes on where it stopped", formatter_class=HelpFormatter)
    command.add_argument("name", nargs="+", metavar="NAME", help="one of `disa checkpoints list`")
    command.add_argument("--out", default="pretrained_models", help="folder")
    command.set_defaults(command=_fetch)

    command = group.add_parser("verify", help="compare a file with what was published: names, shapes, finite values")
    command.add_argument("path", metavar="PATH")
    command.add_argument("--manifest", metavar="NAME", help=f"one of {', '.join(checkpoints.manifests())}; by default the closest")
    command.set_defaults(command=_verify)
    return parser


def main(argv: Sequence[str] | None = None) -> int | None:
    """Run one command; returns its exit code."""
    args = get_parser().parse_args(argv)
    return args.command(args)


def entry() -> NoReturn:
    """The `disa` script."""
    run(main)


if __name__ == "__main__":
    entry()
