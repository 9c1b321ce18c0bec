"""Recipes: the rows of the tables that the project reproduces, as `*_DiSA/recipes.toml` has them.

A recipe is one setting to measure: a model, its weights, how it samples, how many images, and what was published for it. How the files
are read stands in `MAR_DiSA/recipes.toml`.
"""

from __future__ import annotations

import dataclasses
import fnmatch
import functools
import itertools
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from .diffusion import SAMPLERS
from .flow import FLOW_SAMPLERS
from .generation import image_seed
from .models import MODELS, build_model
from .models.checks import check_temperature
from .models.flowar import FlowAR
from .models.harmon import Harmon
from .models.xar import XAR
from .sampling import Sampling

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[1]
FAMILIES = ("MAR_DiSA", "FlowAR_DiSA", "xAR_DiSA", "Harmon_DiSA")

READ_OFF = re.compile(r"~\d+(\.\d+)?")  # a published score that was read off a plot


@dataclass(frozen=True)
class Recipe:
    """One row of a table.

    Attributes:
        table, model, row: where it stands; the names of tables, models and rows.
        sampling: how an image is made.
        num_images, batch_size: images to measure, and at a time on each rank.
        checkpoint: a name of the catalogue or a path; None takes the weights that come with the package.
        baseline: the model's row in this table that its speed-up is over.
        published_fid, published_isc: scores that were published; as text like "~1.57" if they were read off a plot.
        source: where they were published.
        prompts: what Harmon draws, each as often; the bundled model without any draws prompts of the captions' grammar.
        image_size: of Harmon's images, in pixels; by default the model's own.
        text_tokenizer: of Harmon's language model: a folder or a name on the Hugging Face hub; by default the model's own.

    Raises:
        ValueError: a value is impossible.
    """

    table: str
    model: str
    row: str
    sampling: Sampling
    num_images: int
    batch_size: int
    checkpoint: str | None = None
    baseline: str | None = None
    published_fid: float | str | None = None
    published_isc: float | str | None = None
    source: str | None = None
    prompts: Sequence[str] = ()
    image_size: int | None = None
    text_tokenizer: str | None = None

    def __post_init__(self) -> None:
        for name in ("num_images", "batch_size", "image_size"):
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                raise ValueError(f"{name} is {value!r}; a whole number of at least 1 is needed")
        for name in ("checkpoint", "baseline", "source", "text_tokenizer"):
            value = getattr(self, name)
            if value is not None and not (isinstance(value, str) and value):
                raise ValueError(f"{name} is {value!r}; a text is needed")
        for name in ("published_fid", "published_isc"):
            value = getattr(self, name)
            number = isinstance(value, (int, float)) and not isinstance(value, bool)
            if value is not None and not number and not (isinstance(value, str) and READ_OFF.fullmatch(value)):
                raise ValueError(f'{name} is {value!r}; a number is needed, or text like "~1.57" for one that was read off a plot')
        if (self.source is None) != (self.published_fid is None and self.published_isc is None):
            raise ValueError("a published score needs a source, and a source a published score")
        if isinstance(self.prompts, str) or not all(isinstance(prompt, str) for prompt in self.prompts):
            raise ValueError(f"prompts is {self.prompts!r}; a list of texts is needed")
        if not self.draws_prompts and (self.prompts or self.image_size or self.text_tokenizer):
            raise ValueError(f"{self.model} draws classes; prompts, image_size and text_tokenizer are Harmon's")
        if self.draws_prompts and not self.prompts and not self.bundled:
            raise ValueError(f"{self.model} draws prompts; give some (the captions' grammar is for the bundled model)")
        if self.checkpoint is None and not MODELS[self.model].bundled:
            raise ValueError(f"no weights of {self.model} come with the package; name a checkpoint")
        _check_sampling(self.model, self.sampling)

    @property
    def label(self) -> str:
        """The name within its table."""
        return f"{self.model}-{self.row}"

    @property
    def name(self) -> str:
        """The name among all."""
        return f"{self.table}/{self.label}"

    @property
    def step_counts(self) -> list[int]:
        """Evaluations of the head at each AR step."""
        return _outline(self.model).evaluations(**self.sampling.steps)

    @property
    def bundled(self) -> bool:
        """Whether the model is one of Fashion-MNIST that comes with the package."""
        return MODELS[self.model].bundled

    @property
    def draws_prompts(self) -> bool:
        """Whether the model draws prompts, not classes."""
        return issubclass(MODELS[self.model].build, Harmon)


@functools.cache
def _outline(model: str) -> Any:
    """The model without weights, for what can be said without them."""
    with torch.device("meta"):
        return build_model(model)


def _check_sampling(model: str, sampling: Sampling) -> None:
    """Raise a ValueError if no model of this kind can sample so."""
    flow = issubclass(MODELS[model].build, (FlowAR, XAR))
    if flow != (sampling.num_iter is None):
        raise ValueError(
            f"{model} is {'a flow model' if flow else 'no flow model'}; its settings begin with {'flow_' if flow else 'diff_'}"
        )
    samplers: Iterable[str] = FLOW_SAMPLERS if flow else SAMPLERS
    if sampling.sampler not in samplers:
        raise ValueError(f"the sampler is {sampling.sampler!r}; allowed are {', '.join(samplers)}")
    if sampling.num_iter is not None and sampling.num_iter < 1:
        raise ValueError(f"num_iter is {sampling.num_iter}; at least 1 AR step is needed")
    check_temperature(sampling.temperature)
    image_seed(sampling.seed, 0)


@dataclass(frozen=True)
class Table:
    """Recipes that stand below each other.

    Attributes:
        title, text: what they show, in one line and in some.
        recipes: all of them.
        shown: those that were asked for.
    """

    name: str
    title: str
    text: str
    recipes: tuple[Recipe, ...]
    shown: tuple[Recipe, ...]

    def change(self, **changes: Any) -> Table:
        """The table with attributes of all its recipes replaced; None replaces nothing.

        Raises:
            ValueError: a value is impossible.
        """
        wanted = {name: value for name, value in changes.items() if value is not None}
        recipes = {recipe.name: dataclasses.replace(recipe, **wanted) for recipe in self.recipes}
        return dataclasses.replace(self, recipes=tuple(recipes.values()), shown=tuple(recipes[recipe.name] for recipe in self.shown))

    def baseline(self, recipe: Recipe) -> Recipe | None:
        """What the speed-up of `recipe` is over."""
        return next((one for one in self.recipes if (one.model, one.row) == (recipe.model, recipe.baseline)), None)


def load_tables(root: Path = ROOT) -> dict[str, Table]:
    """Every table by name; families that have a table of the same name share it.

    Raises:
        FileNotFoundError: a file is not there.
        ValueError: a file has what no recipe has, or an impossible value; file, recipe and value are named.
    """
    words: dict[str, dict[str, str]] = {}  # table -> its title and text
    recipes: dict[str, list[Recipe]] = {}
    for family in FAMILIES:
        path = root / family / "recipes.toml"
        if not path.is_file():
            raise FileNotFoundError(f"there is no {path}; recipes come with the repository, not with the package: run from a checkout")
        try:
            common, tables = _split(tomllib.loads(path.read_text(encoding="utf-8")))
            for name, content in tables.items():
                shared, models = _split(content)
                for key in [key for key in ("title", "text") if key in shared]:
                    if key in words.setdefault(name, {}):
                        raise ValueError(f"{name}: another file has a {key} of it; one is enough")
                    words[name][key] = str(shared.pop(key))
                for model, section in models.items():
                    recipes.setdefault(name, []).extend(_recipes(name, model, section, {**common, **shared}))
            for name in recipes:
                if "title" not in words.get(name, {}):
                    raise ValueError(f"{name}: the table needs a title")
                _check_names(recipes[name])
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
    return {
        name: Table(name, words[name]["title"], words[name].get("text", ""), tuple(rows), tuple(rows)) for name, rows in recipes.items()
    }


def choose(tables: Mapping[str, Table], names: Sequence[str]) -> list[Table]:
    """The tables that `names` ask for, with the rows that they ask for: names of tables, of recipes, or patterns like `ar_steps/mar_*`.

    Raises:
        ValueError: a name is none of these.
    """
    every = [recipe.name for table in tables.values() for recipe in table.recipes]
    wanted: set[str] = set()
    for name in names:
        found = fnmatch.filter(every, name) if "/" in name else fnmatch.filter(every, f"{name}/*")
        if not found:
            raise ValueError(f"there is no table or recipe {name}; `disa reproduce --list` prints them")
        wanted.update(found)
    asked = [dataclasses.replace(table, shown=tuple(one for one in table.recipes if one.name in wanted)) for table in tables.values()]
    return [table for table in asked if table.shown]


def list_tables(tables: Mapping[str, Table]) -> str:
    """Tables and their recipes in words."""
    lines = []
    for table in tables.values():
        lines.append(f"{table.name}: {table.title}")
        for recipe in table.recipes:
            settings = " ".join(f"{name} {value}" for name, value in recipe.sampling.describe().items())
            published = f", published FID {recipe.published_fid}" if recipe.published_fid is not None else ""
            lines.append(f"  {recipe.name:38} {recipe.num_images} images{published}; {settings}")
    return "\n".join(lines)


def make_recipe(table: str, model: str, row: str, values: Mapping[str, Any]) -> Recipe:
    """The recipe with `values`: its own attributes, and settings under the names of the commands' flags.

    Raises:
        ValueError: a value is missing, unknown or impossible.
    """
    own = {field.name for field in dataclasses.fields(Recipe)} - {"table", "model", "row", "sampling"}
    settings = {name: value for name, value in values.items() if name not in own}
    try:
        for name in ("num_images", "batch_size"):
            if name not in values:
                raise ValueError(f"nothing says what {name} shall be")
        sampling = Sampling.from_settings(settings)
        return Recipe(table, model, row, sampling, **{name: value for name, value in values.items() if name in own})
    except ValueError as error:
        raise ValueError(f"{table}/{model}-{row}: {error}") from error


def expand(grid: Mapping[str, Sequence[Any]]) -> dict[str, dict[str, Any]]:
    """Every combination of a grid's values, named after them."""
    combinations = itertools.product(*grid.values()) if grid else []
    return {"-".join(map(str, values)): dict(zip(grid, values, strict=True)) for values in combinations}


def _split(level: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """What is said on a level of a file, and the levels within it."""
    within = {name: value for name, value in level.items() if isinstance(value, dict)}
    return {name: value for name, value in level.items() if name not in within}, within


def _recipes(table: str, model: str, section: Mapping[str, Any], shared: Mapping[str, Any]) -> Iterator[Recipe]:
    """The recipes of a model in a table."""
    if model not in MODELS:
        raise ValueError(f"{table}: there is no model {model}; allowed are {', '.join(MODELS)}")
    own, within = _split(section)
    for key in within:
        if key not in ("rows", "grid"):
            raise ValueError(f"{table}: {model} has {key}; it may have rows and a grid")
    rows, grid = within.get("rows", {}), within.get("grid", {})
    for name, value in [*rows.items(), *grid.items()]:
        if not isinstance(value, dict if name in rows else list) or name in grid and not value:
            raise ValueError(f"{table}: {name} of {model} is {value!r}; a row is {{ setting = value, … }}, a grid's values are a list")
    for row, values in [*expand(grid).items(), *rows.items()]:
        yield make_recipe(table, model, row, {**shared, **own, **values})


def _check_names(recipes: Sequence[Recipe]) -> None:
    """Raise a ValueError if two recipes of a table share a name, or one has a baseline that is not there."""
    labels = [recipe.label for recipe in recipes]
    for recipe in recipes:
        if labels.count(recipe.label) > 1:
            raise ValueError(f"there are two recipes {recipe.name}")
        if recipe.baseline is not None and f"{recipe.model}-{recipe.baseline}" not in labels:
            raise ValueError(f"{recipe.name}: its baseline {recipe.baseline} is no row of {recipe.model} in {recipe.table}")
