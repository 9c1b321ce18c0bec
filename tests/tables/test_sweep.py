"""Grids around a recipe."""

import dataclasses
import json

import pytest

from disa import Guidance, StepSchedule
from disa.generation.generators import OPTIONAL, Sampling
from disa.grouping import Grouping
from disa.tables.recipes import Published, Recipe, Table, load_tables
from disa.tables.sweep import ACCELERATORS, EXAMPLES, canonical, starting_point, sweep_table

GUIDANCE = Guidance(2.0)
PUBLISHED = {"baseline": "full", "published": (Published("somewhere", 3.5),)}
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
        assert (recipe.published, recipe.baseline) == ((), "4-3-linear")


def test_settings_that_a_recipe_does_not_name_can_be_varied():
    start = starting_point(TABLES, "mar_fashion")
    found = sweep_table(start, {"token_order": ["random", "gtr"], "skip_guidance_below": [1.0, 1.05]})
    assert [(recipe.sampling.grouping.order, recipe.sampling.guidance.skip_below) for recipe in found.shown] == [
        ("random", 1.0),
        ("random", 1.05),
        ("gtr", 1.0),
        ("gtr", 1.05),
    ]
    assert found.shown[0].sampling == start.sampling
    assert {"token_order", "tokens_per_step", "guidance_min_time", "skip_guidance_below"} <= EXAMPLES.keys()
    with pytest.raises(ValueError, match="xar_fashion has no setting token_order"):
        sweep_table(starting_point(TABLES, "xar_fashion"), {"token_order": ["gtr"]})


@pytest.mark.parametrize(
    ("grid", "message"),
    [
        ({}, "nothing is varied; give values of some of num_iter, diff_sampler"),
        ({"flow_upper_steps": [2]}, "mar_fashion has no setting flow_upper_steps; it has num_iter"),
        (
            {"diff_upper_steps": [1], "diff_lower_steps": [2, 3]},
            r"no combination is possible: 1-2 \(it would end with more steps than it begins with\); 1-3 \(it",
        ),
        ({"diff_sampler": ["DDMI"]}, "sampler is 'DDMI'; allowed are DiSA, default"),
        ({"diff_annealing_strategy": ["lineer"]}, "strategy is 'lineer'"),
    ],
)
def test_impossible_sweeps_are_refused(grid, message):
    with pytest.raises(ValueError, match=message):
        sweep_table(starting_point(TABLES, "mar_fashion"), grid)


def test_accelerators_are_combined_in_every_way():
    start = starting_point(TABLES, "mar_fashion")
    found = sweep_table(start, {"diff_upper_steps": [2, 3]}, ["gtr", "skip"])
    assert [recipe.row for recipe in found.shown] == [
        f"{upper}-{name}" for upper in (2, 3) for name in ("plain", "gtr", "skip", "gtr+skip")
    ]
    assert found.shown[4].sampling == start.sampling
    sampling = dataclasses.replace(
        start.sampling, grouping=Grouping("gtr", "stages"), guidance=Guidance(2.0, skip_below=1.05)
    )
    assert found.shown[-1].sampling == sampling
    assert found.title == "mar_fashion by diff_upper_steps, gtr, skip"
    assert found.shown[0].baseline == "3-plain"
    assert [recipe.row for recipe in sweep_table(start, {}, ["interval"]).shown] == ["plain", "interval"]


def test_accelerators_that_exclude_each_other_are_not_combined():
    found = sweep_table(starting_point(TABLES, "mar_fashion"), {}, ["gtr", "halton", "skip"])
    names = [recipe.row for recipe in found.shown]
    assert names == ["plain", "gtr", "halton", "skip", "gtr+skip", "halton+skip"]
    assert "Left out: gtr+halton (more than one changes token_order); gtr+halton+skip (more" in found.text


def test_a_schedule_is_combined_with_what_it_was_made_for_alone(tmp_path, monkeypatch):
    start = starting_point(TABLES, "mar_fashion")
    path = tmp_path / "schedule.json"
    settings = {"sampler": "DiSA", "skip_guidance_below": 1.0}
    content = {"sampling": settings, "weights": {}, "counts": [3, 1], "times": [[0, 500, 950], [0]]}
    path.write_text(json.dumps(content))
    monkeypatch.setitem(ACCELERATORS, "calibrated", {"step_schedule": str(path)})
    found = sweep_table(start, {}, ["calibrated", "gtr", "skip"])
    assert [recipe.row for recipe in found.shown] == [
        "plain",
        "calibrated",
        "gtr",
        "skip",
        "calibrated+gtr",
        "gtr+skip",
    ]
    assert found.shown[1].nfe_per_step == [3, 1]
    assert "calibrated+skip (the step schedule" in found.text
    monkeypatch.setitem(ACCELERATORS, "skip", {"skip_guidance_below": 0.5})
    with pytest.raises(ValueError, match="skip_below is 0"):
        sweep_table(start, {}, ["skip"])


def test_the_schedule_of_a_bundled_model_brings_its_solver_along():
    start = starting_point(load_tables(), "mar_fashion")
    plain, calibrated = sweep_table(start, {}, ["calibrated"]).shown
    assert (plain.sampling.sampler, calibrated.sampling.sampler) == ("DiSA", "DPM_Solver++2M")
    assert calibrated.sampling.schedule.file == "mar_fashion"
    found = sweep_table(start, {"diff_sampler": ["DiSA", "DDIM"]}, ["calibrated"])
    assert [recipe.row for recipe in found.shown] == ["DiSA-plain", "DDIM-plain"]
    assert "DiSA-calibrated (more than one changes diff_sampler)" in found.text


@pytest.mark.parametrize("name", [name for name in ACCELERATORS if name != "calibrated"])  # tested above
def test_every_accelerator_changes_the_settings_of_some_model(name):
    model = "mar_fashion" if ACCELERATORS[name].keys() <= OPTIONAL["diff"].keys() else "xar_fashion"
    plain, changed = sweep_table(starting_point(TABLES, model), {}, [name]).shown
    assert changed.sampling.to_dict() == {**plain.sampling.to_dict(), **ACCELERATORS[name]}


def test_accelerators_are_those_of_the_model():
    with pytest.raises(ValueError, match="xar_fashion has no accelerator gtr; it has calibrated, interval, skip, feat"):
        sweep_table(starting_point(TABLES, "xar_fashion"), {}, ["gtr"])


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
