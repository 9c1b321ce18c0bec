"""Rows, their columns, and the Pareto front."""

import dataclasses
from pathlib import Path

import torch
from PIL import Image

from disa import Guidance
from disa.evaluation.extractors import DINOV2
from disa.evaluation.results import Results, Scores
from disa.tables.measure import Measurements
from disa.tables.recipes import choose, load_tables
from disa.tables.report import Point
from disa.tables.show import Row, columns_of, difference, equal_budgets, plot, samples_of, section_of, verdict
from disa.tables.sweep import starting_point, sweep_table

TABLES = load_tables()
MAR_BASE = TABLES["imagenet"].recipes[0]
FLOWAR = next(recipe for recipe in TABLES["imagenet"].recipes if recipe.model == "flowar_small")


def results(seconds=1.0, dtype="float32", **more):
    values = {
        "settings": {"dtype": dtype},
        "num_images": 8,
        "measures": [],
        "intervals": True,
        "nfe": 25600,
        "images_per_second": seconds and 1 / seconds,
        "seconds_per_image": seconds,
        "timed_images": 8,
        "fractions": {},
        "metrics": (),
        "device": "cpu",
        "batch_size": 8,
        "ranks": 1,
        "versions": {"torch": "2"},
    }
    return Results(**{**values, **more})


def cells_of(row):
    return {column.header: column.cell(row) for column in columns_of([row])}


def test_speed_ups_compare_what_was_measured_alike():
    assert Row(MAR_BASE, results(0.5), results(2.0)).speed_up == 4
    assert Row(MAR_BASE, results(0.5)).speed_up is None
    assert Row(MAR_BASE, None, results(2.0)).speed_up is None
    others = ({"device": "NVIDIA H100"}, {"ranks": 2}, {"batch_size": 4}, {"dtype": "bfloat16"}, {"seconds": None})
    for other in (*others, {"versions": {"torch": "3"}}):
        assert Row(MAR_BASE, results(0.5), results(**{"seconds": 2.0, **other})).speed_up is None


def test_published_stands_beside_measured():
    scores = Scores("inception", 8, fid=2.337, fid_interval=(2.3, 2.4), inception_score_mean=280.0)
    cells = cells_of(Row(MAR_BASE, results(metrics=(scores,))))
    assert list(cells)[3:7] == ["published FID", "FID (95 %)", "published IS", "IS"]
    assert list(cells.values())[3:7] == ["2.31", "2.34 (2.30–2.40)", "281.7", "280.0"]
    assert cells["published seconds"] == "0.650"
    assert cells["published in"] == "arXiv:2406.11838; arXiv:2505.20297"
    assert (cells["AR steps"], cells["diffusion steps"], cells["NFE"]) == ("256", "100", "25,600")
    assert "speed-up" not in cells
    assert "on the front" not in cells


def test_what_several_papers_have_stands_in_their_order():
    cells = cells_of(Row(FLOWAR))
    assert (cells["published FID"], cells["published IS"]) == ("3.61; 3.70", "235.1")
    assert (cells["published seconds"], cells["published in"]) == ("0.024", "arXiv:2412.15205; arXiv:2505.20297")
    record = Row(FLOWAR).record()
    assert (record["published_fid"], record["published_source"]) == ("3.61; 3.70", cells["published in"])
    assert record["published_geneval"] is None
    (harmon,) = (one for one in TABLES["harmon"].recipes if one.label == "harmon_1.5b-50-5")
    assert cells_of(Row(harmon))["published GenEval"] == "~0.73"


def test_published_numbers_are_marked_as_the_papers():
    known = Measurements(Path("nowhere"), torch.device("cpu"), "float32")
    assert "Published numbers are the papers'" in section_of(TABLES["imagenet"], known, front=False).text
    assert "Published numbers" not in section_of(TABLES["bundled"], known, front=False).text


def test_even_counts_are_written_as_they_are():
    steps = {recipe.row: Row(recipe).steps for recipe in TABLES["bundled"].recipes if recipe.model == "xar_fashion"}
    assert steps == {"full": "16", "disa": "16→5 linear", "even": "10–11", "low": "5"}


def test_a_difference_is_called_one_beyond_two_standard_errors():
    assert [verdict(value, 1.0) for value in (-2.1, -2.0, 0.0, 2.0, 2.1)] == ["better", "tie", "tie", "tie", "worse"]

    def scores(fid, reach):
        return Scores("fashion-classifier", 8, fid=fid, fid_interval=(max(fid - reach, 0.0), fid + reach))

    assert difference(scores(14.9, 1.96 * 3), scores(5.0, 1.96 * 4), 1) == "+9.9 ± 10.0, tie"
    assert difference(scores(3.9, 1.96 * 3), scores(15.0, 1.96 * 4), 1) == "-11.1 ± 10.0, better"
    assert difference(scores(1.0, 1.0), dataclasses.replace(scores(1.0, 1.0), fid_interval=None), 1) is None
    assert difference(scores(1.0, 1.0), Scores("fashion-classifier", 8), 1) is None


def bundled_section(distances):
    """The part of the page on mar_fashion in the table `bundled`, with distances measured to ± 1.96."""
    (one,) = choose(TABLES, ["bundled/mar_fashion-*"])
    known = Measurements(Path("nowhere"), torch.device("cpu"), "float32")
    for recipe, fid in zip(one.shown, distances, strict=True):
        scores = Scores("fashion-classifier", 8, fid=fid, fid_interval=(fid - 1.96, fid + 1.96))
        known.results[recipe.name] = results(metrics=(scores,))
    return section_of(one, known, front=False)


def test_rows_are_compared_with_their_baseline():
    section = bundled_section((10.0, 11.0, 12.0, 20.0))
    column = next(one for one in section.columns if one.header == "over the baseline (fashion-classifier)")
    assert [column.cell(row) for row in section.rows] == [
        "–",
        "+1.0 ± 2.8, tie",
        "+2.0 ± 2.8, tie",
        "+10.0 ± 2.8, worse",
    ]
    assert "only beyond two standard errors" in section.text


def test_annealed_rows_are_compared_with_one_count_at_the_same_budget():
    said = "Annealed against constant counts, at equal NFE: mar_fashion-disa minus mar_fashion-even, NFE "
    text = bundled_section((10.0, 11.0, 12.0, 20.0)).text
    assert said in text
    assert "Fréchet distance (classifier): -1.0 ± 2.8, tie." in text
    assert "-9.0 ± 2.8, better." in bundled_section((10.0, 11.0, 20.0, 20.0)).text
    (one,) = choose(TABLES, ["bundled/mar_fashion-disa", "bundled/mar_fashion-full"])
    assert equal_budgets(one.shown) == []


def test_budgets_are_compared_where_all_else_is_the_same():
    disa, even = (next(one for one in TABLES["bundled"].recipes if one.row == row) for row in ("disa", "even"))
    assert equal_budgets([disa, even]) == [(disa, even)]
    other = dataclasses.replace(even, sampling=dataclasses.replace(even.sampling, temperature=0.5))
    assert equal_budgets([disa, other]) == []


def test_a_feature_space_that_was_asked_for_has_its_columns():
    scores = Scores(DINOV2, 8, fid=120.04, precision=0.7, recall=0.5)
    cells = cells_of(Row(MAR_BASE, results(metrics=(scores,))))
    assert cells["FD-DINOv2 (95 %)"] == "120.0"
    assert (cells[f"precision ({DINOV2})"], cells[f"recall ({DINOV2})"]) == ("0.70", "0.50")
    assert "FID (95 %)" not in cells
    assert "IS" not in cells
    assert f"KID ({DINOV2})" not in cells


def test_columns_are_what_rows_differ_in():
    def changed(recipe, **changes):
        return Row(dataclasses.replace(recipe, row="other", sampling=dataclasses.replace(recipe.sampling, **changes)))

    def settings(*rows):
        return {
            column.header: [column.cell(row) for row in rows] for column in columns_of(rows) if column.header in NAMES
        }

    NAMES = ("sampler", "cfg", "cfg_schedule", "guidance interval", "temperature", "seed")
    assert settings(Row(FLOWAR)) == {}
    wide = changed(FLOWAR, guidance=Guidance(4.3, "constant"), seed=7)
    assert settings(Row(FLOWAR), wide) == {
        "cfg_schedule": ["linear", "constant"],
        "guidance interval": ["t ≤ 0.9", "all"],
        "seed": ["1", "7"],
    }
    annealed = changed(MAR_BASE, sampler="DiSA", temperature=0.9)
    assert settings(Row(MAR_BASE), annealed) == {
        "sampler": ["ancestral", "ancestral, t ≤ 950"],
        "temperature": ["1", "0.9"],
    }
    assert list(settings(Row(MAR_BASE), wide)) == ["sampler", "cfg", "cfg_schedule", "seed"]  # one has an interval


def test_what_is_not_everywhere_is_told_where_it_is():
    found = sweep_table(starting_point(TABLES, "mar_fashion"), {"token_order": ["random", "gtr"]})
    rows = [Row(recipe) for recipe in found.shown]
    column = next(one for one in columns_of(rows) if one.header == "others")
    assert [column.cell(row) for row in rows] == ["none", "token_order gtr"]
    known = Measurements(Path("nowhere"), torch.device("cpu"), "float32")
    assert "others" not in section_of(found, known, front=False).text
    alike = dataclasses.replace(found, shown=found.shown[1:])
    assert "; others token_order gtr." in section_of(alike, known, front=False).text
    assert "others" not in section_of(dataclasses.replace(found, shown=found.shown[:1]), known, front=False).text


def test_records_keep_the_digits():
    scores = Scores("inception", 8, fid=2.337, fid_interval=(2.3, 2.4))
    record = Row(FLOWAR, results(0.123, metrics=(scores,)), results(0.246), front=True).record()
    assert (record["sampler"], record["guidance"], record["nfe"]) == ("euler", 0.9, FLOWAR.nfe)
    assert (record["inception fid"], record["inception fid_interval low"]) == (2.337, 2.3)
    assert (record["speed_up"], record["seconds_per_image"], record["front"]) == (2, 0.123, True)
    assert "seconds_per_image" not in Row(FLOWAR).record()


def test_the_front_is_by_time_where_times_compare_and_by_evaluations_elsewhere():
    found = sweep_table(starting_point(TABLES, "mar_fashion"), {"diff_upper_steps": [8, 9, 10]})
    known = Measurements(Path("nowhere"), torch.device("cpu"), "float32")
    for recipe, seconds, fid in zip(found.shown, (0.3, 0.1, 0.2), (10.0, 12.0, 14.0), strict=True):
        known.results[recipe.name] = results(seconds, metrics=(Scores("fashion-classifier", 8, fid=fid),))

    section = section_of(found, known, front=True)
    assert [row.front for row in section.rows] == [True, True, False]
    assert "at the same seconds per image or less" in section.text
    second = found.shown[1].name
    known.results[second] = dataclasses.replace(known.results[second], ranks=2)
    section = section_of(found, known, front=True)
    assert [row.front for row in section.rows] == [True, False, False]  # the fewest evaluations are the best here
    assert "at the same NFE or less" in section.text


def test_few_settings_of_several_models_have_a_panel_for_each_model():
    points = [Point(name, 1, 9, group=model) for model in ("mar", "xar") for name in ("disa", "full")]
    assert len(plot(points, "seconds", "FID").axes) == 2
    assert len(plot(points[:2], "seconds", "FID").axes) == 1
    assert len(plot([Point(str(i), 1, 9, group=str(i)) for i in range(9)], "seconds", "FID").axes) == 1


def test_samples_are_the_first_lines_of_a_rows_grid(tmp_path):
    known = Measurements(tmp_path, torch.device("cpu"), "float32")
    recipe = dataclasses.replace(MAR_BASE, num_images=35)
    assert samples_of(Row(recipe), known) is None
    folder = known.folder(recipe)
    folder.mkdir(parents=True)
    grid = Image.new("L", (1280, 512), 255)  # four lines, of which the last two are black
    grid.paste(0, (0, 256, 1280, 512))
    grid.save(folder / "samples.png")
    shown = samples_of(Row(recipe), known)
    assert shown.size == (640, 128)
    assert shown.getextrema() == (255, 255)
