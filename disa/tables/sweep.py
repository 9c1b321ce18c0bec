"""A grid of settings around a model's recipe: `disa sweep`, which answers where quality starts to drop."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from .. import diffusion, flow
from ..generation.generators import Sampling
from ..schedule import StepSchedule
from .recipes import Recipe, Table, expand

SOLVERS = {**diffusion.SOLVERS, **flow.SOLVERS}
# The settings that can be varied, each with a value of its kind.
EXAMPLES = {**Sampling(1, StepSchedule()).to_dict(), **Sampling(None, StepSchedule(), "euler").to_dict()}


def canonical(sampling: Sampling) -> Sampling:
    """Describe a sampling by the counts that it takes: not all take both of their schedule's."""
    schedule, annealed = sampling.schedule, SOLVERS[sampling.sampler].annealed
    if annealed and schedule.strategy != "constant":
        return sampling
    count = schedule.lower if annealed else schedule.upper
    return dataclasses.replace(sampling, schedule=StepSchedule(count, count, "constant"))


def starting_point(tables: Mapping[str, Table], model: str) -> Recipe:
    """Return the first recipe of `model` that is annealed; a ValueError if there is none."""
    every = [recipe for table in tables.values() for recipe in table.recipes]
    for recipe in every:
        schedule = canonical(recipe.sampling).schedule
        if recipe.model == model and schedule.upper > schedule.lower:
            return recipe
    allowed = dict.fromkeys(recipe.model for recipe in every)
    raise ValueError(f"there is no recipe of {model!r}; allowed are {', '.join(allowed)}")


def sweep_table(start: Recipe, grid: Mapping[str, Sequence[object]]) -> Table:
    """Combine the values in `grid` in every way, the other settings being those of `start`.

    Settings are named as by `Sampling.to_dict`. Combinations that end with more steps than they begin with, or sample
    as an earlier one does, are left out; the table's text says so. Raises a ValueError if a setting is unknown, a value
    impossible, or nothing is left.
    """
    settings = start.sampling.to_dict()
    for name in grid:
        if name not in settings:
            raise ValueError(f"{start.model} has no setting {name}; it has {', '.join(settings)}")
    if not grid:
        raise ValueError(f"nothing is varied; give values of some of {', '.join(settings)}")
    rows, left_out = _rows(start, grid)
    if not rows:
        raise ValueError(f"every combination ends with more steps than it begins with: {', '.join(expand(grid))}")
    dearest = max(rows, key=lambda recipe: recipe.nfe).row
    recipes = tuple(dataclasses.replace(recipe, baseline=dearest) for recipe in rows)
    text = f"What is not varied is as in {start.name}; speed-ups are over {dearest}, which takes the most evaluations."
    text += f"\n\nLeft out: {'; '.join(left_out)}." if left_out else ""
    return Table("sweep", f"{start.model} by {', '.join(grid)}", text, recipes, recipes)


def _rows(start: Recipe, grid: Mapping[str, Sequence[object]]) -> tuple[list[Recipe], list[str]]:
    """Make the recipes of a sweep, and say what is left out."""
    plain = dataclasses.replace(start, table="sweep", published_fid=None, published_isc=None, source=None)
    settings, kind = start.sampling.to_dict(), "flow" if start.sampling.num_iter is None else "diff"
    recipes: dict[Sampling, Recipe] = {}
    left_out = []
    for row, values in expand(grid).items():
        asked = {**settings, **values}
        upper, lower = asked[f"{kind}_upper_steps"], asked[f"{kind}_lower_steps"]
        if isinstance(upper, int) and isinstance(lower, int) and lower > upper:
            left_out.append(f"{row} (it would end with more steps than it begins with)")
            continue
        recipe = dataclasses.replace(plain, row=row, sampling=Sampling.from_dict(asked))
        sampling = canonical(recipe.sampling)
        first = recipes.setdefault(sampling, dataclasses.replace(recipe, sampling=sampling))
        if first.row != row:
            left_out.append(f"{row} (it samples as {first.row} does)")
    return list(recipes.values()), left_out
