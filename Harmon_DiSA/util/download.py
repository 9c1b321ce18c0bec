"""Fetch Harmon's published weights, and KL-16, which fine-tuned ones need, to where the README's commands look."""

from disa.commands.checkpoints import download
from disa.commands.exit import run

FILES = ("harmon_0.5b", "harmon_1.5b", "harmon_1.5b-o", "kl16")


def main() -> None:
    download(__doc__, FILES)


if __name__ == "__main__":
    run(main)
