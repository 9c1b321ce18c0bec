"""The benchmark that times generations at two commits, and the checkouts that it makes."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import speed
from benchmarks.checkouts import ROOT, worktree
from benchmarks.generations import product_rate, randomize
from tests.helpers.processes import run
from tests.helpers.scripts import exit_code


def git(*words):
    return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=False)


in_git = pytest.mark.skipif(bool(git("rev-parse", "HEAD").returncode), reason="this is no git repository")


@in_git
def test_a_checkout_has_the_benchmarks_of_today_and_is_removed_after_errors():
    folders = []

    def fail():
        with worktree("HEAD") as folder:
            folders.append(folder)
            assert (folder / "disa" / "annealing.py").is_file()
            assert (folder / "benchmarks" / "speed.py").read_text() == (ROOT / "benchmarks" / "speed.py").read_text()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    (folder,) = folders
    assert not folder.exists()
    assert str(folder) not in git("worktree", "list").stdout


@in_git
def test_an_unknown_commit_is_refused(capsys):
    assert exit_code(lambda: speed.main(["--against", "no_such_commit"])) == 2
    assert "there is no commit 'no_such_commit' to compare with" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--rounds", "0"], "--rounds is 0"),
        (["--model", "mar_base"], "--model is mar_base; without --against, one bundled model is needed"),
        (["--model", "mar_fashion", "xar_fashion"], "--model is mar_fashion xar_fashion"),
    ],
)
def test_impossible_flags_are_refused(words, message, capsys):
    assert exit_code(lambda: speed.main(words)) == 2
    assert message in capsys.readouterr().err


def test_random_weights_depend_on_names_alone_and_nothing_is_shut():
    made = []
    for seed in range(2):
        torch.manual_seed(seed)
        parameters = {
            "a.weight": torch.nn.Parameter(torch.zeros(64, 32)),
            "a.bias": torch.nn.Parameter(torch.zeros(32)),
        }
        for name, parameter in parameters.items():
            randomize(name, parameter)
        made.append(parameters)
    assert all(torch.equal(made[0][name], made[1][name]) for name in made[0])
    assert made[0]["a.weight"].std().item() == pytest.approx(32**-0.5, rel=0.1)
    assert made[0]["a.bias"].std().item() == pytest.approx(0.05, rel=0.5)


def test_the_product_rate_is_that_of_this_machine(monkeypatch):
    monkeypatch.setattr("benchmarks.generations.SIDES", {"cpu": 64})
    assert 1e6 < product_rate(torch.device("cpu"), torch.float64) < 1e14


@pytest.mark.slow
@in_git
def test_two_checkouts_generate_the_same_in_turn(tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    out = tmp_path / "speed.md"
    speed.main(["--against", "HEAD", "--model", "xar_fashion", "--batch", "2", "--rounds", "1", "--out", str(out)])
    (line,) = [line for line in out.read_text().splitlines() if line.startswith("| xar_fashion")]
    _, batch, before, now, speed_up, difference, *shares = (cell.strip() for cell in line.strip("|").split("|"))
    assert batch == "2"
    assert float(before) > 0 < float(now)
    assert float(speed_up.removesuffix("×")) > 0.1
    assert float(difference) < 1e-4
    assert all(0 < float(share.removesuffix(" %")) < 200 for share in shares)


@pytest.mark.slow
def test_the_process_answers_with_seconds_and_latents(tmp_path):
    sampling = speed.find_recipe("xar_fashion").sampling.to_dict()
    words = ["--model", "xar_fashion", "--batch", "2", "--sampling", json.dumps(sampling), "--dtype", "bfloat16"]
    command = [sys.executable, "-m", "benchmarks.generations", *words, "--latents", str(tmp_path / "latents.pt")]
    ended = subprocess.run(command, cwd=ROOT, input="1\n2\n", stdout=subprocess.PIPE, text=True, check=True)
    about, *answers = map(json.loads, ended.stdout.splitlines())
    assert Path(about["disa"]).is_relative_to(ROOT)
    assert [answer["seconds"] > 0 for answer in answers] == [True, True]
    assert torch.load(tmp_path / "latents.pt", weights_only=True).shape == (2, 8, 8, 8)


@pytest.mark.slow
def test_settings_are_compared_with_their_parts(tmp_path):
    words = ["--model", "flowar_fashion", "--batch_size", "1", "--rounds", "1", "--device", "cpu"]
    run("-m", "benchmarks.speed", *words, "--out", tmp_path / "speed.md", cwd=ROOT)
    text = (tmp_path / "speed.md").read_text()
    assert "| without DiSA " in text
    assert "`flowar_fashion`, batches of 1, medians of 1 rounds" in text
