"""FlowAR's and xAR's commands: train a little, evaluate what came out, refuse what cannot be."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from disa import build_model, cli, commands
from disa.checkpoints import manifest, read_checkpoint
from disa.flags import parse
from tests.conftest import load_json
from tests.test_flags import ROOT, SCRIPTS
from tests.training.test_data import write_idx

# folder -> (training script, model, flags of its fixed step count, head evaluations at 6 -> 3 steps)
FAMILIES = {
    "FlowAR_DiSA": ("main_flowar.py", "flowar_fashion", ["--num_step", "4"], 6 + 4 + 4 + 2),
    "xAR_DiSA": ("main_xar.py", "xar_fashion", ["--num_sampling_steps", "4"], 6 + 5 + 4 + 3),
}
STEPS = ["--flow_upper_steps", "6", "--flow_lower_steps", "3"]
families = pytest.mark.parametrize("folder", FAMILIES)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder, rng = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    write_idx(folder / "train-images-idx3-ubyte", rng.integers(0, 256, (20, 28, 28), np.uint8), False)
    write_idx(folder / "train-labels-idx1-ubyte", np.arange(20, dtype=np.uint8) % 10, False)
    return folder


@pytest.fixture
def call(monkeypatch, capsys):
    """A script in this process: its flags -> exit code, stdout, stderr."""

    def in_process(folder, script, *flags):
        monkeypatch.chdir(ROOT / folder)
        monkeypatch.delenv("RANK", raising=False)
        monkeypatch.setattr(sys, "argv", [script, *map(str, flags), "--device", "cpu", "--model", FAMILIES[folder][1]])
        with pytest.raises(SystemExit) as end:
            cli.run(SCRIPTS[f"{folder}/{script}"].main)
        return end.value.code or 0, *capsys.readouterr()

    return in_process


@families
def test_train_and_evaluate(folder, data, call, tmp_path):
    script, _, fixed, evaluations = FAMILIES[folder]
    training = ["--output_dir", tmp_path / "trained", "--log_dir", tmp_path / "log", "--data_path", data, "--batch_size", "4"]
    training += ["--epochs", "2", "--warmup_epochs", "0", "--lr", "1e-3"]
    code, printed, error = call(folder, script, *training)
    assert code == 0 and "20 images, 1 ranks on cpu" in printed, error
    content = read_checkpoint(tmp_path / "trained" / "checkpoint-last.pth")
    assert content["step"] == 10 and content["args"].model == FAMILIES[folder][1]

    common = ["--resume", tmp_path / "trained", "--num_images", "10", "--keep_images", "--metrics", "none", "--cfg", "2"]
    outputs = {}
    for name, batch in (("three", "3"), ("ten", "10")):
        outputs[name] = tmp_path / name
        flags = [*common, "--eval_bsz", batch, "--output_dir", outputs[name], "--log_dir", tmp_path / "log", *STEPS]
        code, printed, error = call(folder, "eval.py", *flags)
        assert code == 0 and f"10 images, {evaluations} head evaluations an image" in printed, error
    images = [sorted(output.glob("*/images/*.png")) for output in outputs.values()]
    assert len(images[0]) == len(images[1]) == 10
    for one, other in zip(*images, strict=True):
        assert abs(np.array(Image.open(one), int) - np.array(Image.open(other), int)).max() <= 1
    (record,) = outputs["ten"].glob("*/results.json")
    settings = json.loads(record.read_text())["settings"]
    assert {"model": FAMILIES[folder][1], "flow_upper_steps": 6, "flow_lower_steps": 3, "cfg": 2.0}.items() <= settings.items()

    # The training script evaluates too, with the same count at every AR step.
    flags = [*common, "--evaluate", *fixed, "--eval_bsz", "10", "--output_dir", tmp_path / "fixed", "--log_dir", tmp_path / "log"]
    code, printed, error = call(folder, script, *flags)
    assert code == 0 and "16 head evaluations" in printed, error


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
    code, printed, error = call(folder, "eval.py", *where, *steps, "--resume", tmp_path, "--num_images", "2", "--metrics", "none")
    assert code == 0 and f"2 images, {2 * ar_steps} head evaluations an image" in printed, error


@families
def test_impossible_settings_end_in_one_sentence(folder, call, tmp_path):
    for flags, named in (
        (["--flow_upper_steps", "3", "--flow_lower_steps", "9"], "upper is 3, below lower = 9"),
        (["--flow_sampler", "DiSA"], "sampler is 'DiSA'; allowed are euler"),
        (["--resume", tmp_path / "nowhere.pth"], "there is no checkpoint"),
        (["--cfg", "-1"], "Guidance.scale is -1"),
    ):
        model = build_model(FAMILIES[folder][1])
        torch.save(model.state_dict(), tmp_path / "weights.pth")
        where = ["--resume", tmp_path / "weights.pth"] if flags and "--resume" not in flags else []
        code, _, error = call(folder, "eval.py", *where, *flags, "--num_images", "2", "--metrics", "none", "--output_dir", tmp_path / "out")
        assert code == 2 and error.splitlines()[-1].startswith("error: ") and named in error and "Traceback" not in error
    with pytest.raises(SystemExit) as end:
        SCRIPTS[f"{folder}/eval.py"].get_parser().parse_args(["--patch_size", "2"])
    assert end.value.code == 2


COMMANDS = [
    ("FlowAR_DiSA", "flowar_small", "--diffloss_d 2 --diffloss_w 1024 --flow_upper_steps 25 --cfg 4.2 --guidance 0.9"),
    ("FlowAR_DiSA", "flowar_large", "--diffloss_d 12 --diffloss_w 1024 --flow_upper_steps 25 --cfg 2.4 --guidance 0.9"),
    ("FlowAR_DiSA", "flowar_huge", "--diffloss_d 12 --diffloss_w 1536 --flow_upper_steps 50 --cfg 2.4 --guidance 0.7"),
    ("xAR_DiSA", "xar_base", "--flow_upper_steps 50 --cfg 2.7"),
    ("xAR_DiSA", "xar_large", "--flow_upper_steps 50 --cfg 2.3"),
    ("xAR_DiSA", "xar_huge", "--flow_upper_steps 50 --cfg 2.2"),
]


def parse_evaluation(folder, *flags):
    """A folder's evaluation command and its flags -> the model's arguments and the sampling."""
    script = SCRIPTS[f"{folder}/eval.py"]
    args = parse(script.get_parser(), script.FAMILY.defaults(), flags)
    return {argument: getattr(args, flag) for flag, argument in script.FAMILY.model_flags.items()}, script.get_sampling(args), args


@pytest.mark.parametrize(("folder", "model", "flags"), COMMANDS, ids=[command[1] for command in COMMANDS])
def test_released_command_lines_build_the_released_models(folder, model, flags):
    common = "--flow_lower_steps 15 --eval_bsz 256 --num_images 50000 --output_dir D --resume F --vae_path V --data_path D --evaluate"
    arguments, sampling, args = parse_evaluation(folder, "--model", model, *flags.split(), *common.split())
    with torch.device("meta"):
        built = build_model(model, **arguments)
    assert {name: list(value.shape) for name, value in built.named_parameters()} == manifest(model)["parameters"]
    assert (sampling.schedule.upper, sampling.schedule.lower, sampling.guidance.scale) == (args.flow_upper_steps, 15, args.cfg)
    assert sampling.guidance.max_time == (args.guidance if folder == "FlowAR_DiSA" else 1)


@pytest.mark.parametrize(
    ("folder", "model", "flags", "tokens"),
    [
        ("FlowAR_DiSA", "flowar_small", "--img_size 512 --scales 1 2 4 8 16 32", 1365),
        ("xAR_DiSA", "xar_base", "--img_size 512", 1024),
        *(("xAR_DiSA", "xar_base", f"--cells_per_side {n}", 256) for n in (1, 2, 4, 8, 16)),
    ],
)
def test_released_sizes_on_other_grids(folder, model, flags, tokens):
    arguments, sampling, _ = parse_evaluation(folder, "--model", model, *flags.split())
    with torch.device("meta"):
        built = build_model(model, **arguments)
    assert built.encoder_pos_embed_learned.shape[1] == tokens
    ar_steps = arguments["cells_per_side"] ** 2 if folder == "xAR_DiSA" else len(arguments["scales"])
    assert len(built.evaluations(**sampling.steps)) == ar_steps


def test_step_counts_are_the_recorded_ones():
    recorded = load_json("schedules.json")["flow"]
    assert {case["model"] for case in recorded} == {"flowar", "xar"}
    for case in recorded:
        folder = "FlowAR_DiSA" if case["model"] == "flowar" else "xAR_DiSA"
        flags = ["--flow_upper_steps", str(case["upper"]), "--flow_lower_steps", str(case["lower"])]
        schedule = parse_evaluation(folder, *flags)[1].schedule
        assert [schedule.steps(step, case["num_iter"]) for step in range(case["num_iter"])] == case["steps"], case


def test_xar_trains_under_its_released_name_too():
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    ended = subprocess.run(
        [sys.executable, "main_mar.py", "--help"], cwd=ROOT / "xAR_DiSA", env=environment, capture_output=True, text=True
    )
    assert ended.returncode == 0 and "--num_sampling_steps" in ended.stdout


def test_images_that_could_not_be_measured_are_not_made_for_nothing(tmp_path, call, monkeypatch):
    monkeypatch.setattr(commands, "get_spaces", lambda args: ([], ["nothing is measured in inception: its weights are away"]))
    flags = ["--num_images", "2", "--output_dir", tmp_path / "out"]
    code, _, error = call("xAR_DiSA", "eval.py", *flags)
    assert code == 2 and "its weights are away; mend that, or give --keep_images, or --metrics none" in error
    assert not (tmp_path / "out").exists()
    assert call("xAR_DiSA", "eval.py", *flags, *STEPS, "--keep_images")[0] == 0
    assert len(list(tmp_path.glob("out/*/images/*.png"))) == 2
