"""The files that shells complete `disa` with: python -m benchmarks.making_of.completion"""

import argparse
import re
from collections.abc import Sequence
from pathlib import Path

import shtab

from disa import list_models
from disa.commands import evaluate, train
from disa.commands.cli import get_parser
from disa.commands.completion import FILES
from disa.runtime.files import atomic_write

PLACES = re.compile("^(images|data|edit|mask|vae)$|path|_dir|file|checkpoint|resume|reference|step_schedule")


def scripts() -> dict[str, str]:
    """Return what completes `disa`, by shell."""
    parser = get_parser()
    (commands,) = (one.choices for one in parser._actions if isinstance(one, argparse._SubParsersAction))
    families = {
        "evaluate": [family.get_parser() for family in evaluate.FAMILIES.values()],
        "train": [*(family.get_parser() for family in train.FAMILIES.values()), train.get_harmon_parser()],
    }
    for name, parsers in families.items():
        take_flags(commands[name], parsers)
    for command in (*commands.values(), *commands["checkpoints"]._subparsers._group_actions[0].choices.values()):
        for action in command._actions:
            if action.metavar == "MODEL":
                action.choices = list_models()
            elif action.type is Path or (action.type in (None, str) and PLACES.search(action.dest)):
                action.complete = shtab.FILE
    return {shell: shtab.complete(parser, shell) for shell in FILES}


def take_flags(command: argparse.ArgumentParser, parsers: Sequence[argparse.ArgumentParser]) -> None:
    """Give a command the flags of the families that stand behind its last argument."""
    command._actions.pop()
    for action in (action for parser in parsers for action in parser._actions):
        if action.option_strings and not any(one in command._option_string_actions for one in action.option_strings):
            command._add_action(action)


if __name__ == "__main__":
    for shell, script in scripts().items():
        with atomic_write(FILES[shell]) as beside:
            beside.write_text(script, encoding="utf-8")
