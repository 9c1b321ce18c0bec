"""Tables of the process, respacing, and the parts of the loss."""

import math

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from disa.diffusion.process import GaussianProcess, cosine_betas, discretized_log_likelihood, gaussian_kl
from tests.models.test_synchronization import NoWaiting


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


def test_tables_are_those_of_the_posterior():
    """DDPM, eq. 6 and 7, over the kept timesteps; the variance's end above is beta."""
    process = GaussianProcess((3, 100, 500))
    alpha_bar, before = process.alpha_bar, np.append(1.0, process.alpha_bar[:-1])
    beta = 1 - alpha_bar / before
    variance = (1 - before) / (1 - alpha_bar) * beta
    assert np.allclose(process.log_beta, np.log(beta))
    assert np.allclose(process.posterior_log_variance[1:], np.log(variance[1:]))
    assert process.posterior_log_variance[0] == process.posterior_log_variance[1]
    assert np.allclose(process.x0_weight, np.sqrt(before) * beta / (1 - alpha_bar))
    assert np.allclose(process.x_weight, np.sqrt(1 - beta) * (1 - before) / (1 - alpha_bar))
    alone = GaussianProcess((500,))
    assert alone.posterior_log_variance[0] == alone.log_beta[0] == np.log(1 - alone.alpha_bar[0])
    two = GaussianProcess((3, 100))
    assert two.posterior_log_variance.tolist() == process.posterior_log_variance[:2].tolist()
    expected = np.stack([alpha_bar**0.5, (1 - alpha_bar) ** 0.5, process.x0_weight, process.x_weight])
    tables = process.tables(torch.device("cpu"))
    assert tables.dtype == torch.float32
    assert np.allclose(tables[:4], expected)
    assert np.allclose(tables[4:], [process.log_beta, process.posterior_log_variance])


def test_tables_are_copied_to_a_device_once():
    process = GaussianProcess()
    assert process.tables(torch.device("cpu")) is process.tables(torch.device("cpu"))
    with FakeTensorMode(allow_non_fake_inputs=True):
        x, t = torch.empty(4, 2, device="cuda"), torch.zeros(4, dtype=torch.long, device="cuda")
        with NoWaiting() as watched:
            for _ in range(2):  # steps of training
                process.loss(x, x, x, process.add_noise(x, t, x), t, x)
    assert watched.copies == 1


def test_betas_follow_equation_17():
    def alpha_bar(u):
        return math.cos((u + 0.008) / 1.008 * math.pi / 2) ** 2

    assert np.allclose(cosine_betas(4), [min(0.999, 1 - alpha_bar(i / 4 + 0.25) / alpha_bar(i / 4)) for i in range(4)])
    assert cosine_betas(4, 0.5).max() == 0.5
    assert GaussianProcess().timesteps == tuple(range(1000))


def test_a_process_over_the_same_timesteps_is_made_once():
    assert GaussianProcess.over((1, 2)) is GaussianProcess.over((1, 2))
    assert GaussianProcess.over((1, 2)).timesteps == (1, 2)


def test_noised_data():
    process = GaussianProcess()
    x0, noise = torch.randn(2, 3, 16, generator=torch.Generator().manual_seed(0))
    t = torch.tensor([0, 500, 999])
    share = torch.from_numpy(process.alpha_bar[t])[:, None]
    expected = share.sqrt() * x0 + (1 - share).sqrt() * noise
    assert torch.allclose(process.add_noise(x0, t, noise), expected.float(), atol=1e-6)


def test_loss_is_the_squared_error_plus_the_bound():
    """Written out for each row from the posterior itself."""
    process, normal = GaussianProcess(), torch.distributions.Normal
    x0, noise, epsilon, v = torch.randn(4, 3, 16, generator=torch.Generator().manual_seed(0))
    x0, v = x0.clamp(-1, 1), v.clamp(-1, 1)
    t = torch.tensor([0, 300, 999])
    xt = process.add_noise(x0, t, noise)
    loss = process.loss(epsilon, v, x0, xt, t, noise)
    for row, step in enumerate(t.tolist()):
        alpha_bar, low, high = (
            float(table[step]) for table in (process.alpha_bar, process.posterior_log_variance, process.log_beta)
        )
        weights = float(process.x0_weight[step]), float(process.x_weight[step])
        guess = (xt[row] - math.sqrt(1 - alpha_bar) * epsilon[row]) / math.sqrt(alpha_bar)
        mean = weights[0] * guess + weights[1] * xt[row]
        log_variance = low + (v[row] + 1) / 2 * (high - low)
        if step:
            truth = normal(weights[0] * x0[row] + weights[1] * xt[row], math.exp(low / 2))
            bound = torch.distributions.kl_divergence(truth, normal(mean, (log_variance / 2).exp()))
        else:
            bound = -discretized_log_likelihood(x0[row], mean, log_variance / 2)
        expected = (epsilon[row] - noise[row]).square().mean() + bound.mean() / math.log(2)
        assert loss[row].item() == pytest.approx(expected.item(), rel=1e-4)


def test_discretized_likelihood_is_the_gaussians_in_a_bin():
    x = torch.linspace(-1, 1, 256, dtype=torch.float64)
    mean, log_scale = torch.tensor(0.3), torch.tensor(-1.5)
    cdf = torch.distributions.Normal(mean, log_scale.exp()).cdf
    upper, lower = cdf(x + 1 / 255), cdf(x - 1 / 255)
    upper[-1], lower[0] = 1, 0
    assert torch.allclose(discretized_log_likelihood(x, mean, log_scale).exp(), upper - lower, atol=2e-4)
    far = discretized_log_likelihood(torch.tensor(0.0), torch.tensor(50.0), torch.tensor(-1.5))
    assert far.item() == pytest.approx(math.log(1e-12))
    # The outermost bins reach to infinity, and they alone.
    inside = discretized_log_likelihood(torch.tensor([0.99, -0.99]), torch.tensor([0.99, -0.99]), torch.tensor(-1.0))
    assert inside.exp().max() < 0.01
    assert discretized_log_likelihood(torch.tensor(-1.0), torch.tensor(-9.0), torch.tensor(0.0)).item() == 0
    assert discretized_log_likelihood(torch.tensor(1.0), torch.tensor(9.0), torch.tensor(0.0)).item() == 0
