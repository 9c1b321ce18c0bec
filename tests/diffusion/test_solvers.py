"""Timesteps against the recorded ones; solvers against distributions whose score is known."""

import math

import numpy as np
import pytest
import torch

from disa.diffusion import SOLVERS, GaussianProcess
from disa.diffusion.solvers import even_timesteps
from disa.solver import get_solver
from tests.conftest import load_json

ALPHA_BAR = GaussianProcess().alpha_bar
MEAN, STD = 0.7, 0.3


def exact_network(x, t):
    """Epsilon of data ~ N(0.7, 0.3²), whose noised marginals are Gaussian; and the posterior variance, at v = -1."""
    alpha_bar = np.interp(t, np.arange(1000), ALPHA_BAR)
    variance = alpha_bar * STD**2 + 1 - alpha_bar
    epsilon = math.sqrt(1 - alpha_bar) * (x - math.sqrt(alpha_bar) * MEAN) / variance
    return epsilon, torch.full_like(x, -1.0)


def test_recorded_timesteps():
    recorded = load_json("schedules.json")["timesteps"]
    assert len(recorded) == 37
    for case, timesteps in recorded.items():
        name, count = case.split("/")
        assert list(SOLVERS[name].times(int(count))) == timesteps, case


@pytest.mark.parametrize("name", SOLVERS)
def test_samples_have_the_data_distribution(name):
    solver = SOLVERS[name]
    timesteps = solver.times(200)
    noise = torch.randn(solver.draws(timesteps), 10000, 1, generator=torch.Generator().manual_seed(0))
    samples = solver.solve(exact_network, noise, timesteps)
    assert samples.mean().item() == pytest.approx(MEAN, abs=0.03)
    assert samples.std().item() == pytest.approx(STD, rel=0.06)


def test_order_2_converges_faster():
    def error(name, count):
        solver = SOLVERS[name]
        noise = torch.linspace(-2, 2, 101, dtype=torch.float64)[None, :, None]
        exact = solver.solve(exact_network, noise, solver.times(1000))
        return (solver.solve(exact_network, noise, solver.times(count)) - exact).abs().max().item()

    assert error("DPM_Solver++2M", 20) < 0.5 * error("DPM_Solver++", 20)
    assert error("DPM_Solver++", 40) < 0.7 * error("DPM_Solver++", 20)


def test_order_1_of_both_dpm_solvers_is_the_same_step():
    noise = torch.linspace(-2, 2, 11, dtype=torch.float64)[None, :, None]
    timesteps = SOLVERS["DPM_Solver"].times(7)
    first, second = (SOLVERS[name].solve(exact_network, noise, timesteps) for name in ("DPM_Solver", "DPM_Solver++"))
    assert torch.allclose(first, second, rtol=1e-9)


def test_temperature_scales_the_noise_of_ancestral_steps():
    noise = torch.randn(6, 4000, 1, generator=torch.Generator().manual_seed(0))
    timesteps = SOLVERS["DiSA"].times(5)
    solve = SOLVERS["DiSA"].solve
    assert solve(exact_network, noise, timesteps, 0.5).std() < solve(exact_network, noise, timesteps, 1.0).std()
    still = noise.clone()
    still[1:] = 0
    assert torch.equal(solve(exact_network, noise, timesteps, 0.0), solve(exact_network, still, timesteps, 1.0))


def test_unknown_names_and_impossible_counts_are_refused():
    with pytest.raises(ValueError, match="'PLMS'"):
        get_solver(SOLVERS, "PLMS")
    with pytest.raises(ValueError, match="1001"):
        SOLVERS["DDIM"].times(1001)


@pytest.mark.parametrize("name", ["DiSA", "default"])
def test_ancestral_steps_are_equation_15s(name):
    """Each step is drawn from the posterior, whose log variance is half-way where v is 0; the last one is its mean."""
    process = GaussianProcess((3, 100, 500))
    noise = torch.randn(4, 5, 2, generator=torch.Generator().manual_seed(0))

    def network(x, t):
        return torch.sin(x + t), torch.cos(x) / 2

    x = noise[0].double()
    for i in (2, 1, 0):
        alpha_bar, low, high = process.alpha_bar[i], process.posterior_log_variance[i], process.log_beta[i]
        epsilon, v = network(x, process.timesteps[i])
        x0 = (x - math.sqrt(1 - alpha_bar) * epsilon) / math.sqrt(alpha_bar)
        x = process.x0_weight[i] * x0 + process.x_weight[i] * x
        if i:
            x = x + 0.7 * (low / 2 + (v + 1) / 4 * (high - low)).exp() * noise[3 - i]
    samples = SOLVERS[name].solve(network, noise, process.timesteps, 0.7)
    assert samples.dtype == torch.float32
    assert torch.allclose(samples.double(), x, rtol=1e-4, atol=1e-5)


def test_ddim_steps_are_equation_12s():
    process, noise = GaussianProcess((3, 100, 500)), torch.linspace(-1, 1, 5)[None, :, None]
    x = noise[0].double()
    for i in (2, 1, 0):
        alpha_bar, before = process.alpha_bar[i], process.alpha_bar[i - 1] if i else 1.0
        epsilon = torch.sin(x + process.timesteps[i])
        x = math.sqrt(before) * (x - math.sqrt(1 - alpha_bar) * epsilon) / math.sqrt(alpha_bar)
        x = x + math.sqrt(1 - before) * epsilon
    samples = SOLVERS["DDIM"].solve(lambda x, t: (torch.sin(x + t), x), noise, process.timesteps)
    assert torch.allclose(samples.double(), x, rtol=1e-4, atol=1e-5)


def half_log_snr(time):
    """alpha, sigma, log(alpha / sigma) of DPM-Solver's schedule: log alpha is piecewise linear in the time."""
    log_alpha = np.interp(time, 0.95 * np.arange(1, 952) / 951, np.log(ALPHA_BAR[:951]) / 2)
    sigma = np.sqrt(1 - np.exp(2 * log_alpha))
    return np.exp(log_alpha), sigma, log_alpha - np.log(sigma)


@pytest.mark.parametrize("count", [1, 2, 5])
@pytest.mark.parametrize(("name", "order"), [("DPM_Solver", 1), ("DPM_Solver++", 1), ("DPM_Solver++2M", 2)])
def test_dpm_steps_are_the_papers(name, order, count):
    """In x0, as DPM-Solver++'s algorithm 2 says; its first order is also DPM-Solver's."""
    timesteps, noise = SOLVERS[name].times(count), torch.linspace(-1, 1, 5, dtype=torch.float64)[None, :, None]
    alpha, sigma, log_snr = half_log_snr(np.append(np.array(timesteps) / 1000, 1 / 951))
    x, guesses = noise[0], []
    for i, t in enumerate(timesteps):
        guesses.append((x - sigma[i] * torch.sin(x + t)) / alpha[i])
        guess, step = guesses[-1], log_snr[i + 1] - log_snr[i]
        if order == 2 and 0 < i < count - 1:
            r = (log_snr[i] - log_snr[i - 1]) / step
            guess = (1 + 1 / (2 * r)) * guesses[-1] - 1 / (2 * r) * guesses[-2]
        x = sigma[i + 1] / sigma[i] * x - alpha[i + 1] * math.expm1(-step) * guess
    samples = SOLVERS[name].solve(lambda x, t: (torch.sin(x + t), x), noise, timesteps)
    assert torch.allclose(samples, x, rtol=1e-6, atol=1e-8)


def test_bounds_of_the_counts():
    assert even_timesteps(1) == (0,)
    assert even_timesteps(1000) == tuple(range(1000))
    for count in (0, 1001):
        with pytest.raises(ValueError, match=f"{count} diffusion steps cannot be taken; there are 1 to 1000"):
            even_timesteps(count)
    assert SOLVERS["DDIM"].times(1) == (0,)
    assert SOLVERS["DDIM"].times(1000) == tuple(range(981))
    with pytest.raises(ValueError, match="DDIM cannot take 0"):
        SOLVERS["DDIM"].times(0)


def test_what_tables_call_the_solvers():
    assert [solver.label for solver in SOLVERS.values()] == [
        "ancestral, t ≤ 950",
        "ancestral",
        "DDIM",
        "DPM-Solver",
        "DPM-Solver++",
        "DPM-Solver++(2M)",
    ]
    assert [name for name, solver in SOLVERS.items() if not solver.annealed] == ["default"]
    assert [solver.draws(range(3)) for solver in SOLVERS.values()] == [4, 4, 4, 1, 1, 1]
