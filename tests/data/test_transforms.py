"""Pixels, crops and tiles."""

import numpy as np
import pytest
import torch
from PIL import Image

from disa.data.transforms import center_crop, crop_to_tensor, pad_and_resize, tile, to_signed, to_uint8


def test_uint8_and_signed_are_inverse():
    pixels = torch.arange(256, dtype=torch.uint8)
    signed = to_signed(pixels)
    assert (signed.min(), signed.max()) == (-1, 1)
    assert torch.equal(to_uint8(signed), pixels)
    assert to_uint8(torch.tensor([-3.0, 3.0])).tolist() == [0, 255]


def test_tiles_lie_row_by_row():
    images = torch.arange(9)[:, None, None, None].expand(9, 2, 4, 5)
    tiled = tile(images)
    assert tiled.shape == (2, 12, 15)
    assert tiled[1, ::4, ::5].tolist() == [[0, 1, 2], [3, 4, 5], [6, 7, 8]]
    with pytest.raises(ValueError, match="8 images make no square"):
        tile(images[:8])


def test_center_crop_keeps_the_middle():
    image = Image.new("L", (400, 100))
    image.paste(255, (150, 0, 250, 100))
    crop = center_crop(image, 40)
    assert crop.size == (40, 40)
    assert np.array(crop)[:, 2:-2].min() == 255
    assert center_crop(Image.new("L", (20, 30)), 40).size == (40, 40)


def test_center_crop_halves_by_means_of_pixels():
    # Multiples of 16, so that means of 2×2 and of 4×4 pixels are whole numbers.
    pixels = np.random.default_rng(0).integers(0, 16, (16, 16)) * 16
    means = pixels.reshape(4, 4, 4, 4).mean(axis=(1, 3))
    assert np.array_equal(np.array(center_crop(Image.fromarray(pixels.astype(np.uint8)), 4)), means)


def keys(x: float) -> float:
    """Keys' cubic convolution kernel with a = -1/2 (Keys 1981, eq. 15)."""
    x = abs(x)
    return 1.5 * x**3 - 2.5 * x**2 + 1 if x < 1 else -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2 if x < 2 else 0.0


def cubic(values: np.ndarray, size: int) -> np.ndarray:
    """`values` resampled to `size` with Keys' kernel, as wide as the coarser of the two grids demands."""
    scale = len(values) / size
    centers, places = (np.arange(size) + 0.5) * scale, np.arange(len(values)) + 0.5
    weights = np.vectorize(keys)((places[None] - centers[:, None]) / max(scale, 1))
    return (weights / weights.sum(1, keepdims=True)) @ values


@pytest.mark.parametrize(("side", "size"), [(7, 5), (5, 9)], ids=["shrunk", "enlarged"])
def test_center_crop_ends_with_a_bicubic_resize(side, size):
    pixels = np.random.default_rng(0).integers(64, 192, (side, side)).astype(np.uint8)  # far from what clips
    expected = cubic(cubic(pixels.astype(float), size).T, size).T
    assert np.abs(np.array(center_crop(Image.fromarray(pixels), size)) - expected).max() < 2


def test_crop_to_tensor_is_in_colour():
    tensor = crop_to_tensor(Image.new("L", (9, 7), 3), 4)
    assert tensor.shape == (3, 4, 4)
    assert tensor.dtype == torch.uint8
    assert tensor.unique().tolist() == [3]


def test_an_image_is_padded_with_grey():
    fitted = np.array(pad_and_resize(Image.new("RGB", (20, 10), (255, 0, 0)), 16, 16))
    assert fitted.shape == (16, 16, 3)
    assert np.unique(fitted[[0, 1, -1]]).tolist() == [127]
    assert fitted[8, :].reshape(-1, 3).tolist() == [[255, 0, 0]] * 16
