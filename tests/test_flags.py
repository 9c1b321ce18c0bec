"""Flags of the scripts: the released names and defaults, the released command lines, the bundled models' defaults."""

import importlib.util
import sys
from pathlib import Path

import pytest
import torch

from disa import build_model
from disa.checkpoints import manifest
from disa.flags import parse
from disa.models import MODELS
from tests.conftest import load_json

ROOT = Path(__file__).parents[1]
MAR_SCRIPTS = ROOT / "MAR_DiSA"
# model -> (diffloss_d, diffloss_w, eval_bsz, cfg) of its released command line
RELEASED = {"mar_base": (6, 1024, 256, 2.9), "mar_large": (8, 1280, 256, 3.0), "mar_huge": (12, 1536, 128, 3.3)}
COMMAND = """--model {model} --diffloss_d {depth} --diffloss_w {width} --eval_bsz {batch} --num_images 50000 --num_iter 64 --cfg {cfg}
--cfg_schedule linear --temperature 1.0 --diff_upper_steps 50 --diff_lower_steps 5 --diff_annealing_strategy linear --diff_sampler DiSA
--output_dir X --resume X --data_path Y --evaluate"""


def different(script):
    """Where we differ: `auto` takes cuda where there is one, and eval.py need not be told what it is for."""
    return {**({} if "Harmon" in script else {"device": "auto"}), **({"evaluate": True} if script.endswith("eval.py") else {})}


def load_script(name):
    """A script as a module of its own."""
    path = ROOT / name
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(path.parent))  # as for a script that is run
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(path.parent))
    return module


SCRIPTS = {name: load_script(name) for name in load_json("flags.json")}
MAIN = SCRIPTS["MAR_DiSA/main_mar.py"]


def arguments(*flags):
    return parse(MAIN.get_parser(), MAIN.FAMILY.defaults(), flags)


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_released_flag_has_its_released_default(script):
    released = load_json("flags.json")[script]
    every = SCRIPTS[script].get_parser()._actions
    assert [action.dest for action in every if not action.option_strings] == (["config"] if "Harmon" in script else [])
    actions = {action.option_strings[0].removeprefix("--"): action for action in every if action.option_strings}
    assert released.keys() <= actions.keys()
    assert {name: actions[name].default for name in released} == {**released, **different(script)}
    switches = [name for name, default in released.items() if isinstance(default, bool)]
    assert [name for name in released if actions[name].nargs == 0] == switches


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_flag_is_explained(script):
    parser = SCRIPTS[script].get_parser()
    assert [action.option_strings for action in parser._actions if not action.help] == []
    assert all(flag in parser.format_help() for flag in parser._option_string_actions)


def test_pinned_memory_can_be_switched_off():
    assert [arguments(*flags).pin_mem for flags in ((), ("--pin_mem",), ("--no_pin_mem",))] == [True, True, False]


@pytest.mark.parametrize("model", RELEASED)
def test_released_command_line_builds_the_released_model(model):
    depth, width, batch, cfg = RELEASED[model]
    args = arguments(*COMMAND.format(model=model, depth=depth, width=width, batch=batch, cfg=cfg).split())
    assert (args.diffloss_d, args.diffloss_w, args.eval_bsz, args.cfg) == RELEASED[model]
    assert args.evaluate and (args.output_dir, args.resume, args.data_path) == ("X", "X", "Y")
    with torch.device("meta"):
        built = build_model(args.model, **{argument: getattr(args, flag) for flag, argument in MAIN.FAMILY.model_flags.items()})
    assert {name: list(value.shape) for name, value in built.named_parameters()} == manifest(model)["parameters"]
    assert len(built.diffloss.net.res_blocks) == depth and built.diffloss.net.input_proj.out_features == width
    sampling = MAIN.get_sampling(args).describe()
    assert sampling == {
        "num_iter": 64,
        "diff_sampler": "DiSA",
        "diff_upper_steps": 50,
        "diff_lower_steps": 5,
        "diff_annealing_strategy": "linear",
        "cfg": cfg,
        "cfg_schedule": "linear",
        "temperature": 1.0,
        "seed": 1,
    }


@pytest.mark.parametrize("given", [["--model", "mar_fashion"], ["--model=mar_fashion"]], ids=["two words", "one word"])
def test_bundled_model_brings_its_defaults(given):
    args = arguments(*given)
    assert {argument: getattr(args, flag) for flag, argument in MAIN.FAMILY.model_flags.items()}.items() <= MODELS[
        "mar_fashion"
    ].arguments.items()
    assert (args.img_size, args.class_num, args.diff_sampler, args.data_path, args.num_workers) == (32, 10, "DiSA", "", 0)


def test_explicit_flags_win_over_a_models_defaults():
    args = arguments("--img_size", "64", "--model", "mar_fashion", "--diff_sampler", "default")
    assert (args.img_size, args.diff_sampler, args.class_num) == (64, "default", 10)
    assert (arguments("--model", "mar_base").img_size, arguments().model) == (256, "mar_large")


def test_unknown_model_is_refused(capsys):
    with pytest.raises(SystemExit) as end:
        arguments("--model", "mar_tiny")
    assert end.value.code == 2 and "mar_tiny" in capsys.readouterr().err
