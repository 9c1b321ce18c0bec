"""Evaluate FlowAR, with and without diffusion step annealing. See README.md in this folder."""

from disa.commands.exit import run
from disa.commands.families import FLOWAR_EVAL as FAMILY

get_parser, main = FAMILY.get_parser, FAMILY.main

if __name__ == "__main__":
    run(main)
