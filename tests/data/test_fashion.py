"""Fashion-MNIST's files."""

import numpy as np
import pytest

from disa.data.fashion import fashion_mnist
from tests.helpers.data import write_idx


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
    assert found.shape == (6, 32, 32)
    assert labels.tolist() == list(range(6))
    assert np.array_equal(found[:, 2:30, 2:30].numpy(), images)
    assert found[:, :2].sum() == 0
    assert found[:, :, 30:].sum() == 0


def test_torchvisions_folder_is_found(files, tmp_path):
    raw = tmp_path / "elsewhere" / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    for path in files[0].glob("train-*"):
        path.rename(raw / path.name)
    assert fashion_mnist(True, tmp_path / "elsewhere")[1].tolist() == list(range(6))


def test_a_damaged_file_is_named(files):
    path = next(files[0].glob("train-images*"))
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ValueError, match=r"train-images-idx3-ubyte.* is not a whole IDX file"):
        fashion_mnist(True, files[0])


def test_absent_fashion_mnist_says_what_to_do(tmp_path, monkeypatch):
    import torchvision.datasets

    def offline(*_, **__):
        raise RuntimeError("Error downloading")

    monkeypatch.setattr(torchvision.datasets, "FashionMNIST", offline)
    with pytest.raises(FileNotFoundError, match="dataset-fashion-mnist"):
        fashion_mnist(True, tmp_path)
