"""Tables, plots, and a page that holds them all."""

from __future__ import annotations

import base64
import csv
import html
import io
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from PIL import Image

from ..runtime.extras import extra
from ..runtime.files import atomic_write

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Row = TypeVar("Row")
Value = TypeVar("Value")
Anything = Any  # of several types: a cell's value, an argument of matplotlib

# Okabe and Ito's palette, which colour-blind readers can tell apart.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MARKERS = "os^Dv"  # once all colours are taken
INK, FAINT = "#333333", "#999999"
ABSENT = "–"  # where a table has no value
FLOOR = 1e-5  # of distances on a logarithmic scale, where noise may make them negative
FEW, MANY = 3, 6  # more points than these have small labels; and only where they are on the front


@dataclass(frozen=True)
class Column(Generic[Row, Value]):
    """One column of a table: its header, a row's value or None, and how a value is written."""

    header: str
    get: Callable[[Row], Value | None]
    write: Callable[[Value], str] = str

    def cell(self, row: Row) -> str:
        """Write the row's value; a dash where there is none."""
        value = self.get(row)
        return ABSENT if value is None else self.write(value)


Columns = Sequence[Column[Row, Anything]]
times = "{:.1f}×".format  # writes how many times as much


def column(key: str, header: str, write: Callable[[Anything], str] = str) -> Column[Mapping[str, Anything], Anything]:
    """Make a column of rows that are mappings, with values of any type, from its key in them."""
    return Column(header, lambda row: row.get(key), write)


def decimals(count: int) -> Callable[[float], str]:
    """Write a number with so many decimals."""
    return lambda value: f"{value:,.{count}f}"


def percent(share: float) -> str:
    """Write a share of one."""
    return f"{100 * share:.1f} %"


def table(rows: Sequence[Row], columns: Columns[Row]) -> str:
    """Write rows as aligned text that is Markdown, too; the first column to the left, the others to the right."""
    cells = [[column.header for column in columns], *([column.cell(row) for column in columns] for row in rows)]
    first, *others = [max(map(len, column)) for column in zip(*cells, strict=True)]
    form = " | ".join([f"{{:<{first}}}", *(f"{{:>{width}}}" for width in others)])
    rule = "|".join(["-" * (first + 2), *("-" * (width + 1) + ":" for width in others)])
    head, *lines = [f"| {form.format(*words)} |" for words in cells]
    return "\n".join([head, f"|{rule}|", *lines])


def table_csv(records: Sequence[Mapping[str, object]]) -> str:
    """Write records as CSV, unrounded, with a column for every key of any of them."""
    out, keys = io.StringIO(), dict.fromkeys(key for record in records for key in record)
    lines = ([record.get(key) for key in keys] for record in records)
    csv.writer(out, lineterminator="\n").writerows([list(keys), *lines])
    return out.getvalue()


def table_html(rows: Sequence[Row], columns: Columns[Row]) -> str:
    """Write rows as an HTML table."""
    head = "".join(f"<th>{html.escape(column.header)}</th>" for column in columns)
    cells = ("".join(f"<td>{html.escape(column.cell(row))}</td>" for column in columns) for row in rows)
    body = "".join(map("<tr>{}</tr>".format, cells))
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


@dataclass(frozen=True)
class Point:
    """A setting in the plot of quality against cost; its 95 % `interval`; points of a `group` share a colour."""

    name: str
    cost: float
    distance: float
    interval: tuple[float, float] | None = None
    group: str = ""

    @property
    def top(self) -> float:
        """The highest that is drawn of it."""
        return max(self.distance, *(self.interval or (self.distance,)))


def pareto_front(points: Sequence[Point]) -> list[Point]:
    """Select, from cheap to dear, what no other point of the group beats: no worse in both and better in one."""

    def beats(one: Point, other: Point) -> bool:
        no_worse = one.cost <= other.cost and one.distance <= other.distance
        return one.group == other.group and no_worse and (one.cost, one.distance) != (other.cost, other.distance)

    return sorted((p for p in points if not any(beats(one, p) for one in points)), key=lambda point: point.cost)


def plot_quality(
    points: Sequence[Point],
    xlabel: str,
    ylabel: str,
    *,
    curve: Sequence[Point] = (),
    floor: float | None = None,
    front: bool = False,
) -> Figure:
    """Plot distance against cost, such as seconds per image: lower is better, further left is cheaper.

    Of many points, only those on the Pareto front are labelled; `front` joins each group's. A line joins `curve`, more
    settings, such as fixed counts; `floor` is the distance of real images from real images.
    """
    figure, axes = new_axes(f"{xlabel} (log scale)", f"{ylabel}\n(lower is better)")
    axes.set_xscale("log")
    if curve:
        _join(axes, sorted(curve, key=lambda point: point.cost), color=FAINT, marker="o", markersize=4)
    for point in curve:
        _label(axes, point.name, (point.cost, point.distance), (0, -13), color=FAINT, fontsize=8, ha="center")
    _draw_points(axes, points, front)
    if floor is not None:
        axes.axhline(floor, color=INK, linewidth=0.8, linestyle=(0, (4, 3)))
        look = {"color": INK, "fontsize": 8, "ha": "right", "xycoords": ("axes fraction", "data")}
        _label(axes, "real against real", (1, floor), (0, 3), **look)
    costs, tops = zip(*((point.cost, point.top) for point in (*points, *curve)), strict=True)
    axes.set(xlim=(min(costs) / 1.7, max(costs) * 1.7), ylim=(0, max(tops) * (1.3 if len(points) > MANY else 1.2)))
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.xaxis.set_minor_formatter(lambda value, _: f"{value:g}" if f"{value:e}"[0] in "25" else "")
    return figure


def plot_panels(points: Sequence[Point], xlabel: str, ylabel: str) -> Figure:
    """Plot distance against cost with a panel for each group; points of one name share a colour."""
    with extra("eval"):
        from matplotlib.figure import Figure

    groups = list(dict.fromkeys(point.group for point in points))
    colours = dict(zip(dict.fromkeys(point.name for point in points), PALETTE, strict=False))
    columns = min(len(groups), 4)
    rows = -(-len(groups) // columns)
    figure = Figure(figsize=(3.1 * columns, 0.4 + 2.9 * rows), layout="constrained")
    for i, group in enumerate(groups):
        members = [point for point in points if point.group == group]
        axes = figure.add_subplot(rows, columns, 1 + i, axisbelow=True)
        _style(axes, "", "")
        axes.set_title(group, fontsize=10, color=INK)
        for point in members:
            axes.plot(point.cost, point.distance, "o", markersize=8, color=colours[point.name], label=point.name)
            if point.interval:
                axes.vlines([point.cost], *point.interval, color=colours[point.name], linewidth=1.5)
        axes.set_xlim(0, 1.1 * max(point.cost for point in members))
        axes.set_ylim(0, 1.08 * max(point.top for point in members))
    figure.supxlabel(xlabel, fontsize=10, color=INK)
    figure.supylabel(f"{ylabel}, lower is better", fontsize=9, color=INK)
    handles = {label: one for axes in figure.axes for one, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), handles, loc="outside upper center", ncols=len(handles), frameon=False, fontsize=10)
    return figure


def new_axes(xlabel: str, ylabel: str) -> tuple[Figure, Axes]:
    """Make a figure with axes in the style of all plots."""
    figure, (axes,) = _new_figure(1)
    _style(axes, xlabel, ylabel)
    return figure, axes


def _new_figure(columns: int) -> tuple[Figure, list[Axes]]:
    with extra("eval"):
        from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4 * columns, 3.8), layout="constrained")
    return figure, [figure.add_subplot(1, columns, 1 + i, axisbelow=True) for i in range(columns)]


def _style(axes: Axes, xlabel: str, ylabel: str) -> None:
    axes.set_xlabel(xlabel, color=INK)
    axes.set_ylabel(ylabel, color=INK)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#e6e6e6", linewidth=0.8)


def _label(axes: Axes, text: str, place: tuple[float, float], offset: tuple[float, float], **look: Anything) -> None:
    """Write `text` at an offset in points from a place; `look` holds matplotlib's arguments, of any type."""
    axes.annotate(text, place, offset, textcoords="offset points", **look)


def _join(axes: Axes, points: Sequence[Point], **look: Anything) -> None:
    """Draw a line through points."""
    axes.plot(*zip(*((point.cost, point.distance) for point in points), strict=True), linewidth=1, zorder=1, **look)


def _draw_points(axes: Axes, points: Sequence[Point], front: bool) -> None:
    """Draw points with their intervals, and fronts; of many, those that are on none are pale and without a name."""
    groups: dict[str, list[Point]] = {}
    for point in points:
        groups.setdefault(point.group or point.name, []).append(point)
    best, many = pareto_front(points), len(points) > MANY
    words = {"fontsize": 8, "rotation": 45} if len(points) > FEW else {"fontweight": "bold", "ha": "center"}
    for i, (group, members) in enumerate(groups.items()):
        colour, marker = PALETTE[i % len(PALETTE)], MARKERS[i // len(PALETTE) % len(MARKERS)]
        for point in members:
            named = point in best or not many
            size, alpha = 6 if many else 9, 1.0 if named else 0.35
            axes.plot(point.cost, point.distance, marker, markersize=size, color=colour, alpha=alpha, zorder=3)
            if point.interval:
                axes.vlines([point.cost], *point.interval, color=colour, alpha=alpha, linewidth=1.5, zorder=2)
            if named:
                _label(axes, point.name, (point.cost, point.top), (0, 3 if many else 10), color=colour, **words)
        if front:
            _join(axes, [p for p in best if p in members], color=colour, marker=marker, markersize=5, label=group)
    if front and len(groups) > 1:
        axes.legend(frameon=False, fontsize=8)


def plot_step_schedules(schedules: Mapping[str, Sequence[int]]) -> Figure:
    """Plot diffusion steps against progress through the AR steps, with a line for each setting."""
    figure, axes = new_axes("progress through the AR steps (%)", "diffusion steps")
    top = max(max(steps) for steps in schedules.values())
    heights: list[float] = []
    for (name, steps), colour in zip(schedules.items(), PALETTE, strict=False):
        edges = [100 * i / len(steps) for i in range(len(steps) + 1)]
        axes.stairs(steps, edges, color=colour, linewidth=2, baseline=None)
        height = float(steps[-1])
        while any(abs(height - other) < top * 0.07 for other in heights):  # names of lines that end together
            height += top * 0.07
        heights.append(height)
        _label(axes, name, (100, height), (6, 0), color=colour, va="center", fontweight="bold", annotation_clip=False)
    axes.set(xlim=(0, 100), ylim=(0, top * 1.08))
    return figure


def plot_calibration(distances: Sequence[Sequence[float]], schedules: Mapping[str, Sequence[int]]) -> Figure:
    """Plot, side by side, what `disa calibrate` measures and what follows.

    Args:
        distances: D(s, k) of each AR step s, for k from 1 on.
        schedules: name -> diffusion steps at each AR step, a line for each.
    """
    figure, (measured, chosen) = _new_figure(2)
    _style(measured, "diffusion steps k (log scale)", "D(s, k), energy distance to many steps\n(log scale)")
    _style(chosen, "AR step", "diffusion steps")
    for i, line in enumerate(distances):
        shade = i / max(len(distances) - 1, 1)
        heights, look = [max(value, FLOOR) for value in line], (0.9 * shade, 0.45, 0.9 - 0.9 * shade)
        name = f"AR step {i}" if i in (0, len(distances) - 1) else None
        measured.plot(range(1, len(heights) + 1), heights, color=look, label=name)
    measured.set(yscale="log", ylim=(FLOOR, None))
    measured.set_xscale("log", base=2)
    measured.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    measured.legend(frameon=False, fontsize=8)
    for (name, steps), colour in zip(schedules.items(), PALETTE, strict=False):
        edges = [i - 0.5 for i in range(len(steps) + 1)]
        chosen.stairs(steps, edges, color=colour, linewidth=2, baseline=None, label=name)
    chosen.set_xticks(range(0, len(distances), 1 + len(distances) // 10))
    chosen.set_ylim(0, None)
    chosen.legend(frameon=False, fontsize=8)
    return figure


def plot_evidence(steps: Sequence[Mapping[str, Any]]) -> Figure:
    """Plot, side by side, what `disa evidence` observes at each AR step; `steps` are those of its file."""
    figure, panels = _new_figure(3)
    places = [step["ar_step"] for step in steps]
    labels = {
        "prediction_error": "error of one evaluation from pure noise\n(of the variance of all tokens)",
        "variance": "variance of a token",
        "path_ratio": "length of the path from noise to token\n(of its ends' distance)",
    }
    total = [step["total_variance"] for step in steps]
    panels[1].plot(places, total, color=FAINT, linewidth=2, label="of all tokens of the AR step")
    for axes, (name, label) in zip(panels, labels.items(), strict=True):
        _style(axes, "AR step", label)
        values, widths = [step[name] for step in steps], [2 * step[f"{name}_se"] for step in steps]
        axes.errorbar(places, values, widths, color=PALETTE[0], linewidth=2, capsize=2, label="given the condition")
        axes.set_ylim(1 if name == "path_ratio" else 0, None)
        axes.set_xticks(places[:: 1 + len(places) // 10])
    panels[1].legend(frameon=False, fontsize=8)
    return figure


def _data_uri(picture: Figure | Image.Image) -> str:
    out = io.BytesIO()
    if isinstance(picture, Image.Image):
        picture.save(out, format="PNG")
    else:
        picture.savefig(out, format="png", dpi=160)
    return "data:image/png;base64," + base64.b64encode(out.getvalue()).decode()


@dataclass(frozen=True)
class Section(Generic[Row]):
    """A part of a report: a heading, prose, a table, and pictures side by side with their captions."""

    heading: str
    text: str = ""
    rows: Sequence[Row] = ()
    columns: Columns[Row] = ()
    pictures: Mapping[str, Figure | Image.Image] = field(default_factory=dict)

    def to_html(self) -> str:
        """Write the section as HTML, its pictures inlined."""
        text = re.sub("`([^`]+)`", r"<code>\1</code>", html.escape(self.text))  # as in the Markdown
        parts = [f"<h2>{html.escape(self.heading)}</h2>", *(f"<p>{one}</p>" for one in text.split("\n\n") if one)]
        if self.columns:
            parts.append(table_html(self.rows, self.columns))
        if self.pictures:
            pictures = ((html.escape(caption), _data_uri(picture)) for caption, picture in self.pictures.items())
            form = '<figure><img src="{1}" alt="{0}"><figcaption>{0}</figcaption></figure>'
            parts.append(f'<div class="pictures">{"".join(form.format(*one) for one in pictures)}</div>')
        return f"<section>{''.join(parts)}</section>"


_HEAD = """<!doctype html><html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1"><style>
:root { color-scheme: light dark; --ink: #222; --faint: #666; --line: #ddd; --page: #fff; }
@media (prefers-color-scheme: dark) { :root { --ink: #e8e8e8; --faint: #aaa; --line: #444; --page: #161616; } }
body { font: 16px/1.55 system-ui, sans-serif; margin: 2rem auto; max-width: 84rem; padding: 0 1rem; }
body { color: var(--ink); background: var(--page); }
h1 { font-size: 1.7rem; } h2 { font-size: 1.2rem; margin-top: 2.2rem; } p { max-width: 46rem; }
.scroll { overflow-x: auto; margin-bottom: 1.2rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .4rem .6rem; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap; }
th { color: var(--faint); font-weight: 600; white-space: normal; vertical-align: bottom; }
th:first-child, td:first-child { text-align: left; }
.pictures { display: flex; flex-wrap: wrap; gap: 1.2rem; } figure { margin: 0; flex: 1 1 18rem; max-width: 44rem; }
img { width: 100%; border-radius: 4px; background: #fff; } figcaption { color: var(--faint); font-size: .9rem; }
</style>"""


def write_report(path: str | Path, title: str, sections: Sequence[Section[Anything]]) -> None:
    """Write a self-contained HTML page: nothing in it is loaded from elsewhere."""
    title, body = html.escape(title), "".join(section.to_html() for section in sections)
    write_text(path, f"{_HEAD}<title>{title}</title></head><body><h1>{title}</h1>{body}</body></html>\n")


def write_text(path: str | Path, text: str) -> None:
    """Write a file as a whole, or not at all."""
    with atomic_write(path) as beside:
        beside.write_text(text, encoding="utf-8")
