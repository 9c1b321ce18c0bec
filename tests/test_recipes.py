"""The recipes that come with the repository, how files of them are read, and what is refused in them."""

import re
import shlex
import textwrap

import pytest

from benchmarks import harmon as harmon_benchmark
from disa import Guidance, StepSchedule, demo
from disa.checkpoints import CATALOGUE
from disa.flags import parse
from disa.models import MODELS
from disa.recipes import FAMILIES, choose, expand, list_tables, load_tables
from disa.sampling import Sampling
from tests.test_flags import ROOT, SCRIPTS

TABLES = load_tables()
RECIPES = {recipe.name: recipe for table in TABLES.values() for recipe in table.recipes}
every = pytest.mark.parametrize("name", RECIPES)

# model -> FID and IS as published without DiSA, and FID with it
PUBLISHED = {
    "mar_base": (2.31, 281.7, "~2.31"),
    "mar_large": (1.78, 296.0, "~1.77"),
    "mar_huge": (1.55, 303.7, "~1.57"),
    "flowar_small": (3.61, None, None),
    "flowar_large": (1.90, None, "~1.90"),
    "flowar_huge": (1.65, None, "~1.69"),
    "xar_base": (1.72, None, "~1.68"),
    "xar_large": (1.28, None, "~1.23"),
    "xar_huge": (1.24, None, "~1.23"),
}
# model -> how it was released: AR steps, diffusion steps, guidance scale and largest flow time; and the same with DiSA
RELEASED = {
    "mar_base": ((256, 100, 2.9, 1.0), (64, (50, 5), 2.9, 1.0)),
    "mar_large": ((256, 100, 3.0, 1.0), (64, (50, 5), 3.0, 1.0)),
    "mar_huge": ((256, 100, 3.2, 1.0), (64, (50, 5), 3.3, 1.0)),
    "flowar_small": ((None, 25, 4.3, 0.9), (None, (25, 15), 4.2, 0.9)),
    "flowar_large": ((None, 25, 2.4, 0.9), (None, (25, 15), 2.4, 0.9)),
    "flowar_huge": ((None, 50, 2.4, 0.7), (None, (50, 15), 2.4, 0.7)),
    "xar_base": ((None, 50, 2.7, 1.0), (None, (50, 15), 2.7, 1.0)),
    "xar_large": ((None, 50, 2.3, 1.0), (None, (50, 15), 2.3, 1.0)),
    "xar_huge": ((None, 50, 2.2, 1.0), (None, (50, 15), 2.2, 1.0)),
}
FOLDERS = {"mar": "MAR_DiSA/main_mar.py", "flo": "FlowAR_DiSA/eval.py", "xar": "xAR_DiSA/eval.py"}
SCHEDULE_KINDS = ("linear", "cosine", "two-stage", "constant")


def rows(table, model):
    return {recipe.row: recipe for recipe in TABLES[table].recipes if recipe.model == model}


def assert_asks_for(script, flags, recipe):
    """That the command line `script` with `flags` evaluates what `recipe` says."""
    args = parse(script.get_parser(), script.FAMILY.defaults(), flags)
    assert (args.model, args.evaluate) == (recipe.model, True)
    assert (script.get_sampling(args), args.num_images, args.eval_bsz) == (recipe.sampling, recipe.num_images, recipe.batch_size)


@every
def test_recipe_can_run(name):
    recipe = RECIPES[name]
    assert recipe.checkpoint in ([None] if MODELS[recipe.model].bundled else CATALOGUE)
    counts = recipe.step_counts
    assert min(counts) >= 1 and len(counts) == (recipe.sampling.num_iter or len(counts))
    assert len(counts) <= (64 if MODELS[recipe.model].bundled else 256)  # tokens
    assert recipe.baseline is None or TABLES[recipe.table].baseline(recipe).model == recipe.model


@pytest.mark.parametrize("model", PUBLISHED)
def test_imagenet_models_are_as_published(model):
    found = rows("imagenet", model)
    fid, isc, with_disa = PUBLISHED[model]
    assert list(found) == ["released", "disa"]
    assert (found["released"].published_fid, found["released"].published_isc, found["disa"].published_fid) == (fid, isc, with_disa)
    assert [recipe.source for recipe in found.values()].count("arXiv:2505.20297") == (with_disa is not None)
    for recipe, (ar_steps, steps, scale, max_time) in zip(found.values(), RELEASED[model], strict=True):
        sampling, schedule = recipe.sampling, recipe.sampling.schedule
        assert (sampling.num_iter, sampling.guidance) == (ar_steps, Guidance(scale, "linear", max_time))
        fixed = sampling.sampler == "default" or schedule.upper == schedule.lower
        assert (schedule.upper if fixed else (schedule.upper, schedule.lower)) == steps
        assert (recipe.num_images, recipe.baseline, recipe.checkpoint) == (50000, "released", model)
        assert (schedule.strategy, sampling.temperature, sampling.seed) == ("linear", 1.0, 1)


@pytest.mark.parametrize("model", PUBLISHED)
def test_disa_rows_are_the_commands_of_the_readmes(model):
    path = ROOT / FOLDERS[model[:3]]
    script, text = SCRIPTS[FOLDERS[model[:3]]], (path.parent / "README.md").read_text().replace("\\\n", " ")
    lines = (shlex.split(line, comments=True) for line in text.splitlines() if path.name in line)
    commands = [words[words.index(path.name) + 1 :] for words in lines if path.name in words and "--evaluate" in words]
    (flags,) = [flags for flags in commands if model in flags]
    assert_asks_for(script, flags, rows("imagenet", model)["disa"])


@pytest.mark.parametrize("table", ["strategies", "bundled_strategies"])
def test_every_strategy_is_compared_at_the_same_counts(table):
    for model in {recipe.model for recipe in TABLES[table].recipes}:
        found = rows(table, model)
        assert [name for name in SCHEDULE_KINDS if name in found] == list(SCHEDULE_KINDS)
        schedules = {name: recipe.sampling.schedule for name, recipe in found.items()}
        assert {(schedules[name].upper, schedules[name].lower) for name in SCHEDULE_KINDS[:3]} == {
            (schedules["full"].lower, schedules["constant"].lower)
        }


@pytest.mark.parametrize("table", ["budget", "bundled_budget"])
def test_budgets_are_equal(table):
    for model in {recipe.model for recipe in TABLES[table].recipes}:
        spent = {name: sum(recipe.step_counts) for name, recipe in rows(table, model).items()}
        assert spent.keys() == {"linear", "two-stage", "constant"}
        assert max(spent.values()) <= 1.05 * min(spent.values()), spent


def test_ablations_have_their_twins():
    for table in ("harmon", "strategies", "upper_lower", "ar_steps", "samplers", "budget"):
        families = {MODELS[recipe.model].build for recipe in TABLES[table].recipes}
        twins = {MODELS[recipe.model].build for recipe in TABLES[f"bundled_{table}"].recipes}
        assert families <= twins
    assert [recipe.sampling.num_iter for recipe in TABLES["ar_steps"].recipes] == [16, 32, 64, 128, 256]
    counts = {(one.sampling.schedule.upper, one.sampling.schedule.lower) for one in rows("harmon", "harmon_1.5b").values()}
    assert counts == {(100, 5), (50, 5), (25, 5)}
    twin = {row: recipe.sampling for row, recipe in rows("bundled_harmon", "harmon_fashion").items()}
    for model in {recipe.model for recipe in TABLES["harmon"].recipes}:
        assert twin.items() >= {row: recipe.sampling for row, recipe in rows("harmon", model).items()}.items()
    for recipe in TABLES["harmon"].recipes:  # eight ranks time three blocks each, after the one that warms up
        assert recipe.num_images // recipe.batch_size >= 4 * 8


@pytest.mark.parametrize("model", [*demo.SETTINGS, "harmon_fashion"])
def test_bundled_rows_are_the_settings_of_the_demo_and_the_benchmark(model):
    settings = {**demo.SETTINGS, "harmon_fashion": harmon_benchmark.SETTINGS}[model]
    found = {row: recipe.sampling for row, recipe in rows("bundled", model).items()}
    assert found == {"full": settings["without DiSA"], "disa": settings["DiSA"], "low": settings["low everywhere"]}


def test_list_names_everything():
    text = list_tables(TABLES)
    assert [name for name in RECIPES if f"  {name} " not in text] == []
    assert "imagenet: ImageNet 256" in text and "published FID ~1.57" in text


# --------------------------------------------------------------------------------------------------------------- files

GOOD = """
num_images = 10
batch_size = 5
diff_sampler = "DiSA"
diff_annealing_strategy = "linear"
cfg = 1
cfg_schedule = "linear"
temperature = 1.0
seed = 1

[small]
title = "A title"
num_iter = 4
baseline = "full"

[small.mar_fashion]
num_iter = 2
grid = { diff_upper_steps = [3, 4], diff_lower_steps = [1, 2] }
rows.full = { diff_upper_steps = 4, diff_lower_steps = 4 }
"""


@pytest.fixture
def load(tmp_path):
    """Files of recipes -> the tables: MAR's is given, and perhaps xAR's; the others are empty."""

    def from_text(mar, xar=""):
        for family in FAMILIES:
            (tmp_path / family).mkdir(exist_ok=True)
            (tmp_path / family / "recipes.toml").write_text({"MAR_DiSA": mar, "xAR_DiSA": xar}.get(family, ""))
        return load_tables(tmp_path)

    return from_text


def test_inner_levels_override_outer_ones(load):
    tables = load(GOOD)
    recipes = {recipe.label: recipe for recipe in tables["small"].recipes}
    assert list(recipes) == ["mar_fashion-3-1", "mar_fashion-3-2", "mar_fashion-4-1", "mar_fashion-4-2", "mar_fashion-full"]
    assert recipes["mar_fashion-3-2"].sampling == Sampling(2, StepSchedule(3, 2))
    assert (tables["small"].title, tables["small"].text) == ("A title", "")
    assert tables["small"].baseline(recipes["mar_fashion-4-1"]) is recipes["mar_fashion-full"]


def test_families_share_a_table(load):
    xar = """
    flow_sampler = "euler"
    [small.xar_fashion]
    num_images = 10
    batch_size = 5
    cfg = 1.0
    cfg_schedule = "linear"
    guidance = 1.0
    temperature = 1.0
    seed = 1
    flow_annealing_strategy = "linear"
    rows.one = { flow_upper_steps = 2, flow_lower_steps = 1 }
    """
    tables = load(GOOD, xar)
    assert [recipe.label for recipe in tables["small"].recipes][-2:] == ["mar_fashion-full", "xar_fashion-one"]
    with pytest.raises(ValueError, match="small: another file has a title of it"):
        load(GOOD, '[small]\ntitle = "Another"')


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("seed = 1\n", "sead = 1\n", "small/mar_fashion-3-1: there is no setting sead here; there are num_iter"),
        ("seed = 1\n", "seed = 1\npublised_fid = 2\n", "there is no setting publised_fid here"),
        ("cfg = 1\n", "cfg = -1\n", "Guidance.scale is -1"),
        ("num_images = 10", "", "nothing says what num_images shall be"),
        ("num_images = 10", "num_images = 0", "num_images is 0; a whole number of at least 1"),
        ("temperature = 1.0", "temperature = -1.0", "temperature is -1.0"),
        ("seed = 1\n", "seed = -1\n", "seed is -1"),
        ('diff_sampler = "DiSA"', 'diff_sampler = "DDMI"', "the sampler is 'DDMI'; allowed are DiSA, default"),
        ("num_iter = 2\n", "num_iter = 0\n", "num_iter is 0; at least 1"),
        ("[3, 4]", "[1, 4]", "small/mar_fashion-1-2: StepSchedule.upper is 1, below lower = 2"),
        ("[3, 4]", "[]", "diff_upper_steps of mar_fashion is []"),
        ("[3, 4]", "3", "diff_upper_steps of mar_fashion is 3"),
        (
            "diff_upper_steps = 4, diff_lower_steps = 4",
            "diff_upper_steps = 4",
            "small/mar_fashion-full: nothing says what diff_lower_steps",
        ),
        ("rows.full", "rows.ful", "baseline full is no row of mar_fashion in small"),
        ("rows.full", "baseline.full", "mar_fashion has baseline; it may have rows and a grid"),
        (
            "rows.full = {",
            'rows."3-2" = { diff_upper_steps = 4, diff_lower_steps = 4 }\nrows.full = {',
            "there are two recipes small/mar_fashion-3-2",
        ),
        ("rows.full = {", "rows.full = {}\nrows.full = {", "recipes.toml: "),
        ("[small.mar_fashion]", "[small.mar_fashoin]", "small: there is no model mar_fashoin"),
        ("[small.mar_fashion]", "[small.mar_base]", "no weights of mar_base come with the package; name a checkpoint"),
        ("[small.mar_fashion]", "[small.'harmon_0.5b']\ncheckpoint = 'harmon_0.5b'", "harmon_0.5b draws prompts; give some"),
        ("[small.mar_fashion]", "[small.xar_fashion]", "xar_fashion is a flow model; its settings begin with flow_"),
        ('title = "A title"', "", "small: the table needs a title"),
        ("batch_size = 5", "batch_size = 5\nsource = 'a paper'", "a published score needs a source, and a source a published score"),
        ("batch_size = 5", "batch_size = 5\npublished_fid = 1.5", "a published score needs a source"),
        ("batch_size = 5", "batch_size = 5\nsource = 'x'\npublished_fid = '1.57'", "published_fid is '1.57'; a number is needed, or text"),
        ("batch_size = 5", "batch_size = 5\nprompts = ['a cat']", "mar_fashion draws classes; prompts, image_size"),
        ("batch_size = 5", "batch_size = 5\ncheckpoint = 3", "checkpoint is 3; a text is needed"),
        ("num_images = 10", "num_images =", "recipes.toml: Invalid value"),
    ],
)
def test_bad_files_are_refused_by_name(load, old, new, message):
    assert GOOD.count(old) >= 1
    with pytest.raises(ValueError, match=re.escape(message)) as refused:
        load(GOOD.replace(old, new))
    assert str(refused.value).count("recipes.toml: ") == 1 and "MAR_DiSA" in str(refused.value)


def test_missing_files_are_named(load, tmp_path):
    load(GOOD)
    (tmp_path / "xAR_DiSA" / "recipes.toml").unlink()
    with pytest.raises(FileNotFoundError, match=r"xAR_DiSA/recipes.toml; recipes come with the repository.*run from a checkout"):
        load_tables(tmp_path)


def test_grids_are_products():
    assert expand({}) == {}
    assert list(expand({"a": [1, 2], "b": ["x"]}).items()) == [("1-x", {"a": 1, "b": "x"}), ("2-x", {"a": 2, "b": "x"})]


def test_names_choose_tables_recipes_and_patterns():
    def names(*asked):
        return [recipe.name for table in choose(TABLES, asked) for recipe in table.shown]

    assert names("ar_steps") == [recipe.name for recipe in TABLES["ar_steps"].recipes]
    assert names("bundled/xar_fashion-disa") == ["bundled/xar_fashion-disa"]
    assert names("budget/xar_*", "ar_steps/mar_base-16") == [
        "ar_steps/mar_base-16",
        *(f"budget/xar_base-{row}" for row in ("linear", "two-stage", "constant")),
    ]
    assert names("imagenet", "imagenet/mar_base-disa") == names("imagenet")
    (table,) = choose(TABLES, ["bundled/mar_fashion-disa"])
    assert table.baseline(table.shown[0]).name == "bundled/mar_fashion-full"  # though it is not shown
    for unknown in ("imagnet", "imagenet/mar_base", "bundled/*-x"):
        with pytest.raises(ValueError, match=f"there is no table or recipe {re.escape(unknown)}"):
            choose(TABLES, [unknown])


def test_attributes_of_a_table_can_be_replaced():
    (table,) = choose(TABLES, ["bundled/mar_fashion-disa"])
    changed = table.change(num_images=7, batch_size=None)
    assert {recipe.num_images for recipe in changed.recipes} == {7} and [recipe.num_images for recipe in changed.shown] == [7]
    assert changed.shown[0].batch_size == table.shown[0].batch_size and len(changed.recipes) == len(table.recipes)
    with pytest.raises(ValueError, match="num_images is 0"):
        table.change(num_images=0)


def test_readable():
    """A row is a line, and a line is not too long."""
    for family in FAMILIES:
        text = (ROOT / family / "recipes.toml").read_text()
        assert max(map(len, text.splitlines())) <= 140 and textwrap.dedent(text) == text
