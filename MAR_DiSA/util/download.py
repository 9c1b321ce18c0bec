"""Fetch MAR's published weights, KL-16 and ImageNet's statistics to where the commands look for them."""

from disa.commands.checkpoints import download
from disa.commands.exit import run

FILES = ("kl16", "mar_base", "mar_large", "mar_huge", "adm_in256_stats")


def main() -> None:
    download(__doc__, FILES)


if __name__ == "__main__":
    run(main)
