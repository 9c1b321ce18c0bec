"""Recipes: the rows of the tables that the project reproduces, read from TOML files; `mar.toml` explains these."""

from __future__ import annotations

import dataclasses
import fnmatch
import functools
import itertools
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..annealing import AnnealedModel
from ..generation.generators import Sampling, check_ar_steps, image_shape
from ..models import MODELS, build_model
from ..models.harmon import Harmon
from ..models.mar import MAR
from ..runtime.names import did_you_mean, user_name
from ..solver import get_solver

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

Level = dict[str, Any]  # of a TOML file, which holds anything

FOLDER = Path(__file__).parent
FAMILIES = ("mar", "flowar", "xar", "harmon")
READ_OFF = re.compile(r"~\d+(\.\d+)?")  # a published number that was read off a plot

EQUAL = 0.03  # budgets of evaluations that differ by no larger a share are equal
Number = float | str  # text like "~1.57" if read off a plot


@dataclass(frozen=True)
class Published:
    """What a paper has of a recipe; an impossible value raises a ValueError.

    Attributes:
        source: the paper.
        fid, isc, geneval: scores; `isc` is the Inception score.
        seconds: per image, on the paper's machines.
    """

    source: str
    fid: Number | None = None
    isc: Number | None = None
    geneval: Number | None = None
    seconds: Number | None = None

    def __post_init__(self) -> None:
        _check(self)
        if not any(getattr(self, name) is not None for name in NUMBERS):
            raise ValueError(f"nothing is published by {self.source}; give some of {', '.join(NUMBERS)}")


NUMBERS = {"fid": 2, "isc": 1, "geneval": 2, "seconds": 3}  # of `Published` -> decimals


@dataclass(frozen=True)
class Recipe:
    """One row of a table: a setting to measure, and what was published; an impossible value raises a ValueError.

    Attributes:
        num_images, batch_size: images to measure, and per batch on each rank.
        checkpoint: a name of the catalogue or a path; None takes the weights that come with the package.
        baseline: the model's row in this table that speed-ups are over.
        published: what papers have of it.
        prompts: of Harmon, with equally many images each; none takes those of the bundled captions' grammar.
        image_size, text_tokenizer: of Harmon; pixels per side, and a folder or a name on the Hugging Face hub.
    """

    table: str
    model: str
    row: str
    sampling: Sampling
    num_images: int
    batch_size: int
    checkpoint: str | None = None
    baseline: str | None = None
    published: Sequence[Published] = ()
    prompts: Sequence[str] = ()
    image_size: int | None = None
    text_tokenizer: str | None = None

    def __post_init__(self) -> None:
        _check(self)
        self._check_model()

    def _check_model(self) -> None:
        if not self.takes_prompts and (self.prompts or self.image_size or self.text_tokenizer):
            raise ValueError(f"{self.model} takes class labels; prompts, image_size and text_tokenizer are Harmon's")
        if self.takes_prompts and not self.prompts and not self.bundled:
            raise ValueError(f"{self.model} takes prompts; give some (the captions' grammar is for the bundled model)")
        if self.checkpoint is None and not self.bundled:
            raise ValueError(f"no weights of {self.model} come with the package; name a checkpoint")
        model = MODELS[self.model].build
        kind, prefix = ("no flow model", "diff_") if model.flow_times is None else ("a flow model", "flow_")
        if (model.flow_times is None) == (self.sampling.num_iter is None):
            raise ValueError(f"{self.model} is {kind}; its settings begin with {prefix}")
        get_solver(model.solvers, self.sampling.sampler)

    @property
    def label(self) -> str:
        """The name within its table."""
        return f"{self.model}-{self.row}"

    @property
    def name(self) -> str:
        """The name among all."""
        return f"{self.table}/{self.label}"

    @property
    def nfe_per_step(self) -> list[int]:
        """Evaluations of the head at each AR step."""
        return _outline(self.model).nfe(self.sampling.schedule, self.sampling.sampler, self.sampling.num_iter)

    @property
    def nfe(self) -> int:
        """Evaluations of the head per image."""
        return sum(self.nfe_per_step)

    def check_ar_steps(self) -> None:
        """Refuse, with a ValueError, more AR steps than an image has tokens; no weights are needed."""
        model = _outline(self.model)
        if self.sampling.num_iter is None:  # scales or cells are the AR steps
            return
        if isinstance(model, Harmon):
            side = (model.mar.grid, model.mar.grid)
            rows, columns = image_shape(self.image_size, model.vae.stride) if self.image_size else side
        else:
            assert isinstance(model, MAR)
            rows = columns = model.grid
        try:
            check_ar_steps(model, self.sampling, rows * columns)
        except ValueError as error:
            raise ValueError(f"{error} ({self.name})") from error

    @property
    def annealed(self) -> bool:
        """Whether AR steps differ in their counts, beyond what spreads a budget evenly."""
        schedule, solver = self.sampling.schedule, MODELS[self.model].build.solvers[self.sampling.sampler]
        return solver.annealed and schedule.upper > schedule.lower and schedule.strategy not in ("constant", "even")

    def costs_as(self, other: Recipe) -> bool:
        """Whether it takes as many AR steps, and about as many evaluations, as `other`."""
        alike = len(self.nfe_per_step) == len(other.nfe_per_step)
        return alike and abs(self.nfe - other.nfe) <= EQUAL * other.nfe

    @property
    def bundled(self) -> bool:
        """Whether the model is one of Fashion-MNIST that comes with the package."""
        return MODELS[self.model].bundled

    @property
    def takes_prompts(self) -> bool:
        """Whether the model takes prompts, not class labels."""
        return issubclass(MODELS[self.model].build, Harmon)


def _is_number(value: object) -> bool:
    return bool(READ_OFF.fullmatch(value)) if isinstance(value, str) else type(value) in (int, float)


# Attributes, whether a value is possible, and what is needed. Any: values of any type are checked.
_KINDS: list[tuple[str, Callable[[Any], object], str]] = [
    ("num_images batch_size image_size", lambda x: type(x) is int and x >= 1, "a whole number of at least 1 is needed"),
    ("checkpoint baseline source text_tokenizer", lambda x: type(x) is str and x, "a text is needed"),
    (" ".join(NUMBERS), _is_number, 'a number is needed, or text like "~1.57" for one read off a plot'),
    ("prompts", lambda x: type(x) in (list, tuple) and all(type(y) is str for y in x), "a list of texts is needed"),
]


def _check(one: Recipe | Published) -> None:
    """Refuse impossible values."""
    for names, allowed, needed in _KINDS:
        for name in names.split():
            if (value := getattr(one, name, None)) is not None and not allowed(value):
                raise ValueError(f"{name} is {value!r}; {needed}")


@functools.cache
def _outline(model: str) -> AnnealedModel:
    """Build a model without weights, to count its evaluations."""
    with torch.device("meta"):
        return build_model(model)


@dataclass(frozen=True)
class Table:
    """Recipes to compare, those asked for as `shown`; no title, no such baseline or a repeated name is a ValueError."""

    name: str
    title: str
    text: str
    recipes: tuple[Recipe, ...]
    shown: tuple[Recipe, ...]

    def __post_init__(self) -> None:
        if not self.title:
            raise ValueError(f"{self.name}: the table needs a title")
        labels = [recipe.label for recipe in self.recipes]
        for one in self.recipes:
            if labels.count(one.label) > 1:
                raise ValueError(f"there are two recipes {one.name}")
            if one.baseline is not None and self.baseline(one) is None:
                raise ValueError(f"{one.name}: its baseline {one.baseline} is no row of {one.model} in {self.name}")

    def change(self, **changes: Any) -> Table:  # Any: attributes of several types
        """Replace attributes of all recipes; None replaces nothing."""
        wanted = {name: value for name, value in changes.items() if value is not None}
        recipes = {recipe.name: dataclasses.replace(recipe, **wanted) for recipe in self.recipes}
        shown = tuple(recipes[recipe.name] for recipe in self.shown)
        return dataclasses.replace(self, recipes=tuple(recipes.values()), shown=shown)

    def baseline(self, recipe: Recipe) -> Recipe | None:
        """Return what the speed-up of `recipe` is over."""
        return next((one for one in self.recipes if (one.model, one.row) == (recipe.model, recipe.baseline)), None)


def load_tables(folder: Path = FOLDER, own: Path | None = None) -> dict[str, Table]:
    """Read every table from the families' files in `folder`, and a user's `own` file; one table may be in several.

    Raises a FileNotFoundError if one is missing, and a ValueError that names file, recipe and value if one is wrong.
    """
    tables: dict[str, Table] = {}
    if own is not None and not own.is_file():
        raise FileNotFoundError(f"there is no file of recipes {own}")
    for path in [*(folder / f"{family}.toml" for family in FAMILIES), *([own] if own else [])]:
        if not path.is_file():
            raise FileNotFoundError(f"there is no {path}; install the package again")
        try:
            common, sections = _split(tomllib.loads(path.read_text(encoding="utf-8")))
            for name, section in sections.items():
                tables[name] = _extend(tables.get(name), name, section, common)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
    return tables


def bundled_settings(model: str) -> dict[str, Sampling]:
    """Read how a bundled model samples with its full count ("full"), with DiSA ("disa"), with as many evaluations but
    one count everywhere ("even"), and with its low count everywhere ("low").
    """
    (table,) = choose(load_tables(), [f"bundled/{model}-*"])
    return {recipe.row: recipe.sampling for recipe in table.shown}


def disa_recipe(model: str) -> Recipe:
    """Find the recipe of a model with DiSA; of a name without recipes, that of the first model of its family."""
    rows = "disa", "50-5"  # of the class-conditional tables and of Harmon's
    found = [recipe for table in load_tables().values() for recipe in table.recipes if recipe.row in rows]
    alike = [recipe for recipe in found if MODELS[recipe.model].build is MODELS[model].build]
    return next((recipe for recipe in found if recipe.model == model), alike[0])


def choose(tables: Mapping[str, Table], names: Sequence[str]) -> list[Table]:
    """Select tables and rows by name or pattern, like `ar_steps/mar_*`; a ValueError if a name has none."""
    every = [recipe.name for table in tables.values() for recipe in table.recipes]
    wanted: set[str] = set()
    for name in names:
        found = fnmatch.filter(every, name if "/" in name else f"{name}/*")
        if not found:
            advice = did_you_mean(name, [*tables, *every]) or "; `disa reproduce --list` prints them"
            raise ValueError(f"there is no table or recipe {name}{advice}")
        wanted.update(found)
    shown = {key: tuple(one for one in table.recipes if one.name in wanted) for key, table in tables.items()}
    return [dataclasses.replace(tables[key], shown=recipes) for key, recipes in shown.items() if recipes]


def list_tables(tables: Iterable[Table]) -> str:
    """Write a line on each table, with its number of rows."""
    lines = [f"{table.name:20} {len(table.recipes):3} rows  {table.title}" for table in tables]
    return "\n".join([*lines, "`disa reproduce --list NAME …` prints the rows of tables, or those of a pattern"])


def list_rows(tables: Iterable[Table]) -> str:
    """Write a line on each row that is shown of tables: its settings, and what is published."""
    lines = []
    for recipe in (recipe for table in tables for recipe in table.shown):
        found = [f"published FID {one.fid} ({one.source})" for one in recipe.published if one.fid is not None]
        words = f"{recipe.name:40} {recipe.num_images:6,} images", recipe.sampling.name(), *found
        lines.append("  ".join(words))
    return "\n".join(lines)


def expand(grid: Mapping[str, Sequence[object]]) -> dict[str, dict[str, object]]:
    """Combine a grid's values in every way; combinations are named after them."""
    combinations = itertools.product(*grid.values()) if grid else []
    return {"-".join(map(str, values)): dict(zip(grid, values, strict=True)) for values in combinations}


def _split(level: Level) -> tuple[Level, Level]:
    """Separate the values on a level of a file from the levels within it."""
    within = {name: value for name, value in level.items() if isinstance(value, dict)}
    return {name: value for name, value in level.items() if name not in within}, within


def _extend(table: Table | None, name: str, section: Level, common: Level) -> Table:
    """Add a file's section on a table to what earlier files have of it."""
    shared, models = _split(section)
    words = {key: getattr(table, key, "") for key in ("title", "text")}
    for key, known in words.items():
        if key in shared and known:
            raise ValueError(f"{name}: another file has a {key} of it; one is enough")
        words[key] = str(shared.pop(key, known))
    found = [recipe for model, own in models.items() for recipe in _recipes(name, model, own, {**common, **shared})]
    if not found:
        raise ValueError(f"{name}: the table has no rows; a model's are in [{name}.MODEL]")
    recipes = (*(table.recipes if table else ()), *found)
    return Table(name, **words, recipes=recipes, shown=recipes)


def _recipes(table: str, model: str, section: Level, shared: Level) -> Iterator[Recipe]:
    """Make the recipes of a model in a table."""
    if model not in MODELS:
        said = f"{table}: there is no model {model}{did_you_mean(model, MODELS)}"
        raise ValueError(f"{said}; allowed are {', '.join(MODELS)}")
    own, within = _split(section)
    grid, rows = within.pop("grid", {}), within.pop("rows", {})
    if within:
        raise ValueError(f"{table}: {model} has {', '.join(within)}; it may have rows and a grid")
    for name, values in grid.items():
        if not isinstance(values, list) or not values:
            raise ValueError(f"{table}: {name} of {model} is {values!r}; a grid's values are a list")
    if not (grid or rows):
        raise ValueError(f"{table}: {model} has no rows; give it rows.NAME = {{ setting = value, … }}, or a grid")
    for name, row in [*expand(grid).items(), *rows.items()]:
        if not isinstance(row, dict):
            raise ValueError(f"{table}: {name} of {model} is {row!r}; a row is {{ setting = value, … }}")
        try:
            yield _recipe(table, model, name, {**shared, **own, **row})
        except ValueError as error:
            found = user_name(str(error), {**shared, **own, **row})
            raise ValueError(f"{table}/{model}-{name}: {''.join(found) if found else error}") from error


def _recipe(table: str, model: str, row: str, values: Level) -> Recipe:
    """Make a recipe from its attributes and, under the names of the commands' flags, the settings of its sampling."""
    attributes = {field.name for field in dataclasses.fields(Recipe)} - {"table", "model", "row", "sampling"}
    if missing := [name for name in ("num_images", "batch_size") if name not in values]:
        raise ValueError(f"nothing says what {' and '.join(missing)} shall be")
    own = {name: values[name] for name in values.keys() & attributes}
    settings = {name: value for name, value in values.items() if name not in own}
    published = own.pop("published", [])
    if not isinstance(published, list) or not all(isinstance(one, dict) for one in published):
        raise ValueError(f"published is {published!r}; a list of {{ source = …, fid = …, … }} is needed")
    own["published"] = tuple(map(_published, published))
    return Recipe(table, model, row, Sampling.from_dict(settings), **own)


def _published(values: Level) -> Published:
    """Make what a paper has of a recipe from its attributes."""
    allowed = [field.name for field in dataclasses.fields(Published)]
    if unknown := values.keys() - allowed:
        raise ValueError(f"published has {', '.join(sorted(unknown))}; it may have {', '.join(allowed)}")
    if "source" not in values:
        raise ValueError("a published number needs a source")
    return Published(**values)
