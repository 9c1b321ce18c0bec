"""Shell completion: `disa --print-completion bash`.

The shell itself completes, from files beside this one. They name what every command takes, and change with it:
`python -m benchmarks.making_of.completion` writes them again, with the packages of disa[dev].
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

FILES = {shell: Path(__file__).with_name(f"completion.{shell}") for shell in ("bash", "zsh")}
HELP = (
    "print what completes commands, models and flags; "
    "bash: disa --print-completion bash > ~/.local/share/bash-completion/completions/disa; "
    "zsh: disa --print-completion zsh > DIR/_disa, where DIR is a folder of $fpath"
)


class PrintCompletion(argparse.Action):
    """Print the file of a shell, and end."""

    def __call__(self, parser: argparse.ArgumentParser, *args: Any) -> None:  # Any: as argparse calls it
        print(FILES[args[1]].read_text(encoding="utf-8"), end="")
        parser.exit()
