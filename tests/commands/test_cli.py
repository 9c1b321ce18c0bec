"""`disa …` as users start it."""

import time

import pytest

from disa.commands import cli
from tests.helpers.processes import run
from tests.helpers.scripts import command

ALONE = """
import sys

from disa.commands import cli

try:
    cli.main(sys.argv[1:])
finally:
    print(*sorted({"torch", "numpy", "matplotlib", "tqdm"} & sys.modules.keys()), file=sys.stderr)
"""


@pytest.mark.slow
def test_the_real_command_ends_in_one_sentence_too(tmp_path):
    ended = run("-m", "disa", "checkpoints", "export", "nowhere.pth", "out", cwd=tmp_path, code=2)
    assert ended.stdout == ""
    sentence = "error: there is no checkpoint nowhere.pth; `disa checkpoints list` names what can be fetched\n"
    assert ended.stderr == sentence
    assert list(tmp_path.iterdir()) == []


ASKED = {
    "help": (["--help"], 0),
    "version": (["--version"], 0),
    "completion": (["--print-completion", "bash"], 0),
    "empty word": ([""], 2),
    "unknown command": (["sample"], 2),
}


@pytest.mark.parametrize(("words", "code"), ASKED.values(), ids=ASKED)
def test_what_needs_no_torch_does_not_import_it(words, code, tmp_path):
    ended = run("-c", ALONE, *words, cwd=tmp_path, code=code)
    assert ended.stderr.splitlines()[-1] == ""


def test_help_names_every_command_and_is_quick(tmp_path):
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        printed = run("-m", "disa", "--help", cwd=tmp_path).stdout
        seconds.append(time.perf_counter() - start)
    assert set(cli.COMMANDS) <= set(printed.split())
    assert min(seconds) < 1  # half of that on an idle machine: tests/wheel.sh


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_command_explains_its_flags(name, capsys):
    with pytest.raises(SystemExit) as end:
        cli.main([name, "--help"])
    assert end.value.code == 0
    assert f"usage: disa {name}" in capsys.readouterr().out
    known = {action.dest for action in cli.get_parser([name])._subparsers._group_actions[0].choices[name]._actions}
    assert len(known) > 1
    assert all(
        len(parser._actions) == 1
        for other, parser in cli.get_parser([])._subparsers._group_actions[0].choices.items()
        if other != name
    )


def test_a_command_is_needed(capsys):
    with pytest.raises(SystemExit) as end:
        cli.main([])
    assert end.value.code == 2
    assert "COMMAND" in capsys.readouterr().err


def test_the_list_needs_no_weights(capsys):
    assert command("reproduce", "--list", "imagenet") == 0
    assert "imagenet/mar_base-disa" in capsys.readouterr().out
