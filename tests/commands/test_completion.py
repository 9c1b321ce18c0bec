"""Shell completion."""

import shutil
import subprocess

import pytest

from disa.commands import completion
from tests.helpers.scripts import command

COMPLETE = """
source {script}
COMP_WORDS=({words} "{last}")
COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1))
$(complete -p disa | sed 's/.*-F \\([^ ]*\\).*/\\1/')
echo "${{COMPREPLY[@]}}"
"""
ASKED = {
    ("disa", "gen"): ["generate"],
    ("disa", "--print"): ["--print-completion"],
    ("disa generate", "xar_f"): ["xar_fashion"],
    ("disa generate mar_fashion --labels bag", "--see"): ["--seeds"],
    ("disa generate mar_fashion --dtype", "b"): ["bfloat16"],
    ("disa generate mar_fashion --edit", "pic"): ["picture.png"],
    ("disa evaluate flowar_fashion", "--flow_s"): ["--flow_sampler"],
    ("disa train harmon_fashion", "--work"): ["--work-dir"],
    ("disa checkpoints", "fet"): ["fetch"],
}


def test_the_files_name_what_the_commands_take():
    """If not: python -m benchmarks.making_of.completion"""
    making = pytest.importorskip("benchmarks.making_of.completion", exc_type=ImportError)
    for shell, script in making.scripts().items():
        assert completion.FILES[shell].read_text() == script


@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")
@pytest.mark.parametrize(("words", "last"), ASKED, ids=[f"{words} {last}" for words, last in ASKED])
def test_bash_completes(words, last, tmp_path):
    (tmp_path / "picture.png").touch()
    program = COMPLETE.format(script=completion.FILES["bash"], words=words, last=last)
    ended = subprocess.run(["bash", "-c", program], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert ended.stdout.split() == ASKED[words, last]


@pytest.mark.skipif(shutil.which("zsh") is None, reason="there is no zsh")
def test_zsh_reads_its_file():
    subprocess.run(["zsh", "-n", completion.FILES["zsh"]], check=True)


@pytest.mark.parametrize("shell", completion.FILES)
def test_a_shell_gets_its_file(shell, capsys):
    assert command("--print-completion", shell) == 0
    assert capsys.readouterr().out == completion.FILES[shell].read_text()


def test_nothing_in_the_files_is_of_this_machine():
    for path in completion.FILES.values():
        assert str(path.parents[2]) not in path.read_text()
