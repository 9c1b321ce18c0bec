"""The settings of a bundled model that benchmarks compare."""

from __future__ import annotations

from disa.commands.demo import NAMES
from disa.tables.recipes import Recipe, load_tables

# Row of the table `bundled_beyond` -> its name here.
ROWS = {**NAMES, "calibrated": "calibrated, multistep", "constant": "constant, multistep", "fastest": "fastest"}


def compared(model: str) -> dict[str, Recipe]:
    """Read how a bundled model is sampled: name -> recipe, "without DiSA" first."""
    recipes = [recipe for recipe in load_tables()["bundled_beyond"].recipes if recipe.model == model]
    return {ROWS[recipe.row]: recipe for recipe in recipes if recipe.row in ROWS}
