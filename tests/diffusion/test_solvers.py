"""Timesteps against the recorded ones; solvers against distributions whose score is known."""

import math

import numpy as np
import pytest
import torch

from disa.diffusion import SOLVERS, GaussianProcess
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
