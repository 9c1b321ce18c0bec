"""`python -m disa …`, and `torchrun … -m disa …`: the `disa` command."""

from .commands.cli import entry

if __name__ == "__main__":
    entry()
