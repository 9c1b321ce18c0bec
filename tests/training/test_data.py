"""Data sets of the class-conditional families: Fashion-MNIST, folders of images, cached latents."""

import numpy as np
import pytest
import torch
from PIL import Image

from disa.data.fashion import fashion_mnist
from disa.models.vae import AutoencoderKL, SpaceToDepth
from disa.training.data import cached_data, fashion_data, image_folder_data
from tests.helpers.data import write_fashion


def test_fashion_latents_decode_to_the_images(tmp_path):
    data = fashion_data(SpaceToDepth(), write_fashion(tmp_path, 6))
    pixels = torch.stack([data.dataset[i][0] for i in range(6)])
    restored = (SpaceToDepth().decode(data.to_latents(pixels)) + 1) * 127.5
    assert torch.equal(restored.round().to(torch.uint8), pixels)
    assert torch.equal(pixels[:, 0], fashion_mnist(True, tmp_path)[0])


@pytest.fixture
def photos(tmp_path):
    for label, colour in (("cat", (255, 0, 0)), ("dog", (0, 0, 255))):
        (tmp_path / "train" / label).mkdir(parents=True)
        Image.new("RGB", (90, 70), colour).save(tmp_path / "train" / label / "1.png")
    return tmp_path


def test_image_folder(photos):
    data = image_folder_data(AutoencoderKL(width=32), photos, 32)
    pixels, label = data.dataset[1]
    assert label == 1
    assert pixels.shape == (3, 32, 32)
    assert pixels[:, 0, 0].tolist() == [0, 0, 255]
    assert data.to_latents(pixels[None]).shape == (1, 16, 2, 2)
    with pytest.raises(FileNotFoundError, match="--data_path"):
        image_folder_data(AutoencoderKL(width=32), photos / "none", 32)


def test_cached_latents_are_mirrored_at_random(tmp_path):
    (tmp_path / "cat").mkdir()
    quiet = np.full((16, 2, 2), -100, np.float32)  # log variance: a sample is then the mean
    np.savez(
        tmp_path / "cat" / "1.npz",
        moments=np.concatenate([quiet * 0 + 1, quiet]),
        moments_flip=np.concatenate([quiet * 0 + 2, quiet]),
    )
    data = cached_data(tmp_path)
    moments, label = data.dataset[0]
    torch.manual_seed(0)
    latents = data.to_latents(moments.expand(64, -1, -1, -1, -1))
    assert label == 0
    assert latents.shape == (64, 16, 2, 2)
    found = latents[:, 0, 0, 0] / 0.2325
    assert set(found.round().tolist()) == {1.0, 2.0}


def test_a_file_left_by_a_killed_run_is_no_latent(tmp_path):
    (tmp_path / "cat").mkdir()
    moments = np.zeros((32, 4, 4), np.float32)
    np.savez(tmp_path / "cat" / "1.npz", moments=moments, moments_flip=moments)
    (tmp_path / "cat" / ".2.77.part.npz").write_bytes(b"half")
    assert len(cached_data(tmp_path).dataset) == 1
