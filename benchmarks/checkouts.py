"""An earlier commit of this repository beside the present one, to measure both in the same way."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parents[1]


@contextmanager
def worktree(commit: str) -> Iterator[Path]:
    """Check out `commit` in a temporary folder, with the benchmarks of today in it; the folder is removed in the end.

    Raises:
        ValueError: there is no such commit.
    """
    with tempfile.TemporaryDirectory(prefix="disa-") as parent:
        folder = Path(parent) / "checkout"
        added = _git("worktree", "add", "--detach", str(folder), commit)
        if added.returncode:
            raise ValueError(f"there is no commit {commit!r} to compare with ({added.stderr.strip().splitlines()[-1]})")
        try:
            shutil.rmtree(folder / "benchmarks")
            shutil.copytree(ROOT / "benchmarks", folder / "benchmarks", ignore=shutil.ignore_patterns("__pycache__"))
            yield folder
        finally:
            _git("worktree", "remove", "--force", str(folder))


def _git(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=False)
