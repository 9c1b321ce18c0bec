"""What the documents show is what the code does."""

import importlib.util
import re
import shlex
import subprocess
import textwrap

import pytest

from disa import StepSchedule
from disa.demo import SETTINGS
from disa.flags import parse
from tests.test_flags import ROOT, SCRIPTS
from tests.test_recipes import assert_asks_for, rows

DOCUMENTS = [path for pattern in ("*.md", "*_DiSA/*.md", "disa/bundled/*.md") for path in sorted(ROOT.glob(pattern))]
documents = pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))


def commands(document):
    """The command lines in a document: pairs of a script and its flags."""
    lines = document.read_text().replace("\\\n", " ").splitlines()
    for words in (shlex.split(line, comments=True) for line in lines if line.startswith(("python ", "torchrun "))):
        for name, script in SCRIPTS.items():
            folder, _, file = name.partition("/")
            if file in words and document.parent.name in (folder, "bundled", ROOT.name):
                yield script, words[words.index(file) + 1 :]
                break


def of_model(document, model, file):
    """The flags with which `document` runs the script `file` for `model`."""
    (flags,) = [flags for script, flags in commands(document) if model in flags and script.__name__ == file]
    return flags


@pytest.fixture
def own_model():
    spec = importlib.util.spec_from_file_location("own_model", ROOT / "docs" / "own_model.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    "schedule, evaluations, exact",
    [(StepSchedule(50, 50, "constant"), 1536, True), (StepSchedule(50, 5), 839, True), (StepSchedule(5, 5, "constant"), 160, False)],
)
def test_annealing_keeps_the_distribution_and_the_low_count_does_not(own_model, schedule, evaluations, exact):
    sequences = own_model.generate(list(range(1000)), schedule)
    assert sequences.shape == (1000, own_model.AR_STEPS, own_model.CHANNELS)
    assert own_model.evaluations == evaluations
    wanted = sum(own_model.spread(step) ** 2 for step in range(own_model.AR_STEPS)) ** 0.5
    assert (abs(sequences[:, -1].std().item() / wanted - 1) < 0.08) is exact


def test_readme_shows_the_lines_of_the_example():
    source = (ROOT / "docs" / "own_model.py").read_text()
    lines = source.partition("# --- from here\n")[2].partition("    # --- to here")[0]
    assert lines and textwrap.dedent(lines) in (ROOT / "README.md").read_text()


@documents
def test_links_lead_somewhere(document):
    targets = re.findall(r"\]\((?!https?:|#)([^)#]+)", document.read_text())
    assert [target for target in targets if not (document.parent / target).exists()] == []


@documents
def test_shown_commands_are_understood(document):
    for script, flags in commands(document):
        script.get_parser().parse_args(flags)


@pytest.mark.parametrize(
    ("folder", "training", "model"), [("FlowAR_DiSA", "main_flowar", "flowar_fashion"), ("xAR_DiSA", "main_xar", "xar_fashion")]
)
def test_small_models_commands_are_the_demos_and_the_cards(folder, training, model):
    document, script = ROOT / folder / "README.md", SCRIPTS[f"{folder}/eval.py"]
    args = parse(script.get_parser(), script.FAMILY.defaults(), of_model(document, model, "eval"))
    assert script.get_sampling(args) == SETTINGS[model]["DiSA"]
    assert of_model(document, model, training) == of_model(ROOT / "disa" / "bundled" / f"{model}.md", model, training)


def test_the_cluster_script_runs_the_recipe():
    text = (ROOT / "docs" / "evaluate_2x8.sh").read_text()
    assert subprocess.run(["bash", "-n", "-c", text]).returncode == 0
    words = shlex.split(text.replace("\\\n", " ").splitlines()[-1])
    assert words[0] == "srun" and "--cpus-per-task=$SLURM_CPUS_PER_TASK" in words
    assert_asks_for(SCRIPTS["MAR_DiSA/main_mar.py"], words[words.index("main_mar.py") + 1 :], rows("imagenet", "mar_huge")["disa"])
