"""`disa score`: scores of folders and .npz files of images."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks.features import extract_features
from disa.evaluation.metrics import Statistics, frechet_distance, kid_features_to_metric
from tests.helpers.processes import TORCHRUN, run
from tests.helpers.scripts import command

SPACE = ("--features", "fashion-classifier", "--device", "cpu", "--batch_size", "8")


def noise(count, seed):
    """Uint8 images [N, 32, 32, 1] of smooth noise."""
    coarse = np.random.default_rng(seed).integers(0, 256, (count, 8, 8, 1), np.uint8)
    return coarse.repeat(4, 1).repeat(4, 2)


@pytest.fixture
def place(tmp_path, monkeypatch):
    """The same 20 images in a folder and in two .npz files, and 30 others to compare with."""
    for name, images in (("fakes", noise(20, 0)), ("reals", noise(30, 1))):
        (tmp_path / name).mkdir()
        for number, image in enumerate(images):
            Image.fromarray(image[..., 0]).save(tmp_path / name / f"{number:02d}.png")
        np.savez(tmp_path / f"{name}.npz", images)
    np.savez_compressed(tmp_path / "compressed.npz", arr_0=noise(20, 0).repeat(3, 3), arr_1=np.arange(20))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def scored(*words):
    assert command("score", *words, "--out", "o.json") == 0
    found = json.loads(Path("o.json").read_text())
    assert command("score", *words, "--out", "o.json") == 2  # it is there
    return found


def numbers(found):
    return {name: score for name, score in found["metrics"][0].items() if isinstance(score, float)}


def test_a_folder_is_measured_as_elsewhere(place, capsys):
    found = scored("fakes", *SPACE, "--reference", "reals")
    (scores,) = found["metrics"]
    files = [sorted((place / name).iterdir()) for name in ("fakes", "reals")]
    features = [extract_features(paths, "fashion-classifier").features for paths in files]
    mean = [Statistics(one.mean(0).double().numpy(), np.cov(one.double().numpy(), rowvar=False)) for one in features]
    assert scores["fid"] == pytest.approx(frechet_distance(*mean), rel=1e-4)
    kid = kid_features_to_metric(*features, kid_subset_size=20, verbose=False)
    assert scores["kid_mean"] == pytest.approx(kid["kernel_inception_distance_mean"], rel=1e-3)
    assert {"precision", "recall"} <= scores.keys()
    assert "label_accuracy" not in scores  # nobody asked for a label
    assert (found["images"], found["num_images"], scores["reference"]) == ("fakes", 20, "reals")
    assert found["measures"][0]["metrics"] == ["fid", "kid", "prc"]
    assert {"disa", "torch-fidelity"} <= found["versions"].keys()
    printed = capsys.readouterr().out
    assert "20 images of fakes" in printed
    assert f" {scores['fid']:.3f} | " in printed


@pytest.mark.parametrize("images", ["fakes.npz", "compressed.npz"])
def test_a_file_of_images_is_as_good_as_a_folder(place, images):
    expected = numbers(scored("fakes", *SPACE, "--reference", "reals"))
    (place / "o.json").unlink()
    assert numbers(scored(images, *SPACE, "--reference", "reals.npz")) == pytest.approx(expected, rel=1e-4)


@pytest.mark.usefixtures("place")
def test_a_statistics_file_says_which_features(capsys):
    assert command("stats", "reals", "--out", "reals_stats.npz", *SPACE) == 0
    assert command("score", "fakes", "--reference", "reals_stats.npz", "--device", "cpu", "--metrics", "fid,prc") == 0
    assert "fashion-classifier" in capsys.readouterr().out


@pytest.mark.usefixtures("place")
def test_fashion_mnist_is_a_reference(capsys):
    assert command("score", "fakes", "--reference", "fashion-mnist", *SPACE) == 0
    printed = capsys.readouterr().out
    assert "fashion-classifier" in printed
    assert "–" in printed  # its statistics have no features


def test_more_metrics_than_images_allow_are_refused(place, capsys):
    for path in sorted((place / "fakes").iterdir())[3:]:
        path.unlink()
    assert command("score", "fakes", *SPACE, "--reference", "reals", "--metrics", "prc") == 2
    assert "prc needs at least 4 images; there are 3" in capsys.readouterr().err
    assert command("score", "fakes", *SPACE, "--reference", "reals", "--metrics", "fid") == 0


@pytest.mark.parametrize(
    ("arrays", "named"),
    [
        ({"arr_0": np.zeros((2, 32, 32), np.uint8)}, "arr_0 in bad.npz is uint8 [2, 32, 32]"),
        ({"arr_0": np.zeros((2, 32, 32, 3), np.float32)}, "arr_0 in bad.npz is float32"),
        ({"images": np.zeros((2, 32, 32, 3), np.uint8)}, "bad.npz is no folder, and no .npz file with images"),
    ],
    ids=["no channels", "floats", "another name"],
)
@pytest.mark.usefixtures("place")
def test_a_file_of_something_else_is_refused(arrays, named, capsys):
    np.savez("bad.npz", **arrays)
    assert command("score", "bad.npz", *SPACE) == 2
    assert named in capsys.readouterr().err


def test_a_damaged_file_is_one_sentence(place, capsys):
    content = bytearray((place / "compressed.npz").read_bytes())
    content[200:260] = bytes(60)
    (place / "bad.npz").write_bytes(content)
    assert command("score", "bad.npz", *SPACE) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: bad.npz cannot be read")


@pytest.mark.slow
@pytest.mark.distributed
def test_two_ranks_find_the_same(place):
    expected = scored("fakes", *SPACE, "--reference", "reals.npz")
    run(*TORCHRUN, "-m", "disa", "score", "fakes", *SPACE, "--reference", "reals.npz", "--out", "two.json", cwd=place)
    assert numbers(json.loads((place / "two.json").read_text())) == pytest.approx(numbers(expected), rel=1e-4)
