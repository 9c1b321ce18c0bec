"""The benchmark for the first hour on a GPU, on the CPU."""

import json
import time

import pytest
import torch

from benchmarks import gpu

CPU = torch.device("cpu")


@pytest.mark.slow
def test_all_but_the_cuda_parts_run_on_a_cpu(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("benchmarks.generations.SIDES", {"cpu": 64})
    words = ["--quick", "--device", "cpu", "--models", "xar_fashion", "--results", str(tmp_path)]
    assert gpu.main(words) == 0
    content = json.loads((tmp_path / "gpu_cpu_quick.json").read_text())
    assert {one["check"] for one in content["checks"]} == {
        "parity with the reference",
        "captured graphs against eager",
        "collective operations",
    }
    assert len(content["checks"]) == 4 * 3 + 4 + 1
    assert all(one["passed"] for one in content["checks"])
    timed = [(one["model"], one["mode"], one["batch"]) for one in content["times"]]
    pairs = [(mode, batch) for mode in ("eager", "captured", "compiled") for batch in (1, 8)]
    assert timed == [("xar_fashion", *pair) for pair in pairs]
    assert all(one["seconds"] > 0 for one in content["times"] if "note" not in one)
    text = (tmp_path / "gpu_cpu_quick.md").read_text()
    assert "| captured graphs against eager |" in text
    assert text in capsys.readouterr().out
    assert all(len(line) <= 120 for line in text.splitlines() if not line.startswith("|"))


def test_a_failed_check_is_the_exit_code(tmp_path, monkeypatch, capsys):
    def wrong(_):
        yield gpu.check("parity", "mar", "nan", "≤ 1", float("nan") <= 1)

    monkeypatch.setattr(gpu, "check_parity", wrong)
    for name in ("check_graphs", "check_ranks", "measure"):
        monkeypatch.setattr(gpu, name, lambda *_: iter(()))
    assert gpu.main(["--device", "cpu", "--results", str(tmp_path)]) == 1
    assert "FAILED" in capsys.readouterr().out
    assert "**no**" in (tmp_path / "gpu_cpu.md").read_text()


def test_other_latents_than_the_recorded_fail(monkeypatch):
    name, model, given, recorded = next(gpu.references())
    recorded["latents"] = 2 * recorded["latents"]
    monkeypatch.setattr(gpu, "references", lambda: [(name, model, given, recorded)])
    assert [row["passed"] for row in gpu.check_parity(CPU)] == [False] * 3


class WrongGraph(gpu.EagerGraph):
    """A capture that goes wrong after it was verified."""

    replays = 0

    def replay(self):
        super().replay()
        self.replays += 1
        if self.replays > 1:
            self.result += 1


def test_graphs_that_go_wrong_later_are_seen(monkeypatch):
    monkeypatch.setattr(gpu, "EagerGraph", WrongGraph)
    monkeypatch.setattr(gpu, "bundled", lambda: ["flowar_fashion"])
    (row,) = gpu.check_graphs(CPU)
    assert not row["passed"]


def cell(**changes):
    settings = {"model": None, "vae": None, "name": "xar_fashion", "batch": 1, "device": CPU, "mode": "captured"}
    return gpu.time_cell(**{**settings, "until": time.perf_counter() + 60, **changes})


def test_what_takes_too_long_is_left_out(monkeypatch):
    monkeypatch.setattr("benchmarks.generations.SIDES", {"cpu": 64})
    model = gpu.make_model("flowar_fashion", CPU, torch.float32)
    late = cell(
        model=model, vae=gpu.make_vae(model, gpu.find_recipe("flowar_fashion")), name="flowar_fashion", until=0.0
    )
    assert late == {"note": "not within 40 s, or the time left"}
    (row, *_) = gpu.measure(["flowar_fashion"], (1,), CPU, until=0.0)
    assert (row["batch"], row["note"]) == ("all", "no time left")


def test_the_second_batch_counts_where_there_is_time(monkeypatch):
    batches = iter([{"seconds": 3.0}, {"seconds": 2.0}])
    monkeypatch.setattr(gpu, "time_batch", lambda *_: next(batches))
    assert cell() == {"seconds": 2.0}
    batches = iter([{"seconds": 3.0}])
    assert cell(until=0.0) == {"seconds": 3.0, "note": "first batch, in which it was captured"}


def test_a_batch_that_does_not_fit_is_left_out(monkeypatch):
    def full(*_):
        raise torch.OutOfMemoryError

    monkeypatch.setattr(gpu, "time_batch", full)
    assert cell() == {"note": "out of memory"}
