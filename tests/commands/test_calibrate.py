"""`disa calibrate`: what it writes, that it does so again, and what it refuses before it loads anything."""

import json
import re

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from disa import StepSchedule, build_model
from disa.acceleration.calibration import Calibration, StepDistances
from disa.commands import calibrate
from disa.generation.generators import LabelGenerator, Sampling
from disa.weights.load import load_bundled_vae, load_model
from tests.conftest import fill
from tests.helpers.scripts import command

QUICK = ["--device", "cpu", "--conditions", "4", "--draws", "4", "--batch_size", "16", "--max_steps", "4"]
QUICK += ["--times", "path"]
MODELS = {  # flags, and evaluations of the recipe
    "mar_fashion": (["--num_iter", "3", "--diff_upper_steps", "6", "--diff_lower_steps", "2"], 12),
    "flowar_fashion": (["--flow_upper_steps", "6", "--flow_lower_steps", "2"], 14),
    "xar_fashion": (["--flow_upper_steps", "6", "--flow_lower_steps", "2"], 15),
    "harmon_fashion": (["--num_iter", "2", "--diff_upper_steps", "6", "--diff_lower_steps", "2"], 8),
}


@pytest.fixture
def weights(tmp_path):
    """A file of weights that do something, of any bundled model."""

    def of(name):
        save_file(fill(build_model(name)).state_dict(), path := tmp_path / f"{name}.safetensors")
        return path

    return of


@pytest.mark.parametrize("name", MODELS)
def test_a_calibrated_schedule_spends_its_budget_and_serves(name, weights, tmp_path, capsys):
    path = None if name == "harmon_fashion" else weights(name)  # its tokenizer belongs to the weights that it has
    flags, nfe = MODELS[name]
    more = [*flags, *(["--checkpoint", path] if path else []), "--out", tmp_path / "out" / "one.json"]
    assert command("calibrate", name, *QUICK, *more) == 0
    printed = capsys.readouterr().out
    content = json.loads((tmp_path / "out" / "one.json").read_text())
    assert content["model"] == name
    assert content["nfe"] <= nfe // 2
    assert f"NFE {content['nfe']:4}" in printed
    assert re.search(rf"linear +NFE +{nfe}, summed D \d", printed)
    for step, tokens in zip(content["distances"], content["tokens"], strict=True):
        assert tokens >= 1
        assert all(len(step[kind]) == 4 == len(content["measured"]["counts"]) for kind in ("own", "path"))
    assert min(content["measured"]["images"]) >= 8
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["one.json", "one.png"]
    assert Image.open(tmp_path / "out" / "one.png").size[0] > 1000

    schedule = StepSchedule.load(str(tmp_path / "out" / "one.json"))
    assert schedule.counts == tuple(content["counts"])
    sampling = Sampling.from_dict({**content["settings"], "step_schedule": schedule.file})
    if path:
        generator = LabelGenerator(load_model(name, path), load_bundled_vae(name), sampling, torch.device("cpu"))
        assert generator.nfe == content["nfe"]
        assert generator([0, 1]).isfinite().all()
        with pytest.raises(ValueError, match="for weights"):
            LabelGenerator(build_model(name), load_bundled_vae(name), sampling, torch.device("cpu"))


def test_the_same_command_finds_the_same(weights, tmp_path):
    flags = [*QUICK, *MODELS["mar_fashion"][0], "--checkpoint", weights("mar_fashion")]
    found = []
    for name in ("one", "two"):
        assert command("calibrate", "mar_fashion", *flags, "--out", tmp_path / f"{name}.json") == 0
        content = json.loads((tmp_path / f"{name}.json").read_text())
        del content["seconds_per_evaluation"]
        found.append(content)
    assert found[0] == found[1]
    assert command("calibrate", "mar_fashion", *flags, "--seed", 2, "--out", tmp_path / "three.json") == 0
    assert json.loads((tmp_path / "three.json").read_text())["distances"] != found[0]["distances"]


def test_quality_and_seconds(weights, tmp_path):
    path = weights("mar_fashion")

    def counts(*flags):
        words = [*QUICK, *MODELS["mar_fashion"][0], "--checkpoint", path, "--out", tmp_path / "one.json", *flags]
        assert command("calibrate", "mar_fashion", *words) == 0
        return json.loads((tmp_path / "one.json").read_text())

    cheap, dear = counts("--quality", 1e9), counts("--quality", 1e-9)
    assert cheap["counts"] == [1, 1, 1]
    assert cheap["asked"] == {"cost": "evaluations", "times": "path", "quality": 1e9}
    assert dear["nfe"] > cheap["nfe"]
    spread = counts("--cost", "seconds", "--budget", 6)
    assert spread["asked"] == {"cost": "seconds", "times": "path", "budget": 6}
    seconds = np.array(spread["seconds_per_evaluation"])
    assert (seconds @ spread["counts"]).item() <= 6 * seconds.mean() * 1.001


def test_early_ar_steps_get_more_of_equal_distances(weights, tmp_path, monkeypatch):
    """Their errors have more heirs: with D = 1/k² counts fall as the cube root of the tokens that are still to come."""

    def measure(_, generator):
        calibration = Calibration(generator.model, "DiSA", [1, 2, 4, 8, 16, 32], 64)
        distances = torch.tensor([k**-2.0 for k in calibration.counts]).expand(2, 1, -1)
        calibration.steps = [StepDistances(tokens=n, seconds=1.0, distances=[distances]) for n in (56, 8)]
        return calibration

    monkeypatch.setattr(calibrate, "measure", measure)
    flags = ["--checkpoint", weights("mar_fashion"), "--num_iter", 2, "--budget", 30]
    assert command("calibrate", "mar_fashion", *flags, "--out", tmp_path / "one.json") == 0
    assert json.loads((tmp_path / "one.json").read_text())["counts"] == [20, 10]  # (64 / 8) ** (1 / 3) is 2


def test_the_solvers_own_times_are_kept(weights, tmp_path):
    flags = [*QUICK, *MODELS["flowar_fashion"][0], "--checkpoint", weights("flowar_fashion")]
    assert command("calibrate", "flowar_fashion", *flags, "--times", "own", "--out", tmp_path / "one.json") == 0
    content = json.loads((tmp_path / "one.json").read_text())
    assert [step.keys() for step in content["distances"]] == [{"own"}] * 4
    choose = build_model("flowar_fashion").flow_times
    assert content["times"] == [list(choose(count)) for count in content["counts"]]


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (["mar_unknown"], "no recipe of 'mar_unknown'"),
        (["mar_fashion", "--budget", "15"], "budget is 15; 16 AR steps take at least 16 evaluations"),
        (["mar_fashion", "--quality", "0"], "quality is 0.0"),
        (["mar_fashion", "--max_steps", "1"], "max_steps is 1; it must be in 2..256"),
        (["mar_fashion", "--conditions", "0"], "conditions is 0"),
        (["mar_fashion", "--draws", "1"], "draws is 1"),
        (["mar_fashion", "--batch_size", "7"], "batch_size is 7; it must be at least 8"),
        (["mar_fashion", "--diff_sampler", "default"], "the sampler default takes the same count at all AR steps"),
        (["mar_fashion", "--diff_sampler", "euler"], "sampler is 'euler'"),
        (["mar_fashion", "--flow_sampler", "euler"], "there is no setting"),
        (["mar_fashion", "--temperature", "-1"], "temperature is -1.0"),
        (["mar_fashion", "--out", "schedule"], "out is schedule; a name that ends in .json"),
        (["mar_fashion", "--device", "abacus"], "device is 'abacus'"),
        (["mar_fashion", "--checkpoint", "nowhere.pth"], "there is no checkpoint nowhere.pth"),
        (["mar_base"], "mar_base"),
    ],
)
def test_bad_flags_end_in_one_sentence(flags, named, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(calibrate, "measure", lambda *_: pytest.fail("it measures"))
    assert command("calibrate", *flags) == 2
    error = capsys.readouterr().err
    assert error.splitlines()[-1].startswith("error: ")
    assert named in error
    assert list(tmp_path.iterdir()) == []


def test_budget_and_quality_exclude_each_other(capsys):
    assert command("calibrate", "mar_fashion", "--budget", 50, "--quality", 1) == 2
    assert "not allowed with argument" in capsys.readouterr().err
