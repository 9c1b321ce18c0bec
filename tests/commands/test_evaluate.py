"""`disa evaluate MODEL …`: the door to each family's evaluation."""

import pytest

from disa.commands import class_conditional, evaluate
from disa.evaluation.results import Results
from disa.tables.recipes import bundled_settings
from tests.helpers.scripts import command


@pytest.mark.parametrize("model", ["mar_fashion", "flowar_fashion", "xar_fashion"])
def test_a_model_is_evaluated_by_its_family_and_its_own_recipe(model, monkeypatch):
    seen = []
    monkeypatch.setattr(class_conditional, "run_evaluation", lambda args, family, _: seen.append((args, family)))
    assert command("evaluate", model, "--num_images", "3", "--device", "cpu", "--cfg", "1.5") == 0
    ((args, family),) = seen
    assert (args.model, args.num_images, args.cfg, args.evaluate) == (model, 3, 1.5, True)
    assert family.name.lower() == model.partition("_")[0]
    own = bundled_settings(model)["disa"]
    assert family.sampling(args).schedule == own.schedule
    assert family.sampling(args).sampler == own.sampler


@pytest.mark.slow
def test_the_door_leads_to_results(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ("--num_images", "4", "--flow_upper_steps", "2", "--flow_lower_steps", "1", "--metrics", "none")
    assert command("evaluate", "flowar_fashion", *words, "--device", "cpu", "--output_dir", "out") == 0
    (record,) = tmp_path.glob("out/flowar_fashion-*/results.json")
    assert Results.read(record).num_images == 4


def test_help_shows_the_flags_of_the_family(capsys):
    assert command("evaluate", "mar_fashion", "--help") == 0
    shown = capsys.readouterr().out
    assert shown.startswith("usage: disa evaluate mar_fashion ")
    assert "--token_order" in shown
    assert "README" not in shown.partition("options:")[0]
    assert command("evaluate", "--help") == 0
    assert "--token_order" not in capsys.readouterr().out


def test_an_unknown_flag_names_the_command_whose_help_has_it(capsys):
    assert command("evaluate", "xar_fashion", "--num_imges", "3") == 2
    error = capsys.readouterr().err
    assert error.endswith("did you mean --num_images? (disa evaluate xar_fashion --help)\n")


def test_a_family_keeps_its_name():
    assert evaluate.get_family("mar_base", evaluate.FAMILIES, "evaluate").prog == "disa evaluate mar_base"
    assert evaluate.FAMILIES["mar"].prog is None
