"""`disa …`: what each command prints and writes, and how commands end."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from disa import cli, load_model
from disa.checkpoints import BUNDLED_WEIGHTS, CATALOGUE, manifest
from disa.metrics import Statistics, extract_features
from disa.transforms import center_crop
from tests.conftest import SMALL_MAR, small_mar

BUNDLED = BUNDLED_WEIGHTS / "mar_fashion.safetensors"


def end(main):
    """The exit code of `main` as a command."""
    with pytest.raises(SystemExit) as exit:
        cli.run(main)
    return exit.value.code or 0


def command(*words):
    return end(lambda: cli.main([str(word) for word in words]))


@pytest.fixture
def photos(tmp_path):
    """Twelve 32×32 images of noise."""
    (tmp_path / "photos").mkdir()
    rng = np.random.default_rng(0)
    for number in range(12):
        Image.fromarray(rng.integers(0, 256, (32, 32), np.uint8)).save(tmp_path / "photos" / f"{number:02d}.png")
    return tmp_path / "photos"


def test_list_names_everything_published(capsys):
    assert command("checkpoints", "list") == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == list(CATALOGUE)


@pytest.fixture
def published(tmp_path):
    """A file with the names and shapes of KL-16; its tensors are one repeated value."""
    state = {name: torch.ones(()).expand(shape) for name, shape in manifest("kl16")["parameters"].items()}
    torch.save(state, tmp_path / "kl16.ckpt")
    return tmp_path / "kl16.ckpt"


@pytest.mark.parametrize("named", [[], ["--manifest", "kl16"]], ids=["closest", "named"])
def test_verify_accepts_what_was_published(published, capsys, named):
    assert command("checkpoints", "verify", published, *named) == 0
    assert capsys.readouterr().out == f"{published} matches kl16\n"


def test_verify_prints_every_difference(published, capsys):
    state = torch.load(published, weights_only=True)
    state["stranger"] = state.pop("quant_conv.bias")
    state["post_quant_conv.bias"] = torch.full_like(state["post_quant_conv.bias"], float("nan"))
    torch.save(state, published)
    assert command("checkpoints", "verify", published) == 1
    assert capsys.readouterr().out.splitlines() == [
        "missing: quant_conv.bias",
        "unexpected: stranger",
        "with NaN or infinity: post_quant_conv.bias",
        f"{published} does not match kl16",
    ]


def test_export_keeps_the_weights(tmp_path, capsys):
    files = {dtype: tmp_path / f"{dtype}.safetensors" for dtype in ("float32", "float16")}
    for dtype, file in files.items():
        assert command("checkpoints", "export", BUNDLED, file, "--dtype", dtype) == 0
    assert capsys.readouterr().out.split() == [str(file) for file in files.values()]
    assert files["float16"].stat().st_size / files["float32"].stat().st_size == pytest.approx(0.5, abs=0.01)
    assert {value.dtype for value in load_file(files["float16"]).values()} == {torch.float16}
    source, exported = (load_model("mar_fashion", path).state_dict() for path in (BUNDLED, files["float32"]))
    assert all(torch.equal(value, exported[name]) for name, value in source.items())


@pytest.mark.parametrize("weights", ["ema", "model"])
def test_export_chooses_the_weights(tmp_path, weights):
    states = {
        key: {name: value + shift for name, value in small_mar().state_dict().items()} for key, shift in (("model", 0), ("model_ema", 1))
    }
    torch.save(states, tmp_path / "checkpoint-last.pth")
    assert command("checkpoints", "export", tmp_path, tmp_path / "out.safetensors", "--weights", weights) == 0
    exported = load_model("mar", tmp_path / "out.safetensors", **SMALL_MAR).state_dict()
    chosen = states["model_ema" if weights == "ema" else "model"]
    assert all(torch.equal(value, chosen[name]) for name, value in exported.items())


@pytest.mark.parametrize("leave", [[], ["--no_features"]], ids=["with features", "statistics alone"])
def test_stats_of_a_folder(photos, tmp_path, leave, capsys):
    out = tmp_path / "new" / "stats.npz"
    assert command("stats", photos, "--features", "fashion-classifier", "--device", "cpu", "--batch_size", "4", "--out", out, *leave) == 0
    assert capsys.readouterr().out == f"{out}: 12 images, 128 features of fashion-classifier (resized: none, 32)\n"
    found = Statistics.load(out)
    features = extract_features(sorted(photos.iterdir()), "fashion-classifier", progress=False).features
    assert (found.extractor, found.resize, found.count) == ("fashion-classifier", "none, 32", 12) and found.sigma.shape == (128, 128)
    np.testing.assert_allclose(found.mu, features.mean(0).numpy(), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found.sigma, np.cov(features.numpy(), rowvar=False), rtol=1e-4, atol=1e-5)
    assert found.features is None if leave else torch.allclose(found.features, features, rtol=1e-4, atol=1e-5)


def test_stats_of_central_squares(tmp_path):
    """Images of any size are cut as ImageNet's references are, and the file says so."""
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for i, size in enumerate(((70, 50), (40, 64), (90, 90))):
        Image.fromarray(np.random.default_rng(i).integers(0, 256, (*size, 3), np.uint8)).save(pictures / f"{i}.png")
    arguments = ["stats", pictures, "--features", "fashion-classifier", "--device", "cpu", "--out", tmp_path / "stats.npz"]
    assert command(*arguments, "--image_size", "32") == 0
    found = Statistics.load(tmp_path / "stats.npz")
    assert (found.resize, found.count) == ("central square of 32, none, 32", 3)
    cut = [np.array(center_crop(Image.open(pictures / f"{i}.png"), 32)) for i in range(3)]
    images = torch.from_numpy(np.stack(cut)).permute(0, 3, 1, 2)
    expected = extract_features(images, "fashion-classifier", progress=False).features
    torch.testing.assert_close(found.features, expected, rtol=1e-4, atol=1e-4)


BAD = {
    "unknown file": (("checkpoints", "fetch", "mar_tiny"), "'mar_tiny'; allowed are kl16"),
    "no checkpoint": (("checkpoints", "verify", "nowhere.pth"), "there is no checkpoint nowhere.pth"),
    "unknown manifest": (("checkpoints", "verify", BUNDLED, "--manifest", "mar_tiny"), "no manifest 'mar_tiny'; allowed are"),
    "no weights": (("checkpoints", "verify", "text.pth"), "text.pth cannot be read as a checkpoint"),
    "truncated": (("checkpoints", "export", "short.safetensors", "out.safetensors"), "short.safetensors cannot be read as safetensors"),
    "output is a folder": (("checkpoints", "export", BUNDLED, "photos"), "photos"),
    "no folder": (("stats", "nowhere"), "there are no images in nowhere"),
    "folder of other files": (("stats", "empty"), "there are no images in empty"),
    "output is no archive": (("stats", "photos", "--out", "stats.npy"), "--out is stats.npy; statistics are an .npz file"),
    "one image": (("stats", "single", "--features", "fashion-classifier"), "statistics need at least 2 images; there are 1"),
    "unknown features": (("stats", "photos", "--features", "vgg"), "'vgg'; allowed are inception"),
    "unknown device": (("stats", "photos", "--device", "tpu"), "'tpu'; allowed are auto"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_ends_in_one_sentence(photos, tmp_path, monkeypatch, capsys, case):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.pth").write_text("no weights")
    (tmp_path / "short.safetensors").write_bytes(BUNDLED.read_bytes()[:1000])
    (tmp_path / "single").mkdir()
    Image.new("L", (32, 32)).save(tmp_path / "single" / "0.png")
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "notes.txt").write_text("no image")
    words, named = BAD[case]
    assert command(*words) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: ") and named in lines[0]
    assert not (tmp_path / "out.safetensors").exists() and not (tmp_path / "stats.npz").exists()


@pytest.mark.parametrize(("broken", "named"), [("cut", "11.png cannot be read as an image"), ("large", "64×64; the features")])
def test_bad_images_are_named(photos, capsys, broken, named):
    image = photos / "11.png"
    if broken == "cut":
        image.write_bytes(image.read_bytes()[:100])
    else:
        for path in photos.iterdir():
            Image.new("L", (64, 64)).save(path)
    out = photos.parent / "stats.npz"
    assert command("stats", photos, "--features", "fashion-classifier", "--device", "cpu", "--out", out) == 2
    printed = capsys.readouterr().err  # a progress bar, and then
    assert named in printed.splitlines()[-1] and printed.splitlines()[-1].startswith("error: ")
    assert "Traceback" not in printed and not out.exists()


def test_stats_without_a_place_end_before_anything_is_read(photos, tmp_path, capsys):
    (tmp_path / "file").touch()
    assert command("stats", photos, "--features", "fashion-classifier", "--device", "cpu", "--out", tmp_path / "file" / "stats.npz") == 2
    (line,) = capsys.readouterr().err.splitlines()  # no bar before it
    assert line.startswith("error: ") and str(tmp_path / "file") in line


def test_the_real_command_ends_so_too(tmp_path):
    ended = subprocess.run(
        [sys.executable, "-m", "disa.cli", "checkpoints", "export", "nowhere.pth", "out"],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 2 and ended.stdout == ""
    assert ended.stderr == "error: there is no checkpoint nowhere.pth; `disa checkpoints list` names what can be fetched\n"
    assert list(tmp_path.iterdir()) == []


def fail_with(error):
    def main():
        raise error

    return main


@pytest.mark.parametrize(
    ("stop", "printed"), [(KeyboardInterrupt(), "interrupted"), (KeyboardInterrupt("stopped at step 7"), "stopped at step 7")]
)
def test_interruption_ends_in_130(capsys, stop, printed):
    assert end(fail_with(stop)) == 130
    assert capsys.readouterr().err == f"\n{printed}\n"


@pytest.mark.parametrize(
    "error", [ValueError("a"), FileNotFoundError("a"), FloatingPointError("a")], ids=lambda error: type(error).__name__
)
def test_what_a_user_can_mend_ends_in_2(capsys, error):
    assert end(fail_with(error)) == 2
    assert capsys.readouterr().err == "error: a\n"


def test_a_defect_keeps_its_traceback(capsys):
    with pytest.raises(TypeError, match="ours"):
        cli.run(fail_with(TypeError("ours")))
    assert capsys.readouterr().err == ""


def test_exit_codes_of_commands_are_passed_on():
    assert [end(lambda code=code: code) for code in (None, 0, 1)] == [0, 0, 1]


def test_an_error_in_a_process_that_loads_data_is_one_sentence_too(capsys):
    def main():
        raise ValueError(
            "Caught ValueError in DataLoader worker process 0.\nOriginal Traceback (most recent call last):\n"
            '  File "data.py", line 1, in read\nValueError: a.png cannot be read as an image (truncated: 3 bytes)\n'
        )

    with pytest.raises(SystemExit) as end:
        cli.run(main)
    assert end.value.code == 2
    assert capsys.readouterr().err == "error: a.png cannot be read as an image (truncated: 3 bytes)\n"
