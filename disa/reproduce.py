"""Recipes measured, and shown beside what was published: `disa reproduce`; `disa sweep` shares all of it."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure

from . import distributed, recipes
from .checkpoints import CATALOGUE, load_model, load_tokenizer
from .commands import say, summary
from .distributed import resolve_device
from .evaluation import check_evaluation, describe_machine, evaluate, read_results
from .features import DINOV2
from .files import atomic_write
from .flags import DTYPES
from .models.tokenizer import SpaceToDepth
from .prompted import choose_attention, image_shape
from .recipes import Recipe, Table
from .report import ABSENT, Column, Point, Section, decimals, pareto_front, percent, plot_quality, table, table_csv, times, write_report
from .sampling import LabelSampler, PromptSampler, Sampler, Sampling
from .spaces import Space, choose_spaces
from .text import TextTokenizer
from .training.captions import grammar_prompts

Results = dict[str, Any]  # of one recipe, as `evaluate` returns them


# ------------------------------------------------------------------------------------------------------------- measure


def find_published(name: str) -> Path:
    """Where the published file called `name` lies: in the folder `pretrained_models` here, or in that of a family.

    Raises:
        FileNotFoundError: in none of them.
    """
    path = CATALOGUE[name].path
    for folder in (Path(), *(recipes.ROOT / family for family in recipes.FAMILIES)):
        if (folder / "pretrained_models" / path).is_file():
            return folder / "pretrained_models" / path
    raise FileNotFoundError(
        f"there is no pretrained_models/{path}; fetch it with `disa checkpoints fetch {name}`, or with util/download.py of its family"
    )


def load(recipe: Recipe, device: torch.device, dtype: torch.dtype) -> Callable[[Recipe], Sampler]:
    """The weights of `recipe`, ready to sample any recipe that has the same.

    Raises:
        FileNotFoundError, ValueError, OSError: a file is missing, or does not fit.
    """
    path = find_published(recipe.checkpoint) if recipe.checkpoint in CATALOGUE else recipe.checkpoint
    if recipe.draws_prompts:
        model = load_model(recipe.model, path).to(device, dtype)
        if recipe.text_tokenizer:
            model.text = TextTokenizer.load(recipe.text_tokenizer)
        choose_attention(model.llm, device)
        return lambda recipe: prompt_sampler(model, recipe, device)
    tokenizer = (SpaceToDepth() if recipe.bundled else load_tokenizer(find_published("kl16"))).to(device, dtype)
    model = load_model(recipe.model, path).to(device, dtype)
    return lambda recipe: LabelSampler(model, tokenizer, recipe.sampling, device)


def prompt_sampler(model: Any, recipe: Recipe, device: torch.device) -> PromptSampler:
    """What draws the prompts of a recipe of Harmon."""
    shape = image_shape(recipe.image_size, model.vae.stride) if recipe.image_size else (model.mar.grid, model.mar.grid)
    if recipe.prompts:
        each = -(-recipe.num_images // len(recipe.prompts))
        return PromptSampler(model, recipe.prompts, recipe.sampling, device, image_shape=shape, images_per_prompt=each)
    prompts, classes = grammar_prompts(recipe.num_images)
    return PromptSampler(model, prompts, recipe.sampling, device, image_shape=shape, classes=classes.tolist())


def spaces_of(recipe: Recipe, metrics: str, features: str, reference: str) -> tuple[list[Space], list[str]]:
    """What to measure, and sentences on what cannot be; prompts of a recipe's own have no images or classes to compare with.

    Args:
        metrics, features, reference: as for `choose_spaces`.

    Raises:
        ValueError: there would be no Fréchet distance, though nobody said that none is wanted; or as `choose_spaces`.
    """
    if recipe.prompts:
        return [], []
    if reference == "auto" and not recipe.bundled:
        with contextlib.suppress(FileNotFoundError):
            reference = str(find_published("adm_in256_stats"))
    spaces, left_out = choose_spaces(metrics, features, reference, bundled=recipe.bundled)
    if left_out and not any("fid" in space.metrics for space in spaces):
        raise ValueError(f"{'; '.join(left_out)}; mend that, or give --metrics none for times alone")
    return spaces, left_out


@dataclass
class Measurements:
    """What is known of recipes.

    Attributes:
        out: folder of everything.
        dtype: of the networks, a name in `DTYPES`.
        results: by the names of recipes.
        problems: why recipes could not run, by their names.
        left_out: what this machine cannot measure, in sentences, by the names of models.
    """

    out: Path
    dtype: str
    results: dict[str, Results] = field(default_factory=dict)
    problems: dict[str, str] = field(default_factory=dict)
    left_out: dict[str, list[str]] = field(default_factory=dict)

    def folder(self, recipe: Recipe) -> Path:
        """Where results lie; rows of several tables that ask for the same share them."""
        name = f"{recipe.sampling.name()}-{recipe.num_images}images-{self.dtype}"
        other = (recipe.checkpoint, tuple(recipe.prompts), recipe.image_size, recipe.text_tokenizer)
        if any(other):
            name += f"-{hashlib.sha256(repr(other).encode()).hexdigest()[:6]}"
        return self.out / recipe.model / name

    def of(self, recipe: Recipe | None) -> Results | None:
        """The results of a recipe, if there are any; those of an earlier run will do, unless it could not run now."""
        if recipe is None or recipe.name in self.problems:
            return None
        if recipe.name in self.results:
            return self.results[recipe.name]
        return read_results(self.folder(recipe) / "results.json")

    def measure(self, recipe: Recipe, make: Callable[[Recipe], Sampler], spaces: Sequence[Space]) -> None:
        """Evaluate one recipe, or go on with it; every rank calls this."""

        def ready() -> Sampler:
            check_evaluation(spaces, recipe.num_images, recipe.batch_size, intervals=True)
            return make(recipe)

        try:
            sampler = distributed.together(ready)
            say(f"{len(sampler.step_counts)} AR steps, {sampler.head_evaluations:,} head evaluations an image")
            self.results[recipe.name] = evaluate(
                sampler,
                self.folder(recipe),
                spaces=spaces,
                settings={"model": recipe.model, "dtype": self.dtype},
                num_images=recipe.num_images,
                batch_size=recipe.batch_size,
                intervals=True,
            )
        except distributed.MENDABLE as error:
            self.problems[recipe.name] = str(error)

    def complaints(self, asked: Sequence[Recipe]) -> list[str]:
        """Sentences on which of `asked` could not run or be measured, and why."""
        of: dict[str, list[str]] = {}
        for recipe in asked:
            if recipe.name in self.problems:
                of.setdefault(self.problems[recipe.name], []).append(recipe.label)
        not_run = [f"Not run: {', '.join(labels)}. {problem[:1].upper()}{problem[1:]}." for problem, labels in of.items()]
        left_out = {sentence: None for recipe in asked for sentence in self.left_out.get(recipe.model, ())}
        return [*not_run, *(f"{sentence[:1].upper()}{sentence[1:]}." for sentence in left_out)]


def reproduce(
    tables: Sequence[Table],
    out: Path,
    *,
    title: str,
    metrics: str = "auto",
    features: str = "auto",
    reference: str = "auto",
    device: str = "auto",
    dtype: str = "float32",
    front: bool = False,
) -> int:
    """Measure what is not measured, and write `table.md`, `table.csv`, `report.html` and a plot a table, alone or under torchrun.

    A row that cannot run is shown with dashes and a sentence. An interrupted run goes on in the same folder.

    Args:
        tables: what is measured and shown.
        out: folder of everything.
        title: of the page.
        metrics, features, reference: what to measure, as for `choose_spaces`.
        device: as for `resolve_device`.
        dtype: of the networks, a name in `DTYPES`.
        front: say in the tables which rows are on the Pareto front.

    Returns:
        The exit code: 1 if a row could not run.

    Raises:
        OSError: `out` cannot be written.
    """
    where = resolve_device(device)
    distributed.setup(where)
    known = Measurements(out, dtype)

    def draw() -> None:
        distributed.on_main(lambda: show(tables, known, title, front))

    draw()  # whether it can be written is better known before
    every = list(enumerate([recipe for one in tables for recipe in one.shown], 1))
    for _, rows in groupby(every, key=lambda pair: (pair[1].model, pair[1].checkpoint, pair[1].prompts, pair[1].text_tokenizer)):
        same = list(rows)
        first, make, problem = same[0][1], None, ""  # the model before makes room for this one
        try:
            spaces, notes = distributed.on_main(partial(spaces_of, first, metrics, features, reference))
            make = distributed.together(partial(load, first, where, DTYPES[dtype]))
        except distributed.MENDABLE as error:
            problem, notes = str(error), []
        known.left_out[first.model] = notes
        for sentence in notes:
            say(f"note: {sentence}")
        for number, recipe in same:
            say(f"\n{number} of {len(every)}: {recipe.name}, {recipe.num_images:,} images")
            before = known.of(recipe)
            if make is not None:
                known.measure(recipe, make, spaces)
            elif known.of(recipe) is None:
                known.problems[recipe.name] = problem
            if recipe.name in known.problems:
                say(f"cannot run: {known.problems[recipe.name]}")
            elif results := known.of(recipe):
                say(summary(results))
            if known.of(recipe) != before:
                draw()
    draw()
    if distributed.is_main():
        say(f"\n{(out / 'table.md').read_text(encoding='utf-8')}\neverything is in {out}: report.html, table.md, table.csv and the plots")
    distributed.shutdown()
    return 1 if known.problems else 0


# ---------------------------------------------------------------------------------------------------------------- show

# Feature spaces, those that plots prefer first: how their Fréchet distance is called, and its decimals.
DISTANCES = {
    "inception": ("FID", 2),
    DINOV2: ("FD-DINOv2", 1),
    "fashion-classifier": ("Fréchet distance (classifier)", 1),
    "efficientnet-lite0": ("Fréchet distance (EfficientNet-Lite0)", 1),
}
COSTS = {"seconds_per_image": "seconds an image", "head_evaluations": "head evaluations an image"}
# What rows may differ in besides the counts, under the flags' names; in a table, those that they do differ in have a column.
SETTINGS = ("sampler", "cfg", "cfg_schedule", "guidance", "temperature", "seed")


def steps_in_words(sampling: Sampling) -> str:
    """The nominal diffusion steps in words, such as "50→5 linear"."""
    schedule = sampling.schedule
    if sampling.sampler == "default" or schedule.upper == schedule.lower:
        return str(schedule.upper)
    return str(schedule.lower) if schedule.strategy == "constant" else f"{schedule.upper}→{schedule.lower} {schedule.strategy}"


def speed_up(results: Results, baseline: Results | None) -> float | None:
    """How many times faster than the baseline; None unless both were measured on one kind of device, by as many ranks, in one dtype."""
    if baseline is None or _machine(results) != _machine(baseline):
        return None
    fast, slow = results["seconds_per_image"], baseline["seconds_per_image"]
    return slow / fast if fast and slow else None


def _machine(results: Results) -> str:
    machine = describe_machine(results["device"], results["ranks"], results["batch_size"])
    return f"{machine}, {results['settings']['dtype']}, torch {results['versions']['torch']}"


def row_of(recipe: Recipe, results: Results | None, baseline: Results | None) -> dict[str, Any]:
    """What a table says of a recipe: settings, published and measured scores, costs; scores of a feature space under its name."""
    settings, counts = recipe.sampling.describe(), recipe.step_counts
    row = {
        **{"table": recipe.table, "recipe": recipe.label, "model": recipe.model, "row": recipe.row, "checkpoint": recipe.checkpoint},
        **{name.removeprefix("diff_").removeprefix("flow_"): value for name, value in settings.items()},
        **{"ar_steps": len(counts), "steps": steps_in_words(recipe.sampling), "head_evaluations": sum(counts)},
        **{name: getattr(recipe, name) for name in ("num_images", "batch_size", "published_fid", "published_isc", "source")},
    }
    if results is None:
        return row
    return {
        **row,
        **{name: results[name] for name in ("seconds_per_image", "images_per_second")},
        "speed_up": speed_up(results, baseline),
        "machine": _machine(results),
        **{scores["extractor"]: scores for scores in results["metrics"]},
    }


def _distance(digits: int) -> Callable[[Mapping[str, Any]], str]:
    """Write a Fréchet distance, with its interval."""
    number = decimals(digits)
    interval = _score("fid_interval", lambda ends: f" ({number(ends[0])}–{number(ends[1])})", "")
    distance = _score("fid", number)
    return lambda scores: distance(scores) + interval(scores)


def _score(name: str, write: Callable[[Any], str], absent: str = ABSENT) -> Callable[[Mapping[str, Any]], str]:
    """Write one of a feature space's scores."""
    return lambda scores: write(scores[name]) if name in scores else absent


def _plain(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _published(digits: int) -> Callable[[float | str], str]:
    """Write a published score; what was read off a plot is text already."""
    return lambda score: score if isinstance(score, str) else f"{score:.{digits}f}"


def columns_of(rows: Sequence[Mapping[str, Any]]) -> list[Column]:
    """The columns of a table: costs, what its rows differ in, and what any of them has."""
    differing = [name for name in SETTINGS if len({row[name] for row in rows if name in row}) > 1]
    columns = [
        Column("recipe", "recipe"),
        Column("ar_steps", "AR steps"),
        Column("steps", "diffusion steps"),
        *(Column(name, name, _plain) for name in differing),
        Column("published_fid", "published FID", _published(2)),
        *(Column(name, f"{title} (95 %)", _distance(digits)) for name, (title, digits) in DISTANCES.items()),
        Column("published_isc", "published IS", _published(1)),
        Column("inception", "IS", _score("inception_score_mean", decimals(1))),
        *(
            Column(name, f"{title} ({name})", _score(key, decimals(digits)))
            for name in DISTANCES
            for key, title, digits in (("precision", "precision", 2), ("recall", "recall", 2), ("kid_mean", "KID", 4))
        ),
        Column("fashion-classifier", "label accuracy", _score("label_accuracy", percent)),
        Column("head_evaluations", "head evaluations an image", decimals(0)),
        Column("seconds_per_image", "seconds an image", decimals(3)),
        Column("images_per_second", "images/s", decimals(2)),
        Column("speed_up", "speed-up", times),
        Column("front", "on the front", lambda value: "yes" if value else ""),
    ]
    always = (*COSTS, "images_per_second")
    return [column for column in columns if column.key in always or any(column.cell(row) != ABSENT for row in rows)]


def cost_of(rows: Sequence[Mapping[str, Any]]) -> str:
    """What measured rows are compared by: time, if all were timed on one machine, else evaluations of the head."""
    timed = all(row["seconds_per_image"] for row in rows) and len({row["machine"] for row in rows}) == 1
    return "seconds_per_image" if timed else "head_evaluations"


def points_of(rows: Sequence[Mapping[str, Any]], space: str, cost: str) -> list[Point]:
    """The rows that have a Fréchet distance in a feature space, as points of their models."""
    return [
        Point(row["row"], row[cost], row[space]["fid"], row[space].get("fid_interval"), row["model"])
        for row in rows
        if "fid" in row.get(space, {})
    ]


def section_of(one: Table, known: Measurements, front: bool) -> Section:
    """A table as a part of the page, with a plot for each feature space."""
    rows = [row_of(recipe, known.of(recipe), known.of(one.baseline(recipe))) for recipe in one.shown]
    done = [row for row in rows if "machine" in row]
    cost = cost_of(done)
    points = {space: found for space in DISTANCES if (found := points_of(done, space, cost))}
    said = [one.text, f"In all rows: {', '.join(f'{name} {value}' for name, value in shared_settings(rows).items())}."]
    if done:
        machines = "; ".join(sorted({row["machine"] for row in done}))
        said.append(f"Measured on {machines}. In brackets: 95 % intervals, from resampling the images.")
    if front and points:
        space = next(iter(points))
        best = {(point.group, point.name) for point in pareto_front(points[space])}
        for row in done:
            row["front"] = (row["model"], row["row"]) in best
        said.append(f"On the front: nothing here has a lower {DISTANCES[space][0]} at as few {COSTS[cost]}, or fewer.")
    said += known.complaints(one.shown)
    plots = {
        f"{DISTANCES[space][0]} with 95 % intervals": plot_quality(found, COSTS[cost], DISTANCES[space][0], front=True)
        for space, found in points.items()
    }
    return Section(one.title, "\n\n".join(filter(None, said)), rows, columns_of(rows), plots)


def shared_settings(rows: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """The settings that are the same in all rows that have them."""
    values = {name: {_plain(row[name]) for row in rows if name in row} for name in SETTINGS}
    return {name: found.pop() for name, found in values.items() if len(found) == 1}


def show(tables: Sequence[Table], known: Measurements, title: str, front: bool) -> None:
    """Write everything that shows what is known."""
    sections = [section_of(one, known, front) for one in tables]
    write_tables(known.out, title, sections)
    write_plots(known.out, tables, sections)
    write_report(known.out / "report.html", title, sections)


def write_tables(out: Path, title: str, sections: Sequence[Section]) -> None:
    """`table.md` and `table.csv`."""
    parts = [f"## {one.heading}\n\n{one.text}\n\n{table(one.rows, one.columns)}\n" for one in sections]
    with atomic_write(out / "table.md") as beside:
        beside.write_text("\n".join([f"# {title}\n", *parts]), encoding="utf-8")
    flat = [flatten(row) for one in sections for row in one.rows]
    columns = [Column(name, name) for name in dict.fromkeys(name for row in flat for name in row)]
    with atomic_write(out / "table.csv") as beside:
        beside.write_text(table_csv(flat, columns), encoding="utf-8")


def flatten(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row with each score under a name of its own, such as "inception fid"."""
    flat: dict[str, Any] = {}
    for name, value in row.items():
        scores = {f"{name} {score}": number for score, number in value.items()} if isinstance(value, Mapping) else {name: value}
        for score, number in scores.items():
            flat |= {f"{score} low": number[0], f"{score} high": number[1]} if score.endswith("_interval") else {score: number}
    return flat


def write_plots(out: Path, tables: Sequence[Table], sections: Sequence[Section]) -> None:
    """The first plot of each table, as `<table>.png`."""
    for one, shown in zip(tables, sections, strict=True):
        for figure in list(shown.pictures.values())[:1]:
            assert isinstance(figure, Figure)
            with atomic_write(out / f"{one.name}.png") as beside:
                figure.savefig(beside, dpi=160)
