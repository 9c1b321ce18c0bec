"""What the documents show is what the code does."""

import importlib.util
import textwrap
from pathlib import Path

import pytest

from disa import StepSchedule

ROOT = Path(__file__).parent.parent


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
