"""Multistep methods: exact where f is a polynomial, and of their order elsewhere."""

import itertools
import math

import numpy as np
import pytest
import torch

from disa.multistep import lagrange_weights, multistep

GRID = [0.0, 0.5, 0.8, 1.5, 1.7, 2.0]
START = torch.tensor([0.5, -1.0], dtype=torch.float64)


def primitive(power, rate, u):
    """A primitive of exp(rate · u) u^power."""
    if rate == 0:
        return u ** (power + 1) / (power + 1)
    below = primitive(power - 1, rate, u) if power else 0.0
    return (u**power * math.exp(rate * u) - power * below) / rate


@pytest.mark.parametrize("rate", [0.0, 1.0, -0.5])
@pytest.mark.parametrize("nodes", [(0.3,), (1.0, 0.3), (0.1, 0.7, 1.6)])
def test_weights_integrate_polynomials_through_their_nodes(rate, nodes):
    start, end = 0.4, 1.9
    weights = lagrange_weights(nodes, start, end, rate)
    for power in range(len(nodes)):
        exact = math.exp(-rate * end) * (primitive(power, rate, end) - primitive(power, rate, start))
        assert sum(w * node**power for w, node in zip(weights, nodes, strict=True)) == pytest.approx(exact, rel=1e-12)


def test_weights_are_exact_over_the_longest_step():
    """Ten units of log(alpha / sigma) in one step."""
    assert lagrange_weights((-4.0,), -4.0, 6.0, 1.0) == pytest.approx([1 - math.exp(-10)], rel=1e-12)


@pytest.mark.parametrize("rate", [0.0, 1.0])
@pytest.mark.parametrize("correct", [False, True])
def test_one_value_is_an_exponential_euler_step(rate, correct):
    """A constant f is integrated exactly, whatever the scales."""
    scales = [2.0, 1.5, 1.0, 0.7, 0.4, 0.1]
    weight = (2 * math.exp(rate * GRID[-1]) - 2 * math.exp(rate * GRID[0])) / rate if rate else 2 * (GRID[-1] - GRID[0])
    found = multistep(lambda x, _: torch.full_like(x, 2), START, GRID, scales, order=1, rate=rate, correct=correct)
    torch.testing.assert_close(found, 0.1 * (START / 2 + weight), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("steps", [1, 2, 3, 5])
@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("correct", [False, True])
@pytest.mark.parametrize("rate", [0.0, 1.0])
def test_each_point_but_the_last_is_evaluated_once(steps, order, correct, rate):
    seen = []

    def function(x, i):
        seen.append(i)
        return -x

    multistep(function, START, GRID[: steps + 1], [1.0] * (steps + 1), order=order, rate=rate, correct=correct)
    assert seen == list(range(steps))


@pytest.mark.parametrize("steps", [1, 2, 3, 5])
@pytest.mark.parametrize("rate", [0.0, 1.0])
def test_second_order_is_adams_and_bashforths(steps, rate):
    """Written out: the polynomial through the last two values; of log(alpha / sigma), the last step has one."""
    x, values = START, []
    for i, (u, end) in enumerate(itertools.pairwise(GRID[: steps + 1])):
        values.append(torch.sin(x) + i)
        integral = [math.exp(-rate * end) * (primitive(p, rate, end) - primitive(p, rate, u)) for p in (0, 1)]
        slope = (values[i] - values[i - 1]) / (u - GRID[i - 1]) if i and not (rate and i == steps - 1) else 0.0
        x = x + math.exp(rate * end) * (integral[0] * values[i] + (integral[1] - u * integral[0]) * slope)
    ones = [1.0] * (steps + 1)
    found = multistep(lambda x, i: torch.sin(x) + i, START, GRID[: steps + 1], ones, order=2, rate=rate)
    torch.testing.assert_close(found, x, rtol=1e-12, atol=1e-12)


def test_a_corrected_step_is_taken_again_with_the_value_at_its_end():
    """Of order 1: each step but the last ends as the trapezoidal rule, with the value that the prediction had."""
    times, x = GRID[:4], START
    value = torch.cos(x)
    for i in range(2):
        step = times[i + 1] - times[i]
        ahead = torch.cos(x + step * value)
        x, value = x + step * (value + ahead) / 2, ahead
    found = multistep(lambda x, _: torch.cos(x), START, times, [1.0] * 4, order=1, correct=True)
    torch.testing.assert_close(found, x + (times[3] - times[2]) * value, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("order", "correct", "least"), [(1, False, 0.95), (2, False, 1.9), (1, True, 1.9), (2, True, 2.8)]
)
def test_order_of_convergence(order, correct, least):
    """On dx = -x² du, x = 1 / (1 + u); a corrector adds an order."""

    def error(steps):
        grid = np.linspace(0, 1, steps + 1).tolist()
        start = torch.tensor([1.0], dtype=torch.float64)
        found = multistep(lambda x, _: -(x**2), start, grid, [1.0] * (steps + 1), order=order, correct=correct)
        return abs(found.item() - 0.5)

    assert math.log2(error(80) / error(160)) > least
