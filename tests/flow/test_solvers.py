"""Flow solvers on data whose velocity is known."""

import pytest
import torch

from disa.flow import SOLVERS, interpolate, linspace, velocity_loss
from disa.solver import get_solver

MEAN, STD = 0.7, 0.3


def exact_velocity(x, t):
    """E[noise - x0 | x_t] of data ~ N(0.7, 0.3²)."""
    variance = ((1 - t) * STD) ** 2 + t**2
    return -MEAN + (t - (1 - t) * STD**2) / variance * (x - (1 - t) * MEAN)


def draw(name, steps):
    solver = SOLVERS[name]
    noise = torch.randn(solver.draws(linspace(1, 0, steps + 1)), 10000, 1, generator=torch.Generator().manual_seed(0))
    return solver, noise


@pytest.mark.parametrize("name", SOLVERS)
def test_samples_have_the_data_distribution(name):
    solver, noise = draw(name, 200)
    samples = solver.solve(exact_velocity, noise, linspace(1, 0, 201))
    assert samples.dtype == torch.float64
    assert samples.mean().item() == pytest.approx(MEAN, abs=0.02)
    assert samples.std().item() == pytest.approx(STD, rel=0.03)


@pytest.mark.parametrize("name", SOLVERS)
def test_evaluations_are_counted(name):
    calls = []
    solver, noise = draw(name, 7)
    solver.solve(lambda x, t: calls.append(t) or exact_velocity(x, t), noise, linspace(1, 0, 8))
    assert len(calls) == solver.evaluations(linspace(1, 0, 8))
    assert 0 not in calls


def test_heun_converges_faster():
    def error(name, steps):
        solver, noise = draw(name, steps)
        exact = MEAN + STD * noise[0].double()  # of this field the flow only shifts and scales
        return (solver.solve(exact_velocity, noise, linspace(1, 0, steps + 1)) - exact).abs().mean()

    assert error("heun", 20) < error("euler", 20) / 3
    assert error("euler", 40) < 0.6 * error("euler", 20)
    assert error("heun", 40) < 0.35 * error("heun", 20)


def test_temperature_scales_the_noise_between_steps():
    solver, noise = draw("euler_maruyama", 50)
    times = linspace(1, 0, 51)
    spread = [solver.solve(exact_velocity, noise, times, temperature).std() for temperature in (0.5, 1.0)]
    assert spread[0] < 0.8 * spread[1]
    still = solver.solve(exact_velocity, noise, times, 0.0)
    assert torch.equal(still, solver.solve(exact_velocity, torch.cat([noise[:1], 5 + noise[1:]]), times, 0.0))


def test_path_and_loss():
    x0, noise = torch.randn(2, 3, 4), torch.randn(2, 3, 4)
    assert torch.equal(interpolate(x0, noise, torch.zeros(2)), x0)
    assert torch.equal(interpolate(x0, noise, torch.ones(2)), noise)
    t = torch.tensor([0.2, 0.6])
    torch.testing.assert_close(interpolate(x0, noise, t)[1], 0.4 * x0[1] + 0.6 * noise[1])
    assert velocity_loss(noise - x0, x0, noise) == 0
    assert velocity_loss(noise - x0 + 2, x0, noise) == pytest.approx(4)


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match="'rk4'; allowed are euler, euler_maruyama, heun"):
        get_solver(SOLVERS, "rk4")
