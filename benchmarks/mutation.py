"""Mutation testing: how many small faults in a file do the tests that mirror it see?

Each mutant is one change of one file by mutmut's operators (`pip install mutmut`). Errors' texts, annotations,
decorators and imports are left as they are, and a string has one mutant. The changed file is written into a copy of the
repository; a fork of this process, which has imported torch and the like once, runs the file's tests there until one
fails. Tests that take long, and those marked slow or distributed, are left out.

`mutation.json` holds what was found, and keeps the "word" that someone wrote there on a survivor; a word that begins
with "equivalent" takes the mutant out of the count. Run from the repository's root:
`python -m benchmarks.mutation --results benchmarks/results`.
"""

from __future__ import annotations

import argparse
import contextlib
import difflib
import importlib
import importlib.metadata
import json
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import libcst as cst
import libcst.matchers as m
import pytest
from libcst.metadata import MetadataWrapper, PositionProvider
from mutmut.mutation.mutators import mutation_operators

# Group -> file -> its tests.
GROUPS: Mapping[str, Mapping[str, str]] = {
    "front page": {
        "disa/schedule.py": "tests/test_schedule.py",
        "disa/guidance.py": "tests/test_guidance.py",
        "disa/noise.py": "tests/test_noise.py",
        "disa/solver.py": "tests/test_annealing.py tests/diffusion/test_solvers.py",
        "disa/annealing.py": "tests/test_annealing.py",
        "disa/trace.py": "tests/test_annealing.py",
    },
    "diffusion": {
        "disa/diffusion/process.py": "tests/diffusion",
        "disa/diffusion/solvers.py": "tests/diffusion tests/test_annealing.py",
    },
    "flow": {
        "disa/flow/process.py": "tests/flow",
        "disa/flow/solvers.py": "tests/flow tests/test_annealing.py",
    },
    "files": {"disa/runtime/files.py": "tests/runtime/test_files.py"},
    "evaluation": {
        "disa/evaluation/accumulator.py": "tests/evaluation/test_accumulator.py tests/evaluation/test_run.py",
        "disa/evaluation/classifier.py": "tests/evaluation/test_extractors.py",
        "disa/evaluation/extractors.py": "tests/evaluation/test_extractors.py",
        "disa/evaluation/metrics.py": "tests/evaluation/test_metrics.py",
        "disa/evaluation/plan.py": "tests/evaluation/test_plan.py",
        "disa/evaluation/results.py": "tests/evaluation/test_results.py",
        "disa/evaluation/run.py": "tests/evaluation/test_run.py",
    },
    "training": {
        "disa/training/checkpoint.py": "tests/training/test_checkpoint.py tests/training/test_loop.py",
        "disa/training/data.py": "tests/training/test_data.py",
        "disa/training/harmon.py": "tests/training/test_harmon.py",
        "disa/training/loop.py": "tests/training/test_loop.py",
        "disa/training/optimization.py": "tests/training/test_optimization.py",
        "disa/training/sharding.py": "tests/training/test_sharding.py",
    },
}
OPTIONS = ["-q", "-x", "-p", "no:cacheprovider", "-p", "no:xdist", "-m", "not slow and not distributed"]
LEFT_AS_THEY_ARE = (cst.Annotation, cst.Decorator, cst.Raise, cst.Import, cst.ImportFrom)
ALIASED = m.Subscript(value=m.Name("Callable") | m.Name("Sequence"))
TYPE_ALIAS = m.Assign(value=ALIASED | m.BinaryOperation(left=ALIASED))
MEMORY = 16 << 30  # bytes of address space that a mutant may ask for
Found = dict[str, dict[str, object]]


class Mutations(cst.CSTVisitor):
    """Collects (line, node, what takes its place)."""

    METADATA_DEPENDENCIES = (PositionProvider,)

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[int, cst.CSTNode, cst.CSTNode]] = []

    def on_visit(self, node: cst.CSTNode) -> bool:
        if isinstance(node, LEFT_AS_THEY_ARE) or m.matches(node, TYPE_ALIAS):
            return False
        for kind, operator in mutation_operators:
            if isinstance(node, kind):
                others = list(operator(node))[: 1 if kind is cst.BaseString else None]
                line = self.get_metadata(PositionProvider, node).start.line if others else 0
                self.found += [(line, node, other) for other in others]
        return super().on_visit(node)


def mutants(source: str) -> list[tuple[int, str]]:
    """(line, source with one change) of all that compile."""
    wrapper, visitor, found = MetadataWrapper(cst.parse_module(source)), Mutations(), list[tuple[int, str]]()
    wrapper.visit(visitor)
    for line, node, other in visitor.found:
        changed = cst.ensure_type(wrapper.module.deep_replace(node, other), cst.Module)
        with contextlib.suppress(SyntaxError):
            compile(changed.code, "mutant", "exec")
            found.append((line, changed.code))
    return found


def change(before: str, after: str) -> str:
    """The lines that differ, as `before → after`."""
    lines = list(difflib.ndiff(before.splitlines(), after.splitlines()))
    old, new = (" ".join(line[2:].strip() for line in lines if line.startswith(sign)) for sign in "-+")
    return f"`{old}` → `{new}`"


class Recorder:
    """A pytest plugin: writes the seconds of each test that passes in time, and what was imported, to a file."""

    def __init__(self, path: Path, longest: float) -> None:
        self.path, self.longest = path, longest
        self.seconds: dict[str, float] = {}
        self.left_out: set[str] = set()

    def pytest_runtest_setup(self) -> None:
        def stop(*_: object) -> None:
            raise TimeoutError

        signal.signal(signal.SIGALRM, stop)
        signal.setitimer(signal.ITIMER_REAL, self.longest)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        signal.setitimer(signal.ITIMER_REAL, 0 if report.when == "teardown" else self.longest)
        self.seconds[report.nodeid] = self.seconds.get(report.nodeid, 0.0) + report.duration
        if report.failed:
            self.left_out.add(report.nodeid)

    def pytest_sessionfinish(self) -> None:
        fast = {name: seconds for name, seconds in self.seconds.items() if name not in self.left_out}
        self.path.write_text(json.dumps({"fast": fast, "left out": [*self.left_out], "modules": [*sys.modules]}))


class Fastest:
    """A pytest plugin: runs the given tests alone, the fastest first."""

    def __init__(self, seconds: Mapping[str, float]) -> None:
        self.seconds = seconds

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        items[:] = sorted(
            (item for item in items if item.nodeid in self.seconds), key=lambda item: self.seconds[item.nodeid]
        )


def run_tests(tests: str, plugin: object, seconds: float) -> str:
    """Run tests in a fork of this process: "survived", "killed" or "timeout" (of CPU seconds, or ten times as many)."""
    if (pid := os.fork()) == 0:
        os.setsid()
        with open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), 1)
            os.dup2(nowhere.fileno(), 2)
        resource.setrlimit(resource.RLIMIT_CPU, (int(seconds) + 1, int(seconds) + 2))
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
        signal.alarm(int(10 * seconds) + 1)
        status = 1
        with contextlib.suppress(BaseException):
            status = int(pytest.main([*OPTIONS, *tests.split()], plugins=[plugin]))
        os._exit(status)
    _, status = os.waitpid(pid, 0)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)  # what it started
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) in (signal.SIGXCPU, signal.SIGALRM, signal.SIGKILL):
        return "timeout"
    return "survived" if status == 0 else "killed"


def baseline(tests: str, longest: float) -> tuple[dict[str, float], int]:
    """Seconds of each test that is fast enough, and how many are not; imports here what they import from elsewhere."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "seconds.json"
        run_tests(f"{tests} --maxfail=1000", Recorder(path, longest), 600)
        recorded = json.loads(path.read_text())
    for name in recorded["modules"]:
        if name.split(".")[0] not in ("disa", "tests", "benchmarks", "conftest", "__main__"):
            with contextlib.suppress(Exception):
                importlib.import_module(name)
    print(f"{tests}: {sum(recorded['fast'].values()):.1f} s, left out:", *recorded["left out"], flush=True)
    return recorded["fast"], len(recorded["left out"])


def examine(file: str, tests: str, args: argparse.Namespace) -> Iterator[dict[str, object]]:
    """Run the mutants of one file, in the repository's copy; yields what is known so far.

    Raises:
        RuntimeError: the tests fail without any mutation.
    """
    path = Path(file)
    source = path.read_text()
    every = mutants(source)
    chosen = random.Random(args.seed).sample(every, min(args.mutants, len(every)))  # any part of it is a sample, too
    row: dict[str, object] = {"of": len(every), "mutants": 0, "killed": 0, "timeout": 0}
    if not chosen:
        yield row
        return
    sys.dont_write_bytecode = False
    fast, slow = baseline(tests, args.longest)
    sys.dont_write_bytecode = True  # a mutant of the same length in the same second would pass for the one before
    for cached in path.parent.glob(f"__pycache__/{path.stem}.*"):
        cached.unlink()
    survivors: list[dict[str, str]] = []
    if run_tests(tests, Fastest(fast), 600) != "survived":
        raise RuntimeError(f"{tests} fail before any mutation")
    row |= {"tests": len(fast), "slow tests": slow, "survivors": survivors}
    try:
        for number, (line, mutant) in enumerate(chosen, 1):
            path.write_text(mutant)
            outcome = run_tests(tests, Fastest(fast), 10 + 5 * sum(fast.values()))
            if outcome == "survived":
                survivors.append({"line": str(line), "change": change(source, mutant), "word": ""})
                survivors.sort(key=lambda one: int(one["line"]))
            else:
                row[outcome] = int(str(row[outcome])) + 1
            row["mutants"] = number
            yield row
    finally:
        path.write_text(source)


def rate(rows: Sequence[Mapping[str, object]]) -> tuple[int, int, int, int, int]:
    """Mutants, killed, timeouts, survivors that are equivalent, and those that are not."""
    counts = [sum(int(str(row[key])) for row in rows) for key in ("mutants", "killed", "timeout")]
    words = [one["word"] for row in rows for one in row.get("survivors", ())]  # type: ignore[attr-defined]
    equivalent = sum(word.startswith("equivalent") for word in words)
    return counts[0], counts[1], counts[2], equivalent, len(words) - equivalent


def page(found: Found, args: argparse.Namespace) -> str:
    """The results as Markdown."""
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("mutmut", "pytest", "torch"))
    explanation = (
        f"Written by `python -m benchmarks.mutation` (seed {args.seed}, Python {sys.version.split()[0]}, {versions}). "
        "Each mutant is one small change of one file; it is killed if a test that mirrors the file fails, or runs out "
        "of time. Tests that take long, or are marked slow or distributed, are left out: a survivor may be seen "
        "by them. Where a file has more mutants than were run, these are a random sample. Errors' texts, annotations, "
        "decorators and imports are not mutated. The share is of the mutants that are not equivalent to the original."
    )
    head = ("file", "mutants run", "of", "tests", "left out", "killed", "timeouts", "equivalent", "survived", "share")
    lines = [f"| {' | '.join(head)} |", "|---|" + "---:|" * (len(head) - 1)]
    for group, files in GROUPS.items():
        names = [file for file in files if file in found]
        for name in [*names, group] if names else []:
            rows = [found[name]] if name in found else [found[file] for file in names]
            mutants, killed, timeout, equivalent, survived = rate(rows)
            real = mutants - equivalent
            share = f"{(killed + timeout) / real:.1%}" if real else "–"
            counts = [sum(int(str(row.get(key, 0))) for row in rows) for key in ("of", "tests", "slow tests")]
            first = [mutants, *counts] if name in found else [mutants, counts[0], "", ""]
            cells = [*first, killed, timeout, equivalent, survived, share]
            mark = "" if name in found else "**"
            lines.append(
                f"| {mark}{name}{mark} | {' | '.join(f'{mark}{cell}{mark}' if cell != '' else '' for cell in cells)} |"
            )
    lines += ["", "## Survivors"]
    for file, row in found.items():
        survivors: list[dict[str, str]] = row.get("survivors", [])  # type: ignore[assignment]
        lines += ["", f"### {file}", ""] if survivors else []
        for one in survivors:
            text = f"- line {one['line']}: {one['change']}: {one['word'] or 'unexamined'}"
            lines += textwrap.wrap(text, 120, subsequent_indent="  ", break_on_hyphens=False)
    return f"# Mutation testing\n\n{textwrap.fill(explanation, 120)}\n\n" + "\n".join(lines) + "\n"


def save(found: Found, args: argparse.Namespace) -> None:
    """Write both files of the results."""
    (args.results / "mutation.json").write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n")
    (args.results / "mutation.md").write_text(page(found, args))


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="benchmarks.mutation", description=__doc__)
    parser.add_argument("--groups", nargs="*", default=list(GROUPS), choices=[*GROUPS], metavar="GROUP")
    parser.add_argument("--files", nargs="+", help="these alone, of the groups")
    parser.add_argument("--mutants", type=int, default=60, help="at most so many of a file")
    parser.add_argument("--longest", type=float, default=3.0, help="seconds that a test may take")
    parser.add_argument("--seed", type=int, default=1, help="of the sample")
    parser.add_argument("--results", type=Path, default=Path("out/mutation"), help="folder of the table")
    args = parser.parse_args(argv)
    args.results = args.results.resolve()
    args.results.mkdir(parents=True, exist_ok=True)
    record = args.results / "mutation.json"
    found: Found = json.loads(record.read_text()) if record.is_file() else {}
    words = {one["change"]: one["word"] for row in found.values() for one in row.get("survivors", [])}  # type: ignore[attr-defined]
    with tempfile.TemporaryDirectory() as place:
        copy = Path(place) / "copy"
        shutil.copytree(".", copy, ignore=shutil.ignore_patterns(".venv", ".git", "out", ".*_cache", "__pycache__"))
        os.chdir(copy)
        os.environ["PYTHONPATH"] = sys.path[0] = str(copy)  # in place of the repository's root
        os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
        for file, tests in [pair for group in args.groups for pair in GROUPS[group].items()]:
            if args.files and file not in args.files:
                continue
            for row in examine(file, tests, args):
                for one in row.get("survivors", []):  # type: ignore[attr-defined]
                    one["word"] = words.get(one["change"], "")
                found[file] = row
                save(found, args)
            print(file, *rate([found[file]]), flush=True)
    save(found, args)
    print(page(found, args))


if __name__ == "__main__":
    main()
