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


@pytest.mark.parametrize(
    ("name", "order"),
    [("DPM_Solver", 1), ("DPM_Solver++", 1), ("DPM_Solver++2M", 2), ("DEIS2", 2), ("UniPC2", 3), ("UniPC3", 3)],
)
def test_order_of_convergence(name, order):
    """On the Gaussian, whose flow shifts and scales, at times even in log(alpha / sigma); correctors add an order.

    UniPC-3 begins and ends with less, which holds it to order 3.
    """
    fine = np.linspace(1 / 951, 0.95, 100001)

    def network(x, t):
        alpha, sigma, _ = half_log_snr(t / 1000)
        return sigma * (x - alpha * MEAN) / (alpha**2 * STD**2 + sigma**2), None

    def error(count):
        first, last = half_log_snr(0.95)[2], half_log_snr(1 / 951)[2]
        times = 1000 * np.interp(-np.linspace(first, last, count + 1)[:-1], -half_log_snr(fine)[2], fine)
        noise = torch.linspace(-2, 2, 101, dtype=torch.float64)[None, :, None]
        (alpha, sigma, _), (last_alpha, last_sigma, _) = half_log_snr(0.95), half_log_snr(1 / 951)
        ratio = math.hypot(last_alpha * STD, last_sigma) / math.hypot(alpha * STD, sigma)
        exact = last_alpha * MEAN + ratio * (noise[0] - alpha * MEAN)
        return (SOLVERS[name].solve(network, noise, times.tolist()) - exact).abs().max().item()

    assert math.log2(error(40) / error(160)) / 2 == pytest.approx(order, abs=0.2)


def test_few_steps_of_a_higher_order_are_better():
    """At the times that are visited in use; on two peaks, where the flow is no longer linear."""

    def network(x, t):
        alpha, sigma, _ = half_log_snr(t / 1000)
        variance = 0.04 * alpha**2 + sigma**2
        away = torch.stack([x - alpha, x + alpha])
        weights = (-away.square() / (2 * variance)).softmax(0)
        return sigma * (weights * away).sum(0) / variance, None

    noise = torch.linspace(-2, 2, 101, dtype=torch.float64)[None, :, None]

    def solve(name, count):
        return SOLVERS[name].solve(network, noise, SOLVERS[name].times(count))

    exact = solve("UniPC2", 1000)
    errors = {name: (solve(name, 20) - exact).abs().mean() for name, one in SOLVERS.items() if one.draws(range(3)) == 1}
    for name in ("DPM_Solver++2M", "DEIS2", "UniPC2", "UniPC3"):
        assert errors[name] < errors["DPM_Solver++"] / 1.5


def test_order_1_of_both_dpm_solvers_is_the_same_step():
    noise = torch.linspace(-2, 2, 11, dtype=torch.float64)[None, :, None]
    timesteps = SOLVERS["DPM_Solver"].times(7)
    first, second = (SOLVERS[name].solve(exact_network, noise, timesteps) for name in ("DPM_Solver", "DPM_Solver++"))
    assert torch.allclose(first, second, rtol=1e-9)


@pytest.mark.parametrize("name", ["DiSA", "DPM_Solver++2M_SDE"])
def test_temperature_scales_the_noise_of_steps(name):
    timesteps = SOLVERS[name].times(5)
    noise = torch.randn(SOLVERS[name].draws(timesteps), 4000, 1, generator=torch.Generator().manual_seed(0))
    solve = SOLVERS[name].solve
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
@pytest.mark.parametrize(
    ("name", "order"), [("DPM_Solver", 1), ("DPM_Solver++", 1), ("DPM_Solver++2M", 2), ("DPM_Solver++2M_SDE", 2)]
)
def test_dpm_steps_are_the_papers(name, order, count):
    """In x0, as DPM-Solver++'s algorithm 2 says, and for the SDE its appendix; order 1 is also DPM-Solver's."""
    timesteps, sde = SOLVERS[name].times(count), name.endswith("SDE")
    noise = (
        torch.linspace(-1, 1, 5, dtype=torch.float64)[None, :, None]
        * torch.arange(1, 1 + (count if sde else 1))[:, None, None]
    )
    alpha, sigma, log_snr = half_log_snr(np.append(np.array(timesteps) / 1000, 1 / 951))
    x, guesses = noise[0], []
    for i, t in enumerate(timesteps):
        guesses.append((x - sigma[i] * torch.sin(x + t)) / alpha[i])
        guess, step = guesses[-1], log_snr[i + 1] - log_snr[i]
        if order == 2 and 0 < i < count - 1:
            r = (log_snr[i] - log_snr[i - 1]) / step
            guess = (1 + 1 / (2 * r)) * guesses[-1] - 1 / (2 * r) * guesses[-2]
        if sde:
            x = sigma[i + 1] / sigma[i] * math.exp(-step) * x - alpha[i + 1] * math.expm1(-2 * step) * guess
            if i < count - 1:
                x = x + 0.7 * sigma[i + 1] * math.sqrt(-math.expm1(-2 * step)) * noise[i + 1]
        else:
            x = sigma[i + 1] / sigma[i] * x - alpha[i + 1] * math.expm1(-step) * guess
    samples = SOLVERS[name].solve(lambda x, t: (torch.sin(x + t), x), noise, timesteps, 0.7)
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
        "SDE-DPM-Solver++(2M)",
        "DEIS-2",
        "UniPC-2",
        "UniPC-3",
    ]
    assert [name for name, solver in SOLVERS.items() if not solver.annealed] == ["default"]
    assert [solver.draws(range(3)) for solver in SOLVERS.values()] == [4, 4, 4, 1, 1, 1, 3, 1, 1, 1]
