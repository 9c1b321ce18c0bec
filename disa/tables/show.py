"""Show what is known of recipes, published and measured side by side: rows, columns, sections, files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from PIL import Image

from ..evaluation.extractors import DINOV2
from ..evaluation.results import Results, Scores
from ..runtime.files import atomic_write
from . import report
from .measure import Measurements
from .recipes import Recipe, Table
from .report import Column, Point, Section, decimals
from .sweep import SOLVERS, canonical

# Feature spaces, those that plots prefer first: the name of their Fréchet distance, and its decimals.
DISTANCES = {
    "inception": ("FID", 2),
    DINOV2: ("FD-DINOv2", 1),
    "fashion-classifier": ("Fréchet distance (classifier)", 1),
    "efficientnet-lite0": ("Fréchet distance (EfficientNet-Lite0)", 1),
}


@dataclass(frozen=True)
class Row:
    """A recipe, its results and its baseline's, if any, and whether it is on the Pareto front, None if nobody asked."""

    recipe: Recipe
    results: Results | None = None
    baseline: Results | None = None
    front: bool | None = None

    @property
    def seconds(self) -> float | None:
        """Seconds per image."""
        return self.results.seconds_per_image if self.results else None

    @property
    def speed_up(self) -> float | None:
        """How many times faster than the baseline; None unless both were timed on equal machines in one dtype."""
        fast, slow = self.results, self.baseline
        if fast and slow and fast.seconds_per_image and slow.seconds_per_image and machine(fast) == machine(slow):
            return slow.seconds_per_image / fast.seconds_per_image
        return None

    @property
    def steps(self) -> str:
        """The nominal diffusion steps, such as "50→5 linear"."""
        schedule = canonical(self.recipe.sampling).schedule
        falls = schedule.upper != schedule.lower
        return f"{schedule.upper}→{schedule.lower} {schedule.strategy}" if falls else str(schedule.upper)

    @property
    def guidance_interval(self) -> str | None:
        """The flow times at which guidance applies; None of diffusion models."""
        if self.recipe.sampling.num_iter is not None:
            return None
        last = self.recipe.sampling.guidance.max_time
        return "all" if last == 1 else f"t ≤ {last:g}"

    def scores(self, space: str) -> Scores:
        """Return the scores in a feature space; all None where nothing was measured."""
        return (self.results.scores(space) if self.results else None) or Scores(space, 0)

    def record(self) -> dict[str, object]:
        """Return everything that is known, unrounded, under names such as "inception fid"."""
        recipe, settings = self.recipe, self.recipe.sampling.to_dict()
        record: dict[str, object] = {"table": recipe.table, "recipe": recipe.label}
        record |= {name: getattr(recipe, name) for name in ("model", "row", "checkpoint")}
        record |= {name.removeprefix("diff_").removeprefix("flow_"): value for name, value in settings.items()}
        record |= {"ar_steps": len(recipe.nfe_per_step), "steps": self.steps, "nfe": recipe.nfe}
        others = ("num_images", "batch_size", "published_fid", "published_isc", "source")
        record |= {name: getattr(recipe, name) for name in others}
        if self.results is None:
            return record
        record |= {"seconds_per_image": self.seconds, "images_per_second": self.results.images_per_second}
        record |= {"speed_up": self.speed_up, "machine": machine(self.results)}
        for scores in self.results.metrics:
            for name, value in scores.to_dict().items():
                ends = dict(zip((" low", " high"), value, strict=True)) if isinstance(value, tuple) else {"": value}
                record |= {f"{scores.extractor} {name}{end}": number for end, number in ends.items()}
        return record if self.front is None else {**record, "front": self.front}


RowColumn = Column[Row, Any]  # Any: values of several types


def machine(results: Results) -> str:
    """Write what times depend on."""
    return f"{results.machine}, {results.settings.get('dtype', 'float32')}, torch {results.versions['torch']}"


def machines(rows: Sequence[Row]) -> list[str]:
    """List what rows were measured on."""
    return sorted({machine(row.results) for row in rows if row.results})


# What rows may differ in besides the counts; in a table, those that they do differ in have a column.
SETTINGS: tuple[RowColumn, ...] = (
    Column("sampler", lambda row: SOLVERS[row.recipe.sampling.sampler].label),
    Column("cfg", lambda row: row.recipe.sampling.guidance.scale, "{:g}".format),
    Column("cfg_schedule", lambda row: row.recipe.sampling.guidance.schedule),
    Column("guidance interval", lambda row: row.guidance_interval),
    Column("temperature", lambda row: row.recipe.sampling.temperature, "{:g}".format),
    Column("seed", lambda row: row.recipe.sampling.seed),
)


def values_of(column: RowColumn, rows: Sequence[Row]) -> list[str]:
    """List the different values of a column, without dashes."""
    return [value for value in dict.fromkeys(map(column.cell, rows)) if value != report.ABSENT]


def columns_of(rows: Sequence[Row]) -> list[RowColumn]:
    """Choose the columns of a table: costs, what its rows differ in, and what any of them has."""
    more = (("precision", 2, "precision"), ("recall", 2, "recall"), ("KID", 4, "kid_mean"))
    columns: list[RowColumn] = [
        Column("recipe", lambda row: row.recipe.label),
        Column("AR steps", lambda row: len(row.recipe.nfe_per_step)),
        Column("diffusion steps", lambda row: row.steps),
        *(column for column in SETTINGS if len(values_of(column, rows)) > 1),
        Column("published FID", lambda row: row.recipe.published_fid, partial(_published, 2)),
        *(Column(f"{title} (95 %)", partial(_distance, space, digits)) for space, (title, digits) in DISTANCES.items()),
        Column("published IS", lambda row: row.recipe.published_isc, partial(_published, 1)),
        Column("IS", lambda row: row.scores("inception").inception_score_mean, decimals(1)),
        *(
            Column(f"{title} ({space})", partial(_score, space, name), decimals(n))
            for space in DISTANCES
            for title, n, name in more
        ),
        Column("label accuracy", lambda row: row.scores("fashion-classifier").label_accuracy, report.percent),
        Column("NFE", lambda row: row.recipe.nfe, decimals(0)),
        Column("seconds per image", lambda row: row.seconds, decimals(3)),
        Column("images/s", lambda row: row.results and row.results.images_per_second, decimals(2)),
        Column("speed-up", lambda row: row.speed_up, report.times),
        Column("on the front", lambda row: row.front, lambda front: "yes" if front else ""),
    ]
    always = ("NFE", "seconds per image", "images/s")
    return [one for one in columns if one.header in always or any(one.cell(row) != report.ABSENT for row in rows)]


def _score(space: str, name: str, row: Row) -> float | None:
    return row.scores(space).numbers().get(name)


def _distance(space: str, digits: int, row: Row) -> str | None:
    """Write a Fréchet distance, with its interval."""
    scores, number = row.scores(space), decimals(digits)
    interval = f" ({'–'.join(map(number, scores.fid_interval))})" if scores.fid_interval else ""
    return None if scores.fid is None else number(scores.fid) + interval


def _published(digits: int, score: float | str) -> str:
    """Write a published score; what was read off a plot is text already."""
    return score if isinstance(score, str) else f"{score:.{digits}f}"


def points_of(rows: Sequence[Row], space: str, cost: str) -> list[Point]:
    """Return the rows that have a Fréchet distance in a feature space, as points of their models."""
    return [
        Point(row.recipe.row, value, scores.fid, scores.fid_interval, row.recipe.model)
        for row, scores in ((row, row.scores(space)) for row in rows)
        if scores.fid is not None and (value := row.recipe.nfe if cost == "NFE" else row.seconds) is not None
    ]


def section_of(one: Table, known: Measurements, front: bool) -> Section[Row]:
    """Make a table's part of the page, with a plot for each feature space."""
    rows = [Row(recipe, known.of(recipe), known.of(one.baseline(recipe))) for recipe in one.shown]
    done = [row for row in rows if row.results]
    cost = "seconds per image" if len(machines(rows)) == 1 and all(row.seconds for row in done) else "NFE"
    points = {title: found for space, (title, _) in DISTANCES.items() if (found := points_of(done, space, cost))}
    settings = {column.header: values_of(column, rows) for column in SETTINGS}
    same = "; ".join(f"{name} {values[0]}" for name, values in settings.items() if len(values) == 1)
    said, where = [one.text, f"In all rows: {same}."], "; ".join(machines(rows))
    if done:
        said.append(f"Measured on {where}. In brackets: 95 % intervals, from resampling the images.")
    if front and points:
        title, compared = next(iter(points.items()))
        best = {(point.group, point.name) for point in report.pareto_front(compared)}
        rows = [replace(row, front=(row.recipe.model, row.recipe.row) in best if row.results else None) for row in rows]
        said.append(f"On the front: nothing here has a lower {title} at the same {cost} or less.")
    text = "\n\n".join(filter(None, [*said, *known.complaints(one.shown)]))
    plots = {title: report.plot_quality(found, cost, title, front=True) for title, found in points.items()}
    pictures = {f"{title} with 95 % intervals": plot for title, plot in plots.items()}
    return Section(one.title, text, rows, columns_of(rows), pictures)


def show(tables: Sequence[Table], known: Measurements, title: str, front: bool) -> None:
    """Write `table.md`, `table.csv`, `report.html`, and each table's first plot as `<table>.png`."""
    sections = [section_of(one, known, front) for one in tables]
    parts = [f"## {one.heading}\n\n{one.text}\n\n{report.table(one.rows, one.columns)}\n" for one in sections]
    report.write_text(known.out / "table.md", "\n".join([f"# {title}\n", *parts]))
    report.write_text(known.out / "table.csv", report.table_csv([row.record() for one in sections for row in one.rows]))
    for one, section in zip(tables, sections, strict=True):
        for figure in list(section.pictures.values())[:1]:
            assert not isinstance(figure, Image.Image)
            with atomic_write(known.out / f"{one.name}.png") as beside:
                figure.savefig(beside, dpi=160)
    report.write_report(known.out / "report.html", title, sections)
