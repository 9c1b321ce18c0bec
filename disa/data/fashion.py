"""Fashion-MNIST, read from Debian's package, a folder, or torchvision's download."""

from __future__ import annotations

import contextlib
import gzip
import zlib
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..runtime import distributed

DEBIAN_FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")  # the files of the package dataset-fashion-mnist
FASHION_CLASSES = ("t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot")


def fashion_mnist(train: bool, root: str | Path | None = None) -> tuple[Tensor, Tensor]:
    """Load images, padded from 28×28: uint8 [N, 32, 32], and labels, int64 [N] (Xiao et al. 2017, MIT licence).

    `train` chooses the 60,000 training images over the 10,000 test images. `root` holds the four IDX files, or is empty
    and where torchvision may download to; by default Debian's. Raises FileNotFoundError if the files are in none of
    these places and cannot be downloaded, ValueError if one is damaged or `root` holds something else.
    """
    stem = "train" if train else "t10k"
    folder = DEBIAN_FASHION_MNIST if root is None else Path(root)
    for place in (folder, folder / "FashionMNIST" / "raw"):
        images, labels = (_find_idx(place, f"{stem}-{kind}") for kind in ("images-idx3-ubyte", "labels-idx1-ubyte"))
        if images and labels:
            return F.pad(_read_idx(images), (2, 2, 2, 2)), _read_idx(labels).long()
    if root is not None and folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        problem = f"{folder} holds no {stem}-images-idx3-ubyte; Fashion-MNIST is read from its four files"
        raise ValueError(f"{problem}, and downloaded into empty folders alone")
    return _download(train, Path("data") if root is None else folder)


def _find_idx(folder: Path, name: str) -> Path | None:
    return next((path for path in (folder / f"{name}.gz", folder / name) if path.is_file()), None)


def _read_idx(path: Path) -> Tensor:
    """Read a file in the IDX format of the MNIST family (bytes; big-endian shape), gzipped or not."""
    opener = gzip.open if path.suffix == ".gz" else open
    try:
        with opener(path, "rb") as file:
            data = file.read()
        shape = np.frombuffer(data, ">u4", count=data[3], offset=4)
        return torch.from_numpy(np.frombuffer(data, np.uint8, offset=4 + shape.nbytes).reshape(shape).copy())
    except (OSError, EOFError, IndexError, ValueError, zlib.error) as error:
        raise ValueError(f"{path} is not a whole IDX file ({error}); fetch it again") from error


def _download(train: bool, root: Path) -> tuple[Tensor, Tensor]:
    from torchvision.datasets import FashionMNIST

    made = [place for place in (root / "FashionMNIST" / "raw", root / "FashionMNIST", root) if not place.exists()]
    try:
        distributed.on_main(lambda: FashionMNIST(root, train=train, download=True) and None)
        data = FashionMNIST(root, train=train)
    except (OSError, RuntimeError) as error:
        for place in made:
            with contextlib.suppress(OSError):  # something is in it: a part of the download
                place.rmdir()
        raise FileNotFoundError(
            f"Fashion-MNIST is neither in {root} nor in {DEBIAN_FASHION_MNIST}, and its download failed "
            f"({str(error).splitlines()[0]}); "
            "install Debian's package dataset-fashion-mnist, or give the folder of its four files"
        ) from error
    return F.pad(data.data, (2, 2, 2, 2)), data.targets.long()
