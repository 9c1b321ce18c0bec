"""Class-conditional training data: images in [-1, 1], or cached latents, with their class.

One rank lists the files, and sends the others the list: on a network disk, a million files take every rank minutes.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import TensorDataset
from torchvision.datasets import DatasetFolder, ImageFolder
from tqdm import tqdm

from ..data.transforms import crop_to_tensor, to_signed
from ..models.vae import VAE, AutoencoderKL, sample_moments
from ..runtime import distributed


@dataclass(frozen=True)
class TrainingData:
    """What the training loop reads."""

    dataset: TensorDataset | DatasetFolder  # items (input tensor, label); the same item whenever asked for
    to_latents: Callable[[Tensor], Tensor]  # inputs on the model's device -> latents, with random augmentation

    def prepare(self, inputs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Turn a batch on the model's device into the arguments of the model's loss."""
        return self.to_latents(inputs), labels


@torch.no_grad()
def sample_latents(vae: AutoencoderKL, images: Tensor) -> Tensor:
    """Encode images in [-1, 1] to samples of the posterior."""
    return vae.encode(images, noise=torch.randn(vae.latent_shape(images), device=images.device))


def latents_by_index(vae: VAE, images: Tensor) -> Callable[[Tensor], Tensor]:
    """Return a function of indices of grey images, uint8 [N, H, W]: their latents [B, C, h, w], on the indices' device.

    Its first call encodes all images, once for all epochs.
    """

    @functools.cache
    @torch.no_grad()
    def encoded(device: torch.device) -> Tensor:
        parts = tqdm(images.split(100), desc="encoding", unit="×100 images", disable=not distributed.is_main())
        return torch.cat([vae.encode(to_signed(part.to(device))[:, None]) for part in parts])

    return lambda indices: encoded(indices.device)[indices]


def fashion_data(images: Tensor, labels: Tensor, vae: VAE) -> TrainingData:
    """Prepare Fashion-MNIST's training images. They are not mirrored: every shoe points to the left."""
    return TrainingData(TensorDataset(torch.arange(len(images)), labels), latents_by_index(vae, images))


def class_folders(root: Path, flag: str) -> Path:
    """Return `root`'s `train`, or `root` itself; raise FileNotFoundError, naming `flag`, if it has no class folders."""
    found = root / "train" if (root / "train").is_dir() else root
    if not found.is_dir() or not any(path.is_dir() for path in found.iterdir()):
        raise FileNotFoundError(f"{found} has no class folders; give the right {flag}")
    return found


def read_images(root: Path, transform: Callable[[Image.Image], Tensor] | None = None) -> ImageFolder:
    """List the images of `class_folders`; raise FileNotFoundError if a class has none."""
    folder = class_folders(root, "--data_path")
    with _naming_empty_classes(folder, "images"):
        return ImageFolder(str(folder), transform=transform)


@contextlib.contextmanager
def _naming_empty_classes(folder: Path, what: str) -> Iterator[None]:
    """Say in a sentence which class folders hold nothing of what is read from them."""
    try:
        yield
    except FileNotFoundError as error:
        classes = str(error).partition("classes ")[2].partition(". ")[0]
        said = f"{folder} has no {what} of the classes {classes}; add some, or remove their folders"
        raise FileNotFoundError(said) from error


def image_folder_data(vae: AutoencoderKL, root: str | Path, image_size: int) -> TrainingData:
    """Read ImageNet or any folder of `class_folders`, cropped to `image_size`, mirrored at random."""

    def to_latents(pixels: Tensor) -> Tensor:
        images, mirrored = to_signed(pixels), torch.rand(len(pixels), 1, 1, 1, device=pixels.device) < 0.5
        return sample_latents(vae, torch.where(mirrored, images.flip(-1), images))

    def read() -> ImageFolder:
        return read_images(Path(root), transform=functools.partial(crop_to_tensor, size=image_size))

    return TrainingData(distributed.on_main(read), to_latents)


def cached_data(root: str | Path) -> TrainingData:
    """Read the latents that `main_cache.py` wrote into `class_folders`, mirrored at random."""

    def to_latents(moments: Tensor) -> Tensor:  # [B, 2, 2C, h, w]
        mirrored = torch.randint(2, (len(moments),)).to(moments.device, non_blocking=True)
        chosen = moments[torch.arange(len(moments), device=moments.device), mirrored]
        return sample_moments(chosen, torch.randn_like(chosen.chunk(2, dim=1)[0]))

    def is_finished(path: str) -> bool:  # a hidden file was left by a run that was killed while writing it
        return path.endswith(".npz") and not Path(path).name.startswith(".")

    def read() -> DatasetFolder:
        folder = class_folders(Path(root), "--cached_path")
        with _naming_empty_classes(folder, "latents of main_cache.py"):
            return DatasetFolder(str(folder), loader=_load_moments, is_valid_file=is_finished)

    return TrainingData(distributed.on_main(read), to_latents)


def _load_moments(path: str) -> Tensor:
    """Read the posterior's moments of an image and of its mirror image, float32 [2, 2C, h, w]."""
    try:
        with np.load(path) as arrays:
            return torch.from_numpy(np.stack([arrays["moments"], arrays["moments_flip"]])).float()
    except Exception as error:  # a damaged archive can fail in any way
        raise ValueError(f"{path} holds no latents of main_cache.py ({error}); remove it and cache again") from error
