"""Settings, parameter groups, learning rate, and the moving average."""

import pytest
import torch

from disa import build_model
from disa.training.optimization import EMA, TrainingSettings, parameter_groups
from tests.conftest import SMALL_MAR, small_mar


def test_biases_norms_and_the_head_are_not_decayed():
    model = build_model("mar", **SMALL_MAR)
    plain, decayed = parameter_groups(model, 0.02)
    assert plain["weight_decay"] == 0
    assert decayed["weight_decay"] == 0.02
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    assert {names[id(p)] for p in decayed["params"]} >= {
        "z_proj.weight",
        "class_emb.weight",
        "encoder_blocks.0.attn.qkv.weight",
        "mask_token",
    }
    undecayed = {names[id(p)] for p in plain["params"]}
    assert undecayed >= {"z_proj.bias", "encoder_norm.weight", "diffloss.net.input_proj.weight"}
    assert len(plain["params"]) + len(decayed["params"]) == len(names)


def test_learning_rate():
    def at(epoch, schedule):
        settings = TrainingSettings(lr=1.0, min_lr=0.2, warmup_epochs=10, epochs=30, lr_schedule=schedule)
        return settings.learning_rate(epoch)

    assert [at(epoch, "constant") for epoch in (0, 5, 10, 29)] == [0, 0.5, 1, 1]
    assert [at(epoch, "cosine") for epoch in (0, 5, 10, 20, 30)] == pytest.approx([0, 0.5, 1, 0.6, 0.2])
    assert TrainingSettings(lr=None, blr=1e-4, batch_size=64).learning_rate(0, ranks=8) == pytest.approx(2e-4)


@pytest.mark.parametrize(
    ("setting", "named"),
    [
        ({"lr_schedule": "step"}, "lr_schedule is 'step'"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"epochs": 0}, "epochs is 0"),
        ({"save_epochs": 0}, "save_epochs is 0"),
        ({"eval_epochs": -1}, "eval_epochs is -1"),
        ({"grad_clip": -0.1}, "grad_clip is -0.1"),
        ({"grad_clip": float("nan")}, "grad_clip is nan"),
        ({"seed": -1}, "seed is -1"),
        ({"ema_rate": 1.0}, "ema_rate is 1.0"),
        ({"ema_rate": -0.1}, "ema_rate is -0.1"),
    ],
)
def test_impossible_settings_are_refused(setting, named):
    with pytest.raises(ValueError, match=named):
        TrainingSettings(**setting)


def test_ema_follows_and_swaps():
    model = small_mar()
    ema = EMA(model, 0.9)
    before = model.z_proj.bias.detach().clone()
    with torch.no_grad():
        model.z_proj.bias += 1
    ema.update()
    assert torch.allclose(ema.average["z_proj.bias"], before + 0.1)
    ema.swap()
    assert torch.allclose(model.z_proj.bias, before + 0.1)
    ema.swap()
    assert torch.allclose(model.z_proj.bias, before + 1)
