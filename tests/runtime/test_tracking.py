"""Scalars go to TensorBoard or to Weights & Biases, of which a stand-in is used here: no network, no account."""

import sys
from types import SimpleNamespace

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from disa.runtime.extras import MissingExtra
from disa.runtime.tracking import check_tracker, track


@pytest.fixture
def wandb(monkeypatch):
    """Stand in for wandb: its runs are in `.runs`."""

    class Run:
        def __init__(self, **options):
            self.options, self.logged, self.ended = options, [], False
            self.id = options["id"] or f"run{len(stand_in.runs)}"
            stand_in.runs.append(self)

        def log(self, scalars, step):
            self.logged.append((step, scalars))

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self.ended = True

    stand_in = SimpleNamespace(runs=[], init=Run, Error=type("Error", (Exception,), {}))
    monkeypatch.setitem(sys.modules, "wandb", stand_in)
    return stand_in


def test_tensorboard_has_the_scalars_of_each_step(tmp_path):
    with track("tensorboard", tmp_path) as write:
        write({"loss": 2.0, "norm": torch.tensor(3.0)}, 7)
    log = EventAccumulator(str(tmp_path)).Reload()
    assert [(log.Scalars(name)[0].step, log.Scalars(name)[0].value) for name in ("loss", "norm")] == [(7, 2), (7, 3)]


def test_wandb_has_the_scalars_and_the_settings(tmp_path, wandb):
    with track("wandb", tmp_path / "mine", config={"lr": 0.1}) as write:
        write({"loss": 2.0, "norm": torch.tensor(3.0)}, 7)
        write({}, 8)
    (run,) = wandb.runs
    expected = {"name": "mine", "dir": tmp_path / "mine", "config": {"lr": 0.1}, "id": None, "resume": "allow"}
    assert run.options == expected
    assert (run.logged, run.ended) == ([(7, {"loss": 2.0, "norm": 3.0})], True)
    assert type(run.logged[0][1]["norm"]) is float


def test_what_goes_on_is_one_run_and_what_begins_is_another(tmp_path, wandb):
    for step in (0, 5, 0):
        with track("wandb", tmp_path, step):
            pass
    assert [run.options["id"] for run in wandb.runs] == [None, "run0", None]
    assert [run.id for run in wandb.runs] == ["run0", "run0", "run2"]


def test_a_wandb_that_cannot_begin_is_one_sentence(tmp_path, wandb):
    def fail(**_):
        raise wandb.Error("No API key configured.\nMore")

    wandb.init = fail
    with (
        pytest.raises(OSError, match=r"wandb cannot begin \(No API key configured.\); WANDB_MODE=offline") as error,
        track("wandb", tmp_path),
    ):
        pass
    assert "More" not in str(error.value)


def test_unknown_and_missing_trackers_are_refused(monkeypatch):
    with pytest.raises(ValueError, match="tracker is 'mlflow'; allowed are tensorboard, wandb"):
        check_tracker("mlflow")
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(MissingExtra, match=r"wandb is not installed; pip install 'disa\[wandb\]'"):
        check_tracker("wandb")
    check_tracker("tensorboard")
