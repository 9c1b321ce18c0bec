"""`disa checkpoints`: published weights, and a family's `util/download.py`."""

from __future__ import annotations

import itertools
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Sequence

from ..models import MODELS
from ..runtime.devices import DTYPES
from ..tables.recipes import disa_recipe
from ..weights import fetch, load, verify
from ..weights.hub import hub_folder
from .flags import HelpFormatter, Parser

SHOWN = 5  # differences of a kind
TEXT_FILES = ("*.json", "*.txt")  # what a text tokenizer has in a repository of weights
FOLDER = "folder; by default DISA_WEIGHTS, or pretrained_models at the top of the checkout, for all families"


def add_flags(parser: ArgumentParser) -> None:
    group = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(name: str, action: Callable[[Namespace], int | None], text: str) -> ArgumentParser:
        command = group.add_parser(name, help=text, formatter_class=HelpFormatter)
        command.set_defaults(action=action)
        return command

    add("list", _list, "name, size, licence and origin of every published file")
    command = add("fetch", _fetch, "download published files; a broken download goes on where it stopped")
    command.add_argument("name", nargs="+", metavar="NAME", help="one of `disa checkpoints list`")
    command.add_argument("--out", help=FOLDER)
    command = add("verify", _verify, "compare a file with what was published: names, shapes, finite values")
    command.add_argument("path", metavar="PATH")
    names = ", ".join(verify.manifests())
    command.add_argument("--manifest", metavar="NAME", help=f"one of {names}; by default the closest")
    command = add("export", _export, "a checkpoint's weights as safetensors")
    command.add_argument("path", metavar="PATH", help="checkpoint file, or a folder with checkpoint-last.pth")
    command.add_argument("out", metavar="OUT", help="file to write")
    command.add_argument("--weights", choices=("ema", "model"), default="ema", help="which of the checkpoint's weights")
    command.add_argument("--dtype", choices=DTYPES, default="float32", help="to store them in")


def main(args: Namespace) -> int | None:
    return args.action(args)


def _list(_: Namespace) -> None:
    for entry in fetch.CATALOGUE.values():
        size = f"{entry.megabytes} MB" if entry.megabytes else "-"
        print(f"{entry.name:16} {size:>8}  {entry.licence:32} {entry.origin}")


def _fetch(args: Namespace) -> None:
    for name in args.name:
        fetch.published(name)  # refuses an unknown one before anything is fetched
    for name in args.name:
        print(fetch.fetch(name, args.out))
        if repository := _text_tokenizer(name):
            print(hub_folder(repository, TEXT_FILES))


def _text_tokenizer(name: str) -> str | None:
    """Return the repository on the hub whose text tokenizer a published model needs."""
    model = name.removesuffix("-o")  # Harmon as its authors fine-tuned it further, of the same shape
    return disa_recipe(model).text_tokenizer if model in MODELS else None


def _verify(args: Namespace) -> int:
    name, problems = verify.verify(args.path, args.manifest)
    for _, alike in itertools.groupby(problems, lambda problem: problem.partition(":")[0]):
        first = list(alike)
        print("\n".join(first[:SHOWN]) + f"\n… and {len(first) - SHOWN} more" * (len(first) > SHOWN))
    print(f"{args.path} {'does not match' if problems else 'matches'} {name}")
    return 1 if problems else 0


def _export(args: Namespace) -> None:
    load.export(args.path, args.out, args.weights, DTYPES[args.dtype])
    print(args.out)


def download(description: str, files: Sequence[str]) -> None:
    """Fetch some of `files` or all, as the command line says."""
    parser = Parser(description=description, formatter_class=HelpFormatter)
    parser.add_argument("name", nargs="*", default=files, help=f"some of {', '.join(files)}; by default all")
    parser.add_argument("--out", help=FOLDER)
    _fetch(parser.parse_args())
