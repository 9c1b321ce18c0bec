"""`disa evidence`: what it writes for every family, and what it refuses before it loads anything."""

import json

import pytest
from PIL import Image

from disa.commands import evidence
from tests.helpers.scripts import command

QUICK = ["--device", "cpu", "--images", "3", "--draws", "2", "--diffusion_steps", "2", "--batch_size", "2"]
MODELS = {  # flags, and tokens of each AR step
    "mar_fashion": (["--num_iter", "2"], [45, 19]),
    "flowar_fashion": ([], [1, 4, 16, 64]),
    "xar_fashion": (["--flow_sampler", "heun"], [16] * 4),
    "harmon_fashion": (["--num_iter", "1"], [64]),
}


@pytest.mark.parametrize("name", MODELS)
def test_three_files_and_a_table(name, tmp_path, capsys):
    flags, tokens = MODELS[name]
    assert command("evidence", name, *QUICK, *flags, "--out", tmp_path / "out") == 0
    content = json.loads((tmp_path / "out" / "evidence.json").read_text())
    assert content["model"] == name
    assert content["observed"] == {"images": 3, "draws": 2, "diffusion_steps": 2}
    assert sum(tokens) == sum(step["tokens"] for step in content["steps"])
    assert len(tokens) == len(content["steps"])
    assert all(step["total_variance"] > 0 and step["path_ratio"] >= 1 for step in content["steps"])
    assert (tmp_path / "out" / "evidence.md").read_text() in capsys.readouterr().out
    assert Image.open(tmp_path / "out" / "evidence.png").size[0] > 1000


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (["mar_unknown"], "no recipe of 'mar_unknown'"),
        (["mar_fashion", "--images", "1"], "images is 1; it must be at least 2"),
        (["mar_fashion", "--draws", "1"], "draws is 1"),
        (["mar_fashion", "--diffusion_steps", "1"], "diffusion_steps is 1"),
        (["mar_fashion", "--batch_size", "0"], "batch_size is 0"),
        (["mar_fashion", "--diff_sampler", "euler"], "sampler is 'euler'"),
        (["mar_fashion", "--flow_sampler", "euler"], "there is no setting"),
        (["mar_fashion", "--device", "abacus"], "device is 'abacus'"),
        (["mar_fashion", "--checkpoint", "nowhere.pth"], "there is no checkpoint nowhere.pth"),
    ],
)
def test_bad_flags_end_in_one_sentence(flags, named, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(evidence, "Evidence", lambda *_: pytest.fail("it observes"))
    assert command("evidence", *flags, "--out", "out") == 2
    error = capsys.readouterr().err
    assert error.splitlines()[-1].startswith("error: ")
    assert named in error
    assert not list(tmp_path.glob("out/*"))
