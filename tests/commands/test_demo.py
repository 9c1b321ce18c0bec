"""The demo, with fewer images and steps than `make demo` takes."""

import dataclasses
import re

import pytest
import torch
from safetensors.torch import save_file

from disa import StepSchedule, build_model
from disa.commands import demo
from disa.evaluation.results import Results, Scores
from disa.models import MODELS
from disa.tables.show import Row
from disa.tables.sweep import canonical
from tests.helpers.scripts import command
from tests.tables.test_show import results

RECIPES = demo.bundled_recipes()
STRATEGIES = ("linear", "even", "constant")
# The largest share of the fixed count's evaluations that DiSA may take.
SHARES = {"mar_fashion": 0.65, "flowar_fashion": 0.7, "xar_fashion": 0.7}
# model -> AR steps, first and last count
SMALL = {"mar_fashion": (2, 3, 1), "flowar_fashion": (None, 4, 1), "xar_fashion": (None, 3, 1)}


def test_all_three_families_are_shown_with_bundled_models():
    assert list(RECIPES) == list(SHARES)
    assert all(MODELS[name].bundled for name in SHARES)
    assert len({MODELS[name].build for name in SHARES}) == 3


@pytest.mark.parametrize("name", RECIPES)
def test_settings_differ_in_their_steps_alone(name):
    assert [demo.NAMES[recipe.row] for recipe in RECIPES[name]] == list(demo.NAMES.values())
    full, annealed, even, low = RECIPES[name]
    for field in ("seed", "temperature", "guidance", "sampler"):
        assert len({getattr(recipe.sampling, field) for recipe in RECIPES[name]}) == 1
    assert annealed.nfe <= SHARES[name] * full.nfe
    assert abs(even.nfe - annealed.nfe) <= 0.03 * annealed.nfe
    assert len({recipe.sampling.num_iter for recipe in RECIPES[name]}) == 1
    count = annealed.sampling.schedule.lower
    assert canonical(low.sampling).schedule == StepSchedule(count, count, "constant")
    assert len(set(low.nfe_per_step)) == 1
    assert low.nfe_per_step[-1] == annealed.nfe_per_step[-1]


@pytest.fixture
def small(tmp_path):
    """Recipes of few steps and images; the weights are random, for what is tested here does not depend on them."""
    recipes = {}
    for model, (num_iter, upper, lower) in SMALL.items():
        save_file(build_model(model).state_dict(), tmp_path / f"{model}.safetensors")
        schedules = (StepSchedule(upper, upper), *(StepSchedule(upper, lower, one) for one in STRATEGIES))
        recipes[model] = [
            dataclasses.replace(
                recipe,
                sampling=dataclasses.replace(recipe.sampling, num_iter=num_iter, schedule=schedule),
                checkpoint=str(tmp_path / f"{model}.safetensors"),
                num_images=20,
                batch_size=10,
            )
            for recipe, schedule in zip(RECIPES[model], schedules, strict=True)
        ]
    return recipes


@pytest.mark.slow
def test_demo_prints_a_table_a_model_and_writes_one_page(tmp_path, small, capsys):
    out = tmp_path / "out"
    demo.demonstrate(small, out, torch.device("cpu"), features="fashion-classifier")
    printed = capsys.readouterr().out
    page = (out / "report.html").read_text()
    for name, recipes in small.items():
        header, _, *lines = printed.partition(f"\n{name}\n\n")[2].splitlines()[:6]
        assert [cell.strip() for cell in header.split("|")[1:5]] == ["setting", "AR steps", "NFE", "seconds per image"]
        rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]
        assert [row[0] for row in rows] == list(demo.NAMES.values())
        counts = [recipe.nfe_per_step for recipe in recipes]
        assert [(int(row[1]), int(row[2])) for row in rows] == [(len(count), sum(count)) for count in counts]
        assert rows[0][4] == "1.0×"
        said = f"{name}-disa minus {name}-even, NFE "  # of so few steps, the budgets are the same in one model alone
        assert (said in printed) == (said in page) == (abs(sum(counts[2]) - sum(counts[1])) <= 0.03 * sum(counts[1]))
        assert f"<h2>{name}</h2>" in page
        for recipe in recipes:
            results = Results.read(out / name / recipe.sampling.name() / "results.json")
            assert results.settings["model"] == name
            assert results.num_images == 20
            assert [scores.extractor for scores in results.metrics] == ["fashion-classifier"]
    assert len(re.findall(r'<img src="data:image/png;base64,', page)) == 3 * 6  # two plots, four grids
    assert page.count("<td>low everywhere</td>") == 3
    assert not re.findall(r'(?:src|href)="(?!data:)', page)

    # Started again, with fewer models, it finds everything done.
    written = {path: path.stat().st_mtime_ns for path in out.glob("*/*/results.json")}
    fewer = {name: small[name] for name in ("flowar_fashion", "xar_fashion")}
    demo.demonstrate(fewer, out, torch.device("cpu"), features="fashion-classifier")
    again = capsys.readouterr().out
    tables = printed.partition("\nmar_fashion\n\n")[2].partition("\nflowar_fashion\n\n")[2].partition("report:")[0]
    assert tables
    assert tables in again
    assert {path: path.stat().st_mtime_ns for path in out.glob("*/*/results.json")} == written
    assert "mar_fashion" not in again
    assert "<h2>mar_fashion</h2>" not in (out / "report.html").read_text()


def test_table_has_the_distances_in_both_feature_spaces(small):
    scores = (
        Scores("efficientnet-lite0", 20, fid=480.04),
        Scores("fashion-classifier", 20, fid=29.0, label_accuracy=0.9),
    )
    cells = {
        column.header: column.cell(Row(small["mar_fashion"][1], results(metrics=scores))) for column in demo.COLUMNS
    }
    assert cells == {
        "setting": "DiSA",
        "AR steps": "2",
        "NFE": "4",
        "seconds per image": "1.000",
        "speed-up": "–",
        "Fréchet distance (EfficientNet-Lite0)": "480.0",
        "Fréchet distance (classifier)": "29.0",
        "label accuracy": "90.0 %",
    }


def test_missing_weights_end_the_demo_before_anything_is_generated(tmp_path, small):
    (tmp_path / "xar_fashion.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"xar_fashion\.safetensors"):
        demo.demonstrate(small, tmp_path / "out", torch.device("cpu"), "fashion-classifier")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("flag", "message"), [("--num_images", "at least 2 images"), ("--batch_size", "batch_size is 0")]
)
def test_flags_choose_models_and_counts(tmp_path, flag, message, capsys):
    value = "1" if flag == "--num_images" else "0"
    words = ("demo", "--models", "xar_fashion", flag, value, "--device", "cpu", "--out", tmp_path / "out")
    assert command(*words) == 2
    printed = capsys.readouterr()
    assert message in printed.err
    assert "mar_fashion" not in printed.out
    assert ("xar_fashion, without DiSA: 4 AR steps, NFE 64" in printed.out) == (flag == "--num_images")


def test_unknown_model_is_refused(capsys):
    assert command("demo", "--models", "mar_base") == 2
    assert "'mar_base' is unknown" in capsys.readouterr().err
