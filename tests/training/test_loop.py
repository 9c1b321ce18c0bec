"""Training: it learns, resumes where it stopped with the same losses, and stops at a NaN."""

import argparse
import contextlib
import os
import signal
import sys
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.data import TensorDataset

from disa import build_model, load_model
from disa.runtime import distributed
from disa.runtime.extras import MissingExtra
from disa.training import loop
from disa.training.checkpoint import LAST
from disa.training.loop import train
from disa.training.optimization import TrainingSettings
from disa.weights.load import read_checkpoint
from tests.conftest import SMALL_MAR
from tests.helpers import processes
from tests.helpers.processes import TORCHRUN

SETTINGS = {
    "batch_size": 4,
    "epochs": 4,
    "warmup_epochs": 1.0,
    "lr": 3e-3,
    "blr": 1e-4,
    "min_lr": 0.0,
    "lr_schedule": "cosine",
    "weight_decay": 0.02,
    "grad_clip": 3.0,
    "ema_rate": 0.9,
    "seed": 1,
    "dtype": torch.float32,
    "save_epochs": 1,
    "eval_epochs": 1,
    "tracker": "tensorboard",
}


def run(folder, model=None, **options):
    settings = TrainingSettings(**{**SETTINGS, **{key: options.pop(key) for key in list(options) if key in SETTINGS}})
    torch.manual_seed(0)
    model = model or build_model("mar", **{**SMALL_MAR, "label_drop_prob": 0.1, "proj_dropout": 0.1})
    generator = torch.Generator().manual_seed(0)
    to_latents = options.pop("to_latents", lambda x: x)
    latents = torch.randn(18, *options.pop("shape", (16, 4, 4)), generator=generator).sign()
    data = TensorDataset(latents, torch.arange(18) % options.pop("classes", 10))
    return train(
        model,
        data,
        lambda inputs, labels: (to_latents(inputs), labels),
        settings,
        device=torch.device("cpu"),
        output=folder,
        log=folder,
        args=argparse.Namespace(),
        **options,
    )


def losses(folder):
    events = EventAccumulator(str(folder)).Reload()
    return {event.step: event.value for event in events.Scalars("train/loss")}


def test_loss_falls(tmp_path):
    model = run(tmp_path, epochs=20)
    found = losses(tmp_path)
    assert len(found) == 20 * 4
    assert not model.training
    values = list(found.values())
    assert sum(values[-8:]) < 0.7 * sum(values[:8])


def test_result_is_the_average_and_the_file_holds_it(tmp_path):
    model = run(tmp_path)
    loaded = load_model("mar", tmp_path / LAST, **SMALL_MAR)
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in loaded.state_dict().items())
    with torch.serialization.safe_globals([argparse.Namespace]):
        content = torch.load(tmp_path / LAST, weights_only=True)
    assert content.keys() == {"model", "model_ema", "optimizer", "epoch", "scaler", "args", "step", "steps_per_epoch"}
    assert content["epoch"] == 3


def test_the_average_follows_the_weights(tmp_path):
    model, seen = build_model("mar", **SMALL_MAR), []

    def watch(latents):
        seen.append(model.z_proj.weight.detach().clone())  # before every step
        return latents

    trained = run(tmp_path, model, to_latents=watch, epochs=2, ema_rate=0.7)
    last = read_checkpoint(tmp_path / LAST)["model"]["z_proj.weight"]
    average = seen[0]
    for step, weight in enumerate((*seen[1:], last)):
        rate = min(0.7, (1 + step) / (10 + step))
        average = rate * average + (1 - rate) * weight
    assert (last - seen[0]).abs().max() > 1e-3
    torch.testing.assert_close(trained.z_proj.weight, average)


class Interrupt(Exception):
    pass


def test_resumed_run_repeats_the_uninterrupted_one(tmp_path):
    run(tmp_path / "whole")
    calls = 0

    def stop_in_epoch_2(latents):
        nonlocal calls
        calls += 1
        if calls == 10:
            os.kill(os.getpid(), signal.SIGTERM)  # asked to stop in the middle of an epoch
        return latents

    with pytest.raises(KeyboardInterrupt, match="stopped at step 10"):
        run(tmp_path / "parts", to_latents=stop_in_epoch_2)
    run(tmp_path / "parts")
    assert losses(tmp_path / "parts") == losses(tmp_path / "whole")


def test_a_run_that_died_goes_on_from_its_last_checkpoint(tmp_path):
    run(tmp_path / "whole")
    calls = 0

    def die(latents):
        nonlocal calls
        calls += 1
        if calls == 10:
            raise Interrupt
        return latents

    with pytest.raises(Interrupt):
        run(tmp_path / "parts", to_latents=die)
    run(tmp_path / "parts")
    assert losses(tmp_path / "parts") == losses(tmp_path / "whole")


def test_between_epochs_a_checkpoint_is_written_every_save_seconds(tmp_path):
    for name, seconds, steps in (("often", 0.0, 9), ("seldom", 600.0, 8)):
        calls = iter(range(9))

        def die(latents, calls=calls):
            if next(calls, None) is None:
                raise Interrupt
            return latents

        with pytest.raises(Interrupt):
            run(tmp_path / name, to_latents=die, save_seconds=seconds)
        assert read_checkpoint(tmp_path / name / LAST)["step"] == steps


def test_nan_stops_with_the_step_and_the_last_good_checkpoint(tmp_path):
    calls = 0

    def poison(latents):
        nonlocal calls
        calls += 1
        return latents * float("nan") if calls == 6 else latents

    with pytest.raises(FloatingPointError, match=r"nan at step 5 \(epoch 1\).*checkpoint-last.pth"):
        run(tmp_path, to_latents=poison)
    assert load_model("mar", tmp_path / LAST, **SMALL_MAR)  # which holds finite weights only, or it would be refused


def test_evaluation_sees_the_average(tmp_path):
    seen = []
    run(
        tmp_path,
        epochs=2,
        evaluate=lambda model, epoch: seen.append((epoch, model.training, model.z_proj.bias.clone())) or {"fid": 1.0},
    )
    assert [(epoch, training) for epoch, training, _ in seen] == [(1, False), (2, False)]
    assert torch.equal(seen[-1][2], load_model("mar", tmp_path / LAST, **SMALL_MAR).z_proj.bias)
    assert [event.step for event in EventAccumulator(str(tmp_path)).Reload().Scalars("eval/fid")] == [4, 8]


def test_saves_and_evaluations_fall_on_multiples_and_on_the_last_epoch(tmp_path):
    saved, evaluated = [], []

    def watch(latents):
        saved.append(read_checkpoint(tmp_path / LAST)["step"] if (tmp_path / LAST).is_file() else 0)
        return latents

    run(tmp_path, to_latents=watch, epochs=3, save_epochs=2)
    assert saved == [0] * 8 + [8] * 4
    assert read_checkpoint(tmp_path / LAST)["step"] == 12
    run(tmp_path / "more", epochs=3, eval_epochs=2, evaluate=lambda _, epoch: evaluated.append(epoch) or {})
    assert evaluated == [2, 3]


def test_the_log_has_losses_norms_and_learning_rates(tmp_path):
    run(tmp_path, epochs=2, lr_schedule="constant", grad_clip=1e-3)
    events = EventAccumulator(str(tmp_path)).Reload()
    rates, norms = ([event.value for event in events.Scalars(f"train/{name}")] for name in ("lr", "grad_norm"))
    assert rates == pytest.approx([0, 0.75e-3, 1.5e-3, 2.25e-3, 3e-3, 3e-3, 3e-3, 3e-3])
    assert min(norms) > 1e-2  # as before the gradient is clipped


def test_zero_does_not_clip_the_gradient(tmp_path):
    free, loose, tight = (run(tmp_path / str(clip), epochs=1, grad_clip=clip).z_proj.weight for clip in (0, 1e6, 1e-9))
    assert torch.equal(free, loose)
    assert not torch.allclose(free, tight)


def test_a_second_request_stops_at_once_and_handlers_are_put_back(tmp_path):
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]

    def stop_twice(latents):
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGTERM)
        return latents

    with pytest.raises(KeyboardInterrupt, match="stopped at once"):
        run(tmp_path, to_latents=stop_twice)
    assert not (tmp_path / LAST).exists()
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before


def test_the_seed_decides_the_order_and_the_draws(tmp_path):
    for folder, seed in (("a", 1), ("b", 1), ("c", 2)):
        run(tmp_path / folder, epochs=1, seed=seed)
    a, b, c = (losses(tmp_path / folder) for folder in "abc")
    assert a == b != c


def test_without_tensorboard_the_extra_is_named(tmp_path, monkeypatch):
    for name in [name for name in sys.modules if name.startswith(("tensorboard", "torch.utils.tensorboard"))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with pytest.raises(MissingExtra, match=r"tensorboard is not installed; pip install 'disa\[train\]'"):
        run(tmp_path)


def test_the_settings_choose_the_tracker(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setitem(sys.modules, "wandb", argparse)  # it is asked for, and not used
    monkeypatch.setattr(loop, "track", lambda *words: (asked.append(words), contextlib.nullcontext(lambda *_: None))[1])
    run(tmp_path, epochs=1, tracker="wandb")
    assert asked == [("wandb", tmp_path, 0, {})]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_trains(tmp_path, dtype):
    run(tmp_path, dtype=dtype, epochs=1)
    assert len(losses(tmp_path)) == 4


def test_too_little_data_is_refused(tmp_path):
    with pytest.raises(ValueError, match="18 images, fewer than one step of 64"):
        run(tmp_path, batch_size=64)


@pytest.mark.slow
@pytest.mark.distributed
def test_two_ranks_train_one_model(tmp_path):
    script = "from tests.training.test_loop import rank_main; rank_main()"
    processes.run(*TORCHRUN, "--no-python", sys.executable, "-c", script, FOLDER=str(tmp_path))
    found = losses(tmp_path)
    assert len(found) == 2 * 2  # 18 images, 2 ranks of 4 a step
    first, second = (torch.load(tmp_path / f"rank{rank}.pth", weights_only=True) for rank in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert (tmp_path / "memory.txt").read_text() == "shared"


def rank_main():
    distributed.setup(torch.device("cpu"))
    folder = Path(os.environ["FOLDER"])
    model = run(folder, epochs=2)
    torch.save(model.state_dict(), folder / f"rank{distributed.rank()}.pth")
    gradients = [parameter.grad for parameter in model.parameters()]
    places = {gradient.untyped_storage().data_ptr() for gradient in gradients}
    # Each is a part of what the ranks exchange, not a copy of it.
    (folder / "memory.txt").write_text("shared" if len(places) < len(gradients) else "copied")
    distributed.shutdown()


def test_an_evaluation_that_was_interrupted_is_made_when_the_run_goes_on(tmp_path):
    seen = []

    def evaluate(_, epoch):
        seen.append(epoch)
        if seen == [1, 2]:
            raise Interrupt
        return {"score": 1.0}

    with pytest.raises(Interrupt):
        run(tmp_path, evaluate=evaluate)
    run(tmp_path, evaluate=evaluate)
    assert seen == [1, 2, 2, 3, 4]
    run(tmp_path, evaluate=evaluate)  # finished before; evaluations know by themselves what they already hold
    assert seen == [1, 2, 2, 3, 4, 4]


def test_epochs_count_when_the_batch_size_changes(tmp_path):
    run(tmp_path, epochs=2)
    run(tmp_path, batch_size=2)  # 2 epochs of 4 steps are done, 2 epochs of 9 steps are left
    assert sorted(losses(tmp_path)) == [*range(8), *range(18, 36)]
