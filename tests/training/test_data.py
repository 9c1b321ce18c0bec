"""Data sets: Fashion-MNIST's files, folders of images, cached latents."""

import gzip

import numpy as np
import pytest
import torch
from PIL import Image

from disa.models.tokenizer import AutoencoderKL, SpaceToDepth
from disa.training.data import cached_data, fashion_data, fashion_mnist, image_folder_data
from disa.transforms import center_crop


def write_idx(path, array, compress):
    header = bytes([0, 0, 8, array.ndim]) + b"".join(size.to_bytes(4, "big") for size in array.shape)
    with (gzip.open if compress else open)(path, "wb") as file:
        file.write(header + array.tobytes())


@pytest.fixture(params=[True, False], ids=["gzipped", "plain"])
def files(request, tmp_path):
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (6, 28, 28), np.uint8), np.arange(6, dtype=np.uint8)
    for name, array in (("train-images-idx3-ubyte", images), ("train-labels-idx1-ubyte", labels)):
        write_idx(tmp_path / (name + ".gz" * request.param), array, request.param)
    return tmp_path, images


def test_fashion_mnist_is_padded(files):
    folder, images = files
    found, labels = fashion_mnist(True, folder)
    assert found.shape == (6, 32, 32) and labels.tolist() == list(range(6))
    assert np.array_equal(found[:, 2:30, 2:30].numpy(), images)
    assert found[:, :2].sum() == 0 and found[:, :, 30:].sum() == 0


def test_fashion_latents_decode_to_the_images(files):
    data = fashion_data(SpaceToDepth(), files[0])
    pixels = torch.stack([data.dataset[i][0] for i in range(6)])
    restored = (SpaceToDepth().decode(data.to_latents(pixels)) + 1) * 127.5
    assert torch.equal(restored.round().to(torch.uint8), pixels)


def test_absent_fashion_mnist_says_what_to_do(tmp_path, monkeypatch):
    import torchvision.datasets

    def offline(*args, **kwargs):
        raise RuntimeError("Error downloading")

    monkeypatch.setattr(torchvision.datasets, "FashionMNIST", offline)
    with pytest.raises(FileNotFoundError, match="dataset-fashion-mnist"):
        fashion_mnist(True, tmp_path)


@pytest.fixture
def photos(tmp_path):
    for label, colour in (("cat", (255, 0, 0)), ("dog", (0, 0, 255))):
        (tmp_path / "train" / label).mkdir(parents=True)
        Image.new("RGB", (90, 70), colour).save(tmp_path / "train" / label / "1.png")
    return tmp_path


def test_image_folder(photos):
    data = image_folder_data(AutoencoderKL(width=32), photos, 32)
    pixels, label = data.dataset[1]
    assert label == 1 and pixels.shape == (3, 32, 32) and pixels[:, 0, 0].tolist() == [0, 0, 255]
    assert data.to_latents(pixels[None]).shape == (1, 16, 2, 2)
    with pytest.raises(FileNotFoundError, match="--data_path"):
        image_folder_data(AutoencoderKL(width=32), photos / "none", 32)


def test_cached_latents_are_mirrored_at_random(tmp_path):
    (tmp_path / "cat").mkdir()
    quiet = np.full((16, 2, 2), -100, np.float32)  # log variance: a sample is then the mean
    np.savez(
        tmp_path / "cat" / "1.npz", moments=np.concatenate([quiet * 0 + 1, quiet]), moments_flip=np.concatenate([quiet * 0 + 2, quiet])
    )
    data = cached_data(tmp_path)
    moments, label = data.dataset[0]
    torch.manual_seed(0)
    latents = data.to_latents(moments.expand(64, -1, -1, -1, -1))
    assert label == 0 and latents.shape == (64, 16, 2, 2)
    found = latents[:, 0, 0, 0] / 0.2325
    assert set(found.round().tolist()) == {1.0, 2.0}


def test_a_file_left_by_a_killed_run_is_no_latent(tmp_path):
    (tmp_path / "cat").mkdir()
    moments = np.zeros((32, 4, 4), np.float32)
    np.savez(tmp_path / "cat" / "1.npz", moments=moments, moments_flip=moments)
    (tmp_path / "cat" / ".2.77.part.npz").write_bytes(b"half")
    assert len(cached_data(tmp_path).dataset) == 1


def test_center_crop_keeps_the_middle():
    image = Image.new("L", (400, 100))
    image.paste(255, (150, 0, 250, 100))
    crop = center_crop(image, 40)
    assert crop.size == (40, 40) and np.array(crop)[:, 2:-2].min() == 255  # the bicubic filter reaches beyond the edge
    assert center_crop(Image.new("L", (20, 30)), 40).size == (40, 40)
