"""FlowAR's and xAR's commands: train a little, evaluate what came out, refuse what cannot be."""

import json
from argparse import Namespace

import numpy as np
import pytest
import torch
from PIL import Image

from disa import build_model
from disa.commands.class_conditional import get_vae
from disa.evaluation import plan
from disa.weights.load import read_checkpoint
from tests.helpers.data import write_fashion
from tests.helpers.processes import ROOT, run
from tests.helpers.scripts import call as call_script
from tests.helpers.scripts import script

# folder -> (training script, model, flags of its fixed step count, head evaluations at 6 -> 3 steps)
FAMILIES = {
    "FlowAR_DiSA": ("main_flowar.py", "flowar_fashion", ["--num_step", "4"], 6 + 4 + 4 + 2),
    "xAR_DiSA": ("main_xar.py", "xar_fashion", ["--num_sampling_steps", "4"], 6 + 5 + 4 + 3),
}
STEPS = ["--flow_upper_steps", "6", "--flow_lower_steps", "3"]
families = pytest.mark.parametrize("folder", FAMILIES)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_fashion(tmp_path_factory.mktemp("data"), 20)


@pytest.fixture
def call(monkeypatch, capsys):
    """A script in this process: its flags -> exit code, stdout, stderr."""

    def in_process(folder, name, *flags):
        flags = [*flags, "--device", "cpu", "--model", FAMILIES[folder][1]]
        return call_script(monkeypatch, capsys, ROOT / folder, script(f"{folder}/{name}").main, *flags)

    return in_process


@families
def test_a_step_schedule_of_other_weights_ends_a_training_before_it_begins(folder, data, call, tmp_path):
    sampler = {"sampler": "euler" if folder == "FlowAR_DiSA" else "euler_maruyama"}
    content = {"weights": {"float32": "00"}, "sampling": sampler, "counts": [1] * 4, "times": [[1.0, 0.0]] * 4}
    (tmp_path / "one.json").write_text(json.dumps(content))
    flags = ["--online_eval", "--metrics", "none", "--output_dir", tmp_path / "out", "--data_path", data]
    flags += ["--flow_sampler", sampler["sampler"], "--cfg", "1"]
    code, _, error = call(folder, FAMILIES[folder][0], *flags, "--step_schedule", tmp_path / "one.json")
    assert code == 2
    assert "was made for weights 00, not those in training" in error
    assert not (tmp_path / "out").exists()


@families
@pytest.mark.slow
def test_train_and_evaluate(folder, data, call, tmp_path):
    training_script, _, fixed, evaluations = FAMILIES[folder]
    where = ["--output_dir", tmp_path / "trained", "--log_dir", tmp_path / "log", "--data_path", data]
    training = [*where, "--batch_size", "4", "--epochs", "2", "--warmup_epochs", "0", "--lr", "1e-3"]
    code, printed, error = call(folder, training_script, *training)
    assert code == 0, error
    assert "20 images" in printed
    content = read_checkpoint(tmp_path / "trained" / "checkpoint-last.pth")
    assert content["step"] == 10
    assert content["args"].model == FAMILIES[folder][1]

    common = ["--resume", tmp_path / "trained", "--num_images", 10, "--keep_images", "--metrics", "none", "--cfg", 2]
    outputs = {}
    for name, batch in (("three", "3"), ("ten", "10")):
        outputs[name] = tmp_path / name
        flags = [*common, "--eval_bsz", batch, "--output_dir", outputs[name], "--log_dir", tmp_path / "log", *STEPS]
        code, printed, error = call(folder, "eval.py", *flags)
        assert code == 0, error
        assert f"10 images, NFE {evaluations}" in printed
    images = [sorted(output.glob("*/images/*.png")) for output in outputs.values()]
    assert len(images[0]) == len(images[1]) == 10
    for one, other in zip(*images, strict=True):
        assert abs(np.array(Image.open(one), int) - np.array(Image.open(other), int)).max() <= 1
    (record,) = outputs["ten"].glob("*/results.json")
    settings = json.loads(record.read_text())["settings"]
    expected = {"model": FAMILIES[folder][1], "flow_upper_steps": 6, "flow_lower_steps": 3, "cfg": 2.0}
    assert expected.items() <= settings.items()

    # The training script evaluates too, with the same count at every AR step.
    where = ["--output_dir", tmp_path / "fixed", "--log_dir", tmp_path / "log"]
    code, printed, error = call(folder, training_script, *common, "--evaluate", *fixed, "--eval_bsz", "10", *where)
    assert code == 0, error
    assert "10 images, NFE 16" in printed


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "said"), [("float32", "float32"), ("bfloat16", "bfloat16 autocast")])
def test_an_evaluation_during_training_computes_as_training_does(dtype, said, data, call, tmp_path):
    training_script = FAMILIES["xAR_DiSA"][0]
    where = ["--output_dir", tmp_path / "trained", "--log_dir", tmp_path / "log", "--data_path", data]
    training = [*where, "--batch_size", "4", "--epochs", "1", "--dtype", dtype]
    online = ["--online_eval", "--num_images", 10, "--eval_bsz", 10, "--metrics", "none"]
    code, _, error = call("xAR_DiSA", training_script, *training, *online)
    assert code == 0, error
    record = json.loads((tmp_path / "trained" / "online" / "epoch0001" / "results.json").read_text())
    assert record["settings"]["dtype"] == said


@pytest.mark.parametrize(
    ("folder", "grid", "ar_steps"),
    [("FlowAR_DiSA", "--scales 1 4 8", 3), *(("xAR_DiSA", f"--cells_per_side {n}", n**2) for n in (1, 4, 8))],
    ids=["scales", "1 cell", "16 cells", "64 cells"],
)
def test_other_grids_train_and_generate(folder, grid, ar_steps, data, call, tmp_path):
    where = [*grid.split(), "--output_dir", tmp_path, "--log_dir", tmp_path / "log"]
    training = ["--data_path", data, "--batch_size", "10", "--epochs", "1", "--warmup_epochs", "0"]
    code, _, error = call(folder, FAMILIES[folder][0], *where, *training)
    assert code == 0, error
    steps = ["--flow_upper_steps", "2", "--flow_lower_steps", "2"]
    flags = [*where, *steps, "--resume", tmp_path, "--num_images", "2", "--metrics", "none"]
    code, printed, error = call(folder, "eval.py", *flags)
    assert code == 0, error
    assert f"2 images, NFE {2 * ar_steps}" in printed


@families
def test_impossible_settings_end_in_one_sentence(folder, call, tmp_path):
    for flags, named in (
        (["--flow_upper_steps", "3", "--flow_lower_steps", "9"], "upper is 3, below lower = 9"),
        (["--flow_sampler", "DiSA"], "sampler is 'DiSA'; allowed are euler"),
        (["--resume", tmp_path / "nowhere.pth"], "there is no checkpoint"),
        (["--cfg", "-1"], "error: --cfg: scale is -1"),
    ):
        model = build_model(FAMILIES[folder][1])
        torch.save(model.state_dict(), tmp_path / "weights.pth")
        where = [] if "--resume" in flags else ["--resume", tmp_path / "weights.pth"]
        where += ["--output_dir", tmp_path / "out"]
        code, _, error = call(folder, "eval.py", *where, *flags, "--num_images", "2", "--metrics", "none")
        assert code == 2
        assert error.splitlines()[-1].startswith("error: ")
        assert named in error
        assert "Traceback" not in error
    with pytest.raises(SystemExit) as end:
        script(f"{folder}/eval.py").get_parser().parse_args(["--patch_size", "2"])
    assert end.value.code == 2


@pytest.mark.slow
def test_a_bundled_model_takes_its_own_vae():
    own = {"model": "mar_fashion", "vae_stride": 4, "vae_embed_dim": 8}
    assert get_vae(Namespace(**own)).stride == 4
    with pytest.raises(ValueError, match="--vae_stride is 8; it is 4 for the VAE of mar_fashion"):
        get_vae(Namespace(**{**own, "vae_stride": 8}))
    with pytest.raises(ValueError, match="--vae_embed_dim is 4; it is 8 for the VAE of mar_fashion"):
        get_vae(Namespace(**{**own, "vae_embed_dim": 4}))


def test_xar_trains_under_its_released_name_too():
    assert "--num_sampling_steps" in run("main_mar.py", "--help", cwd=ROOT / "xAR_DiSA").stdout


def test_images_that_could_not_be_measured_are_not_made_for_nothing(tmp_path, call, monkeypatch):
    left_out = ["nothing is measured in inception: its weights are away"]
    monkeypatch.setattr(plan, "plan_metrics", lambda *_, **__: ([], left_out))
    flags = ["--num_images", "2", "--output_dir", tmp_path / "out"]
    code, _, error = call("xAR_DiSA", "eval.py", *flags)
    assert code == 2
    assert "its weights are away; mend that, or give --keep_images, or --metrics none" in error
    assert not (tmp_path / "out").exists()
    assert call("xAR_DiSA", "eval.py", *flags, *STEPS, "--keep_images")[0] == 0
    assert len(list(tmp_path.glob("out/*/images/*.png"))) == 2
