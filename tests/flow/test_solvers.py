"""Flow solvers on data whose velocity is known."""

import math
from types import SimpleNamespace

import pytest
import torch

from disa.flow import SOLVERS, interpolate, linspace, velocity_loss
from disa.flow.solvers import _state
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


@pytest.mark.parametrize(
    ("name", "order"),
    [("euler", 1), ("heun", 2), ("adams_bashforth2", 2), ("unipc2", 3)],  # a corrector adds an order
)
def test_order_of_convergence(name, order):
    def error(steps):
        solver, noise = draw(name, steps)
        exact = MEAN + STD * noise[0].double()  # of this field the flow only shifts and scales
        return (solver.solve(exact_velocity, noise, linspace(1, 0, steps + 1)) - exact).abs().mean().item()

    assert math.log2(error(40) / error(160)) / 2 == pytest.approx(order, abs=0.15)


def test_evaluations_of_a_higher_order_are_worth_more():
    """After the same evaluations; on two peaks, where the flow is no longer linear."""

    def velocity(x, t):
        variance = ((1 - t) * 0.2) ** 2 + t**2
        away = torch.stack([x - (1 - t), x + (1 - t)])
        weights = (-away.square() / (2 * variance)).softmax(0)
        mean = torch.tensor([1.0, -1.0], dtype=x.dtype)[:, None, None]
        return (weights * ((t - (1 - t) * 0.04) / variance * away - mean)).sum(0)

    noise = torch.linspace(-2, 2, 101, dtype=torch.float64)[None, :, None]

    def solve(name, steps):
        return SOLVERS[name].solve(velocity, noise, linspace(1, 0, steps + 1))

    exact = solve("unipc2", 2000)
    steps = {"euler": 16, "heun": 8, "adams_bashforth2": 16, "unipc2": 16}
    errors = {name: (solve(name, count) - exact).abs().mean() for name, count in steps.items()}
    assert errors["unipc2"] < errors["adams_bashforth2"] / 2 < errors["heun"] / 2 < errors["euler"] / 2


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


def field(x, t):
    """A velocity without a known solution, in float32 as a network gives it."""
    return torch.sin(3 * x + t).float()


TIMES = (1.0, 0.7, 0.3, 0.0)


def test_steps_are_the_methods():
    """Euler, Heun and Euler–Maruyama written out at uneven times."""
    noise = torch.randn(3, 5, 2, generator=torch.Generator().manual_seed(0))
    euler = heun = drawn = noise[0].double()
    for i in range(3):
        t, step = TIMES[i], TIMES[i + 1] - TIMES[i]
        euler = euler + step * field(euler, t)
        slope = field(heun, t).double()
        if i < 2:
            slope = (slope + field(heun + step * slope, TIMES[i + 1])) / 2
        heun = heun + step * slope
        drawn = drawn + step * ((2 - t) * field(drawn, t) + drawn)
        if i < 2:
            drawn = drawn + 0.7 * math.sqrt(2 * t * -step) * noise[i + 1]
    for name, expected in (("euler", euler), ("heun", heun), ("euler_maruyama", drawn)):
        samples = SOLVERS[name].solve(field, noise, TIMES, 0.7)
        assert samples.dtype == torch.float64
        torch.testing.assert_close(samples, expected, rtol=1e-6, atol=1e-6)


def test_noise_is_added_in_full_unless_told():
    noise = torch.randn(3, 5, 2, generator=torch.Generator().manual_seed(0))
    solve = SOLVERS["euler_maruyama"].solve
    assert torch.equal(solve(field, noise, TIMES), solve(field, noise, TIMES, 1.0))


def test_what_tables_call_the_solvers_and_what_they_cost():
    assert [(one.label, one.evaluations(TIMES), one.draws(TIMES)) for one in SOLVERS.values()] == [
        ("Euler", 3, 1),
        ("Euler–Maruyama", 3, 3),
        ("Heun", 5, 1),
        ("Adams–Bashforth 2", 3, 1),
        ("UniPC-2", 3, 1),
    ]


def test_times_are_float64():
    assert linspace(1, 0, 6) == pytest.approx((1, 0.8, 0.6, 0.4, 0.2, 0), abs=1e-15)
    assert linspace(0.0, 0.3, 4)[1] == 0.3 / 3


@pytest.mark.parametrize(("device", "expected"), [("cpu", "float64"), ("cuda", "float64"), ("mps", "float32")])
def test_apples_gpus_have_nothing_wider_than_float32(device, expected):
    noise = SimpleNamespace(device=torch.device(device), float=lambda: "float32", double=lambda: "float64")
    assert _state(noise) == expected
