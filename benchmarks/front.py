"""Quality against time of the bundled models, as the README shows it.

Draws the figure and prints the table from what `disa reproduce bundled` wrote. Run from the repository's root:
`python -m benchmarks.front --table assets/reproduce_bundled.csv --picture assets/front.png`.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from matplotlib.figure import Figure

from disa.commands.demo import NAMES
from disa.commands.flags import HelpFormatter
from disa.runtime.files import atomic_write
from disa.tables.report import Column, Point, plot_panels, table, times
from disa.tables.show import verdict

SPACE = "fashion-classifier"
Row = dict[str, str]  # of the CSV
Model = dict[str, Row]  # row of the table `bundled` -> what was measured


def read(path: Path) -> dict[str, Model]:
    """Read the rows of each bundled model."""
    models: dict[str, Model] = {}
    with path.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            if row["row"] in NAMES and row.get(f"{SPACE} fid"):
                models.setdefault(row["model"], {})[row["row"]] = row
    return models


def distance(row: Row) -> tuple[float, float]:
    """Return the Fréchet distance and its standard error; half of a 95 % interval is 1.96 of them."""
    value = float(row[f"{SPACE} fid"])
    return value, (float(row[f"{SPACE} fid_interval high"]) - value) / 1.96


def _written(name: str, model: Model) -> str | None:
    """Write a distance with two standard errors."""
    if name not in model:
        return None
    value, error = distance(model[name])
    return f"{value:.1f} ± {2 * error:.1f}"


def _compared(model: Model) -> str | None:
    """Write by how much DiSA is further from the real images than the same NFE spread evenly."""
    if not {"disa", "even"} <= model.keys():
        return None
    (one, error), (other, more) = distance(model["disa"]), distance(model["even"])
    error = (error**2 + more**2) ** 0.5
    return f"{one - other:+.1f} ± {2 * error:.1f}, {verdict(one - other, error)}"


def _nfe(name: str, model: Model) -> str:
    return f"{int(model[name]['nfe']):,}"


COLUMNS: tuple[Column[Model, str], ...] = (
    Column("model", lambda model: f"`{model['disa']['model']}`"),
    Column("NFE", lambda model: f"{_nfe('full', model)} → {_nfe('disa', model)}"),
    Column("speed-up", lambda model: times(float(model["disa"]["speed_up"])) if model["disa"]["speed_up"] else None),
    *(Column(name, partial(_written, key)) for key, name in NAMES.items()),
    Column("DiSA minus evenly", _compared),
)


def write_table(models: dict[str, Model]) -> str:
    """Write a line per model."""
    return table(list(models.values()), COLUMNS)


def draw(models: dict[str, Model]) -> Figure:
    """Draw a panel per model: distance, with its 95 % interval, against seconds per image."""
    points = []
    for model, rows in models.items():
        for key, name in NAMES.items():
            if key in rows:
                value, error = distance(rows[key])
                interval = value - 1.96 * error, value + 1.96 * error
                points.append(Point(name, 1000 * float(rows[key]["seconds_per_image"]), value, interval, model))
    return plot_panels(points, "milliseconds per image", "Fréchet distance")


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="benchmarks.front", description=__doc__, formatter_class=HelpFormatter)
    text = "table.csv of `disa reproduce bundled`"
    parser.add_argument("--table", type=Path, default=Path("assets/reproduce_bundled.csv"), help=text)
    parser.add_argument("--picture", type=Path, default=Path("assets/front.png"), help="file to write")
    args = parser.parse_args(argv)
    models = read(args.table)
    if not models:
        raise ValueError(f"{args.table} has no row of `disa reproduce bundled`")
    with atomic_write(args.picture) as beside:
        draw(models).savefig(beside, dpi=160, format="png")
    print(write_table(models))


if __name__ == "__main__":
    from disa.commands.exit import run

    run(main)
