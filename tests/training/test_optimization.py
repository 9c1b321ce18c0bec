"""Parameter groups, learning rate, and the moving average."""

import pytest
import torch

from disa import build_model
from disa.training.optimization import EMA, learning_rate, parameter_groups
from tests.conftest import SMALL_MAR, small_mar


def test_biases_norms_and_the_head_are_not_decayed():
    model = build_model("mar", **SMALL_MAR)
    plain, decayed = parameter_groups(model, 0.02)
    assert plain["weight_decay"] == 0 and decayed["weight_decay"] == 0.02
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
        return learning_rate(epoch, lr=1.0, min_lr=0.2, warmup_epochs=10, epochs=30, schedule=schedule)

    assert [at(epoch, "constant") for epoch in (0, 5, 10, 29)] == [0, 0.5, 1, 1]
    assert [at(epoch, "cosine") for epoch in (0, 5, 10, 20, 30)] == pytest.approx([0, 0.5, 1, 0.6, 0.2])


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
