"""main_mar.py run for real: evaluation through any batch size, ranks and kills; refusals; training through kills."""

import argparse
import dataclasses
import json
import re
import signal
from unittest.mock import ANY

import numpy as np
import pytest
import torch
import torch.distributed as dist
from PIL import Image
from safetensors.torch import save_file

from benchmarks.features import extract_features, measure
from disa import StepSchedule, build_model, load_model
from disa.evaluation.results import Results
from disa.generation.generators import LabelGenerator, Sampling
from disa.generation.images import image_path, is_whole
from tests.conftest import small_mar
from tests.helpers import processes
from tests.helpers.data import write_fashion
from tests.helpers.processes import ROOT, TORCHRUN, kill_when, wait_until
from tests.helpers.scripts import call as call_script
from tests.helpers.scripts import script

FOLDER = ROOT / "MAR_DiSA"
ONE = ["main_mar.py", "--model", "mar_fashion", "--device", "cpu"]
TWO = [*TORCHRUN, *ONE]
# With these, matrices have an even number of rows whatever the batch. An odd one goes through another kernel here and
# there, with other roundings: see test_odd_batches_differ_by_rounding_alone.
SAMPLING = ["--num_iter", "5", "--cfg", "2", "--diff_upper_steps", "40", "--diff_lower_steps", "20"]
IMAGES = 62
NFE = sum(build_model("mar_fashion").nfe(StepSchedule(40, 20), "DiSA", num_iter=5))


def evaluation(folder, batch_size, *more):
    words = ["--evaluate", "--keep_images", "--num_images", IMAGES, "--eval_bsz", batch_size, "--output_dir", folder]
    return [*words, "--log_dir", folder / "log", *SAMPLING, "--metrics", "none", *more]


def training(folder, data):
    words = ["--data_path", data, "--output_dir", folder, "--log_dir", folder, "--epochs", 4, "--batch_size", 4]
    words += ["--save_last_freq", 1, "--warmup_epochs", "1", "--lr", "1e-3", "--ema_rate", "0.9", "--attn_dropout", "0"]
    return words


def run(command, *flags):
    """Run a command to its end, which must be a good one; returns what it printed."""
    return processes.run(*command, *flags, cwd=FOLDER).stdout


def start(command, *flags):
    return processes.start(*command, *flags, cwd=FOLDER)


@pytest.fixture
def call(monkeypatch, capsys):
    """The script in this process: flags -> exit code, stdout, stderr."""

    def in_process(*flags):
        ended = call_script(monkeypatch, capsys, FOLDER, script("MAR_DiSA/main_mar.py").main, *ONE[1:], *flags)
        assert not dist.is_initialized()
        return ended

    return in_process


def results_folder(folder):
    """The only folder in which results of this output folder lie."""
    (found,) = (path for path in folder.iterdir() if path.name != "log")
    return found


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.glob("*.png")}


def same_images(one, other):
    """Whether two folders hold the same images, to rounding: another number of rows is added up in another order."""
    names = sorted(contents(one))
    assert names == sorted(contents(other)) != []
    difference = [
        abs(np.array(Image.open(one / name), int) - np.array(Image.open(other / name), int)) for name in names
    ]
    return np.max(difference) <= 1 and np.mean(difference) < 1e-3


def times(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


# ---------------------------------------------------------------------------------------------------------- evaluation


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The folder of an uninterrupted run of one process, and what it printed."""
    folder = tmp_path_factory.mktemp("whole")
    printed = run(ONE, *evaluation(folder, 5, "--metrics", "accuracy", "--features", "fashion-classifier"))
    return results_folder(folder), printed


@pytest.mark.slow
def test_one_process_evaluates(whole):
    folder, printed = whole
    results = json.loads((folder / "results.json").read_text())
    assert results.keys() == {field.name for field in dataclasses.fields(Results)}
    assert (results["num_images"], results["timed_images"], results["ranks"]) == (IMAGES, IMAGES - 5, 1)
    assert results["nfe"] == NFE
    assert results["settings"] == json.loads((folder / "images" / "settings.json").read_text())
    expected = {"num_iter": 5, "cfg": 2.0, "diff_sampler": "DiSA", "model": "mar_fashion", "dtype": "float32"}
    assert expected.items() <= results["settings"].items()
    assert sorted(contents(folder / "images")) == [f"{image_id:06d}.png" for image_id in range(IMAGES)]
    assert Image.open(folder / "samples.png").size[0] > 320
    assert "note: 62 images are not a multiple of 10 classes; the first 2 get one more" in printed
    model, sampling = load_model("mar_fashion"), Sampling(1, StepSchedule())
    labels = LabelGenerator(model, None, sampling, torch.device("cpu")).labels(range(IMAGES))
    assert labels.bincount().tolist() == [7, 7, *[6] * 8]
    paths = [image_path(folder / "images", image_id) for image_id in range(IMAGES)]
    found = extract_features(paths, "fashion-classifier")
    accuracy = measure(found, ("accuracy",), labels=labels).label_accuracy
    scores = {
        "extractor": "fashion-classifier",
        "images": IMAGES,
        "label_accuracy": pytest.approx(accuracy),
        "reference": ANY,
    }
    assert results["metrics"] == [scores]
    assert f"label_accuracy {accuracy:.4f}" in printed
    assert f"{IMAGES} images, NFE {NFE}" in printed
    assert str(folder) in printed


def test_no_note_where_classes_are_even(tmp_path, call):
    code, printed, _ = call(*evaluation(tmp_path, 20, "--num_images", "20", "--num_iter", "1"))
    assert code == 0
    assert "20 images" in printed
    assert "note:" not in printed


@pytest.mark.slow
def test_finished_run_is_not_repeated(whole, call):
    before = times(whole[0])
    code, printed, _ = call(
        *evaluation(whole[0].parent, 7, "--metrics", "accuracy", "--features", "fashion-classifier")
    )
    assert code == 0
    assert printed == whole[1]
    assert times(whole[0]) == before


@pytest.mark.slow
@pytest.mark.distributed
def test_images_do_not_depend_on_ranks_and_batches(whole, tmp_path):
    run(TWO, *evaluation(tmp_path, 3))
    folder = results_folder(tmp_path)
    assert json.loads((folder / "results.json").read_text())["ranks"] == 2
    assert same_images(folder / "images", whole[0] / "images")


def test_odd_batches_differ_by_rounding_alone(tmp_path, call):
    folders = {size: tmp_path / str(size) for size in (1, 12)}
    for size, folder in folders.items():
        flags = evaluation(
            folder, size, "--num_images", "12", "--num_iter", "8", "--diff_upper_steps", "5", "--diff_lower_steps", "2"
        )
        assert call(*flags)[0] == 0
    assert same_images(*(results_folder(folder) / "images" for folder in folders.values()))


def test_twice_the_same_command_gives_the_same_bytes(tmp_path, call):
    for name in ("once", "again"):
        assert call(*evaluation(tmp_path / name, 4, "--num_images", "8"))[0] == 0
    assert contents(results_folder(tmp_path / "once") / "images") == contents(
        results_folder(tmp_path / "again") / "images"
    )


@pytest.mark.slow
@pytest.mark.distributed
def test_images_survive_kills(whole, tmp_path):
    flags, made = evaluation(tmp_path, 2), {}
    for victim, count in ((0, 8), (1, 24), (None, 40)):
        kill_when(
            start(TWO, *flags),
            lambda count=count: len(list(tmp_path.glob("*/images/[0-9]*.png"))) >= count,
            rank=victim,
        )
        images = results_folder(tmp_path) / "images"
        now = {path: path.stat().st_mtime_ns for path in images.glob("[0-9]*.png")}
        assert all(is_whole(path) for path in now)  # killed at whatever moment, a file is whole or not there
        assert count <= len(now) < IMAGES
        assert made.items() <= now.items()
        made = now
    # What a crash of the machine may leave, besides.
    cut = image_path(images, 3)
    cut.write_bytes(cut.read_bytes()[:-20])
    (images / ".000061.1.part.png").write_bytes(b"half")
    run(TWO, *flags)
    assert same_images(images, whole[0] / "images")
    del made[cut]
    assert made == {path: path.stat().st_mtime_ns for path in made}
    assert list(tmp_path.rglob("*.part*")) == []
    assert (images.parent / "results.json").is_file()


@pytest.mark.slow
def test_folder_of_other_settings_is_refused(whole, call):
    before = times(whole[0].parent)
    code, _, error = call(*evaluation(whole[0].parent, 5, "--dtype", "bfloat16"))
    assert code == 2
    assert "dtype: 'float32' there, 'bfloat16' now" in error
    *_, refusal = error.splitlines()  # behind the device and what is slow there
    assert refusal.startswith("error: ")
    assert times(whole[0].parent) == before


@pytest.mark.slow
def test_folder_of_other_weights_is_refused(whole, call, tmp_path):
    state = load_model("mar_fashion").state_dict()
    state["mask_token"] = state["mask_token"] + 1
    save_file(state, tmp_path / "other.safetensors")
    before = times(whole[0].parent)
    code, _, error = call(*evaluation(whole[0].parent, 5, "--resume", tmp_path / "other.safetensors"))
    assert code == 2
    assert re.search(r"weights: '\w{12}' there, '\w{12}' now", error)
    assert times(whole[0].parent) == before


def test_images_are_removed_after_measuring_unless_kept(tmp_path, call):
    flags = [
        flag for flag in evaluation(tmp_path, 4, "--num_images", "10", "--num_iter", "1") if flag != "--keep_images"
    ]
    assert call(*flags)[0] == 0
    assert sorted(path.name for path in results_folder(tmp_path).iterdir()) == ["results.json", "samples.png"]
    assert call(*flags, "--keep_images")[0] == 0  # measured already, but the images are wanted now
    assert len(contents(results_folder(tmp_path) / "images")) == 10


BAD = {
    "sampler": (["--diff_sampler", "euler"], "'euler'; allowed are"),
    "upper below lower": (["--diff_upper_steps", "3", "--diff_lower_steps", "4"], "upper is 3, below lower = 4"),
    "strategy": (["--diff_annealing_strategy", "steep"], "'steep'; allowed are"),
    "AR steps": (["--num_iter", "65"], "num_iter is 65; there must be 1 to 64"),
    "no AR steps": (["--num_iter", "0"], "num_iter is 0; at least 1 AR step is needed"),
    "too many steps": (
        ["--diff_sampler", "default", "--diff_upper_steps", "1500"],
        "1500 diffusion steps cannot be taken",
    ),
    "no checkpoint": (["--resume", "nowhere.pth"], "there is no checkpoint nowhere.pth"),
    "other checkpoint": (["--resume", "other.safetensors"], "other.safetensors does not fit this model"),
    "no reference": (
        ["--metrics", "fid", "--features", "fashion-classifier", "--reference", "nowhere"],
        "there is no --reference nowhere",
    ),
    "metric": (["--metrics", "lpips"], "'lpips'; allowed are"),
    "seed": (["--seed", "-1"], "seed is -1"),
    "guidance": (["--cfg", "-1"], "scale is -1.0"),
    "device": (["--device", "tpu"], "'tpu'; allowed are"),
    "device number": (["--device", "cpu:x"], "'cpu:x'; allowed are"),
    "no images": (["--num_images", "0"], "num_images is 0; it must be at least 1"),
    "no batch": (["--eval_bsz", "0"], "batch_size is 0; it must be at least 1"),
    "no classes": (["--class_num", "0"], "num_classes is 0; it must be at least 1"),
    "no patch": (["--patch_size", "0"], "patch_size is 0; it must be at least 1"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_settings_end_in_one_sentence(tmp_path, call, case):
    save_file(small_mar().state_dict(), tmp_path / "other.safetensors")
    flags, named = BAD[case]
    code, printed, error = call(
        *evaluation(tmp_path / "out", 4, *[flag.replace("other", str(tmp_path / "other")) for flag in flags])
    )
    assert code == 2
    assert "everything is in" not in printed
    sentence = error.splitlines()[-1]  # generation may have begun to show its progress
    assert sentence.startswith("error: ")
    assert named in sentence
    assert "Traceback" not in error
    assert list(tmp_path.rglob("*.png")) == []


def test_model_without_weights_asks_for_a_checkpoint(tmp_path, call):
    code, _, error = call(*evaluation(tmp_path, 4, "--model", "mar_base"))
    assert code == 2
    assert error.startswith("error: no weights of mar_base come with the package")
    assert error.count("\n") == 1


# ------------------------------------------------------------------------------------------------------------ training


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Forty images: ten steps per epoch."""
    return write_fashion(tmp_path_factory.mktemp("data"), 40)


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory):
    """The folder of an uninterrupted training, and what it printed."""
    folder = tmp_path_factory.mktemp("trained")
    return folder, run(ONE, *training(folder, data))


def load(folder):
    with torch.serialization.safe_globals([argparse.Namespace]):
        return torch.load(folder / "checkpoint-last.pth", weights_only=True)


@pytest.mark.slow
def test_training_learns_and_can_be_evaluated(trained, tmp_path, call):
    folder, printed = trained
    assert "40 images" in printed
    assert f"done; weights are in {folder / 'checkpoint-last.pth'}" in printed
    content = load(folder)
    assert (content["epoch"], content["step"], content["args"].batch_size) == (3, 40, 4)
    code, printed, _ = call(*evaluation(tmp_path, 10, "--num_images", "10", "--num_iter", "1", "--resume", folder))
    assert code == 0
    assert "10 images" in printed
    assert len(contents(results_folder(tmp_path) / "images")) == 10


@pytest.mark.slow
@pytest.mark.distributed
def test_training_survives_a_kill_and_a_request_to_stop(trained, data, tmp_path):
    flags, last = training(tmp_path, data), tmp_path / "checkpoint-last.pth"

    def changed(before=None):
        return lambda: last.is_file() and last.stat().st_mtime_ns != before

    killed = start(ONE, *flags)
    assert wait_until(changed(), killed)
    killed.kill()
    assert killed.wait() == -signal.SIGKILL
    assert load(tmp_path)["step"] in (10, 20)

    step, asked = load(tmp_path)["step"], start(ONE, *flags)
    assert wait_until(changed(last.stat().st_mtime_ns), asked)
    asked.terminate()
    assert asked.wait(60) == 130
    stopped = load(tmp_path)["step"]
    assert step + 10 < stopped < 40
    assert stopped % 10 != 0

    run(ONE, *flags)
    content, expected = load(tmp_path), load(trained[0])
    assert content["step"] == 40
    for key in ("model", "model_ema"):
        assert all(torch.equal(value, content[key][name]) for name, value in expected[key].items())
    assert list(tmp_path.glob(".*.part*")) == []


def test_training_settings_that_cannot_be_end_in_one_sentence(data, tmp_path, call):
    (tmp_path / "empty").mkdir()
    (tmp_path / "garbage.pth").write_bytes(b"garbage")
    (tmp_path / "short").mkdir()
    for name in ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"):
        (tmp_path / "short" / name).write_bytes((data / name).read_bytes()[:30])
    for flags, named in (
        (["--resume", "nowhere"], "there is no checkpoint nowhere to resume from"),
        (["--batch_size", "64"], "40 images, fewer than one step of 64"),
        (["--use_cached", "--cached_path", tmp_path / "empty"], "give the right --cached_path"),
        (["--use_cached"], "--use_cached needs --cached_path"),
        (["--resume", tmp_path / "garbage.pth"], "garbage.pth cannot be read as a checkpoint"),
        (["--data_path", tmp_path / "short"], "train-images-idx3-ubyte is not a whole IDX file"),
        (["--mask_ratio_min", "2"], "mask_ratio_min is 2.0; it must be in [0, 1]"),
        (["--label_drop_prob", "7"], "label_drop_prob is 7.0; it must be in [0, 1]"),
        (["--diffusion_batch_mul", "0"], "diffusion_batch_mul is 0; it must be at least 1"),
        (["--seed", "-1"], "seed is -1"),
        (["--grad_clip", "-1"], "grad_clip is -1.0; it must be at least 0"),
    ):
        code, _, error = call(*training(tmp_path / "out", data), *flags)
        assert code == 2
        assert error.startswith("error: ")
        assert named in error
        assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()
