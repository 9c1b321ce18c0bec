"""The notebooks run, and what they show is what comes out."""

import importlib.util
import re
import textwrap

import nbformat
import pytest

from tests.helpers.processes import ROOT, environment

spec = importlib.util.spec_from_file_location("execute", ROOT / "docs" / "notebooks" / "execute.py")
execute = importlib.util.module_from_spec(spec)
spec.loader.exec_module(execute)

notebooks = pytest.mark.parametrize("path", execute.NOTEBOOKS, ids=lambda path: path.stem)
MEASURED = r"\d+\.\d+"  # seconds, speed-ups, distances: other machines have others


def texts(notebook):
    """What code cells print and return as text, a list per cell."""
    return [
        [re.sub(MEASURED, "#", str(output.get("text") or output["data"]["text/plain"])) for output in cell.outputs]
        for cell in notebook.cells
        if cell.cell_type == "code"
    ]


@pytest.mark.slow
@notebooks
def test_a_notebook_runs_and_says_what_is_stored(path, monkeypatch):
    for name, value in environment().items():
        monkeypatch.setenv(name, value)
    assert texts(execute.execute(path)) == texts(nbformat.read(path, 4))


@notebooks
def test_a_notebook_is_stored_as_it_was_executed(path):
    notebook = nbformat.read(path, 4)
    assert notebook == execute.tidy(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert any("image/png" in output.get("data", {}) for cell in code for output in cell.outputs)
    assert path.stat().st_size < 500_000


@notebooks
def test_a_notebook_leads_somewhere(path):
    prose = "\n".join(cell.source for cell in nbformat.read(path, 4).cells if cell.cell_type == "markdown")
    targets = re.findall(r"\]\((?!https?:)([^)#]+)", prose)
    assert [target for target in targets if not (path.parent / target).exists()] == []


def test_the_lines_are_those_of_the_example():
    example = (ROOT / "docs" / "own_model.py").read_text()
    lines = textwrap.dedent(example.partition("# --- from here\n")[2].partition("    # --- to here")[0])
    shown = lines.replace("ImageNoise(seeds))", "ImageNoise(seeds), on_step=on_step)")
    cells = nbformat.read(ROOT / "docs" / "notebooks" / "own_model.ipynb", 4).cells
    assert any(lines and textwrap.indent(shown, "    ") in cell.source for cell in cells)


@pytest.mark.slow
def test_a_cell_that_raises_is_an_error(tmp_path):
    cells = [nbformat.v4.new_code_cell("1 / 0")]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), tmp_path / "one.ipynb")
    with pytest.raises(execute.CellExecutionError, match="ZeroDivisionError"):
        execute.execute(tmp_path / "one.ipynb")
