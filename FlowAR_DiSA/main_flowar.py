"""Train FlowAR, or evaluate it with a fixed number of flow steps. See README.md in this folder."""

from disa.commands.exit import run
from disa.commands.families import FLOWAR as FAMILY

get_parser, main = FAMILY.get_parser, FAMILY.main

if __name__ == "__main__":
    run(main)
