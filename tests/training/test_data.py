"""Data sets of the class-conditional families: Fashion-MNIST, folders of images, cached latents."""

import os

import numpy as np
import pytest
import torch
import torch.multiprocessing as mp
from PIL import Image

from disa.data.fashion import fashion_mnist
from disa.data.transforms import to_uint8
from disa.models.vae import AutoencoderKL, SpaceToDepth
from disa.runtime import distributed
from disa.training.data import cached_data, class_folders, fashion_data, image_folder_data, sample_latents
from tests.helpers.data import write_fashion
from tests.helpers.processes import free_port


def test_fashion_latents_decode_to_the_images(tmp_path):
    # More images than are encoded at a time.
    data = fashion_data(*fashion_mnist(True, write_fashion(tmp_path, 106)), SpaceToDepth())
    inputs = torch.stack([data.dataset[i][0] for i in range(106)])
    restored = to_uint8(SpaceToDepth().decode(data.to_latents(inputs)))
    images, labels = fashion_mnist(True, tmp_path)
    assert torch.equal(restored[:, 0], images)
    assert [int(data.dataset[i][1]) for i in range(106)] == labels.tolist()


@pytest.fixture
def photos(tmp_path):
    for label, colour in (("cat", (255, 0, 0)), ("dog", (0, 0, 255))):
        (tmp_path / "train" / label).mkdir(parents=True)
        Image.new("RGB", (90, 70), colour).save(tmp_path / "train" / label / "1.png")
    return tmp_path


def test_image_folder(photos):
    data = image_folder_data(AutoencoderKL(widths=(32,) * 5), photos, 32)
    pixels, label = data.dataset[1]
    assert label == 1
    assert pixels.shape == (3, 32, 32)
    assert pixels[:, 0, 0].tolist() == [0, 0, 255]
    assert data.to_latents(pixels[None]).shape == (1, 16, 2, 2)
    with pytest.raises(FileNotFoundError, match="--data_path"):
        image_folder_data(AutoencoderKL(widths=(32,) * 5), photos / "none", 32)


def list_as_rank(rank, port, folder):
    os.environ.update(RANK=str(rank), WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    distributed.setup(torch.device("cpu"))
    seen = folder if rank == 0 else folder / "nowhere"  # rank 1 would find nothing
    photos, latents = image_folder_data(Identity(), seen, 32), cached_data(seen / "cached")
    assert photos.dataset[1][0].shape == (3, 32, 32)
    assert photos.dataset.classes == ["cat", "dog"]
    assert latents.dataset[0][0].shape == (2, 4, 1, 1)
    distributed.shutdown()


@pytest.mark.distributed
def test_one_rank_lists_the_files(photos):
    (photos / "cached" / "cat").mkdir(parents=True)
    moments = np.zeros((4, 1, 1), np.float32)
    np.savez(photos / "cached" / "cat" / "1.npz", moments=moments, moments_flip=moments)
    mp.spawn(list_as_rank, (free_port(), photos), nprocs=2)


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


def test_a_damaged_latent_is_named(tmp_path):
    (tmp_path / "train" / "cat").mkdir(parents=True)
    path = tmp_path / "train" / "cat" / "1.npz"
    path.write_bytes(b"half")
    (path.parent / "2.txt").write_text("no latent")
    data = cached_data(tmp_path).dataset
    assert len(data) == 1
    with pytest.raises(ValueError, match=r"cat/1.npz holds no latents of main_cache.py .*; remove it and cache again"):
        data[0]
    with pytest.raises(FileNotFoundError, match=r"nowhere has no class folders; give the right --cached_path"):
        cached_data(tmp_path / "nowhere")


def test_cached_moments_are_float32_the_images_first(tmp_path):
    (tmp_path / "cat").mkdir()
    one = np.ones((4, 1, 1), np.float64)
    np.savez(tmp_path / "cat" / "1.npz", moments=one, moments_flip=2 * one)
    moments, _ = cached_data(tmp_path).dataset[0]
    assert moments.dtype == torch.float32
    assert moments[:, 0, 0, 0].tolist() == [1, 2]


def test_class_folders(tmp_path):
    (tmp_path / "file").write_text("")
    for empty in (tmp_path, tmp_path / "file", tmp_path / "none"):
        with pytest.raises(FileNotFoundError, match=f"{empty} has no class folders; give the right --there"):
            class_folders(empty, "--there")
    (tmp_path / "cat").mkdir()
    assert class_folders(tmp_path, "--there") == tmp_path
    (tmp_path / "train" / "dog").mkdir(parents=True)
    assert class_folders(tmp_path, "--there") == tmp_path / "train"


class Identity:
    """A VAE whose latents are the images, with the noise at hand."""

    def latent_shape(self, images):
        return images.shape

    def encode(self, images, noise):
        self.noise = noise
        return images


def test_images_are_mirrored_at_random_and_each_as_a_whole(photos):
    vae = Identity()
    data = image_folder_data(vae, str(photos), 32)
    pixels = torch.tensor([0, 255], dtype=torch.uint8).expand(400, 3, 2, 2)
    torch.manual_seed(0)
    latents, labels = data.prepare(pixels, torch.arange(400))
    assert torch.equal(labels, torch.arange(400))
    assert set(latents.unique().tolist()) == {-1.0, 1.0}
    mirrored = latents[:, 0, 0, 0] == 1
    assert 0.4 < mirrored.float().mean() < 0.6
    rows = torch.tensor([-1.0, 1.0])
    assert torch.equal(latents, torch.where(mirrored[:, None, None, None], -rows, rows).expand(400, 3, 2, 2))
    assert abs(vae.noise.std() - 1) < 0.1
    assert vae.noise.shape == latents.shape


def test_samples_of_the_posterior_have_no_gradient():
    images = torch.ones(1, 3, 2, 2, requires_grad=True)
    vae = AutoencoderKL(widths=(32,) * 5)
    assert not sample_latents(vae, torch.zeros(1, 3, 32, 32)).requires_grad
    assert torch.equal(sample_latents(Identity(), images), images)


def test_cached_latents_are_samples_of_their_posterior(tmp_path):
    """Of mean 0 and log variance 0, in the VAE's scale."""
    torch.manual_seed(0)
    (tmp_path / "cat").mkdir()
    np.savez(tmp_path / "cat" / "1.npz", moments=np.zeros(1))
    latents = cached_data(tmp_path).to_latents(torch.zeros(500, 2, 32, 2, 2))
    assert latents.std().item() == pytest.approx(0.2325, rel=0.02)
