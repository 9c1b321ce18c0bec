"""KL-16 against the reference outputs; the small tokenizer's losslessness."""

import numpy as np
import pytest
import torch

from disa.models.vae import KL16_SCALE, AutoencoderKL, SpaceToDepth, sample_moments
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


def test_space_to_depth_is_lossless():
    pixels = torch.arange(2 * 32 * 32).remainder(256).view(2, 1, 32, 32).float() / 127.5 - 1
    tokenizer = SpaceToDepth()
    latents = tokenizer.encode(pixels)
    assert latents.shape == (2, 16, 8, 8)
    restored = ((tokenizer.decode(latents) + 1) * 127.5).round()
    assert torch.equal(restored, ((pixels + 1) * 127.5).round())
    # channel c of a latent is pixel (c // 4, c % 4) of its block
    assert latents[0, 6, 2, 3].item() == pytest.approx(
        (pixels[0, 0, 2 * 4 + 1, 3 * 4 + 2].item() - tokenizer.mean) / tokenizer.std
    )
