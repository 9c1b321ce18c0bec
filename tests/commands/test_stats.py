"""`disa stats`: statistics of folders of images."""

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks.features import extract_features
from disa.data.transforms import center_crop
from disa.evaluation.metrics import Statistics
from tests.helpers.scripts import command


@pytest.fixture
def photos(tmp_path):
    """Twelve 32×32 images of noise."""
    (tmp_path / "photos").mkdir()
    rng = np.random.default_rng(0)
    for number in range(12):
        Image.fromarray(rng.integers(0, 256, (32, 32), np.uint8)).save(tmp_path / "photos" / f"{number:02d}.png")
    return tmp_path / "photos"


@pytest.mark.parametrize("leave", [[], ["--no_features"]], ids=["with features", "statistics alone"])
def test_stats_of_a_folder(photos, tmp_path, leave, capsys):
    out = tmp_path / "new" / "stats.npz"
    assert (
        command(
            "stats",
            photos,
            "--features",
            "fashion-classifier",
            "--device",
            "cpu",
            "--batch_size",
            "4",
            "--out",
            out,
            *leave,
        )
        == 0
    )
    assert capsys.readouterr().out == f"{out}: 12 images, 128 features of fashion-classifier (resized: none, 32)\n"
    found = Statistics.load(out)
    features = extract_features(sorted(photos.iterdir()), "fashion-classifier").features
    assert (found.extractor, found.resize, found.count) == (
        "fashion-classifier",
        "none, 32",
        12,
    )
    assert found.sigma.shape == (128, 128)
    np.testing.assert_allclose(found.mu, features.mean(0).numpy(), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found.sigma, np.cov(features.numpy(), rowvar=False), rtol=1e-4, atol=1e-5)
    assert found.features is None if leave else torch.allclose(found.features, features, rtol=1e-4, atol=1e-5)


def test_stats_of_central_squares(tmp_path):
    """Images of any size are cut as ImageNet's references are, and the file says so."""
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for i, size in enumerate(((70, 50), (40, 64), (90, 90))):
        Image.fromarray(np.random.default_rng(i).integers(0, 256, (*size, 3), np.uint8)).save(pictures / f"{i}.png")
    arguments = [
        "stats",
        pictures,
        "--features",
        "fashion-classifier",
        "--device",
        "cpu",
        "--out",
        tmp_path / "stats.npz",
    ]
    assert command(*arguments, "--image_size", "32") == 0
    found = Statistics.load(tmp_path / "stats.npz")
    assert (found.resize, found.count) == ("central square of 32, none, 32", 3)
    cut = [np.array(center_crop(Image.open(pictures / f"{i}.png"), 32)) for i in range(3)]
    images = torch.from_numpy(np.stack(cut)).permute(0, 3, 1, 2)
    expected = extract_features(images, "fashion-classifier").features
    torch.testing.assert_close(found.features, expected, rtol=1e-4, atol=1e-4)


BAD = {
    "no folder": (["nowhere"], "there are no images in nowhere"),
    "folder of other files": (["empty"], "there are no images in empty"),
    "output is no archive": (["photos", "--out", "stats.npy"], "--out is stats.npy; statistics are an .npz file"),
    "one image": (["single", "--features", "fashion-classifier"], "statistics need at least 2 images; there are 1"),
    "unknown features": (["photos", "--features", "vgg"], "'vgg'; allowed are inception"),
    "unknown device": (["photos", "--device", "tpu"], "'tpu'; allowed are auto"),
    "no batch": (["photos", "--batch_size", "0"], "--batch_size is 0; it must be at least 1"),
    "no pixels": (["photos", "--image_size", "0"], "--image_size is 0; it must be at least 1"),
    "cut Fashion-MNIST": (["fashion-mnist", "--image_size", "32"], "--image_size is for a folder of images"),
}


@pytest.mark.parametrize("case", BAD)
@pytest.mark.usefixtures("photos")
def test_bad_input_ends_in_one_sentence(tmp_path, monkeypatch, capsys, case):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "single").mkdir()
    Image.new("L", (32, 32)).save(tmp_path / "single" / "0.png")
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "notes.txt").write_text("no image")
    words, named = BAD[case]
    assert command("stats", *words) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert named in line
    assert not (tmp_path / "stats.npz").exists()


@pytest.mark.parametrize(
    ("broken", "named"), [("cut", "11.png cannot be read as an image"), ("large", "64×64; the features")]
)
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
    assert named in printed.splitlines()[-1]
    assert printed.splitlines()[-1].startswith("error: ")
    assert "Traceback" not in printed
    assert not out.exists()


def test_stats_without_a_place_end_before_anything_is_read(photos, tmp_path, capsys):
    (tmp_path / "file").touch()
    assert (
        command(
            "stats",
            photos,
            "--features",
            "fashion-classifier",
            "--device",
            "cpu",
            "--out",
            tmp_path / "file" / "stats.npz",
        )
        == 2
    )
    (line,) = capsys.readouterr().err.splitlines()  # no bar before it
    assert line.startswith("error: ")
    assert str(tmp_path / "file") in line
