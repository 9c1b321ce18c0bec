"""A grid of settings around a model's recipe: `disa sweep`, which answers where quality starts to drop."""

from __future__ import annotations

import dataclasses
import itertools
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from .. import diffusion, flow
from ..generation.generators import OPTIONAL, Sampling
from ..runtime.names import did_you_mean
from ..schedule import StepSchedule
from .recipes import Recipe, Table, expand

SOLVERS = {**diffusion.SOLVERS, **flow.SOLVERS}
# The settings that can be varied, each with a value of its kind.
EXAMPLES = {**Sampling(1, StepSchedule()).to_dict(), **Sampling(None, StepSchedule(), "euler").to_dict()}
EXAMPLES |= {name: value for optional in OPTIONAL.values() for name, value in optional.items()}
EXAMPLES["step_schedule"] = "schedule.json"

# What `disa sweep --accelerate` can name, where the model has all of the settings; "MODEL" stands for the model's name.
ACCELERATORS: dict[str, dict[str, object]] = {
    "calibrated": {"step_schedule": "MODEL"},
    "halton": {"token_order": "halton"},
    "gtr": {"token_order": "gtr", "tokens_per_step": "stages"},
    "interval": {"guidance": 0.9, "guidance_min_time": 0.1},
    "skip": {"skip_guidance_below": 1.05},
    "token_cache": {"cache_tokens": 3},
    "condition_cache": {"cache_conditions": 3},
    "feature_cache": {"feature_every": 2},
}


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
        if recipe.model == model and recipe.annealed:
            return recipe
    allowed = dict.fromkeys(recipe.model for recipe in every)
    said = f"there is no recipe of {model!r}{did_you_mean(model, allowed)}"
    raise ValueError(f"{said}; allowed are {', '.join(allowed)}")


def sweep_table(start: Recipe, grid: Mapping[str, Sequence[object]], accelerate: Sequence[str] = ()) -> Table:
    """Combine the values in `grid`, and any of ACCELERATORS, in every way, the other settings being those of `start`.

    Settings are named as by `Sampling.to_dict`. Combinations that end with more steps than they begin with, sample as
    an earlier one does, or are of accelerators that exclude each other, are left out; the table's text says so. Raises
    a ValueError if a setting or an accelerator is unknown, a value impossible, or nothing is left.
    """
    settings = {**start.sampling.to_dict(), **OPTIONAL[start.sampling.kind]}
    accelerators = [name for name, changes in ACCELERATORS.items() if changes.keys() <= settings.keys()]
    for kind, asked, known in (("setting", grid, list(settings)), ("accelerator", accelerate, accelerators)):
        for name in asked:
            if name not in known:
                raise ValueError(f"{start.model} has no {kind} {name}; it has {', '.join(known)}")
    if not grid and not accelerate:
        raise ValueError(f"nothing is varied; give values of some of {', '.join(settings)}, or accelerators")
    rows, left_out = _rows(start, grid, accelerate)
    if not rows:
        raise ValueError(f"no combination is possible: {'; '.join(left_out)}")
    dearest = max(rows, key=lambda recipe: recipe.nfe).row
    recipes = tuple(dataclasses.replace(recipe, baseline=dearest) for recipe in rows)
    text = f"What is not varied is as in {start.name}; speed-ups are over {dearest}, which takes the most evaluations."
    text += f"\n\nLeft out: {'; '.join(left_out)}." if left_out else ""
    return Table("sweep", f"{start.model} by {', '.join([*grid, *accelerate])}", text, recipes, recipes)


def _rows(
    start: Recipe, grid: Mapping[str, Sequence[object]], accelerate: Sequence[str]
) -> tuple[list[Recipe], list[str]]:
    """Make the recipes of a sweep, and say what is left out."""
    plain = dataclasses.replace(start, table="sweep", published=())
    settings, kind = start.sampling.to_dict(), start.sampling.kind
    recipes: dict[Sampling, Recipe] = {}
    left_out = []
    changes = {name: _changes(start, name) for name in accelerate}
    for row, values, accelerators in _combinations(grid, changes):
        asked = {**settings, **dict(values)}
        upper, lower = asked[f"{kind}_upper_steps"], asked[f"{kind}_lower_steps"]
        if isinstance(upper, int) and isinstance(lower, int) and lower > upper:
            left_out.append(f"{row} (it would end with more steps than it begins with)")
            continue
        if twice := [name for name, count in Counter(name for name, _ in values).items() if count > 1]:
            left_out.append(f"{row} (more than one changes {', '.join(twice)})")
            continue
        try:
            recipe = dataclasses.replace(plain, row=row, sampling=Sampling.from_dict(asked))
        except ValueError as error:
            if accelerators < 2:
                raise
            left_out.append(f"{row} ({error})")
            continue
        sampling = canonical(recipe.sampling)
        first = recipes.setdefault(sampling, dataclasses.replace(recipe, sampling=sampling))
        if first.row != row:
            left_out.append(f"{row} (it samples as {first.row} does)")
    return list(recipes.values()), left_out


def _changes(start: Recipe, accelerator: str) -> dict[str, object]:
    """Return the settings that an accelerator changes; a schedule brings the solver along that it was made for."""
    changes = {name: start.model if value == "MODEL" else value for name, value in ACCELERATORS[accelerator].items()}
    if file := changes.get("step_schedule"):
        (changes[f"{start.sampling.kind}_sampler"],) = StepSchedule.load(str(file)).made_for["sampler"]
    return changes


def _combinations(
    grid: Mapping[str, Sequence[object]], accelerate: Mapping[str, Mapping[str, object]]
) -> Iterator[tuple[str, list[tuple[str, object]], int]]:
    """Combine a grid's values and any accelerators: the row's name, the settings that change, how many accelerators."""
    for row, values in (expand(grid) or {"": {}}).items():
        for count in range(len(accelerate) + 1):
            for chosen in itertools.combinations(accelerate, count):
                name = "+".join(chosen) or ("plain" if accelerate else "")
                changes = [change for one in chosen for change in accelerate[one].items()]
                yield "-".join(filter(None, (row, name))), [*values.items(), *changes], count
