"""Fetch MAR's published weights, the KL-16 tokenizer and ImageNet's statistics to where the commands look for them."""

from __future__ import annotations

import argparse

from disa.checkpoints import fetch
from disa.cli import run
from disa.flags import HelpFormatter

FILES = ("kl16", "mar_base", "mar_large", "mar_huge", "adm_in256_stats")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    parser.add_argument("name", nargs="*", default=FILES, help=f"some of {', '.join(FILES)}; by default all")
    parser.add_argument("--out", default="pretrained_models", help="folder")
    args = parser.parse_args()
    for name in args.name:
        print(fetch(name, args.out))


if __name__ == "__main__":
    run(main)
