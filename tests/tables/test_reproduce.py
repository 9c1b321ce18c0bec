"""`disa reproduce` and `disa sweep`, on small models with few images and steps."""

import csv
import re
import shutil
import signal
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from disa import build_model
from disa.commands.reproduce import EXAMPLE
from disa.evaluation.results import Results
from disa.runtime.files import BUNDLED
from disa.tables.measure import load
from disa.tables.recipes import FAMILIES, choose, load_tables
from disa.tables.reproduce import reproduce
from tests.helpers.processes import TORCHRUN, run
from tests.helpers.scripts import command

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
    "mar": f"""{DIFFUSION}
[both]
title = "Two models"
text = "What is shown."

[both.mar_fashion]
rows.full = {{ diff_upper_steps = 5, diff_lower_steps = 5, published = [{{ fid = 3.5, source = "somewhere" }}] }}
rows.disa = {{ diff_upper_steps = 3, published = [{{ fid = "~3.6", source = "somewhere" }}] }}

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
    "xar": """
[both.xar_fashion]
num_images = 6
batch_size = 2
cfg = 1.0
cfg_schedule = "linear"
guidance = 0.9
temperature = 1.0
seed = 1
flow_sampler = "euler"
flow_annealing_strategy = "linear"
rows.disa = { flow_upper_steps = 2, flow_lower_steps = 1 }
""",
    "harmon": f"""{DIFFUSION}
[prompts]
title = "Prompts"
[prompts.harmon_fashion]
rows.full = {{ diff_upper_steps = 2, diff_lower_steps = 2 }}
rows.said = {{ diff_upper_steps = 2, prompts = ["a bag", "a shirt"], image_size = 32 }}
""",
}
DISTANCE = "Fréchet distance (classifier) (95 %)"
REFERENCE = str(BUNDLED / "fashion_test_fashion-classifier.npz")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Where the test works: the files above are in `recipes`."""
    (tmp_path / "recipes").mkdir()
    for family in FAMILIES:
        (tmp_path / "recipes" / f"{family}.toml").write_text(FILES.get(family, ""))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def tables(folder):
    return load_tables(folder / "recipes")


def ask(tables, *names, **settings):
    """Reproduce some of `tables` in the folder `out`, in one quick feature space; returns the exit code."""
    quick = {"features": "fashion-classifier", "reference": REFERENCE, "device": "cpu", **settings}
    return reproduce(choose(tables, names), Path("out"), title="Reproduced", **quick)


def watched(watch):
    """`load`, with `watch(model, ids)` called before any images are generated."""

    def load_watched(*words):
        make = load(*words)

        def make_watched(recipe):
            generator = make(recipe)
            arguments = generator.arguments

            def watched_arguments(ids):
                watch(type(generator.model).__name__, list(ids))
                return arguments(ids)

            generator.arguments = watched_arguments
            return generator

        return make_watched

    return load_watched


def read_table(text, heading):
    """The rows of a table in Markdown, by their first cell: header -> cell."""
    lines = [
        line for line in text.partition(f"## {heading}\n")[2].partition("\n## ")[0].splitlines() if line.startswith("|")
    ]
    header, _, *rows = ([cell.strip() for cell in line.split("|")[1:-1]] for line in lines)
    return {row[0]: dict(zip(header, row, strict=True)) for row in rows}


def shown(heading):
    """The rows of a table in `out`."""
    return read_table(Path("out/table.md").read_text(), heading)


@pytest.mark.slow
def test_a_table_is_measured_once_and_shown(tables, capsys):
    assert ask(tables, "both") == 0
    printed, text = capsys.readouterr().out, Path("out/table.md").read_text()
    assert [line for line in printed.splitlines() if re.match(r"\d+ of \d+: ", line)] == [
        f"{i} of 3: both/{name}, 6 images"
        for i, name in enumerate(("mar_fashion-full", "mar_fashion-disa", "xar_fashion-disa"), 1)
    ]
    assert text in printed
    assert "What is shown." in text
    assert "In all rows: cfg_schedule linear; guidance interval t ≤ 0.9; temperature 1; seed 1." in text
    rows = read_table(text, "Two models")
    assert list(rows) == ["mar_fashion-full", "mar_fashion-disa", "xar_fashion-disa"]
    full, disa, flow = rows.values()
    assert [row["published FID"] for row in rows.values()] == ["3.50", "~3.6", "–"]
    assert [(row["AR steps"], row["diffusion steps"]) for row in rows.values()] == [
        ("2", "5"),
        ("2", "3→1 linear"),
        ("4", "2→1 linear"),
    ]
    assert [row["NFE"] for row in rows.values()] == ["10", "4", "5"]
    assert [row["sampler"] for row in rows.values()] == ["ancestral, t ≤ 950", "ancestral, t ≤ 950", "Euler"]
    assert (disa["cfg"], flow["cfg"]) == ("2", "1")
    assert full["speed-up"] == "1.0×"
    assert re.fullmatch(r"\d+\.\d×", disa["speed-up"])
    assert flow["speed-up"] == "–"
    for row in rows.values():
        assert re.fullmatch(r"[\d.,]+ \([\d.,]+–[\d.,]+\)", row[DISTANCE])
        assert float(row["seconds per image"]) > 0
        assert row["label accuracy"].endswith(" %")

    with open("out/table.csv", newline="") as file:
        flat = {row["recipe"]: row for row in csv.DictReader(file)}
    (record,) = Path("out/mar_fashion").glob("ar2-DiSA-linear-3to1-*-6images-float32/results.json")
    results = Results.read(record)
    (scores,) = results.metrics
    row = flat["mar_fashion-disa"]
    assert int(row["nfe"]) == results.nfe
    assert (row["sampler"], row["published_fid"], row["published_source"]) == ("DiSA", "~3.6", "somewhere")
    assert (row["guidance"], flat["xar_fashion-disa"]["guidance"]) == ("", "0.9")
    assert float(row["fashion-classifier fid"]) == scores.fid
    assert float(row["seconds_per_image"]) == results.seconds_per_image
    ends = tuple(float(row[f"fashion-classifier fid_interval {end}"]) for end in ("low", "high"))
    assert ends == scores.fid_interval
    page = Path("out/report.html").read_text()
    assert "<h2>Two models</h2>" in page
    assert page.count("data:image/png;base64,") == 1 + 3  # a plot, and samples of three rows
    assert "<td>~3.6</td>" in page
    assert Image.open("out/both.png").width > 800

    # Nothing is generated a second time: not for the same table, and not for a row that another one has, too.
    again = watched(lambda *words: pytest.fail(f"generated again: {words}"))
    assert ask(tables, "both", load=again) == 0
    assert Path("out/table.md").read_text() == text
    assert ask(tables, "again", "both/mar_fashion-disa", load=again) == 0
    assert list(shown("Two models")) == ["mar_fashion-disa"]
    alone = shown("Two models")["mar_fashion-disa"]
    assert alone == {name: disa[name] for name in alone}
    assert "speed-up" in alone
    same = shown("A row that another table has")["mar_fashion-same"]
    assert same["seconds per image"] == disa["seconds per image"]


def test_rows_that_cannot_run_leave_a_dash_and_a_sentence(tables, capsys):
    few = [one.change(num_images=4, batch_size=4) for one in choose(tables, ["published", "both/mar_fashion-disa"])]
    assert ask({one.name: one for one in few}, "published", "both/mar_fashion-disa") == 1
    printed, text = capsys.readouterr().out, Path("out/table.md").read_text()
    place = "pretrained_models/mar/mar_base/checkpoint-last.pth"
    sentence = f"here is no {place}; fetch it with `disa checkpoints fetch mar_base`"
    assert f"cannot run: t{sentence}" in printed
    assert f"Not run: mar_base-full, mar_base-disa. T{sentence}" in text
    rows = read_table(text, "A model whose weights are not here")
    assert {row["seconds per image"] for row in rows.values()} == {"–"}
    assert rows["mar_base-full"]["NFE"] == "10"
    ran = read_table(text, "Two models")["mar_fashion-disa"]
    assert "(" in ran[DISTANCE]
    assert ran["seconds per image"] == "–"
    assert "speed-up" not in ran


def test_an_error_in_one_row_leaves_the_others(tables, capsys):
    def fail(model, _):
        if model == "Harmon":
            raise FloatingPointError("the pixels hold NaN")

    assert ask(tables, "prompts", "again", load=watched(fail)) == 1
    assert "Not run: harmon_fashion-full, harmon_fashion-said. The pixels hold NaN." in capsys.readouterr().out
    assert "(" in shown("A row that another table has")["mar_fashion-same"][DISTANCE]


def test_metrics_can_be_chosen(tables):
    assert ask(tables, "both/xar_fashion-disa", metrics="none") == 0
    row = shown("Two models")["xar_fashion-disa"]
    assert "label accuracy" not in row
    assert float(row["seconds per image"]) > 0
    assert ask(tables, "both/xar_fashion-disa", metrics="accuracy") == 0
    row = shown("Two models")["xar_fashion-disa"]
    assert row["label accuracy"].endswith(" %")
    assert DISTANCE not in row


@pytest.mark.slow
def test_a_damaged_record_is_measured_again(tables):
    assert ask(tables, "both/mar_fashion-disa") == 0
    (record,) = Path("out/mar_fashion").glob("*/results.json")
    text, before = record.read_text(), Results.read(record)
    for damaged in ("{}", "[", text[: len(text) // 2]):
        record.write_text(damaged)
        assert ask(tables, "both/mar_fashion-full", "both/mar_fashion-disa") == 0
        assert Results.read(record).metrics == before.metrics


def test_a_folder_that_cannot_be_written_is_named_before_anything_is_loaded(tables):
    Path("out").touch()
    with pytest.raises(ValueError, match="--out is in out, where nothing can be written"):
        ask(tables, "both", load=lambda *_: pytest.fail("loaded"))


def test_what_was_measured_is_shown_when_the_weights_are_gone(tables, capsys):
    torch.manual_seed(0)
    save_file(build_model("mar_fashion").state_dict(), "mine.safetensors")
    own = {"again": tables["again"].change(checkpoint="mine.safetensors")}
    assert ask(own, "again") == 0
    text = Path("out/table.md").read_text()
    Path("mine.safetensors").unlink()
    capsys.readouterr()
    assert ask(own, "again") == 0
    assert Path("out/table.md").read_text() == text
    assert "6 images, NFE 4" in capsys.readouterr().out


def test_flags_reach_the_recipes(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    flags = ("--images", "4", "--batch_size", "2", "--features", "fashion-classifier", "--device", "cpu")
    assert command("reproduce", "bundled/xar_fashion-low", *flags, "--dtype", "bfloat16", "--out", "here") == 0
    printed = capsys.readouterr().out
    assert "1 of 1: bundled/xar_fashion-low, 4 images" in printed
    assert "batches of 2, bfloat16" in printed
    assert {path.name for path in Path("here").glob("*.*")} == {"table.md", "table.csv", "report.html", "bundled.png"}


def test_own_rows_are_measured(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.toml").write_text(EXAMPLE.replace("num_images = 1000", "num_images = 2"))
    flags = ("--recipes", "mine.toml", "--images", "2", "--metrics", "none", "--device", "cpu", "--out", "here")
    assert command("reproduce", "mine/mar_fashion-disa", *flags) == 0
    assert "1 of 1: mine/mar_fashion-disa, 2 images" in capsys.readouterr().out
    page = Path("here/report.html").read_text()
    assert page.count("samples of mar_fashion-disa</figcaption>") == page.count("<figure>") == 1
    assert command("reproduce", "--recipes", "mine.toml", "--list", "mine") == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == [
        f"mine/mar_fashion-{row}" for row in ("2-1.5", "2-2.0", "4-1.5", "4-2.0", "full", "disa")
    ]


def test_nothing_asked_and_unknown_names_end_in_a_sentence(capsys):
    assert command("reproduce") == 2
    assert "name tables or recipes" in capsys.readouterr().err
    assert command("reproduce", "both/mar") == 2
    assert "there is no table or recipe both/mar" in capsys.readouterr().err
    assert command("reproduce", "--list") == 0
    assert "16 rows  The bundled models with their full count, with DiSA" in capsys.readouterr().out


# ----------------------------------------------------------------------------------------------------------- processes


@pytest.fixture
def launch(folder):
    """`ask` in processes of its own: launcher, names, code of `watch(model, ids)` -> the ended process."""

    def start(launcher, names, watch="pass", code=None):
        Path("program.py").write_text(f"""
import os, signal, sys
from pathlib import Path
from disa.tables.recipes import load_tables
from tests.tables.test_reproduce import ask, watched
calls = []
def watch(model, ids):
    calls.append(ids)
    {watch}
sys.exit(ask(load_tables(Path("recipes")), *{names!r}, load=watched(watch), save_seconds=0))
""")
        return run(*launcher, "program.py", cwd=folder, code=code)

    return start


@pytest.mark.slow
@pytest.mark.distributed
def test_two_ranks_fill_one_table(launch):
    ended = launch(TORCHRUN, ["again", "published"], code=1)
    assert ended.stdout.count("1 of 3: again/mar_fashion-same") == 1
    assert "2 ranks" in Path("out/table.md").read_text()
    assert "(" in shown("A row that another table has")["mar_fashion-same"][DISTANCE]


@pytest.mark.slow
@pytest.mark.distributed
def test_an_error_of_one_rank_leaves_the_other_rows(launch):
    fail = """if model == "XAR" and 2 in ids: raise FloatingPointError("the pixels hold NaN")"""
    ended = launch(TORCHRUN, ["both/xar_fashion-disa", "prompts"], fail, code=1)
    assert "cannot run: the pixels hold NaN" in ended.stdout
    assert "Not run: xar_fashion-disa. The pixels hold NaN." in Path("out/table.md").read_text()
    assert "(" in shown("Prompts")["harmon_fashion-full"][DISTANCE]


@pytest.mark.slow
@pytest.mark.distributed
def test_a_killed_run_goes_on_where_it_was(launch, tables):
    """It is killed before the last of the three blocks of its second row."""
    launch([], ["both"], "if len(calls) == 6: os.kill(os.getpid(), signal.SIGKILL)", code=-signal.SIGKILL)
    begun = shown("Two models")  # rows show as they are done
    assert "(" in begun["mar_fashion-full"][DISTANCE]
    assert begun["mar_fashion-disa"][DISTANCE] == "–"

    generated = []
    assert ask(tables, "both", load=watched(lambda *words: generated.append(words))) == 0
    assert generated == [("MAR", [4, 5]), *(("XAR", [first, first + 1]) for first in (0, 2, 4))]
    resumed = shown("Two models")
    shutil.rmtree("out")
    assert ask(tables, "both") == 0
    whole = shown("Two models")
    assert [row[DISTANCE] for row in resumed.values()] == [row[DISTANCE] for row in whole.values()]
    assert [row["label accuracy"] for row in resumed.values()] == [row["label accuracy"] for row in whole.values()]


# --------------------------------------------------------------------------------------------------------------- sweep


@pytest.mark.slow
def test_sweep_marks_what_no_row_beats(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    counts = ("--flow_upper_steps", "2", "3", "--flow_lower_steps", "1", "3")
    flags = ("--images", "4", "--batch_size", "2", "--features", "fashion-classifier", "--device", "cpu")
    torch.manual_seed(1)
    save_file(build_model("xar_fashion").state_dict(), tmp_path / "mine.safetensors")
    assert command("sweep", "xar_fashion", *counts, *flags, "--resume", "mine.safetensors") == 0
    text = Path("out/sweep/xar_fashion/table.md").read_text()
    rows = read_table(text, "xar_fashion by flow_upper_steps, flow_lower_steps")
    assert list(rows) == ["xar_fashion-2-1", "xar_fashion-3-1", "xar_fashion-3-3"]
    assert "Left out: 2-3 " in text
    fronts = [row["on the front"] for row in rows.values()]
    assert "yes" in fronts
    assert set(fronts) <= {"yes", ""}
    assert "On the front: nothing here" in text
    assert Path("out/sweep/xar_fashion/sweep.png").is_file()
    assert "What is not varied is as in bundled/xar_fashion-disa; speed-ups are over 3-3," in text
    assert rows["xar_fashion-3-3"]["speed-up"] == "1.0×"
    assert re.fullmatch(r"\d+\.\d×", rows["xar_fashion-2-1"]["speed-up"])
