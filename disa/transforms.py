"""How pictures are cut for the models."""

from __future__ import annotations

from pathlib import Path

from PIL import Image, ImageOps

GREY = 127  # around an image that is asked about


def center_crop(image: Image.Image, size: int) -> Image.Image:
    """The central square of `image`, `size` pixels a side: halved with a box filter while that is possible, then bicubic.

    ImageNet models were trained on it (Dhariwal and Nichol 2021).
    """
    while min(image.size) >= 2 * size:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = size / min(image.size)
    image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
    left, top = (image.width - size) // 2, (image.height - size) // 2
    return image.crop((left, top, left + size, top + size))


def open_image(path: str | Path) -> Image.Image:
    """The picture in a file, upright, in RGB.

    Raises:
        ValueError: it cannot be read.
    """
    try:
        return ImageOps.exif_transpose(Image.open(path)).convert("RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path} cannot be read as an image ({error})") from error


def pad_and_resize(image: Image.Image, height: int, width: int) -> Image.Image:
    """An RGB picture padded with grey to the shape of height × width, then resized to it."""
    scale = max(image.width / width, image.height / height)
    canvas = Image.new("RGB", (round(width * scale), round(height * scale)), (GREY, GREY, GREY))
    canvas.paste(image, ((canvas.width - image.width) // 2, (canvas.height - image.height) // 2))
    return canvas.resize((width, height), Image.Resampling.BICUBIC)
