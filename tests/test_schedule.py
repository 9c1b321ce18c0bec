"""Step schedules against every recorded count, those of files, and refusals."""

import json
import re

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


@pytest.mark.parametrize("ar_steps", [1, 2, 4, 5, 16, 64])
@pytest.mark.parametrize(("upper", "lower"), [(50, 5), (16, 5), (25, 15), (7, 7), (3, 1)])
def test_even_spends_what_linear_does_evenly(ar_steps, upper, lower):
    linear, even = (
        [StepSchedule(upper, lower, strategy).steps(step, ar_steps) for step in range(ar_steps)]
        for strategy in ("linear", "even")
    )
    assert sum(even) == sum(linear)
    assert max(even) - min(even) <= 1


def test_even_is_one_count_where_the_sum_divides():
    assert [StepSchedule(40, 8, "even").steps(step, 4) for step in range(4)] == [23, 24, 24, 24]  # 40 + 29 + 18 + 8
    assert [StepSchedule(16, 5, "even").steps(step, 4) for step in range(4)] == [10, 10, 10, 11]
    assert [StepSchedule(16, 4, "even").steps(step, 4) for step in range(4)] == [10, 10, 10, 10]


CALIBRATED = {
    "model": "mar_fashion",
    "weights": {"float32": "0123456789ab", "float16": "ba9876543210"},
    "sampling": {"sampler": "DiSA", "cfg": 2.5, "temperature": 1.0},
    "counts": [4, 2, 3],
    "times": [[0, 333, 666, 950], [0, 950], [0, 500, 950]],
}


def write(path, **changes):
    path.write_text(json.dumps({**CALIBRATED, **changes}))
    return str(path)


def test_a_schedule_is_loaded(tmp_path):
    schedule = StepSchedule.load(write(tmp_path / "one.json"))
    assert [schedule.steps(step, 3) for step in range(3)] == [4, 2, 3] == list(schedule.counts)
    assert schedule.times == ((0, 333, 666, 950), (0, 950), (0, 500, 950))
    assert all(type(t) is int for t in schedule.times[0])  # timesteps that index a table
    assert (schedule.upper, schedule.lower) == (4, 2)
    assert schedule.strategy.startswith("calibrated-")
    again = StepSchedule.load(write(tmp_path / "two.json", weights={}))
    assert (again, hash(again), again.strategy) == (schedule, hash(schedule), schedule.strategy)
    other = StepSchedule.load(write(tmp_path / "three.json", times=[[0, 333, 666, 950], [0, 950], [0, 501, 950]]))
    assert other != schedule
    assert other.strategy != schedule.strategy


def test_counts_are_for_their_number_of_ar_steps():
    schedule = StepSchedule(counts=(4, 2, 3))
    assert schedule.steps(2, 3) == 3
    with pytest.raises(ValueError, match=r"is for 3 AR steps, and there are 4; take as many"):
        schedule.steps(0, 4)
    with pytest.raises(ValueError, match="ar_step is 3"):
        schedule.steps(3, 3)


def test_a_schedule_serves_what_it_was_made_for(tmp_path):
    name = write(tmp_path / "one.json")
    schedule = StepSchedule.load(name)
    schedule.check(weights="0123456789ab", sampler="DiSA", cfg=2.5, cfg_schedule="linear")
    schedule.check(weights="ba9876543210")
    with pytest.raises(ValueError, match=r"for cfg 2.5, not 3.0; give force:.*one\.json, or make another"):
        schedule.check(cfg=3.0, temperature=1.0)
    with pytest.raises(ValueError, match="for weights 0123456789ab or ba9876543210, not 00"):
        schedule.check(weights="00")
    forced = StepSchedule.load(f"force:{name}")
    assert forced == schedule
    assert forced.file == f"force:{name}"
    forced.check(weights="00", cfg=3.0)
    for one in (schedule, forced):
        with pytest.raises(ValueError, match=r"for sampler DiSA, not DDIM; choose that sampler, or make"):
            one.check(sampler="DDIM")
    StepSchedule().check(weights="00", sampler="euler", cfg=1.0)


def test_the_name_of_a_model_is_that_of_a_schedule_in_the_package():
    with pytest.raises(FileNotFoundError, match=r"no step schedule .*bundled.mar_unknown_schedule\.json"):
        StepSchedule.load("mar_unknown")


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"counts": []}, "whole numbers"),
        ({"counts": [4, 2.5, 3]}, "counts is (4, 2.5, 3)"),
        ({"counts": [4, 0, 3]}, "lower is 0"),
        ({"counts": [4, 2]}, "times is for 3 AR steps, and counts for 2"),
        ({"counts": 4}, "not iterable"),
        ({"times": [[0], [], [0]]}, "times is for 3 AR steps"),
        ({"times": [[0], ["0"], [0]]}, "a time is '0'"),
        ({"sampling": []}, "items"),
        ({"weights": None}, "values"),
    ],
)
def test_a_file_that_is_no_schedule_is_refused_by_name(tmp_path, change, named):
    with pytest.raises(ValueError, match=rf"bad\.json is no step schedule of `disa calibrate` .*{re.escape(named)}"):
        StepSchedule.load(write(tmp_path / "bad.json", **change))


def test_a_file_that_is_no_json_is_refused_by_name(tmp_path):
    path = tmp_path / "bad.json"
    for text in ("counts", "[]", "{}"):
        path.write_text(text)
        with pytest.raises(ValueError, match=r"bad\.json is no step schedule"):
            StepSchedule.load(str(path))
    with pytest.raises(FileNotFoundError, match=r"nowhere\.json; `disa calibrate` makes one"):
        StepSchedule.load(str(tmp_path / "nowhere.json"))
