"""A grid of settings around a model's recipe: `disa sweep`, which answers where quality starts to drop."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from .recipes import Recipe, Table, expand
from .sampling import Sampling
from .schedule import StepSchedule

# The settings that can be varied, each with a value of its kind.
EXAMPLES = {**Sampling(1, StepSchedule()).describe(), **Sampling(None, StepSchedule(), "euler").describe()}


def effective(sampling: Sampling) -> Sampling:
    """The same sampling, described by the counts that it takes: not all take both of their schedule's."""
    schedule = sampling.schedule
    if sampling.sampler == "default":
        return dataclasses.replace(sampling, schedule=StepSchedule(schedule.upper, schedule.upper, "constant"))
    if schedule.strategy == "constant":
        return dataclasses.replace(sampling, schedule=StepSchedule(schedule.lower, schedule.lower, "constant"))
    return sampling


def starting_point(tables: Mapping[str, Table], model: str) -> Recipe:
    """The first recipe of `model` that is annealed.

    Raises:
        ValueError: there is none.
    """
    every = [recipe for table in tables.values() for recipe in table.recipes]
    for recipe in every:
        schedule = effective(recipe.sampling).schedule
        if recipe.model == model and schedule.strategy != "constant" and schedule.upper > schedule.lower:
            return recipe
    raise ValueError(f"there is no recipe of {model!r}; allowed are {', '.join(dict.fromkeys(recipe.model for recipe in every))}")


def sweep_table(start: Recipe, grid: Mapping[str, Sequence[Any]]) -> Table:
    """Every combination of the values in `grid`, the other settings being those of `start`.

    What is impossible because it would end with more steps than it begins with, and what samples as an earlier combination does, is left
    out; the table's text says so.

    Args:
        grid: setting, as `Sampling.describe` names it -> its values.

    Raises:
        ValueError: a setting is unknown, a value impossible, or nothing is left.
    """
    settings = start.sampling.describe()
    for name in grid:
        if name not in settings:
            raise ValueError(f"{start.model} has no setting {name}; it has {', '.join(settings)}")
    if not grid:
        raise ValueError(f"nothing is varied; give values of some of {', '.join(settings)}")
    rows: dict[Sampling, str] = {}
    left_out = []
    for row, values in expand(grid).items():
        asked = {**settings, **values}
        counts = {name.partition("_")[2]: value for name, value in asked.items() if name.endswith("_steps")}
        if counts["lower_steps"] > counts["upper_steps"]:
            left_out.append(f"{row} (it would end with more steps than it begins with)")
            continue
        sampling = Sampling.from_settings(asked)
        if (same := rows.setdefault(effective(sampling), row)) != row:
            left_out.append(f"{row} (it samples as {same} does)")
    if not rows:
        raise ValueError(f"every combination ends with more steps than it begins with: {', '.join(expand(grid))}")
    plain = dataclasses.replace(start, table="sweep", published_fid=None, published_isc=None, source=None)
    found = [dataclasses.replace(plain, row=row, sampling=sampling) for sampling, row in rows.items()]
    dearest = max(found, key=lambda recipe: sum(recipe.step_counts)).row
    recipes = tuple(dataclasses.replace(recipe, baseline=dearest) for recipe in found)
    text = f"What is not varied is as in {start.name}; speed-ups are over {dearest}, which takes the most evaluations."
    text += f"\n\nLeft out: {'; '.join(left_out)}." if left_out else ""
    return Table("sweep", f"{start.model} by {', '.join(grid)}", text, recipes, recipes)
