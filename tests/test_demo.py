"""The demo, with fewer images and steps than `make demo` takes."""

import json
import re

import pytest

from disa import StepSchedule, build_model, demo
from disa.sampling import Sampling

SMALL = {
    "without DiSA": Sampling(3, StepSchedule(4, 4, "constant")),
    "DiSA": Sampling(2, StepSchedule(3, 1)),
    "low everywhere": Sampling(2, StepSchedule(1, 1, "constant")),
}


def test_settings_differ_in_their_schedules_alone():
    full, annealed, low = demo.SETTINGS.values()
    assert {sampling.sampler for sampling in demo.SETTINGS.values()} == {"DiSA"}
    assert {(sampling.seed, sampling.temperature, sampling.guidance) for sampling in demo.SETTINGS.values()} == {
        (full.seed, full.temperature, full.guidance)
    }
    model = build_model("mar_fashion")
    assert sum(model.evaluations(**annealed.steps)) <= sum(model.evaluations(**full.steps)) / 8
    assert low.num_iter == annealed.num_iter and set(model.evaluations(**low.steps)) == {annealed.schedule.lower}


def test_demo_prints_one_table_and_writes_one_page(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(demo, "SETTINGS", SMALL)
    arguments = ["--out", str(tmp_path), "--num_images", "30", "--batch_size", "10", "--device", "cpu"]
    demo.main(arguments)
    printed = capsys.readouterr().out
    rows = [line.split("|")[1:-1] for line in printed.splitlines() if line.startswith("|")]
    assert [row[0].strip() for row in rows[2:]] == list(SMALL)
    assert [int(row[2]) for row in rows[2:]] == [
        sum(build_model("mar_fashion").evaluations(**sampling.steps)) for sampling in SMALL.values()
    ]
    page = (tmp_path / "report.html").read_text()
    assert len(re.findall(r'<img src="data:image/png;base64,', page)) == 5  # two plots, three grids
    assert not re.findall(r'(?:src|href)="(?!data:)', page)
    for name, sampling in SMALL.items():
        results = json.loads((tmp_path / sampling.name() / "results.json").read_text())
        assert results["num_images"] == 30 and len(results["metrics"]) == 2
        assert f"<td>{name}</td>" in page

    # Started again, it finds everything done.
    monkeypatch.setattr(demo.LabelSampler, "__call__", lambda *args: pytest.fail("generated again"))
    demo.main(arguments)
    assert [line.split("|")[1:-1] for line in capsys.readouterr().out.splitlines() if line.startswith("|")] == rows
