"""Run notebooks and store their outputs: `python docs/notebooks/execute.py`, or with the names of some.

Each runs in a new kernel and an empty folder. What is stored tells nothing of who ran it, and when.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from nbformat import NotebookNode

from disa.runtime.files import atomic_write

FOLDER = Path(__file__).parent
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}
SECONDS = 300  # a cell may take


def execute(path: Path) -> NotebookNode:
    """Run a notebook; return it with its new outputs.

    Raises:
        CellExecutionError: a cell raised.
    """
    notebook = nbformat.read(path, as_version=4)
    with tempfile.TemporaryDirectory() as folder:
        resources = {"metadata": {"path": folder}}
        NotebookClient(notebook, timeout=SECONDS, coalesce_streams=True, resources=resources).execute()
    return tidy(notebook)


def tidy(notebook: NotebookNode) -> NotebookNode:
    """Leave of a notebook what readers need: no identifiers, no times, each picture once."""
    cells = []
    for cell in notebook.cells:
        kept = {"cell_type": cell.cell_type, "metadata": {}, "source": cell.source}
        if cell.cell_type == "code":
            outputs = [output for output in cell.outputs if output.get("name") != "stderr"]  # of libraries
            for output in outputs:
                output.get("data", {}).pop("image/jpeg", None)  # PIL gives its pictures as PNG, too
                output.update({"metadata": {}} if "metadata" in output else {})
            kept |= {"execution_count": cell.execution_count, "outputs": outputs}
        cells.append(kept)
    return nbformat.from_dict({"nbformat": 4, "nbformat_minor": 4, "metadata": METADATA, "cells": cells})


def main() -> int:
    """Run what the words name; return the exit code."""
    parser = argparse.ArgumentParser(description="Run notebooks and store their outputs.")
    names = [path.stem for path in NOTEBOOKS]
    text = f"of {', '.join(names)}; by default all"
    parser.add_argument("notebook", nargs="*", metavar="NOTEBOOK", help=text)
    wanted = parser.parse_args().notebook
    if unknown := set(wanted) - set(names):
        parser.error(f"there is no notebook {', '.join(sorted(unknown))}; there are {', '.join(names)}")
    for path in NOTEBOOKS:
        if wanted and path.stem not in wanted:
            continue
        try:
            notebook = execute(path)
        except CellExecutionError as error:
            print(f"error: {path.name}: {error}", file=sys.stderr)
            return 1
        with atomic_write(path) as beside:
            nbformat.write(notebook, beside)
        print(f"{path.name}: {path.stat().st_size / 1e3:.0f} kB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
