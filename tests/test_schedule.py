"""Step schedules against every recorded count, and refusals."""

import pytest

from disa import StepSchedule
from tests.conftest import load_json


def test_recorded_counts():
    cases = load_json("schedules.json")["mar"]
    assert len(cases) == 120
    for case in cases:
        schedule = StepSchedule(case["upper"], case["lower"], case["strategy"])
        assert [schedule.steps(step, case["num_iter"]) for step in range(case["num_iter"])] == case["steps"], case


def test_callable_strategy_is_asked_for_a_weight_at_each_progress():
    asked = []
    schedule = StepSchedule(50, 10, lambda progress: asked.append(progress) or 1 - progress**2)
    assert [schedule.steps(step, 5) for step in range(5)] == [50, 47, 40, 27, 10]
    assert asked == [0, 0.25, 0.5, 0.75, 1]
    assert schedule.steps(0, 1) == 50  # a single AR step is a first one


def test_defaults_are_the_papers():
    assert StepSchedule() == StepSchedule(50, 5, "linear")


@pytest.mark.parametrize(
    ("ar_steps", "expected"), [(2, [50, 5]), (3, [50, 5, 5]), (4, [50, 50, 5, 5]), (5, [50, 50, 5, 5, 5])]
)
def test_two_stage_changes_half_way(ar_steps, expected):
    """The middle one of an odd number of AR steps belongs to the second half."""
    schedule = StepSchedule(50, 5, "two-stage")
    assert [schedule.steps(step, ar_steps) for step in range(ar_steps)] == expected


@pytest.mark.parametrize(("strategy", "expected"), [("linear", 50), ("cosine", 50), ("two-stage", 50), ("constant", 5)])
def test_single_ar_step(strategy, expected):
    assert StepSchedule(50, 5, strategy).steps(0, 1) == expected


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ((5, 10), "upper is 5"),
        ((5, 0), "lower is 0"),
        ((5, 1, "quadratic"), "'quadratic'"),
        ((5.5, 1), "upper is 5.5"),
        ((5, True), "lower is True"),
    ],
)
def test_impossible_settings_are_refused(arguments, named):
    with pytest.raises(ValueError, match=named):
        StepSchedule(*arguments)


def test_impossible_steps_are_refused():
    with pytest.raises(ValueError, match="ar_step is 4"):
        StepSchedule().steps(4, 4)
    with pytest.raises(ValueError, match="weight in"):
        StepSchedule(50, 5, lambda _: 2.0).steps(0, 4)
