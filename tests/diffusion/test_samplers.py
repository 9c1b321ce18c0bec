"""Timesteps against the recorded ones; solvers against distributions whose score is known."""

import math

import numpy as np
import pytest
import torch

from disa import StepSchedule
from disa.diffusion import SAMPLERS, GaussianProcess, get_sampler, step_timesteps
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
        assert list(SAMPLERS[name].timesteps(int(count))) == timesteps, case


@pytest.mark.parametrize("name", SAMPLERS)
def test_samples_have_the_data_distribution(name):
    sampler = get_sampler(name)
    timesteps = sampler.timesteps(200)
    noise = torch.randn(sampler.draws(len(timesteps)), 10000, 1, generator=torch.Generator().manual_seed(0))
    samples = sampler.solve(exact_network, noise, timesteps)
    assert samples.mean().item() == pytest.approx(MEAN, abs=0.03)
    assert samples.std().item() == pytest.approx(STD, rel=0.06)


def test_order_2_converges_faster():
    def error(name, count):
        sampler = get_sampler(name)
        noise = torch.linspace(-2, 2, 101, dtype=torch.float64)[None, :, None]
        exact = sampler.solve(exact_network, noise, sampler.timesteps(1000))
        return (sampler.solve(exact_network, noise, sampler.timesteps(count)) - exact).abs().max().item()

    assert error("DPM_Solver++2M", 20) < 0.5 * error("DPM_Solver++", 20)
    assert error("DPM_Solver++", 40) < 0.7 * error("DPM_Solver++", 20)


def test_order_1_of_both_dpm_solvers_is_the_same_step():
    noise = torch.linspace(-2, 2, 11, dtype=torch.float64)[None, :, None]
    timesteps = get_sampler("DPM_Solver").timesteps(7)
    first, second = (get_sampler(name).solve(exact_network, noise, timesteps) for name in ("DPM_Solver", "DPM_Solver++"))
    assert torch.allclose(first, second, rtol=1e-9)


def test_temperature_scales_the_noise_of_ancestral_steps():
    noise = torch.randn(6, 4000, 1, generator=torch.Generator().manual_seed(0))
    timesteps = get_sampler("DiSA").timesteps(5)
    solve = get_sampler("DiSA").solve
    assert solve(exact_network, noise, timesteps, 0.5).std() < solve(exact_network, noise, timesteps, 1.0).std()
    still = noise.clone()
    still[1:] = 0
    assert torch.equal(solve(exact_network, noise, timesteps, 0.0), solve(exact_network, still, timesteps, 1.0))


def test_planned_timesteps_follow_schedule_and_sampler():
    schedule = StepSchedule(50, 5)
    assert [len(t) for t in step_timesteps("DiSA", schedule, 4)] == [48, 34, 20, 5]
    assert [len(t) for t in step_timesteps("default", schedule, 4)] == [50] * 4


def test_unknown_names_and_impossible_counts_are_refused():
    with pytest.raises(ValueError, match="'PLMS'"):
        get_sampler("PLMS")
    with pytest.raises(ValueError, match="1001"):
        get_sampler("DDIM").timesteps(1001)
