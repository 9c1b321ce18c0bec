"""Show what is known of recipes, published and measured side by side: rows, columns, sections, files."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from PIL import Image

from ..evaluation.extractors import DINOV2
from ..evaluation.results import Results, Scores
from ..evaluation.run import GRID_COLUMNS, GRID_IMAGES
from ..generation.generators import OPTIONAL
from ..runtime.files import atomic_write
from . import report
from .measure import Measurements
from .recipes import NUMBERS, Recipe, Table
from .report import Column, Point, Section, decimals
from .sweep import SOLVERS, canonical

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SAMPLE_LINES, SAMPLES = 2, (640, 640)  # of a row's samples in the page: lines of the grid, and most pixels
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
        if schedule.strategy == "even":
            ar_steps = len(self.recipe.nfe_per_step)
            return "–".join(map(str, sorted({schedule.steps(step, ar_steps) for step in range(ar_steps)})))
        falls = schedule.upper != schedule.lower
        return f"{schedule.upper}→{schedule.lower} {schedule.strategy}" if falls else str(schedule.upper)

    @property
    def guidance_interval(self) -> str | None:
        """The flow times at which guidance applies; None of diffusion models."""
        if self.recipe.sampling.num_iter is not None:
            return None
        last = self.recipe.sampling.guidance.max_time
        return "all" if last == 1 else f"t ≤ {last:g}"

    @property
    def others(self) -> str:
        """The settings that are not everywhere: those that differ from their defaults, or "none"."""
        sampling = self.recipe.sampling
        found = {name: value for name, value in sampling.to_dict().items() if name in OPTIONAL[sampling.kind]}
        return ", ".join(f"{name} {value}" for name, value in found.items()) or "none"

    def scores(self, space: str) -> Scores:
        """Return the scores in a feature space; all None where nothing was measured."""
        return _scores(self.results, space)

    def published(self, name: str) -> str | None:
        """Write what papers have of the recipe, in the order of their sources; None if it is nothing."""
        found = (getattr(one, name) for one in self.recipe.published)
        texts = (one if isinstance(one, str) else f"{one:.{NUMBERS[name]}f}" for one in found if one is not None)
        return "; ".join(dict.fromkeys(texts)) or None

    def record(self) -> dict[str, object]:
        """Return everything that is known, unrounded, under names such as "inception fid"."""
        recipe, settings = self.recipe, self.recipe.sampling.to_dict()
        record: dict[str, object] = {"table": recipe.table, "recipe": recipe.label}
        record |= {name: getattr(recipe, name) for name in ("model", "row", "checkpoint")}
        record |= {name.removeprefix("diff_").removeprefix("flow_"): value for name, value in settings.items()}
        record |= {"ar_steps": len(recipe.nfe_per_step), "steps": self.steps, "nfe": recipe.nfe}
        record |= {"num_images": recipe.num_images, "batch_size": recipe.batch_size}
        record |= {f"published_{name}": self.published(name) for name in ("source", *NUMBERS)}
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


def _scores(results: Results | None, space: str) -> Scores:
    return (results.scores(space) if results else None) or Scores(space, 0)


def difference(one: Scores, other: Scores, digits: int) -> str | None:
    """Write how much further from the reference `one` is than `other`, with two standard errors and their verdict.

    None unless both have intervals. The errors are taken as independent. Of the same image seeds, the true one is
    smaller: ties are said more often.
    """
    if one.fid is None or other.fid is None or one.fid_interval is None or other.fid_interval is None:
        return None
    # Half of a 95 % interval is 1.96 standard errors; its lower half may be cut off at 0.
    error = math.hypot(one.fid_interval[1] - one.fid, other.fid_interval[1] - other.fid) / 1.96
    value = one.fid - other.fid
    return f"{value:+,.{digits}f} ± {2 * error:,.{digits}f}, {verdict(value, error)}"


def verdict(difference: float, error: float) -> str:
    """Call a difference of distances "better" or "worse" only beyond two standard errors, and else "tie"."""
    return "tie" if abs(difference) <= 2 * error else ("better" if difference < 0 else "worse")


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
    Column("others", lambda row: row.others),
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
        Column("published FID", lambda row: row.published("fid")),
        *(
            column
            for space, (title, digits) in DISTANCES.items()
            for column in (
                Column(f"{title} (95 %)", partial(_distance, space, digits)),
                Column(f"over the baseline ({space})", partial(_difference, space, digits)),
            )
        ),
        Column("published IS", lambda row: row.published("isc")),
        Column("IS", lambda row: row.scores("inception").inception_score_mean, decimals(1)),
        *(
            Column(f"{title} ({space})", partial(_score, space, name), decimals(n))
            for space in DISTANCES
            for title, n, name in more
        ),
        Column("published GenEval", lambda row: row.published("geneval")),
        Column("label accuracy", lambda row: row.scores("fashion-classifier").label_accuracy, report.percent),
        Column("NFE", lambda row: row.recipe.nfe, decimals(0)),
        Column("seconds per image", lambda row: row.seconds, decimals(3)),
        Column("published seconds", lambda row: row.published("seconds")),
        Column("published in", lambda row: row.published("source")),
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


def _difference(space: str, digits: int, row: Row) -> str | None:
    """Write how much further from the reference a row is than its baseline; nothing of the baseline itself."""
    if row.recipe.row == row.recipe.baseline:
        return None
    return difference(row.scores(space), _scores(row.baseline, space), digits)


def equal_budgets(recipes: Sequence[Recipe]) -> list[tuple[Recipe, Recipe]]:
    """Pair each annealed recipe with the one count everywhere that costs as much, all else being the same.

    Of several, the closest in evaluations.
    """
    pairs = []
    for one in recipes:
        alike = [other for other in recipes if one.annealed and _is_constant_twin(one, other)]
        if alike:
            pairs.append((one, min(alike, key=lambda other: abs(other.nfe - one.nfe))))
    return pairs


def _is_constant_twin(one: Recipe, other: Recipe) -> bool:
    settings, others = ({**vars(recipe.sampling), "schedule": None} for recipe in (one, other))
    return one.model == other.model and settings == others and not other.annealed and other.costs_as(one)


def compare_budgets(rows: Sequence[Row]) -> list[str]:
    """Say of each annealed row whether it is better than the one count everywhere that costs as much."""
    found = {row.recipe.name: row for row in rows}
    sentences = []
    for one, other in equal_budgets([row.recipe for row in rows]):
        for space, (title, digits) in DISTANCES.items():
            if text := difference(found[one.name].scores(space), found[other.name].scores(space), digits):
                said = f"{one.label} minus {other.label}, NFE {one.nfe:,} and {other.nfe:,}"
                sentences.append(f"{said}, {title}: {text}")
    return sentences


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
    same = "; ".join(
        f"{name} {values[0]}" for name, values in settings.items() if len(values) == 1 and values != ["none"]
    )
    said, where = [one.text, f"In all rows: {same}."], "; ".join(machines(rows))
    if done:
        said.append(
            f"Measured on {where}. In brackets: 95 % intervals, from resampling the images. A difference is called one "
            "only beyond two standard errors (2 s.e.), and else a tie."
        )
    if equal := compare_budgets(rows):
        said.append(f"Annealed against constant counts, at equal NFE: {'; '.join(equal)}.")
    if any(recipe.published for recipe in one.shown):
        said.append(
            "Published numbers are the papers': their seconds per image are those of other machines, and compare only "
            "with each other. What begins with ~ was read off a plot."
        )
    if front and points:
        title, compared = next(iter(points.items()))
        best = {(point.group, point.name) for point in report.pareto_front(compared)}
        rows = [replace(row, front=(row.recipe.model, row.recipe.row) in best if row.results else None) for row in rows]
        said.append(f"On the front: nothing here has a lower {title} at the same {cost} or less.")
    text = "\n\n".join(filter(None, [*said, *known.complaints(one.shown)]))
    pictures: dict[str, Figure | Image.Image] = {
        f"{title} with 95 % intervals": plot(found, cost, title) for title, found in points.items()
    }
    pictures |= {f"samples of {row.recipe.label}": samples for row in done if (samples := samples_of(row, known))}
    return Section(one.title, text, rows, columns_of(rows), pictures)


def plot(points: Sequence[report.Point], cost: str, title: str) -> Figure:
    """Plot few settings of several models in a panel for each model, others in one."""
    models, names = ({getattr(point, field) for point in points} for field in ("group", "name"))
    if len(models) > 1 and len(names) <= len(report.PALETTE):
        return report.plot_panels(points, cost, title)
    return report.plot_quality(points, cost, title, front=True)


def samples_of(row: Row, known: Measurements) -> Image.Image | None:
    """Read the first rows of a row's grid of samples, small; None if it has none."""
    path = known.folder(row.recipe) / "samples.png"
    try:
        with Image.open(path) as grid:
            lines = -(-min(row.recipe.num_images, GRID_IMAGES) // GRID_COLUMNS)
            shown = grid.crop((0, 0, grid.width, grid.height * min(SAMPLE_LINES, lines) // lines))
    except OSError:
        return None
    shown.thumbnail(SAMPLES)
    return shown


def show(tables: Sequence[Table], known: Measurements, title: str, front: bool) -> None:
    """Write `table.md`, `table.csv`, `report.html`, and each table's first plot as `<table>.png`."""
    sections = [section_of(one, known, front) for one in tables]
    parts = [f"## {one.heading}\n\n{one.text}\n\n{report.table(one.rows, one.columns)}\n" for one in sections]
    report.write_text(known.out / "table.md", "\n".join([f"# {title}\n", *parts]))
    report.write_text(known.out / "table.csv", report.table_csv([row.record() for one in sections for row in one.rows]))
    for one, section in zip(tables, sections, strict=True):
        for figure in [one for one in section.pictures.values() if not isinstance(one, Image.Image)][:1]:
            with atomic_write(known.out / f"{one.name}.png") as beside:
                figure.savefig(beside, dpi=160)
    report.write_report(known.out / "report.html", title, sections)
