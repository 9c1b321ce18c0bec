"""The commands as modules, called in the process of the test."""

import functools
import importlib.util
import json
import sys

import pytest

from disa.commands import cli
from disa.commands.exit import run
from tests.helpers.processes import ROOT

FLAGS = json.loads((ROOT / "tests" / "reference" / "flags.json").read_text())  # script -> released flag -> default


def load_script(name):
    """A script as a module of its own."""
    path = ROOT / name
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(path.parent))  # as for a script that is run
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(path.parent))
    return module


script = functools.cache(load_script)  # for tests that change nothing in it


def exit_code(main):
    """The exit code of `main` as a command."""
    with pytest.raises(SystemExit) as end:
        run(main)
    return end.value.code or 0


def command(*words):
    """The exit code of `disa` with `words`."""
    return exit_code(lambda: cli.main([str(word) for word in words]))


def call(monkeypatch, capsys, folder, main, *words):
    """Call the `main` of a script as if it were run in `folder` with `words`: its exit code, stdout, stderr."""
    monkeypatch.chdir(folder)
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.setattr(sys, "argv", ["script.py", *map(str, words)])
    return exit_code(main), *capsys.readouterr()
