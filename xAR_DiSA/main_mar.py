"""The name under which xAR's training script was released: see main_xar.py."""

from main_xar import get_parser, main

from disa.commands.exit import run

__all__ = ["get_parser", "main"]

if __name__ == "__main__":
    run(main)
