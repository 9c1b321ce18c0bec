"""`disa reproduce` and `disa sweep`: measure what is not measured, and show all of it."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from functools import partial
from itertools import groupby
from pathlib import Path

import torch

from ..acceleration import Acceleration
from ..evaluation.plan import MetricSpec, check_flags
from ..runtime import distributed
from ..runtime.devices import DTYPES
from ..runtime.distributed import print_main
from ..runtime.files import check_folder
from ..runtime.start import announce, start
from .measure import Make, Measurements, load, plan_recipe
from .recipes import Recipe, Table
from .show import show

Rows = Sequence[tuple[Recipe, str]]
Plan = Callable[[Recipe], tuple[list[MetricSpec], list[str]]]
Load = Callable[[Recipe], Make]


def reproduce(
    tables: Sequence[Table],
    out: Path,
    *,
    title: str,
    metrics: str = "auto",
    features: str = "auto",
    reference: str = "auto",
    device: str = "auto",
    dtype: str = "auto",
    acceleration: Acceleration = Acceleration(),
    front: bool = False,
    save_seconds: float = 120.0,
    load: Callable[[Recipe, torch.device, torch.dtype], Make] = load,
) -> int:
    """Measure what is not measured, and write `table.md`, `table.csv`, `report.html` and one plot per table.

    A row that cannot run is shown with dashes and a sentence, and the exit code, which is returned, is then 1. An
    interrupted run goes on in the same folder, `out`. `metrics`, `features`, `reference`, `device` and `dtype` are as
    the flags of these names, `save_seconds` as for `evaluate`; with `front`, tables say what is on the Pareto front.
    """
    where = start(device)
    check_flags(metrics, features, reference)
    acceleration.check(where)
    distributed.on_main(lambda: check_folder(out, "--out"))
    announce(where)
    known = Measurements(out, where, dtype, acceleration, save_seconds)
    plan = partial(plan_recipe, metrics=metrics, features=features, reference=reference)
    update = partial(distributed.on_main, partial(show, tables, known, title, front))
    update()  # whether it can be written is better known before anything is loaded
    asked = [recipe for table in tables for recipe in table.shown]
    headings = [f"{i} of {len(asked)}: {one.name}, {one.num_images:,} images" for i, one in enumerate(asked, 1)]
    alike = operator.attrgetter("model", "checkpoint", "prompts", "text_tokenizer")
    for _, rows in groupby(zip(asked, headings, strict=True), key=lambda row: alike(row[0])):
        _measure_alike(list(rows), known, plan, lambda one: load(one, where, DTYPES[known.dtype_of(one)]), update)
    update()
    if distributed.is_main():
        table = (out / "table.md").read_text(encoding="utf-8")
        print_main(f"\n{table}\neverything is in {out}: report.html, table.md, table.csv and the plots")
    distributed.shutdown()
    return 1 if known.problems else 0


def _measure_alike(rows: Rows, known: Measurements, plan: Plan, load: Load, update: Callable[[], None]) -> None:
    """Measure recipes of the same weights, each under a heading; the weights are loaded once, and let go at the end."""
    first, problem, make, specs = rows[0][0], "", None, list[MetricSpec]()
    try:
        specs, known.left_out[first.model] = distributed.on_main(partial(plan, first))
        for sentence in known.left_out[first.model]:
            print_main(f"note: {sentence}")
        make = distributed.on_all(partial(load, first))
    except distributed.USER_ERRORS as error:
        problem = str(error)
    for recipe, heading in rows:
        print_main(f"\n{heading}")
        before = known.of(recipe)
        if make is not None:
            known.measure(recipe, make, specs)
        elif before is None:
            known.problems[recipe.name] = problem
        found = known.of(recipe)
        print_main(found.summary() if found else f"cannot run: {known.problems[recipe.name]}")
        if found != before:
            update()
