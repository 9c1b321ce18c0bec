"""Tables, grids, plots and the page."""

import re

from PIL import Image

from benchmarks.loss_curve import plot_loss
from disa.tables.report import (
    Point,
    Section,
    column,
    decimals,
    pareto_front,
    plot_calibration,
    plot_evidence,
    plot_panels,
    plot_quality,
    plot_step_schedules,
    table,
    table_csv,
    table_html,
    write_report,
)

COLUMNS = (column("setting", "setting"), column("seconds", "seconds", decimals(2)))
ROWS = [{"setting": "DiSA <50→5>", "seconds": 0.12345}, {"setting": "full"}]


def test_table_is_aligned_markdown():
    lines = table(ROWS, COLUMNS).splitlines()
    assert len(lines) == 4
    assert len({len(line) for line in lines}) == 1
    assert lines[1] == "|-------------|--------:|"
    assert lines[2] == "| DiSA <50→5> |    0.12 |"
    assert lines[3].split("|")[2].strip() == "–"


def test_csv_keeps_the_digits():
    assert table_csv(ROWS) == "setting,seconds\nDiSA <50→5>,0.12345\nfull,\n"
    assert table_csv([{"a": None}, {"b": 1}]) == "a,b\n,\n,1\n"


def test_html_is_escaped():
    assert "DiSA &lt;50→5&gt;" in table_html(ROWS, COLUMNS)
    assert "<50" not in table_html(ROWS, COLUMNS)


def test_quality_plot_has_its_points_units_and_floor():
    figure = plot_quality(
        [Point("full", 1.0, 30.0), Point("DiSA", 0.1, 31.0)],
        "seconds per image",
        "Fréchet distance",
        curve=[Point("5", 0.05, 60.0)],
        floor=2.0,
    )
    axes = figure.axes[0]
    assert "seconds" in axes.get_xlabel()
    assert "lower is better" in axes.get_ylabel()
    assert {text.get_text() for text in axes.texts} == {"full", "DiSA", "5", "real against real"}
    assert axes.get_ylim()[1] > 60


def test_schedule_plot_shows_the_counts():
    figure = plot_step_schedules({"DiSA": [50, 35, 20, 5], "full": [50, 50]})
    shown = [patch.get_data().values.tolist() for patch in figure.axes[0].patches]
    assert shown == [[50, 35, 20, 5], [50, 50]]


def test_calibration_plot_shows_distances_and_counts():
    schedules = {"calibrated": [3, 2], "linear": [5, 1]}
    measured, chosen = plot_calibration([[0.5, 0.1, -0.001], [0.4, 0.1, 0.01]], schedules).axes
    assert [list(line.get_xdata()) for line in measured.lines] == [[1, 2, 3]] * 2
    assert [list(line.get_ydata()) for line in measured.lines] == [[0.5, 0.1, 1e-5], [0.4, 0.1, 0.01]]
    assert [text.get_text() for text in measured.get_legend().get_texts()] == ["AR step 0", "AR step 1"]
    assert [patch.get_data().values.tolist() for patch in chosen.patches] == [[3, 2], [5, 1]]
    assert [text.get_text() for text in chosen.get_legend().get_texts()] == ["calibrated", "linear"]


def test_evidence_plot_has_a_line_for_every_observation():
    names = ("prediction_error", "variance", "path_ratio")
    steps = [
        {"ar_step": i, "total_variance": 9 - i, **{n: 2 + i for n in names}, **{f"{n}_se": 0.5 for n in names}}
        for i in (0, 1)
    ]
    error, variance, ratio = plot_evidence(steps).axes
    assert [list(axes.lines[-3].get_ydata()) for axes in (error, ratio)] == [[2, 3]] * 2
    assert [list(line.get_ydata()) for line in variance.lines[:2]] == [[9, 8], [2, 3]]
    assert [axes.get_ylim()[0] for axes in (error, variance, ratio)] == [0, 0, 1]
    (segments,) = (bars.get_segments() for bars in error.collections)
    assert [list(segment[:, 1]) for segment in segments] == [[1, 3], [2, 4]]  # two standard errors


def test_loss_plot_draws_the_mean():
    figure = plot_loss(list(range(200)), [float(i % 2) for i in range(200)], window=100)
    mean = figure.axes[0].lines[1]
    assert len(mean.get_ydata()) == 101
    assert abs(mean.get_ydata()[0] - 0.5) < 1e-9


def test_report_is_self_contained(tmp_path):
    path = tmp_path / "deep" / "report.html"
    pictures = {"a <grid>": Image.new("RGB", (4, 4)), "a plot": plot_step_schedules({"DiSA": [5, 1]})}
    write_report(path, "A & B", [Section("Results", "One.\n\n`Two` < `3`.", ROWS, COLUMNS, pictures)])
    page = path.read_text()
    assert "<title>A &amp; B</title>" in page
    assert 'alt="a &lt;grid&gt;"' in page
    assert "<p>One.</p><p><code>Two</code> &lt; <code>3</code>.</p>" in page
    assert page.count("data:image/png;base64,") == 2
    assert not re.search(r'(src|href)="(?!data:)', page)
    assert "<script" not in page
    assert list(path.parent.iterdir()) == [path]


def test_pareto_front_is_what_no_other_of_the_group_beats():
    points = [
        *(
            Point("cheap", 1, 9),
            Point("dear", 4, 2),
            Point("middle", 2, 5),
            Point("as good, dearer", 3, 5),
            Point("worse at the cost", 2, 6),
        ),
        *(Point("a twin", 4, 2), Point("beaten twice", 5, 7), Point("another group", 9, 9, group="b")),
    ]
    front = [point.name for point in pareto_front(points)]
    assert front == ["cheap", "middle", "dear", "a twin", "another group"]
    assert pareto_front([]) == []


def test_quality_plot_groups_colours_and_draws_intervals_and_fronts():
    names = ("low", "disa", "full", "odd")
    groups = {
        group: [
            Point(name, cost, shift + distance, (distance, shift + 50), group)
            for name, cost, distance in zip(names, (1, 2, 4, 5), (30, 20, 19, 25), strict=True)
        ]
        for group, shift in (("mar", 0), ("xar", 10))
    }
    axes = plot_quality([point for group in groups.values() for point in group], "seconds", "FID", front=True).axes[0]
    assert sorted(text.get_text() for text in axes.texts) == sorted(
        ["low", "disa", "full"] * 2
    )  # many: only the fronts are named
    lines = {line.get_label(): line for line in axes.lines if line.get_label() in groups}
    assert {group: line.get_xdata().tolist() for group, line in lines.items()} == {"mar": [1, 2, 4], "xar": [1, 2, 4]}
    assert len({line.get_color() for line in axes.lines}) == 2
    assert len(axes.collections) == 8
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["mar", "xar"]
    assert axes.get_ylim()[1] > 60


def test_more_groups_than_colours_differ_in_their_markers():
    points = [Point("disa", 1 + i, 2, group=f"model {i}") for i in range(9)]
    axes = plot_quality(points, "seconds", "FID", front=True).axes[0]
    assert len({(line.get_color(), line.get_marker()) for line in axes.lines}) == 9


def test_panels_have_a_group_each_and_a_colour_for_each_name():
    points = [
        Point(name, cost, 10, (8, 13), group) for group in ("mar", "xar") for name, cost in (("low", 1), ("disa", 2))
    ]
    figure = plot_panels([*points, Point("full", 5, 9, group="xar")], "seconds", "FID")
    mar, xar = figure.axes
    assert [axes.get_title() for axes in figure.axes] == ["mar", "xar"]
    assert [line.get_color() for line in mar.lines] == [line.get_color() for line in xar.lines[:2]]
    assert len({line.get_color() for line in xar.lines}) == 3
    assert [len(axes.collections) for axes in figure.axes] == [2, 2]  # intervals
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["low", "disa", "full"]
    assert mar.get_xlim()[0] == mar.get_ylim()[0] == 0
    assert mar.get_ylim()[1] > 13
