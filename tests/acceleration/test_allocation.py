"""The dynamic programs of a calibration against every possibility, and the fit that never rises."""

import itertools

import numpy as np
import pytest

from disa.acceleration.allocation import LATER, allocate, decreasing, shortest_path


def every_choice(errors, costs):
    """(sum of errors, sum of costs) of every choice of an option for each AR step."""
    rows = range(len(errors))
    for choice in itertools.product(range(errors.shape[1]), repeat=len(errors)):
        yield sum(errors[i, choice[i]] for i in rows), sum(costs[i, choice[i]] for i in rows)


@pytest.mark.parametrize("seed", range(20))
def test_a_budget_is_spent_as_well_as_can_be(seed):
    random = np.random.default_rng(seed)
    errors, costs = random.normal(size=(4, 5)), random.integers(1, 9, (4, 5))
    budget = int(random.integers(costs.min(1).sum(), costs.max(1).sum() + 1))
    options = allocate(errors, costs, budget)
    found = [array[range(4), options].sum() for array in (errors, costs)]
    assert found[1] <= budget
    assert found[0] == pytest.approx(min(error for error, cost in every_choice(errors, costs) if cost <= budget))


@pytest.mark.parametrize("seed", range(20))
def test_a_quality_is_had_as_cheaply_as_can_be(seed):
    random = np.random.default_rng(seed)
    errors, costs = random.normal(size=(4, 5)), random.integers(1, 9, (4, 5))
    quality, budget = random.uniform(errors.min(1).sum(), 0), costs.max(1).sum()
    options = allocate(errors, costs, budget, quality)
    found = [array[range(4), options].sum() for array in (errors, costs)]
    assert found[0] <= quality
    assert found[1] == min(cost for error, cost in every_choice(errors, costs) if error <= quality)


def test_what_cannot_be_had_is_refused_or_the_best_there_is():
    errors, costs = np.array([[2.0, 1.0], [3.0, 1.0]]), np.array([[1, 2], [1, 3]])
    with pytest.raises(ValueError, match="budget is 1; the cheapest options cost 2"):
        allocate(errors, costs, 1)
    assert allocate(errors, costs, 5, quality=0.5) == [1, 1]
    assert allocate(errors, costs, 4) == [0, 1]


def test_of_equally_good_options_the_first_is_taken():
    """More diffusion steps than are of use are not spent."""
    assert allocate(np.array([[1.0, 0.5, 0.5]] * 2), np.array([[1, 2, 3]] * 2), 6) == [1, 1]


@pytest.mark.parametrize("steps", [1, 2, 3, 6])
def test_the_shortest_path_is_the_shortest(steps):
    deviations = np.triu(np.random.default_rng(steps).uniform(size=(7, 7)), 1)

    def length(path):
        return sum(LATER**i * deviations[step] for i, step in enumerate(itertools.pairwise(path)))

    found = shortest_path(deviations, steps)
    every = [(0, *within, 6) for within in itertools.combinations(range(1, 6), steps - 1)]
    assert tuple(found) in every
    assert length(found) == pytest.approx(min(map(length, every)))


def test_a_fit_never_rises_and_is_the_closest():
    assert decreasing([5, 3, 4, 1, 1.5]).tolist() == [5, 3.5, 3.5, 1.25, 1.25]
    assert decreasing([1, 2, 3]).tolist() == [2, 2, 2]
    assert decreasing([3, 1]).tolist() == [3, 1]
