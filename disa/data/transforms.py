"""Conversions between image files, pixels and the models' [-1, 1]."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from einops import rearrange
from PIL import Image, ImageOps
from torch import Tensor
from torchvision.transforms.functional import pil_to_tensor


def to_signed(pixels: Tensor) -> Tensor:
    """Map uint8 to [-1, 1]."""
    return pixels.float() / 127.5 - 1


def to_uint8(images: Tensor) -> Tensor:
    """Map [-1, 1] to uint8: inverse of `to_signed`."""
    return (images.float() * 127.5 + 127.5).round().clamp(0, 255).to(torch.uint8)


def tile(images: Tensor) -> Tensor:
    """Put n² images [n², C, H, W] row by row: [C, n · H, n · W]; raise ValueError if their number is no square."""
    side = math.isqrt(len(images))
    if side**2 != len(images):
        raise ValueError(f"{len(images)} images make no square")
    return rearrange(images, "(rows columns) c h w -> c (rows h) (columns w)", rows=side)


def center_crop(image: Image.Image, size: int) -> Image.Image:
    """Cut the central square (Dhariwal and Nichol 2021): halve with a box filter while possible, then bicubic."""
    while min(image.size) >= 2 * size:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = size / min(image.size)
    image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
    left, top = (image.width - size) // 2, (image.height - size) // 2
    return image.crop((left, top, left + size, top + size))


def crop_to_tensor(image: Image.Image, size: int) -> Tensor:
    """Cut the central square of an image as RGB, uint8 [3, size, size]."""
    return pil_to_tensor(center_crop(image.convert("RGB"), size))


def pad_and_resize(image: Image.Image, height: int, width: int) -> Image.Image:
    """Pad an RGB image with grey to the aspect ratio of height × width, then resize it to that."""
    scale = max(image.width / width, image.height / height)
    canvas = Image.new("RGB", (round(width * scale), round(height * scale)), (127, 127, 127))
    canvas.paste(image, ((canvas.width - image.width) // 2, (canvas.height - image.height) // 2))
    return canvas.resize((width, height), Image.Resampling.BICUBIC)


def open_image(path: str | Path) -> Image.Image:
    """Open an image file, upright, in RGB; raise ValueError if it cannot be read."""
    try:
        return ImageOps.exif_transpose(Image.open(path)).convert("RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path} cannot be read as an image ({error})") from error
