"""Tokenizers on shapes and data that the reference outputs do not cover."""

import pytest
import torch

from disa.models.tokenizer import FASHION_MEAN, FASHION_STD, AttentionBlock, AutoencoderKL
from disa.training.data import DEBIAN_FASHION_MNIST, fashion_mnist


@torch.no_grad()
def test_oblong_images():
    torch.manual_seed(0)
    model = AutoencoderKL(latent_channels=4, width=32).eval()
    images = torch.rand(2, 3, 32, 64) * 2 - 1
    latents = model.encode(images, torch.randn(model.latent_shape(images)))
    assert latents.shape == (2, 4, 2, 4)
    assert model.decode(latents).shape == images.shape


@torch.no_grad()
def test_attention_is_over_all_positions_of_an_oblong_grid():
    torch.manual_seed(0)
    block, x = AttentionBlock(32), torch.randn(1, 32, 2, 3)
    q, k, v = (layer(block.norm(x)).flatten(2)[0] for layer in (block.q, block.k, block.v))  # [C, HW]
    mixed = torch.einsum("qk,ck->cq", (torch.einsum("cq,ck->qk", q, k) / 32**0.5).softmax(1), v)
    assert torch.allclose(block(x), x + block.proj_out(mixed.view(1, 32, 2, 3)), atol=1e-5)


@pytest.mark.skipif(not DEBIAN_FASHION_MNIST.is_dir(), reason="Fashion-MNIST is not on this machine, and tests download nothing")
def test_fashion_constants_are_those_of_the_data():
    images = fashion_mnist(True)[0]
    mean = images.sum(dtype=torch.int64).item() / images.numel()
    square = sum(chunk.int().square().sum(dtype=torch.int64).item() for chunk in images.split(10_000)) / images.numel()
    assert pytest.approx(mean / 127.5 - 1, abs=5e-5) == FASHION_MEAN
    assert pytest.approx((square - mean**2) ** 0.5 / 127.5, abs=5e-5) == FASHION_STD
