"""`disa reproduce` and `disa sweep`, on small models with few images and steps."""

import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from disa import build_model, checkpoints, recipes, reproduce, spaces
from disa.features import DINOV2
from disa.recipes import FAMILIES, load_tables
from disa.report import Column, table
from disa.reproduce import find_published, row_of, section_of, speed_up
from disa.spaces import BUNDLED_STATISTICS, Space
from disa.sweep import starting_point, sweep_table
from tests.test_cli import command

DIFFUSION = """
num_images = 6
batch_size = 2
diff_sampler = "DiSA"
diff_annealing_strategy = "linear"
cfg = 2.0
cfg_schedule = "linear"
temperature = 1.0
seed = 1
num_iter = 2
diff_lower_steps = 1
baseline = "full"
"""
FILES = {
    "MAR_DiSA": f"""{DIFFUSION}
[both]
title = "Two models"
text = "What is shown."

[both.mar_fashion]
rows.full = {{ diff_upper_steps = 5, diff_lower_steps = 5, published_fid = 3.5, source = "somewhere" }}
rows.disa = {{ diff_upper_steps = 3, published_fid = "~3.6", source = "somewhere" }}

[again]
title = "A row that another table has"
[again.mar_fashion]
rows.same = {{ diff_upper_steps = 3, baseline = "same" }}

[published]
title = "A model whose weights are not here"
[published.mar_base]
checkpoint = "mar_base"
rows.full = {{ diff_upper_steps = 5, diff_lower_steps = 5 }}
rows.disa = {{ diff_upper_steps = 3 }}
""",
    "xAR_DiSA": """
[both.xar_fashion]
num_images = 6
batch_size = 2
cfg = 1.0
cfg_schedule = "linear"
guidance = 1.0
temperature = 1.0
seed = 1
flow_sampler = "euler"
flow_annealing_strategy = "linear"
rows.disa = { flow_upper_steps = 2, flow_lower_steps = 1 }
""",
    "Harmon_DiSA": f"""{DIFFUSION}
[prompts]
title = "Prompts"
[prompts.harmon_fashion]
rows.full = {{ diff_upper_steps = 2, diff_lower_steps = 2 }}
rows.said = {{ diff_upper_steps = 2, prompts = ["a bag", "a shirt"], image_size = 32 }}
""",
}
TWO_RANKS = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
SPACES_OF = reproduce.spaces_of  # the fixture replaces it
DISTANCE = "Fréchet distance (classifier) (95 %)"
SPACE = Space("fashion-classifier", ("fid", "accuracy"), str(BUNDLED_STATISTICS / "fashion_test_fashion-classifier.npz"))


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Weights of every bundled model, for what is tested here does not depend on them."""
    folder = tmp_path_factory.mktemp("weights")
    torch.manual_seed(0)
    for name in ("mar_fashion", "xar_fashion", "harmon_fashion"):
        save_file({key: value.clone() for key, value in build_model(name).state_dict().items()}, folder / f"{name}.safetensors")
    shutil.copy(checkpoints.BUNDLED_WEIGHTS / "harmon_fashion_tokenizer.json", folder)
    return folder


@pytest.fixture
def tables(tmp_path, weights, monkeypatch):
    """The recipes above instead of the repository's, and one quick feature space."""
    for family in FAMILIES:
        (tmp_path / "checkout" / family).mkdir(parents=True)
        (tmp_path / "checkout" / family / "recipes.toml").write_text(FILES.get(family, ""))
    loaded = load_tables(tmp_path / "checkout")
    monkeypatch.setattr(recipes, "load_tables", lambda: loaded)
    monkeypatch.setattr(recipes, "ROOT", tmp_path / "checkout")
    monkeypatch.setattr(checkpoints, "BUNDLED_WEIGHTS", weights)
    monkeypatch.setattr(reproduce, "spaces_of", lambda recipe, *_: ([] if recipe.prompts else [SPACE], []))
    monkeypatch.chdir(tmp_path)
    return loaded


def call(*words):
    return command("reproduce", *words, "--out", "out", "--device", "cpu")


def read_table(text, heading):
    """The rows of a table in Markdown, by their first cell: header -> cell."""
    lines = [line for line in text.partition(f"## {heading}\n")[2].partition("\n## ")[0].splitlines() if line.startswith("|")]
    header, _, *rows = ([cell.strip() for cell in line.split("|")[1:-1]] for line in lines)
    return {row[0]: dict(zip(header, row, strict=True)) for row in rows}


def test_a_table_is_measured_once_and_shown(tables, monkeypatch, capsys):
    assert call("both") == 0
    printed, text = capsys.readouterr().out, Path("out/table.md").read_text()
    assert [line for line in printed.splitlines() if re.match(r"\d+ of \d+: ", line)] == [
        f"{i} of 3: both/{name}, 6 images" for i, name in enumerate(("mar_fashion-full", "mar_fashion-disa", "xar_fashion-disa"), 1)
    ]
    assert text in printed and "What is shown." in text and "In all rows: cfg_schedule linear, guidance 1, temperature 1, seed 1." in text
    rows = read_table(text, "Two models")
    assert list(rows) == ["mar_fashion-full", "mar_fashion-disa", "xar_fashion-disa"]
    full, disa, flow = rows.values()
    assert [row["published FID"] for row in rows.values()] == ["3.50", "~3.6", "–"]
    assert [(row["AR steps"], row["diffusion steps"]) for row in rows.values()] == [("2", "5"), ("2", "3→1 linear"), ("4", "2→1 linear")]
    assert (disa["sampler"], flow["sampler"], disa["cfg"], flow["cfg"]) == ("DiSA", "euler", "2", "1")
    assert full["speed-up"] == "1.0×" and re.fullmatch(r"\d+\.\d×", disa["speed-up"]) and flow["speed-up"] == "–"  # it has no baseline
    for row in rows.values():
        assert re.fullmatch(r"[\d.,]+ \([\d.,]+–[\d.,]+\)", row[DISTANCE])
        assert float(row["seconds an image"]) > 0 and row["label accuracy"].endswith(" %")

    with open("out/table.csv", newline="") as file:
        flat = {row["recipe"]: row for row in csv.DictReader(file)}
    (record,) = Path("out/mar_fashion").glob("ar2-DiSA-linear-3to1-*-6images-float32/results.json")
    results = json.loads(record.read_text())
    (scores,) = results["metrics"]
    row = flat["mar_fashion-disa"]
    assert int(row["head_evaluations"]) == results["head_evaluations"] and row["published_fid"] == "~3.6" and row["source"] == "somewhere"
    assert float(row["fashion-classifier fid"]) == scores["fid"] and float(row["seconds_per_image"]) == results["seconds_per_image"]
    assert [float(row[f"fashion-classifier fid_interval {end}"]) for end in ("low", "high")] == scores["fid_interval"]
    page = Path("out/report.html").read_text()
    assert "<h2>Two models</h2>" in page and page.count("data:image/png;base64,") == 1 and "<td>~3.6</td>" in page
    assert Image.open("out/both.png").width > 800

    # Nothing is generated a second time: not for the same table, and not for a row that another one has, too.
    monkeypatch.setattr(reproduce.Sampler, "__call__", lambda *args: pytest.fail("generated again"))
    assert call("both") == 0 and Path("out/table.md").read_text() == text
    assert call("again", "both/mar_fashion-disa") == 0
    text = Path("out/table.md").read_text()
    assert list(read_table(text, "Two models")) == ["mar_fashion-disa"]
    alone = read_table(text, "Two models")["mar_fashion-disa"]
    assert alone == {name: disa[name] for name in alone} and "speed-up" in alone  # its baseline is known, though it is not shown
    assert read_table(text, "A row that another table has")["mar_fashion-same"]["seconds an image"] == disa["seconds an image"]


def test_rows_that_cannot_run_leave_a_dash_and_a_sentence(tables, capsys):
    assert call("published", "both/mar_fashion-disa", "--images", "4", "--batch_size", "4") == 1
    printed, text = capsys.readouterr().out, Path("out/table.md").read_text()
    sentence = "here is no pretrained_models/mar/mar_base/checkpoint-last.pth; fetch it with `disa checkpoints fetch mar_base`"
    assert f"cannot run: t{sentence}" in printed and f"Not run: mar_base-full, mar_base-disa. T{sentence}" in text
    rows = read_table(text, "A model whose weights are not here")
    assert {row["seconds an image"] for row in rows.values()} == {"–"} and rows["mar_base-full"]["head evaluations an image"] == "10"
    ran = read_table(text, "Two models")["mar_fashion-disa"]
    assert "(" in ran[DISTANCE] and ran["seconds an image"] == "–"  # one batch, which is not timed
    assert "speed-up" not in ran


def test_an_error_in_one_row_leaves_the_others(tables, monkeypatch, capsys):
    def fail(self, ids):
        raise FloatingPointError("the pixels hold NaN")

    monkeypatch.setattr(reproduce.PromptSampler, "__call__", fail)
    assert call("prompts", "again") == 1
    assert "Not run: harmon_fashion-full, harmon_fashion-said. The pixels hold NaN." in capsys.readouterr().out
    assert "(" in read_table(Path("out/table.md").read_text(), "A row that another table has")["mar_fashion-same"][DISTANCE]


def test_without_a_distance_nothing_is_generated_unless_asked(tables, monkeypatch):
    """The weights are there, and what ImageNet's images would be compared with is not."""
    (recipe,) = [one for one in tables["published"].recipes if one.row == "disa"]
    monkeypatch.setattr(spaces, "missing", lambda name: None)
    with pytest.raises(ValueError, match="no fid in inception: there is no reference; .*; mend that, or give --metrics none for times"):
        SPACES_OF(recipe, "auto", "auto", "auto")
    assert SPACES_OF(recipe, "none", "auto", "auto") == ([], [])
    assert SPACES_OF(recipe, "isc", "auto", "auto") == ([Space("inception", ("isc",), None)], [])
    monkeypatch.setattr(spaces, "missing", lambda name: "it is not here")
    with pytest.raises(ValueError, match="nothing is measured in inception: it is not here; mend that"):
        SPACES_OF(recipe, "auto", "auto", "auto")


def test_metrics_can_be_chosen(tables, monkeypatch):
    monkeypatch.setattr(reproduce, "spaces_of", SPACES_OF)
    assert call("both/xar_fashion-disa", "--metrics", "none") == 0
    row = read_table(Path("out/table.md").read_text(), "Two models")["xar_fashion-disa"]
    assert "label accuracy" not in row and float(row["seconds an image"]) > 0
    assert call("both/xar_fashion-disa", "--metrics", "accuracy", "--features", "fashion-classifier") == 0
    row = read_table(Path("out/table.md").read_text(), "Two models")["xar_fashion-disa"]
    assert row["label accuracy"].endswith(" %") and DISTANCE not in row


def test_a_damaged_record_is_measured_again(tables):
    assert call("both/mar_fashion-disa") == 0
    (record,) = Path("out/mar_fashion").glob("*/results.json")
    text = record.read_text()
    for damaged in ("{}", "[", text[: len(text) // 2]):
        record.write_text(damaged)
        assert call("both/mar_fashion-full", "both/mar_fashion-disa") == 0
        assert json.loads(record.read_text())["metrics"] == json.loads(text)["metrics"]


def test_a_folder_that_cannot_be_written_is_named_before_anything_is_loaded(tables, monkeypatch, capsys):
    Path("out").touch()
    monkeypatch.setattr(reproduce, "load", lambda *_: pytest.fail("loaded"))
    assert call("both") == 2 and "out" in capsys.readouterr().err


def test_what_was_measured_is_shown_when_the_weights_are_gone(tables, monkeypatch, tmp_path):
    assert call("again") == 0
    text = Path("out/table.md").read_text()
    monkeypatch.setattr(checkpoints, "BUNDLED_WEIGHTS", tmp_path)
    assert call("again") == 0 and Path("out/table.md").read_text() == text


def test_harmon_draws_the_grammars_prompts_or_its_own(tables, monkeypatch):
    assert call("prompts") == 0
    rows = read_table(Path("out/table.md").read_text(), "Prompts")
    assert rows["harmon_fashion-full"]["label accuracy"].endswith(" %")
    (recipe,) = [one for one in tables["prompts"].recipes if one.row == "said"]
    sampler = reproduce.load(recipe, torch.device("cpu"), torch.float32)(recipe)
    assert (sampler.prompts, sampler.images_per_prompt, sampler.image_shape, sampler.classes) == (["a bag", "a shirt"], 3, (8, 8), None)


def test_nothing_asked_and_unknown_names_end_in_a_sentence(tables, capsys):
    assert call() == 2 and "name tables or recipes" in capsys.readouterr().err
    assert call("both/mar") == 2 and "there is no table or recipe both/mar" in capsys.readouterr().err
    assert call("--list") == 0
    assert "both: Two models" in capsys.readouterr().out


@pytest.fixture
def launch(tables, weights, tmp_path):
    """Run `disa reproduce` on the tables above in processes of its own: launcher, words, Python that comes first -> how it ended."""

    def run(launcher, words, first=""):
        program = f"""
import os, signal, sys
from pathlib import Path
from disa import checkpoints, cli, evaluation, recipes, reproduce
from tests.test_reproduce import SPACE
tables = recipes.load_tables(Path({str(tmp_path / "checkout")!r}))
recipes.load_tables = lambda: tables
checkpoints.BUNDLED_WEIGHTS = Path({str(weights)!r})
reproduce.spaces_of = lambda *_: ([SPACE], [])
sys.argv = ["disa", "reproduce", *{words!r}, "--out", "out", "--device", "cpu"]
{first}
cli.entry()
"""
        Path("program.py").write_text(program)
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[1])}
        command = [sys.executable, *launcher, "program.py"]
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)

    return run


def test_two_ranks_fill_one_table(launch):
    ended = launch(TWO_RANKS, ["again", "published"])
    assert ended.returncode == 1 and ended.stdout.count("1 of 3: again/mar_fashion-same") == 1, ended.stderr
    text = Path("out/table.md").read_text()
    assert "2 ranks" in text and "(" in read_table(text, "A row that another table has")["mar_fashion-same"][DISTANCE]


def test_an_error_of_one_rank_leaves_the_other_rows(launch):
    fail = """
sample = reproduce.Sampler.__call__
def fail(self, ids):
    if type(self.model).__name__ == "XAR" and 2 in ids:
        raise FloatingPointError("the pixels hold NaN")
    return sample(self, ids)
reproduce.Sampler.__call__ = fail
"""
    ended = launch(TWO_RANKS, ["both/xar_fashion-disa", "prompts"], fail)
    assert ended.returncode == 1 and "cannot run: the pixels hold NaN" in ended.stdout, ended.stderr
    text = Path("out/table.md").read_text()
    assert "Not run: xar_fashion-disa. The pixels hold NaN." in text
    assert "(" in read_table(text, "Prompts")["harmon_fashion-full"][DISTANCE]


def test_a_killed_run_goes_on_where_it_was(launch, monkeypatch):
    """It is killed before the last of the three blocks of its second row."""
    killed = launch(
        [],
        ["both"],
        """
evaluation.SAVE_SECONDS = 0
calls, sample = [], reproduce.Sampler.__call__
def sample_or_die(self, ids):
    calls.append(ids)
    if len(calls) == 6:
        os.kill(os.getpid(), signal.SIGKILL)
    return sample(self, ids)
reproduce.Sampler.__call__ = sample_or_die
""",
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    begun = read_table(Path("out/table.md").read_text(), "Two models")  # rows show as they are done
    assert "(" in begun["mar_fashion-full"][DISTANCE] and begun["mar_fashion-disa"][DISTANCE] == "–"

    generated, sample = [], reproduce.Sampler.__call__

    def count(self, ids):
        generated.append((type(self.model).__name__, list(ids)))
        return sample(self, ids)

    monkeypatch.setattr(reproduce.Sampler, "__call__", count)
    assert call("both") == 0
    assert generated == [("MAR", [4, 5]), *(("XAR", [first, first + 1]) for first in (0, 2, 4))]
    resumed = read_table(Path("out/table.md").read_text(), "Two models")
    shutil.rmtree("out")
    assert call("both") == 0
    whole = read_table(Path("out/table.md").read_text(), "Two models")
    assert [row[DISTANCE] for row in resumed.values()] == [row[DISTANCE] for row in whole.values()]
    assert [row["label accuracy"] for row in resumed.values()] == [row["label accuracy"] for row in whole.values()]


# -------------------------------------------------------------------------------------------------------------- pieces


def results(seconds=1.0, device="cpu", ranks=1, dtype="float32", **more):
    return {
        **{"seconds_per_image": seconds, "images_per_second": seconds and 1 / seconds, "device": device, "ranks": ranks, "batch_size": 8},
        **{"settings": {"dtype": dtype}, "versions": {"torch": "2"}, "metrics": []},
        **more,
    }


def test_speed_ups_compare_what_was_measured_alike():
    assert speed_up(results(0.5), results(2.0)) == 4
    assert speed_up(results(0.5), None) is None
    for other in ({"device": "NVIDIA H100"}, {"ranks": 2}, {"dtype": "bfloat16"}, {"seconds": None}):
        assert speed_up(results(0.5), results(**{"seconds": 2.0, **other})) is None


def test_published_stands_beside_measured():
    recipe = load_tables()["imagenet"].recipes[0]
    scores = {"extractor": "inception", "fid": 2.337, "fid_interval": [2.3, 2.4], "inception_score_mean": 280.0}
    row = row_of(recipe, results(metrics=[scores]), None)
    columns = reproduce.columns_of([row])
    cells = {column.header: column.cell(row) for column in columns}
    assert list(cells)[3:7] == ["published FID", "FID (95 %)", "published IS", "IS"]
    assert list(cells.values())[3:7] == ["2.31", "2.34 (2.30–2.40)", "281.7", "280.0"]
    assert cells["AR steps"] == "256" and cells["head evaluations an image"] == "25,600" and "speed-up" not in cells


def test_a_feature_space_that_was_asked_for_has_its_columns():
    scores = {"extractor": DINOV2, "fid": 120.04, "precision": 0.7, "recall": 0.5}
    row = row_of(load_tables()["imagenet"].recipes[0], results(metrics=[scores]), None)
    cells = {column.header: column.cell(row) for column in reproduce.columns_of([row])}
    assert (cells["FD-DINOv2 (95 %)"], cells[f"precision ({DINOV2})"], cells[f"recall ({DINOV2})"]) == ("120.0", "0.70", "0.50")
    assert "FID (95 %)" not in cells and "IS" not in cells and f"KID ({DINOV2})" not in cells


def test_published_files_are_found_here_and_in_the_families_folders(tables, tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no pretrained_models/vae/kl16.ckpt; fetch it with `disa checkpoints fetch kl16`"):
        find_published("kl16")
    for folder in (tmp_path / "checkout" / "xAR_DiSA", tmp_path):
        (folder / "pretrained_models" / "vae").mkdir(parents=True)
        (folder / "pretrained_models" / "vae" / "kl16.ckpt").touch()
        assert find_published("kl16").resolve() == folder / "pretrained_models" / "vae" / "kl16.ckpt"


# --------------------------------------------------------------------------------------------------------------- sweep


def test_sweep_marks_what_no_row_beats(tables, capsys, tmp_path):
    words = ["--flow_upper_steps", "2", "3", "--flow_lower_steps", "1", "3", "--images", "4", "--batch_size", "2", "--device", "cpu"]
    torch.manual_seed(1)
    save_file(build_model("xar_fashion").state_dict(), tmp_path / "mine.safetensors")
    assert command("sweep", "xar_fashion", *words, "--resume", "mine.safetensors") == 0
    text = Path("out/sweep/xar_fashion/table.md").read_text()
    rows = read_table(text, "xar_fashion by flow_upper_steps, flow_lower_steps")
    assert list(rows) == ["xar_fashion-2-1", "xar_fashion-3-1", "xar_fashion-3-3"] and "Left out: 2-3 " in text
    fronts = [row["on the front"] for row in rows.values()]
    assert "yes" in fronts and set(fronts) <= {"yes", ""} and "On the front: nothing here" in text
    assert (
        Path("out/sweep/xar_fashion/sweep.png").is_file()
        and "What is not varied is as in both/xar_fashion-disa; speed-ups are over 3-3," in text
    )
    assert rows["xar_fashion-3-3"]["speed-up"] == "1.0×" and re.fullmatch(r"\d+\.\d×", rows["xar_fashion-2-1"]["speed-up"])


def test_the_front_is_by_time_where_times_compare_and_by_evaluations_elsewhere(tables):
    found = sweep_table(starting_point(tables, "mar_fashion"), {"diff_upper_steps": [2, 3, 4]})
    known = reproduce.Measurements(Path("nowhere"), "float32")
    measured = zip(found.shown, (0.3, 0.1, 0.2), (10.0, 12.0, 14.0), strict=True)
    for recipe, seconds, fid in measured:
        known.results[recipe.name] = results(seconds, metrics=[{"extractor": "fashion-classifier", "fid": fid}])

    def fronts():
        section = section_of(found, known, front=True)
        return [row["front"] for row in section.rows], table(section.rows, [Column("recipe", "recipe")])

    assert fronts()[0] == [True, True, False]
    known.results[found.shown[1].name]["ranks"] = 2
    assert fronts()[0] == [True, False, False]  # the fewest evaluations are the best here
