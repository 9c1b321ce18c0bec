"""`disa evaluate`: the evaluation of a model's family."""

from __future__ import annotations

import dataclasses
from argparse import REMAINDER, ArgumentParser, Namespace
from collections.abc import Mapping

from ..models import MODELS
from ..runtime.names import did_you_mean
from .class_conditional import Family
from .families import FLOWAR_EVAL, MAR, XAR_EVAL

FAMILIES = {"mar": MAR, "flowar": FLOWAR_EVAL, "xar": XAR_EVAL}


def add_flags(parser: ArgumentParser) -> None:
    parser.description = (
        "Generate images of class labels and measure them, as MAR_DiSA/main_mar.py --evaluate and the eval.py of "
        "FlowAR and xAR do. `disa evaluate MODEL --help` shows the flags of the model's family. Runs alone or under "
        "torchrun (torchrun -m disa evaluate …)."
    )
    add_words(parser)


def add_words(parser: ArgumentParser, more: str = "") -> None:
    """Add a model and the flags of its family, which the family parses."""
    parser.add_argument("model", metavar="MODEL", help=f"a model's name, such as mar_fashion or mar_base{more}")
    parser.add_argument("flags", nargs=REMAINDER, metavar="…", help="flags of the model's family")


def main(args: Namespace) -> None:
    """Evaluate a model."""
    if args.model.partition("_")[0] == "harmon" and args.model in MODELS:
        raise ValueError(f"{args.model} is measured by recipes; `disa reproduce --list` prints them")
    get_family(args.model, FAMILIES, "evaluate").main(["--model", args.model, "--evaluate", *args.flags])


def get_family(model: str, families: Mapping[str, Family], command: str) -> Family:
    """Choose the family of a model's name, as `disa COMMAND MODEL`; ValueError if it has none here."""
    name = model.partition("_")[0]
    known = [one for one in MODELS if one.partition("_")[0] in families and "_" in one]
    if model not in known:
        raise ValueError(f"there is no model {model!r} here{did_you_mean(model, known)}; there are {', '.join(known)}")
    return dataclasses.replace(families[name], prog=f"disa {command} {model}")
