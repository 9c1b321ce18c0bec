"""KL-16 against the reference outputs; other sizes; slices; tiles; the small VAE's losslessness."""

import itertools

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from disa.models import vae
from disa.models.vae import (
    KL16_SCALE,
    AutoencoderKL,
    SpaceToDepth,
    free_memory,
    join_tiles,
    sample_moments,
    slice_rows,
    tile_starts,
)
from disa.weights.verify import manifest
from tests.conftest import load_reference, relative_error
from tests.reference.weights import parity_tensor


@pytest.fixture(scope="module")
def kl16():
    model = AutoencoderKL().eval()
    model.load_state_dict(
        {
            name: torch.from_numpy(np.asarray(parity_tensor(name, tuple(value.shape))))
            for name, value in model.state_dict().items()
        }
    )
    return model


def test_released_parameter_names_and_shapes():
    with torch.device("meta"):
        state = AutoencoderKL().state_dict()
    assert {key: list(value.shape) for key, value in state.items()} == manifest("kl16")["parameters"]


@torch.no_grad()
def test_reference_outputs(kl16):
    recorded = load_reference("vae.npz")
    assert relative_error(kl16.moments(recorded["image"]), recorded["moments"].numpy()) < 1e-5
    # The reference decodes latents as they leave the encoder, before they are scaled to unit variance.
    assert relative_error(kl16.decode(recorded["latents"] * KL16_SCALE), recorded["decoded"].numpy()) < 1e-5


@torch.no_grad()
def test_encode_is_the_scaled_mean_or_a_sample(kl16):
    image = load_reference("vae.npz")["image"]
    mean, log_variance = kl16.moments(image).chunk(2, dim=1)
    assert torch.allclose(kl16.encode(image), mean * 0.2325)
    noise = torch.ones(kl16.latent_shape(image))
    assert torch.allclose(kl16.encode(image, noise), (mean + (0.5 * log_variance).exp()) * 0.2325, rtol=1e-4)


def test_extreme_variances_are_clamped():
    moments = torch.cat([torch.zeros(1, 16, 1, 1), torch.full((1, 16, 1, 1), 100.0)], dim=1)
    assert torch.allclose(sample_moments(moments, torch.ones(1, 16, 1, 1)), torch.tensor(np.exp(10.0) * 0.2325).float())


def test_sides_that_do_not_fit_are_refused(kl16):
    with pytest.raises(ValueError, match="40×32"):
        kl16.encode(torch.zeros(1, 3, 40, 32))


@pytest.fixture
def small():
    torch.manual_seed(0)
    return AutoencoderKL(4, (8, 16, 160), blocks=1, image_channels=1, scale=0.5).eval()


@torch.no_grad()
def test_sizes_are_arguments(small):
    images = torch.randn(3, 1, 16, 24)
    moments, latents = small.moments(images), small.encode(images)
    assert small.stride == 4
    assert latents.shape == small.latent_shape(images) == (3, 4, 4, 6)
    assert torch.allclose(latents, moments[:, :4] * 0.5)
    assert small.decode(latents).shape == images.shape
    assert torch.allclose(small.decode(latents), small.decoder(small.post_quant_conv(latents / 0.5)), atol=1e-6)
    assert [len(level.block) for level in (*small.encoder.down, *small.decoder.up)] == [1] * 3 + [2] * 3
    assert small.encoder.norm_out.num_groups == 32
    assert small.decoder.norm_out.num_groups == 2  # of four channels each, as KL-16's smallest


@torch.no_grad()
@pytest.mark.parametrize("batch", [1, 5, 6])
def test_slices_change_nothing(small, monkeypatch, batch):
    images, rows = torch.randn(batch, 1, 16, 16), []
    whole = small.moments(images), small.encode(images), small.decode(small.encode(images))
    monkeypatch.setattr(vae, "SLICE", 3)
    for net in (small.encoder, small.decoder):
        net.register_forward_hook(lambda _, inputs, __: rows.append(len(inputs[0])))
    sliced = small.moments(images), small.encode(images), small.decode(whole[1])
    assert rows == 3 * {1: [1], 5: [3, 2], 6: [3, 3]}[batch]
    for ours, theirs in zip(sliced, whole, strict=True):
        assert ours.shape == theirs.shape
        assert (ours - theirs).abs().max() <= 1e-6


@torch.no_grad()
def test_less_memory_makes_smaller_slices(small, monkeypatch):
    rows = []
    small.decoder.register_forward_hook(lambda _, inputs, __: rows.append(len(inputs[0])))
    per_image = 6 * 4 * 160 * 9 * 9  # where 4×4 became 8×8, a tensor has the channels of the lower resolution
    for free_bytes, wanted in ((3 * per_image - 1, [2, 1]), (0, [1, 1, 1])):
        monkeypatch.setattr(vae, "free_memory", lambda _, free_bytes=free_bytes: free_bytes)
        small.decode(torch.randn(3, 4, 4, 4))
        assert rows == wanted
        rows.clear()


@pytest.mark.parametrize(
    ("elements", "free_bytes", "rows"),
    [
        (128 * 257 * 257, None, 32),  # KL-16 at 256
        (128 * 257 * 257, 80 * 2**30, 32),
        (128 * 257 * 257, 2 * 2**30, 10),
        (128 * 257 * 257, 0, 1),  # it may fit all the same
        (128 * 1025 * 1025, 80 * 2**30, 15),  # 16 would have more than 2³¹ elements
        (2**31, None, 1),
    ],
)
def test_slice_rows(elements, free_bytes, rows):
    assert slice_rows(elements, free_bytes) == rows
    assert rows == 1 or rows * elements < 2**31


class Largest(TorchDispatchMode):
    """Keeps the number of elements of the largest result."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        sizes = [leaf.numel() for leaf in tree_leaves(out) if isinstance(leaf, torch.Tensor)]
        self.elements = max(self.elements, *sizes, 0)
        return out


@torch.no_grad()
@pytest.mark.parametrize("widths", [vae.KL16_WIDTHS, (8, 64, 32), (4, 160)])
def test_slices_are_chosen_by_the_largest_tensor(monkeypatch, widths):
    asked = []
    monkeypatch.setattr(vae, "slice_rows", lambda elements, _: asked.append(elements) or 1)
    with torch.device("meta"):
        model, images = AutoencoderKL(4, widths), torch.empty(1, 3, 128, 64)
        latents = torch.empty(model.latent_shape(images))
    with Largest() as encoding:
        model.moments(images)
    with Largest() as decoding:
        model.decode(latents)
    assert asked[0] == asked[1]
    assert 0.9 * asked[0] < max(encoding.elements, decoding.elements) <= asked[0]


@pytest.mark.parametrize("length", [1, 4, 5, 6, 7, 8, 9, 13, 16, 31, 64])
@pytest.mark.parametrize("limit", [2, 3, 4, 5, 8, 32])
def test_tiles_cover_everything_and_overlap(length, limit):
    starts, size = tile_starts(length, limit)
    assert size == min(length, limit)
    assert (starts[0], starts[-1] + size) == (0, length)
    shared = [before + size - after for before, after in itertools.pairwise(starts)]
    assert all(max(limit // 4, 1) <= one < size for one in shared)


def test_joined_tiles_fade_linearly():
    row = join_tiles([torch.zeros(1, 1, 1, 5), torch.full((1, 1, 1, 5), 8.0)], [0, 2], 3)
    assert row.flatten().tolist() == [0, 0, 2, 4, 6, 8, 8]
    column = join_tiles([torch.zeros(1, 1, 3, 2), torch.ones(1, 1, 3, 2)], [0, 3], 2)
    assert column[0, 0, :, 0].tolist() == [0, 0, 0, 1, 1, 1]


class Enlarge(torch.nn.Module):
    """Stands for a decoder that repeats each latent."""

    def forward(self, x):
        return x.repeat_interleave(4, 2).repeat_interleave(4, 3)


class Reduce(torch.nn.Module):
    """Stands for an encoder that looks at each latent's first pixel."""

    def forward(self, x):
        return x[:, :, ::4, ::4]


@torch.no_grad()
@pytest.mark.parametrize("shape", [(16, 16), (5, 9), (4, 23), (31, 8)])
@pytest.mark.parametrize("tile", [8, 16, 28, 64])
def test_tiles_of_a_vae_without_borders_change_nothing(small, shape, tile):
    small.decoder, small.encoder = Enlarge(), Reduce()
    small.post_quant_conv = small.quant_conv = torch.nn.Identity()
    latents, images = torch.randn(2, 8, *shape), torch.randn(2, 8, 4 * shape[0], 4 * shape[1])
    whole = small.decode(latents), small.moments(images)
    small.tile = tile
    assert torch.equal(small.decode(latents), whole[0])
    assert torch.equal(small.moments(images), whole[1])


@torch.no_grad()
def test_a_tile_as_large_as_the_image_changes_nothing(small):
    images = torch.randn(2, 1, 16, 24)
    whole = small.moments(images), small.decode(small.encode(images))
    small.tile = 24
    tiled = small.moments(images), small.decode(small.encode(images))
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(tiled, whole, strict=True))


@torch.no_grad()
def test_tiles_bound_what_the_networks_see(small):
    sides = []
    for net in (small.encoder, small.decoder):
        net.register_forward_hook(lambda _, inputs, __: sides.append(tuple(inputs[0].shape[2:])))
    images = torch.randn(1, 1, 64, 40)
    whole = small.decode(small.encode(images))
    small.tile = 32
    sides.clear()
    latents = small.encode(images)
    assert latents.shape == small.latent_shape(images)
    assert set(sides) == {(32, 32)}
    sides.clear()
    tiled = small.decode(latents)
    assert set(sides) == {(8, 8)}
    assert tiled.shape == whole.shape == images.shape
    assert torch.isfinite(tiled).all()
    with pytest.raises(ValueError, match="their sides must be multiples of 4"):
        small.encode(torch.zeros(1, 1, 62, 40))


def test_free_memory(monkeypatch):
    gpu = torch.device("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert free_memory(gpu) is None  # fake tensors
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (1000, 5000))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _: 300)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda _: 100)
    assert free_memory(gpu) == 1200
    assert free_memory(torch.device("cpu")) is None


def test_space_to_depth_is_lossless():
    pixels = torch.arange(2 * 32 * 32).remainder(256).view(2, 1, 32, 32).float() / 127.5 - 1
    stand_in = SpaceToDepth()
    latents = stand_in.encode(pixels)
    assert latents.shape == (2, 16, 8, 8)
    restored = ((stand_in.decode(latents) + 1) * 127.5).round()
    assert torch.equal(restored, ((pixels + 1) * 127.5).round())
    # channel c of a latent is pixel (c // 4, c % 4) of its block
    assert latents[0, 6, 2, 3].item() == pytest.approx(
        (pixels[0, 0, 2 * 4 + 1, 3 * 4 + 2].item() - stand_in.mean) / stand_in.std
    )
