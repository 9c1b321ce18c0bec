"""Tables of the process, respacing, and the parts of the loss."""

import math

import numpy as np
import pytest
import torch

from disa.diffusion.process import GaussianProcess, cosine_betas, discretized_log_likelihood, gaussian_kl


def test_alpha_bar_follows_the_cosine():
    alpha_bar = GaussianProcess().alpha_bar
    u = np.arange(1, 1001) / 1000
    expected = np.cos((u + 0.008) / 1.008 * np.pi / 2) ** 2 / math.cos(0.008 / 1.008 * math.pi / 2) ** 2
    assert np.allclose(alpha_bar[:990], expected[:990], rtol=1e-9)
    assert cosine_betas().max() == 0.999


def test_respaced_process_keeps_alpha_bar_and_its_posterior_composes():
    full, respaced = GaussianProcess(), GaussianProcess((0, 100, 500, 950))
    assert np.array_equal(respaced.alpha_bar, full.alpha_bar[[0, 100, 500, 950]])
    # The posterior mean of a noiseless sample is the noiseless sample of the step before.
    before = np.append(1.0, respaced.alpha_bar[:-1])
    assert np.allclose(respaced.x0_weight + respaced.x_weight * np.sqrt(respaced.alpha_bar), np.sqrt(before))


def test_gaussian_kl_is_torchs():
    mean1, mean2, log_variance1, log_variance2 = torch.randn(4, 100, generator=torch.Generator().manual_seed(0))
    normal = torch.distributions.Normal
    expected = torch.distributions.kl_divergence(
        normal(mean1, (log_variance1 / 2).exp()), normal(mean2, (log_variance2 / 2).exp())
    )
    assert torch.allclose(gaussian_kl(mean1, log_variance1, mean2, log_variance2), expected, atol=1e-5)


def test_discretized_likelihood_sums_to_one():
    centres = torch.linspace(-1, 1, 256)
    log_p = discretized_log_likelihood(centres, torch.tensor(0.3), torch.tensor(-1.5))
    assert log_p.exp().sum().item() == pytest.approx(1, abs=1e-4)
    assert centres[log_p[1:-1].argmax() + 1].item() == pytest.approx(0.3, abs=0.01)


def test_variance_loss_does_not_train_epsilon():
    process = GaussianProcess()
    x0, noise = torch.randn(2, 8, 16, generator=torch.Generator().manual_seed(0))
    t = torch.tensor([0, 1, 10, 100, 500, 800, 950, 999])
    xt = process.add_noise(x0, t, noise)
    epsilon, v = noise.clone().requires_grad_(), torch.zeros(8, 16, requires_grad=True)
    loss = process.loss(epsilon, v, x0, xt, t, noise)
    assert loss.shape == (8,)
    loss.sum().backward()
    assert epsilon.grad.abs().max() == 0  # its squared error is at its minimum, and the bound sees it detached
    assert v.grad.abs().min() > 0
