"""`disa train MODEL …`: the door to each family's training."""

import pytest

from disa.commands import class_conditional, train
from tests.helpers.scripts import command


@pytest.mark.parametrize("model", ["mar_fashion", "flowar_base", "flowar_large", "xar_fashion"])
def test_a_model_is_trained_by_its_family(model, monkeypatch, capsys):
    seen = []
    monkeypatch.setattr(class_conditional, "run_training", lambda args, family, _: seen.append((args, family)))
    code = command("train", model, "--epochs", "3", "--device", "cpu")
    if model == "flowar_base":  # of another family alone
        assert code == 2
        assert "there is no model 'flowar_base' here" in capsys.readouterr().err
        return
    ((args, family),) = seen
    assert (args.model, args.epochs, args.evaluate) == (model, 3, False)
    assert family.name.lower() == model.partition("_")[0]


@pytest.mark.parametrize(
    ("model", "config"),
    [
        ("harmon_fashion", "configs/examples/harmon_fashion.py"),
        ("harmon_1.5b", "configs/examples/harmon_1_5b.py"),
        ("own.py", "own.py"),
    ],
)
def test_harmon_is_trained_by_its_config(model, config, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    seen = []
    monkeypatch.setattr(train, "load_training_config", lambda *args: seen.append(args))
    monkeypatch.setattr(train, "run_training", lambda _, output, **flags: seen.append((output.name, flags)))
    words = ("--work-dir", tmp_path / "out", "--seed", "3", "--cfg-options", "training.lr=1e-5", "--device", "cpu")
    assert command("train", model, *words) == 0
    assert seen == [(config, {"training.lr": 1e-5}, 3), ("out", {"resume": None, "device": "cpu"})]


def test_help_shows_the_flags_of_the_family(capsys):
    for model, flag in (("xar_large", "--num_sampling_steps"), ("harmon_fashion", "--cfg-options")):
        assert command("train", model, "--help") == 0
        shown = capsys.readouterr().out
        assert shown.startswith(f"usage: disa train {model} ")
        assert flag in shown
