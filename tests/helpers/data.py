"""Fashion-MNIST's files, made of noise."""

import gzip

import numpy as np


def write_idx(path, array, compress=False):
    """Write bytes in the IDX format of the MNIST family."""
    header = bytes([0, 0, 8, array.ndim]) + b"".join(size.to_bytes(4, "big") for size in array.shape)
    with (gzip.open if compress else open)(path, "wb") as file:
        file.write(header + array.tobytes())


def write_fashion(folder, count):
    """Write `count` training images, the classes in turn; returns the folder."""
    images = np.random.default_rng(0).integers(0, 256, (count, 28, 28), np.uint8)
    write_idx(folder / "train-images-idx3-ubyte", images)
    write_idx(folder / "train-labels-idx1-ubyte", np.arange(count, dtype=np.uint8) % 10)
    return folder
