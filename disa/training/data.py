"""Training data: images in [-1, 1], or latents computed beforehand, with their class."""

from __future__ import annotations

import functools
import gzip
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torch.utils.data import TensorDataset
from torchvision.datasets import DatasetFolder, ImageFolder

from .. import distributed
from ..models.tokenizer import AutoencoderKL, Tokenizer, sample_moments
from ..transforms import center_crop

# Where Debian's package `dataset-fashion-mnist` puts the four files.
DEBIAN_FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")
FASHION_CLASSES = ("t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot")


def _read_idx(path: Path) -> np.ndarray:
    """One file in the IDX format of the MNIST family (bytes; big-endian shape), gzipped or not."""
    opener = gzip.open if path.suffix == ".gz" else open
    try:
        with opener(path, "rb") as file:
            data = file.read()
        dimensions = data[3]
        shape = np.frombuffer(data, ">u4", dimensions, offset=4)
        return np.frombuffer(data, np.uint8, offset=4 + 4 * dimensions).reshape(shape)
    except (OSError, EOFError, IndexError, ValueError, zlib.error) as error:
        raise ValueError(f"{path} is not a whole IDX file ({error}); fetch it again") from error


def _find_idx(folder: Path, stem: str) -> Path | None:
    return next((path for path in (folder / f"{stem}.gz", folder / stem) if path.is_file()), None)


def fashion_mnist(train: bool, root: str | Path | None = None) -> tuple[Tensor, Tensor]:
    """Fashion-MNIST (Xiao et al. 2017, MIT licence), padded with black from 28×28 to 32×32.

    Args:
        train: the 60,000 training images, or the 10,000 test images.
        root: a folder with the four IDX files, or one that torchvision may download to. By default Debian's.

    Returns:
        Images, uint8 [N, 32, 32], and labels, int64 [N].

    Raises:
        FileNotFoundError: the files are in none of these places and cannot be downloaded.
    """
    stem = "train" if train else "t10k"
    folders = [Path(root)] if root is not None else [DEBIAN_FASHION_MNIST]
    for folder in folders + [folder / "FashionMNIST" / "raw" for folder in folders]:
        images, labels = _find_idx(folder, f"{stem}-images-idx3-ubyte"), _find_idx(folder, f"{stem}-labels-idx1-ubyte")
        if images and labels:
            pixels = torch.from_numpy(_read_idx(images).copy())
            return F.pad(pixels, (2, 2, 2, 2)), torch.from_numpy(_read_idx(labels).astype(np.int64))
    return _download_fashion_mnist(train, Path(root) if root is not None else Path("data"))


def _download_fashion_mnist(train: bool, root: Path) -> tuple[Tensor, Tensor]:
    from torchvision.datasets import FashionMNIST

    try:
        distributed.on_main(lambda: FashionMNIST(root, train=train, download=True) and None)
        data = FashionMNIST(root, train=train)
    except (OSError, RuntimeError) as error:
        raise FileNotFoundError(
            f"Fashion-MNIST is neither in {root} nor in {DEBIAN_FASHION_MNIST}, and its download failed ({error}); "
            "install Debian's package dataset-fashion-mnist, or give the folder of its four files"
        ) from error
    return F.pad(data.data, (2, 2, 2, 2)), data.targets.long()


@dataclass(frozen=True)
class TrainingData:
    """What the training loop reads.

    Attributes:
        dataset: items (input tensor, label); the same item whenever asked for.
        to_latents: a batch of inputs on the model's device -> latents; random augmentation happens here, where the loop
            has seeded the step.
    """

    dataset: TensorDataset | DatasetFolder
    to_latents: Callable[[Tensor], Tensor]

    def prepare(self, inputs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """A batch on the model's device -> the arguments of a class-conditional model's loss."""
        return self.to_latents(inputs), labels


def to_signed(pixels: Tensor) -> Tensor:
    """uint8 -> [-1, 1]."""
    return pixels.float() / 127.5 - 1


def _flip_some(images: Tensor) -> Tensor:
    """Each image [B, C, H, W] mirrored with probability 1/2."""
    return torch.where(torch.rand(len(images), 1, 1, 1, device=images.device) < 0.5, images.flip(-1), images)


def fashion_data(tokenizer: Tokenizer, root: str | Path | None = None) -> TrainingData:
    """Fashion-MNIST's training images. Not mirrored: every shoe in it points to the left."""
    images, labels = fashion_mnist(True, root)
    return TrainingData(TensorDataset(images[:, None], labels), lambda pixels: tokenizer.encode(to_signed(pixels)))


def class_folders(root: Path, flag: str) -> Path:
    """The folder with a folder a class: `root`'s `train`, or `root` itself.

    Raises:
        FileNotFoundError: there is none; `flag` is named.
    """
    found = root / "train" if (root / "train").is_dir() else root
    if not found.is_dir() or not any(path.is_dir() for path in found.iterdir()):
        raise FileNotFoundError(f"{found} has no folder a class; give the right {flag}")
    return found


def crop_to_tensor(image: Image.Image, size: int) -> Tensor:
    """The central square of an image, uint8 [3, size, size]."""
    return torch.from_numpy(np.array(center_crop(image.convert("RGB"), size))).permute(2, 0, 1)


def image_folder_data(tokenizer: AutoencoderKL, root: str | Path, image_size: int) -> TrainingData:
    """ImageNet or any folder of class folders (its `train` folder, if it has one), cropped to `image_size`, mirrored at random.

    Raises:
        FileNotFoundError: there are no class folders.
    """

    def to_latents(pixels: Tensor) -> Tensor:
        images = _flip_some(to_signed(pixels))
        with torch.no_grad():
            return tokenizer.encode(images, noise=torch.randn(tokenizer.latent_shape(images), device=images.device))

    return TrainingData(
        ImageFolder(str(class_folders(Path(root), "--data_path")), transform=functools.partial(crop_to_tensor, size=image_size)), to_latents
    )


def _load_moments(path: str) -> Tensor:
    """The posterior's moments of an image and of its mirror image, float32 [2, 2C, h, w]."""
    try:
        with np.load(path) as arrays:
            return torch.from_numpy(np.stack([arrays["moments"], arrays["moments_flip"]])).float()
    except Exception as error:  # a damaged archive can fail in any way
        raise ValueError(f"{path} holds no latents of main_cache.py ({error}); remove it and cache again") from error


def cached_data(root: str | Path) -> TrainingData:
    """Latents that `main_cache.py` wrote, as they are or mirrored at random.

    Raises:
        FileNotFoundError: there are no class folders.
    """

    def to_latents(moments: Tensor) -> Tensor:  # [B, 2, 2C, h, w]
        chosen = moments[torch.arange(len(moments)), torch.randint(2, (len(moments),))]
        return sample_moments(chosen, torch.randn_like(chosen.chunk(2, dim=1)[0]))

    def is_finished(path: str) -> bool:  # a hidden file was left by a run that was killed while writing it
        return path.endswith(".npz") and not Path(path).name.startswith(".")

    folder = class_folders(Path(root), "--cached_path")
    return TrainingData(DatasetFolder(str(folder), loader=_load_moments, is_valid_file=is_finished), to_latents)
