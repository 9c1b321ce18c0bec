"""`disa …`, also as `python -m disa …` and `torchrun … -m disa …`."""

from __future__ import annotations

import sys
from collections.abc import Collection, Sequence
from importlib import import_module, metadata
from typing import NoReturn

from .completion import FILES, HELP, PrintCompletion
from .exit import run
from .flags import HelpFormatter, Parser, naming_flags

# Each is a module beside this one, with `add_flags(parser)` and `main(args)`; torch is imported in these, not here.
COMMANDS = {
    "generate": "make pictures of labels or prompts",
    "score": "measure any folder of images: FID, IS, KID, precision and recall",
    "evaluate": "generate images with a model, and measure them",
    "train": "train a model",
    "demo": "what annealing does, shown on the bundled models",
    "checkpoints": "published weights: list, fetch, verify",
    "stats": "reference statistics of images, for FID, KID, precision and recall",
    "reproduce": "measure recipes, and put them beside what was published",
    "sweep": "measure a grid of settings: where does quality start to drop?",
    "calibrate": "find how many diffusion steps each AR step of a model needs",
    "web": "a page in the browser to play with: with and without DiSA, edit, ask",
    "evidence": "observe in a model what annealing rests on: variances, predictions and paths by AR step",
}


def get_parser(chosen: Collection[str] = COMMANDS) -> Parser:
    """Build a parser that knows the flags of the `chosen` commands."""
    text = "Diffusion step annealing: make pictures, measure them, train models."
    parser = Parser(prog="disa", description=text)
    parser.add_argument("--version", action="version", version=f"disa {metadata.version('disa')}")
    text = HELP
    parser.add_argument("--print-completion", action=PrintCompletion, choices=FILES, metavar="SHELL", help=text)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, text in COMMANDS.items():
        command = commands.add_parser(name, help=text, formatter_class=HelpFormatter)
        if name in chosen:
            module = import_module(f".{name}", __package__)
            module.add_flags(command)
            command.set_defaults(main=module.main)
    return parser


def main(argv: Sequence[str] | None = None) -> int | None:
    """Run one command; return its exit code."""
    words = sys.argv[1:] if argv is None else argv
    args = get_parser(words[:1]).parse_args(words)
    with naming_flags(args):
        return args.main(args)


def entry() -> NoReturn:
    """Run the `disa` script."""
    run(main)
