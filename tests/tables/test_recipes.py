"""The recipes that come with the package, how files of them are read, and what is refused in them."""

import itertools
import re
import shlex
import textwrap

import pytest

from disa import StepSchedule
from disa.commands.reproduce import EXAMPLE
from disa.generation.generators import Sampling
from disa.models import MODELS
from disa.tables.recipes import (
    FAMILIES,
    FOLDER,
    NUMBERS,
    bundled_settings,
    choose,
    expand,
    list_rows,
    list_tables,
    load_tables,
)
from disa.tables.show import equal_budgets
from disa.tables.sweep import canonical
from disa.weights.fetch import CATALOGUE
from tests.helpers.processes import ROOT, run
from tests.helpers.scripts import script

TABLES = load_tables()
RECIPES = {recipe.name: recipe for table in TABLES.values() for recipe in table.recipes}
every = pytest.mark.parametrize("name", RECIPES)
IMAGENET = list(dict.fromkeys(recipe.model for recipe in TABLES["imagenet"].recipes))
FOLDERS = {"mar": "MAR_DiSA/main_mar.py", "flo": "FlowAR_DiSA/eval.py", "xar": "xAR_DiSA/eval.py"}
SCHEDULE_KINDS = ("linear", "cosine", "two-stage", "even", "constant")


def rows(table, model):
    return {recipe.row: recipe for recipe in TABLES[table].recipes if recipe.model == model}


def counts(recipe):
    """The counts of the first and the last AR step."""
    schedule = canonical(recipe.sampling).schedule
    return schedule.upper, schedule.lower


@every
def test_recipe_can_run(name):
    recipe = RECIPES[name]
    assert recipe.checkpoint in ([None] if MODELS[recipe.model].bundled else CATALOGUE)
    steps = recipe.nfe_per_step
    assert min(steps) >= 1
    assert sum(steps) == recipe.nfe
    assert len(steps) == (recipe.sampling.num_iter or len(steps))
    assert len(steps) <= (64 if MODELS[recipe.model].bundled else 256)  # tokens


def test_every_baseline_is_a_row_of_the_model_that_is_its_own_baseline():
    for recipe in RECIPES.values():
        baseline = TABLES[recipe.table].baseline(recipe)
        assert (baseline.model, baseline.row, baseline.baseline) == (recipe.model, recipe.baseline, recipe.baseline)


def test_names_are_unique_and_tables_have_titles():
    assert len(RECIPES) == sum(len(table.recipes) for table in TABLES.values())
    for name, table in TABLES.items():
        assert (table.name, table.shown) == (name, table.recipes)
        assert table.title
        assert {recipe.table for recipe in table.recipes} == {name}


def test_published_numbers_are_plausible_and_have_a_source():
    for recipe in RECIPES.values():
        for one in recipe.published:
            assert re.fullmatch(r"arXiv:\d{4}\.\d{5}", one.source), recipe.name
            numbers = {name: getattr(one, name) for name in NUMBERS if getattr(one, name) is not None}
            assert numbers
            bounds = {"fid": (1, 5), "isc": (200, 310), "geneval": (0.7, 0.8), "seconds": (0, 50)}
            for name, value in numbers.items():
                assert bounds[name][0] < float(str(value).removeprefix("~")) < bounds[name][1], recipe.name


def test_published_numbers_that_are_read_off_a_plot_say_so():
    """What the method's authors give in tables are their baselines; the rest is in their plots."""
    for recipe in RECIPES.values():
        for one in recipe.published:
            numbers = [getattr(one, name) for name in NUMBERS if getattr(one, name) is not None]
            if one.isc is not None or one.source != "arXiv:2505.20297":
                assert not any(isinstance(number, str) for number in numbers), recipe.name
            if recipe.annealed:
                assert all(isinstance(number, str) for number in numbers), recipe.name


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("imagenet/mar_base-released", [("2406.11838", 2.31, 281.7, None), ("2505.20297", None, None, 0.650)]),
        ("imagenet/mar_base-full", [("2505.20297", 2.39, 281.0, 0.134)]),
        ("imagenet/mar_base-disa-32", [("2505.20297", "~2.32", None, "~0.064")]),
        ("imagenet/mar_huge-full", [("2505.20297", 1.65, 299.8, 0.462)]),
        ("ar_steps/mar_base-32-100", [("2505.20297", "~2.49", None, None)]),
        ("imagenet/flowar_small-released", [("2412.15205", 3.61, None, None), ("2505.20297", 3.70, 235.1, 0.024)]),
        ("imagenet/flowar_huge-released", [("2412.15205", 1.65, None, None), ("2505.20297", 1.67, 276.3, 0.423)]),
        ("imagenet/xar_base-released", [("2502.20388", 1.72, None, None)]),
        ("imagenet/xar_base-full", [("2505.20297", 1.67, 265.2, 0.130)]),
    ],
)
def test_what_is_published(name, expected):
    found = [(one.source, one.fid, one.isc, one.seconds) for one in RECIPES[name].published]
    assert found == [(f"arXiv:{source}", *numbers) for source, *numbers in expected]


def test_both_ways_of_xar_are_rows():
    for model in ("xar_base", "xar_large", "xar_huge"):
        assert [counts(rows("imagenet", model)[row]) for row in ("released", "full")] == [(40, 40), (50, 50)]


def test_harmons_geneval_is_carried():
    found = {
        row: recipe.published[-1].geneval for row, recipe in rows("harmon", "harmon_1.5b").items() if recipe.published
    }
    assert found == {
        "released": "~0.73",
        "50": "~0.74",
        "100-5": "~0.74",
        "50-5": "~0.73",
        "25-5": "~0.73",
        "ar32-50": "~0.71",
        "ar32-50-5": "~0.74",
    }
    assert rows("harmon", "harmon_1.5b")["released"].published[0].geneval == 0.76


@pytest.mark.parametrize("model", IMAGENET)
def test_imagenet_models_are_as_released_and_with_disa(model):
    found = rows("imagenet", model)
    assert {"released", "disa", "even", "low"} <= found.keys()
    released, disa = found["released"], found["disa"]
    first, last = counts(released)
    assert first == last
    assert counts(disa)[0] > counts(disa)[1]
    assert disa.nfe < released.nfe
    assert isinstance(released.published[0].fid, float)
    for recipe in found.values():
        assert (recipe.num_images, recipe.baseline, recipe.checkpoint) == (50000, disa.baseline, model)
        assert recipe.sampling.guidance.schedule == "linear"
        assert (recipe.sampling.temperature, recipe.sampling.seed) == (1.0, 1)
        assert recipe.sampling.guidance.max_time == released.sampling.guidance.max_time
        strategy = {"even": "even", "low": "constant"}.get(recipe.row.removesuffix("-32"), "linear")
        assert recipe.sampling.schedule.strategy == strategy


# Where all rows are annealed, and solvers compared.
HONEST = [name for name in TABLES if not name.endswith("samplers")]


@pytest.mark.parametrize("name", HONEST)
def test_beside_every_annealed_row_stand_fair_ones(name):
    """With as many AR steps and the same solver: its NFE (± 3 %) without annealing, and, if not calibrated, its first
    count and its last one."""
    annealed = [recipe for recipe in TABLES[name].recipes if recipe.annealed]
    assert annealed
    pairs = {one.name: other for one, other in equal_budgets(TABLES[name].recipes)}
    for recipe in annealed:
        twin, nfe = pairs[recipe.name], recipe.nfe_per_step
        assert abs(twin.nfe / recipe.nfe - 1) <= 0.03
        assert max(twin.nfe_per_step) - min(twin.nfe_per_step) <= 2  # FlowAR's counts are even
        alike = [
            other.nfe_per_step
            for other in TABLES[name].recipes
            if (other.model, other.sampling.num_iter, other.sampling.sampler)
            == (recipe.model, recipe.sampling.num_iter, recipe.sampling.sampler)
        ]
        assert recipe.sampling.schedule.counts or [nfe[0]] * len(nfe) in alike
        assert recipe.sampling.schedule.counts or [nfe[-1]] * len(nfe) in alike


def test_ways_as_released_stand_apart():
    released = [recipe for recipe in TABLES["bundled_released"].recipes if recipe.row == "released"]
    assert {recipe.model for recipe in released} == {"mar_fashion", "xar_fashion", "harmon_fashion"}
    for recipe in released:
        others = {row: one for row, one in rows("bundled_released", recipe.model).items() if row != "released"}
        assert others.keys() == rows("bundled", recipe.model).keys()
        assert {row: one.sampling for row, one in others.items()} == bundled_settings(recipe.model)
        assert recipe.sampling.sampler in ("default", "euler_maruyama")


@pytest.mark.parametrize("model", [name for name, spec in MODELS.items() if spec.bundled])
def test_what_goes_beyond_stands_beside_what_is_shown(model):
    found = {row: recipe.sampling for row, recipe in rows("bundled_beyond", model).items()}
    assert found.items() >= bundled_settings(model).items()
    assert "fastest" in found
    calibrated = [one for one in rows("bundled_beyond", model).values() if one.sampling.schedule.file]
    for recipe in calibrated:
        assert (recipe.row, recipe.sampling.schedule.file) == ("calibrated", model)
        assert recipe.nfe <= 0.5 * rows("bundled_beyond", model)["disa"].nfe


def test_every_published_class_conditional_model_is_in_the_table():
    published = [name for name in CATALOGUE if name in MODELS and not name.startswith("harmon")]
    assert sorted(IMAGENET) == sorted(published)


@pytest.mark.parametrize("model", IMAGENET)
def test_disa_rows_are_the_commands_of_the_readmes(model):
    path, recipe = ROOT / FOLDERS[model[:3]], rows("imagenet", model)["disa"]
    text = (path.parent / "README.md").read_text().replace("\\\n", " ")
    lines = (shlex.split(line, comments=True) for line in text.splitlines() if line.startswith(("python", "torchrun")))
    commands = [words[words.index(path.name) + 1 :] for words in lines if path.name in words and "--evaluate" in words]
    (flags,) = [flags for flags in commands if model in flags]
    family = script(FOLDERS[model[:3]]).FAMILY
    args = family.parse(flags)
    assert (args.model, args.evaluate) == (model, True)
    asked = (family.sampling(args), args.num_images, args.eval_bsz)
    assert asked == (recipe.sampling, recipe.num_images, recipe.batch_size)


@pytest.mark.parametrize("table", ["strategies", "bundled_strategies"])
def test_every_strategy_is_compared_at_the_same_counts(table):
    for model in {recipe.model for recipe in TABLES[table].recipes}:
        found = rows(table, model)
        assert [name for name in SCHEDULE_KINDS if name in found] == list(SCHEDULE_KINDS)
        schedules = {name: recipe.sampling.schedule for name, recipe in found.items()}
        assert {(schedules[name].upper, schedules[name].lower) for name in SCHEDULE_KINDS[:4]} == {
            (schedules["full"].lower, schedules["constant"].lower)
        }


@pytest.mark.parametrize("table", ["harmon", "strategies", "upper_lower", "ar_steps", "samplers"])
def test_ablations_have_their_twins(table):
    families = {MODELS[recipe.model].build for recipe in TABLES[table].recipes}
    assert families <= {MODELS[recipe.model].build for recipe in TABLES[f"bundled_{table}"].recipes}
    assert all(recipe.bundled for recipe in TABLES[f"bundled_{table}"].recipes)


@pytest.mark.parametrize("name", [name for name in TABLES if name.endswith("samplers")])
def test_every_solver_is_compared(name):
    for model in {recipe.model for recipe in TABLES[name].recipes}:
        solvers = MODELS[model].build.solvers
        assert {recipe.sampling.sampler for recipe in rows(name, model).values()} == (
            solvers.keys() - {"default"} if MODELS[model].build.flow_times else solvers.keys()
        )


@pytest.mark.parametrize("table", ["ar_steps", "bundled_ar_steps"])
def test_ar_steps_double(table):
    for model in {recipe.model for recipe in TABLES[table].recipes}:
        annealed = [recipe.sampling for recipe in rows(table, model).values() if recipe.annealed]
        assert all(after.num_iter == 2 * before.num_iter for before, after in itertools.pairwise(annealed))
        assert len({sampling.schedule for sampling in annealed}) <= 1


def test_harmons_rows_are_those_of_its_twin_and_long_enough_to_time():
    twin = {row: recipe.sampling for row, recipe in rows("bundled_harmon", "harmon_fashion").items()}
    for model in {recipe.model for recipe in TABLES["harmon"].recipes}:
        assert twin.items() >= {row: recipe.sampling for row, recipe in rows("harmon", model).items()}.items()
    for recipe in TABLES["harmon"].recipes:
        if recipe.row != "released":
            ar_steps, (first, last) = recipe.sampling.num_iter, counts(recipe)
            words = ["ar32"] * (ar_steps == 32), [str(first)], [str(last)] * (first > last)
            strategy = ["even"] * (recipe.sampling.schedule.strategy == "even")
            assert recipe.row == "-".join(itertools.chain(*words, strategy))
        assert recipe.num_images // recipe.batch_size >= 4 * 8  # eight ranks time three blocks each, after the first


@pytest.mark.parametrize("model", [name for name, spec in MODELS.items() if spec.bundled])
def test_bundled_settings_are_full_annealed_even_and_low(model):
    settings = bundled_settings(model)
    assert settings == {row: recipe.sampling for row, recipe in rows("bundled", model).items()}
    assert list(settings) == ["full", "disa", "even", "low"]
    full, disa, even, low = (counts(recipe) for recipe in rows("bundled", model).values())
    assert full[0] == full[1] == disa[0] > disa[1] == low[0] == low[1]
    assert even == disa
    assert settings["even"].schedule.strategy == "even"
    assert len({sampling.num_iter for sampling in settings.values()}) == 1


def test_only_bundled_models_have_bundled_settings():
    with pytest.raises(ValueError, match=r"there is no table or recipe bundled/mar_base-\*"):
        bundled_settings("mar_base")


@pytest.mark.slow
def test_recipes_are_listed_with_the_core_dependencies_alone(tmp_path):
    """In a folder that is no checkout, without what evaluation, training and Harmon need."""
    program = """
import sys
from disa.commands.cli import main
for name in ("matplotlib", "torch_fidelity", "transformers", "tokenizers", "mmengine", "tensorboard", "scipy"):
    assert name not in sys.modules
    sys.modules[name] = None
main(["reproduce", "--list"])
main(["reproduce", "--list", "harmon", "bundled/mar_*"])
"""
    rows = list_rows(choose(TABLES, ["harmon", "bundled/mar_*"]))
    assert run("-c", program, cwd=tmp_path).stdout == f"{list_tables(TABLES.values())}\n{rows}\n"


def test_tables_are_listed_with_their_number_of_rows():
    first, *others, advice = list_tables(TABLES.values()).splitlines()
    assert first.split(maxsplit=3) == ["imagenet", "51", "rows", "ImageNet 256: as released, and with DiSA"]
    assert len(others) == len(TABLES) - 1
    assert "--list NAME" in advice


def test_rows_are_listed_by_name_or_pattern():
    lines = list_rows(TABLES.values()).splitlines()
    assert [line.split()[0] for line in lines] == list(RECIPES)
    (line,) = list_rows(choose(TABLES, ["imagenet/mar_huge-disa"])).splitlines()
    settings = "ar64-DiSA-linear-50to5-cfg3.3linear-temperature1-seed1"
    assert line.split() == [
        *("imagenet/mar_huge-disa", "50,000", "images", settings, "published", "FID", "~1.57", "(arXiv:2505.20297)")
    ]
    assert "published FID 3.61 (arXiv:2412.15205)  published FID 3.7 (arXiv:2505.20297)" in lines[23]


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
            (tmp_path / f"{family}.toml").write_text({"mar": mar, "xar": xar}.get(family, ""))
        return load_tables(tmp_path)

    return from_text


def test_inner_levels_override_outer_ones(load):
    tables = load(GOOD)
    recipes = {recipe.label: recipe for recipe in tables["small"].recipes}
    assert list(recipes) == [
        "mar_fashion-3-1",
        "mar_fashion-3-2",
        "mar_fashion-4-1",
        "mar_fashion-4-2",
        "mar_fashion-full",
    ]
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
        ("cfg = 1\n", "cfg = -1\n", "cfg: scale is -1"),
        ("num_images = 10", "", "nothing says what num_images shall be"),
        ("num_images = 10", "num_images = 0", "num_images is 0; a whole number of at least 1"),
        ("temperature = 1.0", "temperature = -1.0", "temperature is -1.0"),
        ("seed = 1\n", "seed = -1\n", "seed is -1"),
        ('diff_sampler = "DiSA"', 'diff_sampler = "DDMI"', "sampler is 'DDMI'; allowed are DiSA, default"),
        ("num_iter = 2\n", "num_iter = 0\n", "num_iter is 0; at least 1"),
        ("[3, 4]", "[1, 4]", "small/mar_fashion-1-2: diff_upper_steps: upper is 1, below lower = 2"),
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
        ("rows.full = {", "rows.full = {}\nrows.full = {", "mar.toml: "),
        ("[small.mar_fashion]", "[small.mar_fashoin]", "small: there is no model mar_fashoin"),
        ("[small.mar_fashion]", "[small.mar_base]", "no weights of mar_base come with the package; name a checkpoint"),
        (
            "[small.mar_fashion]",
            "[small.'harmon_0.5b']\ncheckpoint = 'harmon_0.5b'",
            "harmon_0.5b takes prompts; give some",
        ),
        ("[small.mar_fashion]", "[small.xar_fashion]", "xar_fashion is a flow model; its settings begin with flow_"),
        ('title = "A title"', "", "small: the table needs a title"),
        *(
            ("batch_size = 5", f"batch_size = 5\npublished = {published}", message)
            for published, message in (
                (
                    "[{ source = 'a paper' }]",
                    "nothing is published by a paper; give some of fid, isc, geneval, seconds",
                ),
                ("[{ fid = 1.5 }]", "a published number needs a source"),
                ("[{ source = 'x', fid = '1.57' }]", "fid is '1.57'; a number is needed, or text"),
                ("[{ source = '', fid = 1.57 }]", "source is ''; a text is needed"),
                ("[{ source = 'x', fdi = 1.57 }]", "published has fdi; it may have source, fid"),
                ("1.57", "published is 1.57; a list of { source"),
                ("[1.57]", "published is [1.57]; a list of { source"),
            )
        ),
        (
            "batch_size = 5",
            "batch_size = 5\nprompts = ['a cat']",
            "mar_fashion takes class labels; prompts, image_size",
        ),
        ("batch_size = 5", "batch_size = 5\ncheckpoint = 3", "checkpoint is 3; a text is needed"),
        ("batch_size = 5", "batch_size = 5\nprompts = 3", "prompts is 3; a list of texts is needed"),
        ("batch_size = 5", "batch_size = 5\nprompts = 'a cat'", "prompts is 'a cat'; a list of texts is needed"),
        ("num_images = 10", "num_images =", "mar.toml: Invalid value"),
    ],
)
def test_bad_files_are_refused_by_name(load, old, new, message):
    assert GOOD.count(old) >= 1
    with pytest.raises(ValueError, match=re.escape(message)) as refused:
        load(GOOD.replace(old, new))
    assert str(refused.value).count("mar.toml: ") == 1


def test_missing_files_are_named(load, tmp_path):
    load(GOOD)
    (tmp_path / "xar.toml").unlink()
    with pytest.raises(FileNotFoundError, match=r"there is no .*/xar\.toml; install the package again"):
        load_tables(tmp_path)


def test_own_rows_stand_beside_the_packages(tmp_path):
    (tmp_path / "mine.toml").write_text(EXAMPLE)
    own = GOOD.replace("small", "bundled").replace('title = "A title"', "").replace("rows.full", "rows.own")
    (tmp_path / "more.toml").write_text(own)
    assert list(load_tables(own=tmp_path / "mine.toml")) == [*TABLES, "mine"]
    assert [one.row for one in load_tables(own=tmp_path / "mine.toml")["mine"].recipes] == [
        *("2-1.5", "2-2.0", "4-1.5", "4-2.0", "full", "disa")
    ]
    more = load_tables(own=tmp_path / "more.toml")["bundled"]
    assert (more.title, len(more.recipes)) == (TABLES["bundled"].title, len(TABLES["bundled"].recipes) + 5)


def test_grids_are_products():
    assert expand({}) == {}
    assert list(expand({"a": [1, 2], "b": ["x"]}).items()) == [("1-x", {"a": 1, "b": "x"}), ("2-x", {"a": 2, "b": "x"})]


def test_names_choose_tables_recipes_and_patterns():
    def names(*asked):
        return [recipe.name for table in choose(TABLES, asked) for recipe in table.shown]

    assert names("ar_steps") == [recipe.name for recipe in TABLES["ar_steps"].recipes]
    assert names("bundled/xar_fashion-disa") == ["bundled/xar_fashion-disa"]
    assert names("strategies/xar_*-t*", "ar_steps/mar_base-16-even") == [
        "strategies/xar_base-two-stage",
        "ar_steps/mar_base-16-even",
    ]
    assert names("imagenet", "imagenet/mar_base-disa") == names("imagenet")
    (table,) = choose(TABLES, ["bundled/mar_fashion-disa"])
    assert table.baseline(table.shown[0]).name == "bundled/mar_fashion-full"  # though it is not shown
    for asked, meant in (("imagnet", "imagenet"), ("imagenet/mar_huge-dias", "imagenet/mar_huge-disa")):
        with pytest.raises(ValueError, match=f"there is no table or recipe {asked}; did you mean {meant}"):
            choose(TABLES, [asked])
    for unknown in ("imagnet", "imagenet/mar_base", "bundled/*-x"):
        with pytest.raises(ValueError, match=f"there is no table or recipe {re.escape(unknown)}"):
            choose(TABLES, [unknown])


def test_attributes_of_a_table_can_be_replaced():
    (table,) = choose(TABLES, ["bundled/mar_fashion-disa"])
    changed = table.change(num_images=7, batch_size=None)
    assert {recipe.num_images for recipe in changed.recipes} == {7}
    assert [recipe.num_images for recipe in changed.shown] == [7]
    assert changed.shown[0].batch_size == table.shown[0].batch_size
    assert len(changed.recipes) == len(table.recipes)
    with pytest.raises(ValueError, match="num_images is 0"):
        table.change(num_images=0)


def test_readable():
    """A row is a line, and a line is not too long."""
    for family in FAMILIES:
        text = (FOLDER / f"{family}.toml").read_text()
        assert max(map(len, text.splitlines())) <= 140
        assert textwrap.dedent(text) == text
