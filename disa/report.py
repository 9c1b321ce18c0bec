"""Tables, plots, image grids, and a page that holds them all."""

from __future__ import annotations

import base64
import csv
import html
import io
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator
from PIL import Image
from torch import Tensor

from .files import atomic_write

# Okabe and Ito's palette, which colour-blind readers can tell apart.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MARKERS = "os^Dv"  # once all colours are taken
INK, FAINT = "#333333", "#999999"
ABSENT = "–"  # where a table has no value
FEW, MANY = 3, 6  # more points than these have small labels; and only where they are on the front


@dataclass(frozen=True)
class Column:
    """One column of a table: the key in a row, the header, and how a value is written."""

    key: str
    header: str
    write: Callable[[Any], str] = str

    def cell(self, row: Mapping[str, Any]) -> str:
        """The value in words; a dash where there is none."""
        value = row.get(self.key)
        return ABSENT if value is None else self.write(value)


def decimals(count: int) -> Callable[[float], str]:
    """Write a number with so many decimals."""
    return lambda value: f"{value:,.{count}f}"


def percent(share: float) -> str:
    """Write a share of one."""
    return f"{100 * share:.1f} %"


def times(ratio: float) -> str:
    """Write how many times as much."""
    return f"{ratio:.1f}×"


def table(rows: Sequence[Mapping[str, Any]], columns: Sequence[Column]) -> str:
    """Rows as aligned text that is Markdown, too; the first column to the left, numbers to the right."""
    cells = [[column.header for column in columns], *([column.cell(row) for column in columns] for row in rows)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(columns))]

    def line(words: Sequence[str]) -> str:
        return (
            "| "
            + " | ".join(word.ljust(w) if i == 0 else word.rjust(w) for i, (word, w) in enumerate(zip(words, widths, strict=True)))
            + " |"
        )

    rule = "|" + "|".join("-" * (w + 2) if i == 0 else "-" * (w + 1) + ":" for i, w in enumerate(widths)) + "|"
    return "\n".join([line(cells[0]), rule, *map(line, cells[1:])])


def table_csv(rows: Sequence[Mapping[str, Any]], columns: Sequence[Column]) -> str:
    """Rows as CSV, with the values unrounded."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([column.header for column in columns])
    writer.writerows([row.get(column.key) for column in columns] for row in rows)
    return out.getvalue()


def table_html(rows: Sequence[Mapping[str, Any]], columns: Sequence[Column]) -> str:
    """Rows as an HTML table."""
    head = "".join(f"<th>{html.escape(column.header)}</th>" for column in columns)
    body = "".join("<tr>" + "".join(f"<td>{html.escape(column.cell(row))}</td>" for column in columns) + "</tr>" for row in rows)
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def image_grid(images: Tensor, columns: int = 8, scale: int = 1, gap: int = 2) -> Image.Image:
    """Images uint8 [N, H, W] or [N, 1 or 3, H, W], row by row, each enlarged `scale` times, on white."""
    if images.ndim == 3:
        images = images[:, None]
    images = images.expand(-1, 3, -1, -1).repeat_interleave(scale, 2).repeat_interleave(scale, 3)
    count, _, height, width = images.shape
    rows = -(-count // columns)
    canvas = torch.full((3, rows * (height + gap) - gap, min(columns, count) * (width + gap) - gap), 255, dtype=torch.uint8)
    for i, image in enumerate(images):
        top, left = i // columns * (height + gap), i % columns * (width + gap)
        canvas[:, top : top + height, left : left + width] = image
    return Image.fromarray(canvas.permute(1, 2, 0).numpy())


def _axes(xlabel: str, ylabel: str, size: tuple[float, float] = (6.4, 3.8)) -> tuple[Figure, Any]:
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.add_subplot()
    axes.set_xlabel(xlabel, color=INK)
    axes.set_ylabel(ylabel, color=INK)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#e6e6e6", linewidth=0.8)
    axes.set_axisbelow(True)
    return figure, axes


@dataclass(frozen=True)
class Point:
    """A setting in the plot of quality against cost.

    Attributes:
        interval: where the distance lies with a probability of 95 %, if that is known.
        group: the points of a group share a colour; without one, every point has its own.
    """

    name: str
    cost: float
    distance: float
    interval: Sequence[float] | None = None
    group: str = ""


def pareto_front(points: Sequence[Point]) -> list[Point]:
    """The points, from cheap to dear, that no other of their group beats: none is as cheap and as good, and cheaper or better."""

    def beaten(point: Point) -> bool:
        others = [(other.cost, other.distance) for other in points if other.group == point.group]
        mine = (point.cost, point.distance)
        return any(cost <= point.cost and distance <= point.distance and (cost, distance) != mine for cost, distance in others)

    return sorted((point for point in points if not beaten(point)), key=lambda point: point.cost)


def _look(i: int) -> tuple[str, str]:
    """Colour and marker of the i-th thing in a plot."""
    return PALETTE[i % len(PALETTE)], MARKERS[i // len(PALETTE) % len(MARKERS)]


def plot_quality(
    points: Sequence[Point],
    xlabel: str,
    ylabel: str,
    *,
    curve: Sequence[Point] = (),
    floor: float | None = None,
    front: bool = False,
) -> Figure:
    """Distance against cost, such as seconds an image: lower is better, further left is cheaper.

    Args:
        points: settings, each labelled where it lies; if they are many, those on the Pareto front alone.
        curve: more settings, joined by a line, such as fixed counts.
        floor: the distance of real images from real images.
        front: join each group's Pareto front.
    """
    figure, axes = _axes(f"{xlabel} (log scale)", f"{ylabel}\n(lower is better)")
    axes.set_xscale("log")
    if curve:
        ordered = sorted(curve, key=lambda point: point.cost)
        axes.plot([p.cost for p in ordered], [p.distance for p in ordered], "o-", color=FAINT, markersize=4, linewidth=1, zorder=1)
        for point in ordered:
            axes.annotate(
                point.name, (point.cost, point.distance), (0, -13), textcoords="offset points", color=FAINT, fontsize=8, ha="center"
            )
    best, many = pareto_front(points), len(points) > MANY
    groups = list(dict.fromkeys(point.group for point in points))
    words: dict[str, Any] = {"fontsize": 8, "rotation": 45} if len(points) > FEW else {"fontweight": "bold", "ha": "center"}
    for i, point in enumerate(points):
        colour, marker = _look(groups.index(point.group) if point.group else i)
        shown = not many or point in best
        look: dict[str, Any] = {"color": colour, "alpha": 1 if shown else 0.35}
        axes.plot(point.cost, point.distance, marker, markersize=6 if many else 9, zorder=3, **look)
        if point.interval:
            axes.vlines(point.cost, *point.interval, linewidth=1.5, zorder=2, **look)
        if shown:
            top = (point.cost, max([point.distance, *(point.interval or ())]))
            axes.annotate(point.name, top, (0, 3 if many else 10), textcoords="offset points", color=colour, **words)
    for i, group in enumerate(groups if front else ()):
        line, (colour, marker) = [point for point in best if point.group == group], _look(i)
        x, y = [point.cost for point in line], [point.distance for point in line]
        axes.plot(x, y, color=colour, marker=marker, markersize=5, linewidth=1, zorder=1, label=group)
    if front and len(groups) > 1:
        axes.legend(frameon=False, fontsize=8)
    costs = [p.cost for p in (*points, *curve)]
    distances = [max([p.distance, *(p.interval or ())]) for p in (*points, *curve)]
    axes.set_xlim(min(costs) / 1.7, max(costs) * 1.7)
    axes.set_ylim(0, max(distances) * (1.3 if many else 1.2))
    if floor is not None:
        axes.axhline(floor, color=INK, linewidth=0.8, linestyle=(0, (4, 3)))
        axes.annotate(
            "real against real",
            (1, floor),
            (0, 3),
            xycoords=("axes fraction", "data"),
            textcoords="offset points",
            ha="right",
            fontsize=8,
            color=INK,
        )
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(FuncFormatter(lambda value, _: f"{value:g}" if f"{value:e}"[0] in "25" else ""))
    return figure


def plot_step_schedules(schedules: Mapping[str, Sequence[int]]) -> Figure:
    """Diffusion steps against progress through the AR steps, a line a setting."""
    figure, axes = _axes("progress through the AR steps (%)", "diffusion steps")
    last: list[float] = []
    top = max(max(steps) for steps in schedules.values())
    for (name, steps), colour in zip(schedules.items(), PALETTE, strict=False):
        edges = [100 * i / len(steps) for i in range(len(steps) + 1)]
        axes.stairs(steps, edges, color=colour, linewidth=2, baseline=None)
        height = float(steps[-1])
        while any(abs(height - other) < top * 0.07 for other in last):  # two that end together are written one above the other
            height += top * 0.07
        last.append(height)
        axes.annotate(
            name, (100, height), (6, 0), textcoords="offset points", va="center", color=colour, fontweight="bold", annotation_clip=False
        )
    axes.set_xlim(0, 100)
    axes.set_ylim(0, top * 1.08)
    return figure


def plot_loss(steps: Sequence[int], losses: Sequence[float], window: int = 100) -> Figure:
    """A training loss, and its mean over `window` steps."""
    figure, axes = _axes("training step", "loss")
    axes.plot(steps, losses, color="#cccccc", linewidth=0.4)
    mean = torch.tensor(losses, dtype=torch.float64).unfold(0, min(window, len(losses)), 1).mean(1)
    axes.plot(steps[len(steps) - len(mean) :], mean, color=PALETTE[0], linewidth=1.5)
    axes.set_ylim(mean.min().item() * 0.9, torch.tensor(losses).quantile(0.995).item() * 1.1 if len(losses) > 20 else None)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    return figure


def _data_uri(picture: Figure | Image.Image) -> str:
    out = io.BytesIO()
    if isinstance(picture, Figure):
        picture.savefig(out, format="png", dpi=160)
    else:
        picture.save(out, format="PNG")
    return "data:image/png;base64," + base64.b64encode(out.getvalue()).decode()


@dataclass(frozen=True)
class Section:
    """A part of a report: a heading, prose, a table, and pictures side by side with their captions."""

    heading: str
    text: str = ""
    rows: Sequence[Mapping[str, Any]] = ()
    columns: Sequence[Column] = ()
    pictures: Mapping[str, Figure | Image.Image] = field(default_factory=dict)

    def to_html(self) -> str:
        """The section in HTML, its pictures inlined."""
        parts = [f"<h2>{html.escape(self.heading)}</h2>"]
        text = re.sub("`([^`]+)`", r"<code>\1</code>", html.escape(self.text))  # as in the Markdown
        parts += [f"<p>{paragraph}</p>" for paragraph in text.split("\n\n") if paragraph]
        if self.columns:
            parts.append(table_html(self.rows, self.columns))
        if self.pictures:
            figures = (
                f'<figure><img src="{_data_uri(picture)}" alt="{html.escape(caption, quote=True)}">'
                f"<figcaption>{html.escape(caption)}</figcaption></figure>"
                for caption, picture in self.pictures.items()
            )
            parts.append('<div class="pictures">' + "".join(figures) + "</div>")
        return "<section>" + "".join(parts) + "</section>"


_STYLE = """
:root { color-scheme: light dark; --ink: #222; --faint: #666; --line: #ddd; --page: #fff; }
@media (prefers-color-scheme: dark) { :root { --ink: #e8e8e8; --faint: #aaa; --line: #444; --page: #161616; } }
body { margin: 2rem auto; max-width: 84rem; padding: 0 1rem; color: var(--ink); background: var(--page); }
body { font: 16px/1.55 system-ui, sans-serif; }
h1 { font-size: 1.7rem; } h2 { font-size: 1.2rem; margin-top: 2.2rem; }
p { max-width: 46rem; }
.scroll { overflow-x: auto; margin-bottom: 1.2rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .4rem .6rem; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap; }
th { color: var(--faint); font-weight: 600; white-space: normal; vertical-align: bottom; }
th:first-child, td:first-child { text-align: left; }
.pictures { display: flex; flex-wrap: wrap; gap: 1.2rem; }
figure { margin: 0; flex: 1 1 18rem; max-width: 44rem; }
img { width: 100%; height: auto; border-radius: 4px; background: #fff; image-rendering: auto; }
figcaption { color: var(--faint); font-size: .9rem; }
"""


def write_report(path: str | Path, title: str, sections: Sequence[Section]) -> None:
    """Write a self-contained HTML page: nothing in it is loaded from elsewhere."""
    body = "".join(section.to_html() for section in sections)
    page = (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{html.escape(title)}</title><style>{_STYLE}</style></head><body><h1>{html.escape(title)}</h1>{body}</body></html>\n"
    )
    with atomic_write(path) as beside:
        beside.write_text(page, encoding="utf-8")
