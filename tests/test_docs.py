"""What the documents show is what the code does."""

import argparse
import importlib.util
import json
import re
import runpy
import shlex
import subprocess
import sys
import textwrap
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import pytest
import yaml
from accelerate.commands.launch import launch_command_parser
from PIL import Image
from torch.distributed.run import get_args_parser

from benchmarks import front
from disa import StepSchedule
from disa.commands.flags import Parser
from disa.tables.recipes import bundled_settings, choose, disa_recipe, load_tables
from disa.weights.fetch import CATALOGUE
from tests.helpers.processes import ROOT
from tests.helpers.scripts import script

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

FOLDERS = ("", "*_DiSA/", "disa/bundled/", "assets/", "benchmarks/results/", "docs/", "tests/reference/")
DOCUMENTS = {str(path.relative_to(ROOT)): path for folder in FOLDERS for path in sorted(ROOT.glob(f"{folder}*.md"))}
documents = pytest.mark.parametrize("document", DOCUMENTS)
# document -> the kinds of commands that it shows; a document that is not here shows none
EXPECTED = {
    "README.md": {"make", "disa", "pip install"},
    "CONTRIBUTING.md": {"make", ".ci/run", "pip install", "disa", "python"},
    "CHANGELOG.md": {"make", "disa", "python -m"},
    "MAR_DiSA/README.md": {"pip install", "disa", "python", "torchrun"},
    "FlowAR_DiSA/README.md": {"disa", "python", "torchrun"},
    "xAR_DiSA/README.md": {"disa", "python", "torchrun"},
    "Harmon_DiSA/README.md": {"pip install", "disa", "python", "python -c", "torchrun", "accelerate launch"},
    "disa/bundled/fashion_classifier.md": {"disa", "python -m"},
    "disa/bundled/fashion_vae.md": {"python -m"},
    "disa/bundled/mar_fashion.md": {"disa", "torchrun"},
    "disa/bundled/flowar_fashion.md": {"disa", "torchrun"},
    "disa/bundled/xar_fashion.md": {"disa", "torchrun"},
    "disa/bundled/harmon_fashion.md": {"disa", "torchrun", "python -m"},
    "docs/acceleration.md": {"disa"},
    "docs/answers.md": {"disa", "pip install", "python -m"},
    "docs/evaluate.md": {"disa", "python", "torchrun", "torchrun -m"},
    "docs/from_released.md": {"disa", "accelerate launch"},
    "docs/method.md": {"disa"},
    "docs/own_model.md": {"disa"},
    "docs/performance.md": {"python -m"},
    "docs/releasing.md": {"disa", "python -m"},
    "docs/quick_start.md": {"make", "disa"},
    "docs/tables.md": {"disa", "torchrun -m"},
    **{f"benchmarks/results/{path.name}": {"python -m"} for path in ROOT.glob("benchmarks/results/*.md")},
}
KINDS = sorted({kind for kinds in EXPECTED.values() for kind in kinds}, key=len, reverse=True)
WITHOUT_CHECK = ("cd", "export", "source", "python3")  # what else a block of commands may have


@dataclass(frozen=True)
class Command:
    """A command in a document.

    Attributes:
        folder: where it runs.
        words: without the prompt; "…" stands for words that are left out.
        mentioned: whether prose names it, and may leave words out.
    """

    folder: Path
    words: tuple[str, ...]
    mentioned: bool

    @property
    def kind(self):
        return next((kind for kind in KINDS if self.is_of(kind)), None)

    def is_of(self, kind):
        first, *rest = kind.split()
        if self.words[0] != first or kind == first:
            return self.words[0] == first
        return rest[0] in self.words[1:3] if first == "torchrun" else list(self.words[1:2]) == rest


def commands(document):
    """The commands in a document: every line of its blocks, and the code in its prose that begins like one.

    They run in the document's folder (those of `docs/` in the repository's root), in the one of which the text before
    says "From `FOLDER/`", or where `cd` went.
    """
    home = ROOT if document.startswith("docs/") else DOCUMENTS[document].parent
    parts = re.split(r"^```(.*)\n((?s:.*?))^```$", DOCUMENTS[document].read_text(), flags=re.MULTILINE)
    for prose, language, block in zip(parts[::3], [*parts[1::3], ""], [*parts[2::3], ""], strict=True):
        home = next((ROOT / name for name in re.findall(r"From `(\w+)/`", prose)), home)
        folder = home
        for code in re.findall(r"`([^`]+)`", prose):
            if code.split()[0] in {kind.split()[0] for kind in KINDS} and (" " in code or "/" in code):
                yield Command(folder, tuple(shlex.split(code)), mentioned=True)
        for line in block.replace("\\\n", " ").splitlines() if language == "bash" else ():
            words = shlex.split(line.removeprefix("$ "), comments=True)
            if words[:1] == ["cd"]:
                folder /= words[1]
            elif words and words[0] not in WITHOUT_CHECK:
                yield Command(folder, tuple(words), mentioned=False)


class Parsed(BaseException):
    """A program has parsed its flags."""


class Incomplete(BaseException):
    """A flag or an argument that a program needs is not there."""


def parse(program, words, monkeypatch):
    """Run `program` with `words` until it has parsed them with its own parser -> what it parsed."""
    parse_args, error = argparse.ArgumentParser.parse_args, argparse.ArgumentParser.error

    def stop(parser, args=None, namespace=None):
        raise Parsed(parse_args(parser, args, namespace))

    def complain(parser, message):
        if message.startswith("the following arguments are required"):
            raise Incomplete(message)
        error(parser, message)

    monkeypatch.setattr("sys.argv", ["program", *words])
    with (
        mock.patch.object(argparse.ArgumentParser, "parse_args", stop),
        mock.patch.object(argparse.ArgumentParser, "error", complain),
        mock.patch.object(Parser, "error", complain),
    ):
        try:
            program()
        except Parsed as parsed:
            return parsed.args[0]
        except SystemExit as end:
            if end.code:
                raise
            return argparse.Namespace()  # it printed its help
    raise AssertionError("no flags were parsed")


def run_module(name):
    return lambda: runpy.run_module(name, run_name="__main__", alter_sys=True)


def run_script(path):
    assert path.is_file()
    return lambda: runpy.run_path(str(path), run_name="__main__")


def understand(command, monkeypatch):
    """Have the programs that `command` starts parse its words -> what the last one of them parsed."""
    monkeypatch.chdir(command.folder)
    first, *words = [word for word in command.words if word != "…"]
    if first == "disa":
        return parse(run_module("disa"), words, monkeypatch)
    if first in ("torchrun", "accelerate"):
        launcher = get_args_parser() if first == "torchrun" else launch_command_parser()
        launched = parse(lambda: launcher.parse_args(words[first == "accelerate" :]), [], monkeypatch)
        option = ["-m"] if launched.module else []
        words = [*option, launched.training_script, *launched.training_script_args]
    assert all((command.folder / word).is_file() for word in words if word.endswith(".py"))
    if words[0] == "-c":
        return compile(words[1], "-c", "exec")
    if words[0] == "-m":
        return parse(run_module(words[1]), words[2:], monkeypatch)
    monkeypatch.syspath_prepend((command.folder / words[0]).parent)
    return parse(run_script(command.folder / words[0]), words[1:], monkeypatch)


def of_model(document, model, script):
    """The flags with which `document` runs `script` for `model`."""
    (words,) = [one.words for one in commands(document) if model in one.words and script in one.words]
    return words[words.index(script) + 1 :]


def load_file(path):
    """Import a file that is in no package."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def own_model():
    return load_file(ROOT / "docs" / "own_model.py")


@pytest.mark.parametrize(
    ("schedule", "evaluations", "exact"),
    [
        (StepSchedule(50, 50, "constant"), 1536, True),
        (StepSchedule(50, 5), 839, True),
        (StepSchedule(5, 5, "constant"), 160, False),
    ],
)
def test_annealing_keeps_the_distribution_and_the_low_count_does_not(own_model, schedule, evaluations, exact):
    sequences = own_model.generate(list(range(1000)), schedule)
    assert sequences.shape == (1000, own_model.AR_STEPS, own_model.CHANNELS)
    assert own_model.evaluations == evaluations
    wanted = sum(own_model.spread(step) ** 2 for step in range(own_model.AR_STEPS)) ** 0.5
    assert (abs(sequences[:, -1].std().item() / wanted - 1) < 0.08) is exact


def test_the_page_shows_the_lines_of_the_example():
    source = (ROOT / "docs" / "own_model.py").read_text()
    lines = source.partition("# --- from here\n")[2].partition("    # --- to here")[0]
    assert lines
    assert textwrap.dedent(lines) in (ROOT / "docs" / "own_model.md").read_text()


def run_examples(document):
    """Run the Python of a document that stands alone -> what it defines, example by example."""
    found = re.findall(r"```python\n(import .*?)```", DOCUMENTS[document].read_text(), re.DOTALL)
    results = [{} for _ in found]
    for example, names in zip(found, results, strict=True):
        exec(example, names)
    return results


@pytest.mark.slow
def test_readme_example_makes_pictures(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (names,) = run_examples("README.md")
    assert [Image.open(tmp_path / f"{seed}.png").size for seed in (1, 2)] == [(32, 32)] * 2
    assert names["slow"].nfe > names["output"].nfe


@pytest.mark.slow
def test_quick_start_makes_pictures():
    harmon, underneath = run_examples("docs/quick_start.md")
    assert {harmon["first"].size, harmon["second"].size} == {(32, 32)}
    assert underneath["images"].shape == (3, 1, 32, 32)
    assert underneath["images"].abs().max() <= 1


def test_an_accelerated_example_is_cheaper():
    (names,) = run_examples("docs/acceleration.md")
    assert names["faster"].nfe < sum(disa_recipe("mar_fashion").nfe_per_step)


def test_a_callback_of_the_example_stops():
    (names,) = run_examples("docs/from_diffusers.md")
    assert len(names["seen"]) == 8
    assert sum(names["seen"]) < 64


def test_readme_is_read_in_a_minute():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150


def test_readme_shows_what_was_measured():
    shown = front.write_table(front.read(ROOT / "assets" / "reproduce_bundled.csv"))
    assert shown in (ROOT / "README.md").read_text(), "python -m benchmarks.front prints the table"


def nav_of(entries):
    """The files and patterns of a navigation."""
    if isinstance(entries, str):
        return [entries]
    return [name for one in (entries.values() if isinstance(entries, dict) else entries) for name in nav_of(one)]


def test_the_site_has_every_page():
    names = nav_of(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"])
    assert [name for name in names if "*" not in name and not (ROOT / name).is_file()] == []
    found = {str(path.relative_to(ROOT)) for name in names for path in ROOT.glob(name)}
    wanted = {name for name in DOCUMENTS if name.startswith("docs/") or re.match(r"\w+_DiSA/", name)}
    assert wanted <= found


@pytest.mark.slow
def test_the_site_builds_and_asks_nothing_of_others(tmp_path, monkeypatch):
    monkeypatch.setenv("NO_MKDOCS_2_WARNING", "1")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    pages = {str(path.relative_to(tmp_path)): path.read_text() for path in tmp_path.rglob("*.html")}
    assert {"index.html", "MAR_DiSA/index.html", "docs/api.html", "docs/method.html"} <= pages.keys()
    asked = r"""<(?:script|img|iframe|link)\b[^>]*?(?:src|href)=["']?((?:https?:)?//[^"'\s>]+)"""
    assert {name: found for name, page in pages.items() if (found := re.findall(asked, page))} == {}
    assert 'id="disa.StepSchedule.steps"' in pages["docs/api.html"]
    assert (tmp_path / "assets" / "front.png").is_file()
    assert (tmp_path / "disa" / "tables" / "mar.toml").is_file()


def test_a_notebook_becomes_a_page(tmp_path):
    picture = {"data": {"text/plain": ["<Image>"], "image/png": "AAAA\n"}}
    cells = [
        {"cell_type": "markdown", "source": ["# Title\n", "Text."]},
        {"cell_type": "code", "source": ["print(1)"], "outputs": [{"text": ["1\n"]}, picture]},
        {"cell_type": "code", "source": ["pass"], "outputs": []},
    ]
    (tmp_path / "one.ipynb").write_text(json.dumps({"cells": cells}))
    hooks = load_file(ROOT / "docs" / "hooks.py")
    assert hooks._text(tmp_path / "one.ipynb") == (
        "# Title\nText.\n\n```python\nprint(1)\n```\n\n```text\n1\n```\n\n"
        "![Output](data:image/png;base64,AAAA)\n\n```python\npass\n```"
    )


@documents
def test_links_lead_somewhere(document):
    path = DOCUMENTS[document]
    targets = re.findall(r"\]\((?!https?:|#)([^)#]+)", path.read_text())
    assert [target for target in targets if not (path.parent / target).exists()] == []


@documents
def test_anchors_are_headings(document):
    path = DOCUMENTS[document]
    for target, anchor in re.findall(r"\]\((?!https?:)([^)#]*)#([^)]+)\)", path.read_text()):
        headings = re.findall(r"^#+ (.+)$", (path.parent / target if target else path).read_text(), re.MULTILINE)
        assert anchor in [re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings]


@documents
def test_lines_are_not_too_long(document):
    free = r"\||!\[|\S*https?://\S+$"  # tables, pictures, addresses
    lines = DOCUMENTS[document].read_text().splitlines()
    assert [line for line in lines if len(line) > 120 and not re.match(free, line)] == []


@documents
def test_blocks_say_what_they_are(document):
    fences = re.findall(r"^```(.*)$", DOCUMENTS[document].read_text(), re.MULTILINE)
    assert set(fences[::2]) <= {"bash", "bibtex", "python", "text"}
    assert set(fences[1::2]) <= {""}


@documents
def test_shown_commands_are_the_expected_ones(document):
    shown = list(commands(document))
    assert [" ".join(command.words) for command in shown if command.kind is None] == []
    assert {command.kind for command in shown} == EXPECTED.get(document, set())


def test_expected_documents_are_there():
    assert EXPECTED.keys() <= DOCUMENTS.keys()


@documents
@pytest.mark.filterwarnings("ignore:.*found in sys.modules")
def test_shown_commands_are_understood(document, monkeypatch):
    for command in commands(document):
        words = command.words
        if command.kind == "make":
            targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
            assert set(words[1:2]) <= set(targets)
            assert all(f"$({word.partition('=')[0]})" in (ROOT / "Makefile").read_text() for word in words[2:])
        elif command.kind == ".ci/run":
            assert (ROOT / words[0]).is_file()
        elif command.kind == "pip install":
            project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
            assert set(re.findall(r"[\[,](\w+)(?=[\],])", " ".join(words))) <= project["optional-dependencies"].keys()
            assert "-c" not in words or (command.folder / words[words.index("-c") + 1]).is_file()
        else:
            try:
                found = understand(command, monkeypatch)
            except Incomplete:
                assert command.mentioned, words
                continue
            if "reproduce" in words:
                choose(load_tables(), found.name)
            elif "fetch" in words or "util/download.py" in words:
                assert set(found.name) <= CATALOGUE.keys()


@pytest.mark.parametrize(
    "line",
    [
        "disa reproduce imagenet --pictures 5",
        "python -m disa sweeps mar_fashion",
        "torchrun --processes_per_node=2 -m disa reproduce bundled",
        "torchrun --nproc_per_node=2 MAR_DiSA/main_mar.py --diffloss_depth 3",
        "accelerate launch --gpus 2 Harmon_DiSA/scripts/train.py config",
        "accelerate launch Harmon_DiSA/scripts/train.py config --work_folder out",
        "python -m benchmarks.quality --network mar_fashion",
        "python FlowAR_DiSA/util/download.py --to here",
    ],
)
def test_unknown_flags_would_be_seen(line, monkeypatch):
    with pytest.raises(SystemExit) as end:
        understand(Command(ROOT, tuple(line.split()), mentioned=False), monkeypatch)
    assert end.value.code == 2


@pytest.mark.parametrize(
    ("folder", "training", "model"),
    [("FlowAR_DiSA", "main_flowar.py", "flowar_fashion"), ("xAR_DiSA", "main_xar.py", "xar_fashion")],
)
def test_small_models_commands_are_the_recipes_and_the_cards(folder, training, model):
    document, family = f"{folder}/README.md", script(f"{folder}/eval.py").FAMILY
    args = family.parse(of_model(document, model, "eval.py"))
    assert family.sampling(args) == bundled_settings(model)["disa"]
    assert of_model(document, model, training) == of_model(f"disa/bundled/{model}.md", model, training)


def test_the_cluster_script_runs_the_recipe():
    text = (ROOT / "docs" / "evaluate_2x8.sh").read_text()
    assert subprocess.run(["bash", "-n", "-c", text], check=False).returncode == 0
    words = shlex.split(text.replace("\\\n", " ").splitlines()[-1])
    assert words[0] == "srun"
    assert "--cpus-per-task=$SLURM_CPUS_PER_TASK" in words
    (recipe,) = (one for one in load_tables()["imagenet"].recipes if (one.model, one.row) == ("mar_huge", "disa"))
    family = script("MAR_DiSA/main_mar.py").FAMILY
    args = family.parse(words[words.index("main_mar.py") + 1 :])
    assert (args.model, args.evaluate) == (recipe.model, True)
    assert (family.sampling(args), args.num_images) == (recipe.sampling, recipe.num_images)
    assert args.eval_bsz == recipe.batch_size
