"""Evaluate xAR, with and without diffusion step annealing. See README.md in this folder."""

from __future__ import annotations

import argparse
import dataclasses

from main_xar import FAMILY, family_parser, make_sampling

from disa import StepSchedule
from disa.cli import run
from disa.commands import run_family
from disa.sampling import Sampling


def get_parser() -> argparse.ArgumentParser:
    parser = family_parser(__doc__.splitlines()[0])
    parser.add_argument("--flow_upper_steps", default=50, type=int, help="flow steps at the first cell")
    parser.add_argument("--flow_lower_steps", default=15, type=int, help="flow steps at the last cell; as many as upper: no annealing")
    parser.add_argument("--flow_annealing_strategy", default="linear", help="linear, cosine, two-stage or constant")
    parser.set_defaults(evaluate=True)
    return parser


def get_sampling(args: argparse.Namespace) -> Sampling:
    return make_sampling(args, StepSchedule(args.flow_upper_steps, args.flow_lower_steps, args.flow_annealing_strategy))


def main() -> None:
    run_family(get_parser(), dataclasses.replace(FAMILY, sampling=get_sampling))


if __name__ == "__main__":
    run(main)
