"""What recipes are measured with: published files, generators, feature spaces."""

import dataclasses

import pytest
import torch

from disa.evaluation.extractors import EXTRACTORS
from disa.evaluation.plan import MetricSpec
from disa.tables.measure import Measurements, load, plan_recipe
from disa.tables.recipes import load_tables

TABLES = load_tables()
(MAR_BASE,) = (recipe for recipe in TABLES["imagenet"].recipes if recipe.name == "imagenet/mar_base-disa")
(PROMPTS,) = (recipe for recipe in TABLES["bundled"].recipes if recipe.name == "bundled/harmon_fashion-low")

CPU = torch.device("cpu")


def inception(problem):
    """Inception alone, with what keeps it from working here."""
    return {"inception": dataclasses.replace(EXTRACTORS["inception"], missing=lambda: problem)}


def test_without_a_distance_nothing_is_generated_unless_asked(tmp_path, monkeypatch):
    """The weights are there, and what ImageNet's images would be compared with is not."""
    monkeypatch.chdir(tmp_path)
    works = inception(None)
    with pytest.raises(
        ValueError, match=r"no fid in inception: there is no reference; .*; mend that, or give --metrics none for times"
    ):
        plan_recipe(MAR_BASE, "auto", "auto", "auto", works)
    assert plan_recipe(MAR_BASE, "none", "auto", "auto", works) == ([], [])
    assert plan_recipe(MAR_BASE, "isc", "auto", "auto", works) == ([MetricSpec("inception", ("isc",), None)], [])
    with pytest.raises(ValueError, match=r"nothing is measured in inception: it is not here; mend that"):
        plan_recipe(MAR_BASE, "auto", "auto", "auto", inception("it is not here"))


def test_prompts_of_a_recipes_own_are_not_measured():
    assert plan_recipe(TABLES["harmon"].recipes[0], "auto", "auto", "auto", {}) == ([], [])


def test_harmon_takes_the_grammars_prompts_or_its_own():
    make = load(PROMPTS, torch.device("cpu"), torch.float32)
    grammar = make(PROMPTS)
    assert (len(grammar.prompts), grammar.images_per_prompt, grammar.image_shape) == (PROMPTS.num_images, 1, (8, 8))
    assert grammar.classes[:11] == [*range(10), 0]
    own = dataclasses.replace(PROMPTS, prompts=["a bag", "a shirt"], num_images=5, image_size=16)
    said = make(own)
    assert (said.prompts, said.images_per_prompt, said.image_shape) == (["a bag", "a shirt"], 3, (4, 4))
    assert said.classes is None


def test_folders_differ_where_results_do(tmp_path):
    known = Measurements(tmp_path, CPU, "float32")
    other = [
        dataclasses.replace(PROMPTS, prompts=["a bag"]),
        dataclasses.replace(PROMPTS, checkpoint="mine.safetensors"),
        dataclasses.replace(PROMPTS, image_size=16),
        dataclasses.replace(PROMPTS, num_images=4),
        dataclasses.replace(PROMPTS, sampling=dataclasses.replace(PROMPTS.sampling, seed=2)),
    ]
    assert len({known.folder(recipe) for recipe in [PROMPTS, *other]}) == 6
    assert known.folder(dataclasses.replace(PROMPTS, table="other", row="same", batch_size=3)) == known.folder(PROMPTS)
    assert Measurements(tmp_path, CPU, "bfloat16").folder(PROMPTS) != known.folder(PROMPTS)
    with pytest.raises(ValueError, match="dtype is 'float'; allowed are auto, float32, bfloat16"):
        Measurements(tmp_path, CPU, "float")
