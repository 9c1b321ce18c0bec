"""Grids around a recipe."""

import pytest

from disa import Guidance, StepSchedule
from disa.generation.generators import Sampling
from disa.tables.recipes import Recipe, Table
from disa.tables.sweep import canonical, starting_point, sweep_table

GUIDANCE = Guidance(2.0)
PUBLISHED = {"baseline": "full", "published_fid": 3.5, "source": "somewhere"}
RECIPES = (
    Recipe("both", "mar_fashion", "full", Sampling(2, StepSchedule(5, 5), guidance=GUIDANCE), 6, 2, **PUBLISHED),
    Recipe("both", "mar_fashion", "default", Sampling(2, StepSchedule(5, 1), "default", GUIDANCE), 6, 2),
    Recipe("both", "mar_fashion", "disa", Sampling(2, StepSchedule(3, 1), guidance=GUIDANCE), 6, 2, **PUBLISHED),
    Recipe("both", "xar_fashion", "disa", Sampling(None, StepSchedule(2, 1), "euler"), 6, 2),
)
TABLES = {"both": Table("both", "Two models", "", RECIPES, RECIPES)}


def test_a_sweep_is_the_product_of_its_values_around_a_recipe():
    start = starting_point(TABLES, "mar_fashion")
    assert start.name == "both/mar_fashion-disa"
    grid = {"diff_upper_steps": [2, 4], "diff_lower_steps": [1, 3], "diff_annealing_strategy": ["linear", "constant"]}
    found = sweep_table(start, grid)
    assert {recipe.row: recipe.sampling.schedule for recipe in found.shown} == {
        "2-1-linear": StepSchedule(2, 1),
        "2-1-constant": StepSchedule(1, 1, "constant"),
        "4-1-linear": StepSchedule(4, 1),
        "4-3-linear": StepSchedule(4, 3),
        "4-3-constant": StepSchedule(3, 3, "constant"),
    }
    assert "2-3-linear (it would end with more steps than it begins with)" in found.text
    assert "4-1-constant (it samples as 2-1-constant does)" in found.text
    for recipe in found.shown:
        assert (recipe.sampling.num_iter, recipe.sampling.guidance, recipe.num_images) == (
            2,
            start.sampling.guidance,
            6,
        )
        assert (recipe.published_fid, recipe.source, recipe.baseline) == (None, None, "4-3-linear")


@pytest.mark.parametrize(
    ("grid", "message"),
    [
        ({}, "nothing is varied; give values of some of num_iter, diff_sampler"),
        ({"flow_upper_steps": [2]}, "mar_fashion has no setting flow_upper_steps; it has num_iter"),
        (
            {"diff_upper_steps": [1], "diff_lower_steps": [2, 3]},
            "every combination ends with more steps than it begins with: 1-2, 1-3",
        ),
        ({"diff_sampler": ["DDMI"]}, "sampler is 'DDMI'; allowed are DiSA, default"),
        ({"diff_annealing_strategy": ["lineer"]}, "strategy is 'lineer'"),
    ],
)
def test_impossible_sweeps_are_refused(grid, message):
    with pytest.raises(ValueError, match=message):
        sweep_table(starting_point(TABLES, "mar_fashion"), grid)


def test_a_sweep_needs_a_model_with_a_recipe():
    with pytest.raises(ValueError, match="there is no recipe of 'mar_large'; allowed are mar_fashion, xar_fashion"):
        starting_point(TABLES, "mar_large")


def test_samplings_of_the_same_counts_are_one():
    constant = [Sampling(2, StepSchedule(upper, 1, "constant")) for upper in (2, 3)]
    default = [Sampling(2, StepSchedule(3, lower), "default") for lower in (1, 2)]
    for one, other in (constant, default):
        assert one != other
        assert canonical(one) == canonical(other)
    assert canonical(Sampling(2, StepSchedule(3, 1))) != canonical(Sampling(2, StepSchedule(3, 2)))
