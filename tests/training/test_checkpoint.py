"""Checkpoints of training: ours, the released ones, and those of before."""

import argparse
import gzip

import pytest
import torch

from disa import build_model
from disa.training.checkpoint import LAST, TrainingState, find_checkpoint
from disa.training.optimization import TrainingSettings
from disa.weights.load import read_checkpoint
from tests.conftest import REFERENCE, SMALL_MAR
from tests.training.test_loop import SETTINGS, losses, run

# The training that `before/training_step10.pth.gz` was interrupted in, and its losses.
TINY = {
    "image_size": 64,
    "latent_channels": 4,
    "num_classes": 4,
    "width": 8,
    "depth": 1,
    "num_heads": 2,
    "buffer_size": 4,
    "head_depth": 1,
    "head_width": 4,
    "diffusion_batch_mul": 1,
    "label_drop_prob": 0.1,
    "proj_dropout": 0.1,
    "attn_dropout": 0.0,
}
LOSSES_BEFORE = [
    1.0552819967,
    1.0378727913,
    0.9864393473,
    0.9842616916,
    1.0780875683,
    0.8564572930,
]  # of steps 10 to 15


def test_another_models_checkpoint_is_refused(tmp_path):
    run(tmp_path, epochs=1)
    with pytest.raises(ValueError, match="does not fit this model"):
        run(tmp_path, model=build_model("mar", **{**SMALL_MAR, "width": 32}))


def test_find_checkpoint(tmp_path, monkeypatch):
    (tmp_path / LAST).write_bytes(b"")
    assert find_checkpoint(tmp_path) == find_checkpoint(str(tmp_path / LAST)) == tmp_path / LAST
    with pytest.raises(FileNotFoundError, match=r"no checkpoint .*nowhere.pth to resume from"):
        find_checkpoint(tmp_path / "nowhere.pth")
    monkeypatch.setenv("DISA_WEIGHTS", str(tmp_path))
    assert find_checkpoint("pretrained_models") == tmp_path / LAST


def test_a_checkpoint_of_before_goes_on_as_it_would_have_before(tmp_path):
    packed = (REFERENCE / "before" / "training_step10.pth.gz").read_bytes()
    (tmp_path / LAST).write_bytes(gzip.decompress(packed))
    assert read_checkpoint(tmp_path / LAST)["step"] == 10
    run(tmp_path, build_model("mar", **TINY), shape=(4, 4, 4), classes=4)
    assert list(losses(tmp_path)) == list(range(10, 16))
    assert list(losses(tmp_path).values()) == pytest.approx(LOSSES_BEFORE, rel=1e-3)


def test_an_optimiser_that_was_not_fused_goes_on_as_one_that_is(tmp_path):
    model, settings = build_model("mar", **SMALL_MAR), TrainingSettings(**SETTINGS)
    run(tmp_path, model, epochs=1)
    content = read_checkpoint(tmp_path / LAST)
    for group in content["optimizer"]["param_groups"]:
        assert group.pop("fused") is True  # released ones say None, or nothing
    torch.save(content, tmp_path / "before.pth")
    state = TrainingState(model, settings, 4, tmp_path / LAST, argparse.Namespace())
    state.load(tmp_path / "before.pth")
    assert [group["fused"] for group in state.optimizer.param_groups] == [True, True]


def test_a_released_checkpoint_goes_on_after_its_last_epoch(tmp_path):
    run(tmp_path, epochs=2)
    content = read_checkpoint(tmp_path / LAST)
    released = {key: content[key] for key in ("model", "model_ema", "optimizer", "epoch", "scaler")}
    torch.save({**released, "args": argparse.Namespace(lr=None)}, tmp_path / "released.pth")
    run(tmp_path / "new", epochs=3, resume=tmp_path / "released.pth")
    assert list(losses(tmp_path / "new")) == [8, 9, 10, 11]


def test_what_cannot_be_resumed_says_what_it_lacks(tmp_path):
    torch.save({"model": build_model("mar", **SMALL_MAR).state_dict()}, tmp_path / "weights.pth")
    with pytest.raises(ValueError, match=r"weights.pth cannot be resumed: it has no model_ema, optimizer, epoch"):
        run(tmp_path / "new", resume=tmp_path / "weights.pth")
