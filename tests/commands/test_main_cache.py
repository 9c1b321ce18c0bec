"""main_cache.py with a KL-16 of random weights: what it writes, resumes and refuses, and that training reads it."""

import functools

import numpy as np
import pytest
import torch
from PIL import Image

from disa.models.vae import AutoencoderKL
from disa.training.data import cached_data
from tests.helpers.scripts import call, load_script


@pytest.fixture(scope="module")
def script(tmp_path_factory):
    """The script, which reads KL-16 once, and KL-16's file."""
    torch.manual_seed(0)
    file = tmp_path_factory.mktemp("kl16") / "kl16.ckpt"
    torch.save({"state_dict": AutoencoderKL().state_dict()}, file)
    module = load_script("MAR_DiSA/main_cache.py")
    module.load_vae = functools.cache(module.load_vae)
    yield module, file
    file.unlink()  # it is large


@pytest.fixture
def photos(tmp_path):
    """Three images in two class folders; dog/2 is the mirror image of dog/1."""
    rng = np.random.default_rng(0)
    one, other = (rng.integers(0, 256, (32, 32, 3), np.uint8) for _ in range(2))
    for name, pixels in (("cat/1", other), ("dog/1", one), ("dog/2", one[:, ::-1])):
        path = tmp_path / "photos" / "train" / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
    return tmp_path / "photos"


@pytest.fixture
def cache(script, photos, tmp_path, monkeypatch, capsys):
    """Run the script on the photos: exit code and stderr."""
    module, file = script

    def in_process(cached, *flags):
        places = ["--data_path", photos, "--cached_path", cached, "--vae_path", file]
        words = [*places, "--img_size", 32, "--batch_size", 2, "--device", "cpu", "--num_workers", 0, *flags]
        code, _, error = call(monkeypatch, capsys, tmp_path, module.main, *words)
        return code, error

    return in_process


def read(path):
    with np.load(path) as arrays:
        return {name: torch.from_numpy(arrays[name]) for name in arrays}


def test_an_image_becomes_its_moments_and_those_of_its_mirror_image(script, photos, cache, tmp_path):
    out = tmp_path / "cached"
    assert cache(out)[0] == 0
    files = sorted(path for path in out.rglob("*") if path.is_file())
    assert files == [out / "cat" / "1.npz", out / "dog" / "1.npz", out / "dog" / "2.npz"]
    moments = {f"{path.parent.name}/{path.stem}": read(path) for path in files}
    assert all(found.keys() == {"moments", "moments_flip"} for found in moments.values())
    pixels = (
        torch.from_numpy(np.array(Image.open(photos / "train" / "dog" / "1.png"))).permute(2, 0, 1)[None] / 127.5 - 1
    )
    with torch.no_grad():
        expected = script[0].load_vae(str(script[1]), 16).moments(pixels)[0]
    torch.testing.assert_close(moments["dog/1"]["moments"], expected, rtol=1e-4, atol=1e-5)
    for one, other in (("moments", "moments_flip"), ("moments_flip", "moments")):
        torch.testing.assert_close(moments["dog/1"][one], moments["dog/2"][other], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(moments["dog/1"]["moments"], moments["dog/1"]["moments_flip"], atol=1e-3)

    data = cached_data(out)
    assert [label for _, label in data.dataset.samples] == [0, 1, 1]
    item, label = data.dataset[1]
    assert label == 1
    assert torch.equal(item, torch.stack([moments["dog/1"]["moments"], moments["dog/1"]["moments_flip"]]))
    assert data.to_latents(item[None]).shape == (1, 16, 2, 2)


def test_what_is_there_stays_and_what_is_not_is_made(cache, tmp_path):
    out = tmp_path / "cached"
    assert cache(out)[0] == 0
    lost, kept = out / "dog" / "1.npz", [out / "cat" / "1.npz", out / "dog" / "2.npz"]
    before, times = read(lost), [path.stat().st_mtime_ns for path in kept]
    lost.unlink()
    assert cache(out)[0] == 0
    assert [path.stat().st_mtime_ns for path in kept] == times
    after = read(lost)
    for name, value in before.items():
        torch.testing.assert_close(after[name], value, rtol=1e-4, atol=1e-5)


def test_a_corrupt_image_is_named(photos, cache, tmp_path):
    broken = photos / "train" / "dog" / "2.png"
    broken.write_bytes(broken.read_bytes()[:200])
    code, error = cache(tmp_path / "cached", "--batch_size", "1")
    sentence = error.splitlines()[-1]  # after the progress bar
    assert code == 2
    assert sentence.startswith(f"error: {broken} cannot be read as an image")
    assert "Traceback" not in error
    there = sorted(path.name for path in (tmp_path / "cached").rglob("*.*"))
    assert there == ["1.npz", "1.npz"]  # what came before


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (["--cached_path", ""], "--cached_path is empty"),
        (["--vae_path", "nowhere.ckpt"], "there is no VAE nowhere.ckpt"),
        (["--data_path", "nowhere"], "give the right --data_path"),
    ],
    ids=["no place", "no VAE", "no images"],
)
def test_impossible_settings_are_refused(cache, tmp_path, flags, named):
    code, error = cache(tmp_path / "cached", *flags)
    assert code == 2
    assert error.startswith("error: ")
    assert named in error
    assert error.count("\n") == 1
    assert not (tmp_path / "cached").exists()


def test_sides_that_do_not_fit_are_refused(cache, tmp_path):
    code, error = cache(tmp_path / "cached", "--img_size", "40")
    assert code == 2
    assert "images are 40×40" in error.splitlines()[-1]


def test_images_that_would_share_a_file_are_named(photos, cache, tmp_path):
    first = next((photos / "train" / "cat").glob("*.png"))
    Image.open(first).convert("RGB").save(first.with_suffix(".jpg"))
    code, error = cache(tmp_path / "cached")
    assert code == 2
    assert f"{first.with_suffix('.jpg')} and {first} would both be cached" in error
    assert not (tmp_path / "cached").exists()
