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
    ema.update(1000)
    assert torch.allclose(ema.average["z_proj.bias"], before + 0.1)
    ema.swap()
    assert torch.allclose(model.z_proj.bias, before + 0.1)
    ema.swap()
    assert torch.allclose(model.z_proj.bias, before + 1)


def test_at_first_the_average_forgets_faster():
    model = torch.nn.Linear(1, 1)
    ema = EMA(model, 0.5)
    for step, weight in ((0, 0.9), (2, 0.75), (8, 0.5), (9, 0.5)):  # of what is new: 1 - (1 + step) / (10 + step)
        for average, parameter in zip(ema.average.values(), model.parameters(), strict=True):
            average.zero_()
            parameter.data.fill_(1)
        ema.update(step)
        assert torch.allclose(ema.average["bias"], torch.tensor([weight]))


def test_defaults():
    assert vars(TrainingSettings()) == {
        "batch_size": 16,
        "epochs": 1,
        "warmup_epochs": 0.0,
        "lr": None,
        "blr": 1e-4,
        "min_lr": 0.0,
        "lr_schedule": "constant",
        "weight_decay": 0.02,
        "grad_clip": 1.0,
        "ema_rate": 0.9999,
        "seed": 1,
        "dtype": torch.float32,
        "save_epochs": 1,
        "eval_epochs": 1,
        "num_workers": 0,
        "pin_memory": False,
        "tracker": "tensorboard",
    }
    assert TrainingSettings(batch_size=256).learning_rate(0) == 1e-4


@pytest.mark.parametrize(
    "setting",
    [
        {"batch_size": 1},
        {"epochs": 1},
        {"save_epochs": 1},
        {"eval_epochs": 1},
        {"seed": 0},
        {"grad_clip": 0},
        {"ema_rate": 0.0},
    ],
)
def test_bounds_are_allowed(setting):
    assert vars(TrainingSettings(**setting)).items() >= setting.items()


def test_learning_rate_after_the_last_epoch_stays():
    settings = TrainingSettings(lr=1.0, min_lr=0.2, warmup_epochs=2, epochs=4, lr_schedule="cosine")
    assert settings.learning_rate(2.5) == pytest.approx(0.2 + 0.8 * 0.5 * (1 + 0.5**0.5))
    assert settings.learning_rate(9) == pytest.approx(0.2)
    whole = TrainingSettings(lr=1.0, min_lr=0.2, warmup_epochs=2, epochs=2, lr_schedule="cosine")  # all of it warms up
    assert whole.learning_rate(2) == pytest.approx(1.0)
    assert whole.learning_rate(3) == pytest.approx(0.2)


class Layers(torch.nn.Module):
    """One parameter of every kind."""

    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(2, 3)
        self.norm = torch.nn.LayerNorm(3)
        self.diffloss = torch.nn.Linear(3, 3)
        self.table = torch.nn.ParameterDict({"bias": torch.nn.Parameter(torch.ones(2, 2))})
        self.frozen = torch.nn.Parameter(torch.ones(2, 2), requires_grad=False)


def test_every_trained_parameter_is_in_one_group_in_the_models_order():
    model = Layers()
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    plain, decayed = ([names[id(one)] for one in group["params"]] for group in parameter_groups(model, 0.5))
    assert decayed == ["linear.weight"]
    assert plain == ["linear.bias", "norm.weight", "norm.bias", "diffloss.weight", "diffloss.bias", "table.bias"]
    assert [group["weight_decay"] for group in parameter_groups(model, 0.5)] == [0.0, 0.5]


def test_ema_averages_what_is_trained_and_is_loaded_from_a_checkpoint():
    model = Layers()
    ema = EMA(model, 0.75)
    assert set(ema.average) == {name for name, _ in model.named_parameters()} - {"frozen"}
    state = {name: torch.full_like(value, 3) for name, value in model.state_dict().items()}
    ema.load({**state, "buffer": torch.ones(1)})
    assert all(bool((value == 3).all()) for value in ema.average.values())
    assert not any(value.requires_grad for value in ema.average.values())
    assert (model.linear.weight != 3).all()  # the average has storage of its own
    with torch.no_grad():
        model.linear.weight.fill_(7)
    ema.update(26)  # by now, the rate is not held back: 27 / 36
    assert torch.equal(ema.average["linear.weight"], torch.full((3, 2), 4.0))
    ema.swap()
    assert (model.linear.weight == 4).all()
    assert (ema.average["linear.weight"] == 7).all()
