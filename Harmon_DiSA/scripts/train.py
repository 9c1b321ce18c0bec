"""Train or fine-tune Harmon on text to image and image to text. See README.md in the folder above."""

from disa.commands.exit import run
from disa.commands.train import get_harmon_parser as get_parser
from disa.commands.train import train_harmon as main

__all__ = ["get_parser", "main"]

if __name__ == "__main__":
    run(main)
