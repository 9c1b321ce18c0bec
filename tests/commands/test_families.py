"""The three families' flags: released command lines build released models, bundled models bring their defaults."""

import json

import pytest
import torch

from disa import Guidance, build_model
from disa.acceleration.caching import Caching
from disa.acceleration.feature_cache import Extrapolation
from disa.commands.families import FLOWAR, FLOWAR_EVAL, MAR, XAR, XAR_EVAL
from disa.grouping import Grouping
from disa.models import MODELS
from disa.tables.recipes import bundled_settings
from disa.weights.verify import manifest
from tests.conftest import load_json

# model -> (diffloss_d, diffloss_w, eval_bsz, cfg) of its released command line
RELEASED = {"mar_base": (6, 1024, 256, 2.9), "mar_large": (8, 1280, 256, 3.0), "mar_huge": (12, 1536, 128, 3.3)}
COMMAND = """--model {model} --diffloss_d {depth} --diffloss_w {width} --eval_bsz {batch} --num_images 50000
--num_iter 64 --cfg {cfg} --cfg_schedule linear --temperature 1.0 --diff_upper_steps 50 --diff_lower_steps 5
--diff_annealing_strategy linear --diff_sampler DiSA --output_dir X --resume X --data_path Y --evaluate"""


@pytest.mark.parametrize("model", RELEASED)
def test_released_command_line_builds_the_released_model(model):
    depth, width, batch, cfg = RELEASED[model]
    args = MAR.parse(COMMAND.format(model=model, depth=depth, width=width, batch=batch, cfg=cfg).split())
    assert (args.diffloss_d, args.diffloss_w, args.eval_bsz, args.cfg) == RELEASED[model]
    assert args.evaluate
    assert (args.output_dir, args.resume, args.data_path) == ("X", "X", "Y")
    with torch.device("meta"):
        built = build_model(args.model, **MAR.arguments(args))
    assert {name: list(value.shape) for name, value in built.named_parameters()} == manifest(model)["parameters"]
    assert len(built.diffloss.net.res_blocks) == depth
    assert built.diffloss.net.input_proj.out_features == width
    assert MAR.sampling(args).to_dict() == {
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
    args = MAR.parse(given)
    assert MAR.arguments(args).items() <= MODELS["mar_fashion"].arguments.items()
    assert (args.img_size, args.class_num, args.diff_sampler) == (32, 10, "DiSA")
    assert (args.vae_path, args.data_path, args.num_workers) == ("", "", 0)


@pytest.mark.parametrize(("family", "model"), [(MAR, "mar"), (FLOWAR_EVAL, "flowar"), (XAR_EVAL, "xar")])
def test_a_bundled_model_is_sampled_by_its_own_recipe(family, model):
    args = family.parse(["--model", f"{model}_fashion"])
    assert family.sampling(args) == bundled_settings(f"{model}_fashion")["disa"]


@pytest.mark.parametrize(("family", "model"), [(FLOWAR, "flowar"), (XAR, "xar")])
def test_a_bundled_model_takes_its_full_count_at_every_step(family, model):
    full, sampling = (
        bundled_settings(f"{model}_fashion")["full"],
        family.sampling(family.parse(["--model", f"{model}_fashion"])),
    )
    assert sampling.schedule.lower == full.schedule.upper
    assert (sampling.sampler, sampling.guidance) == (full.sampler, full.guidance)


def test_the_log_follows_the_output():
    assert MAR.parse(["--output_dir", "there"]).log_dir == "there"
    assert MAR.parse(["--output_dir", "there", "--log_dir", "here"]).log_dir == "here"
    assert MAR.parse([]).log_dir == "./output_dir"


def test_the_size_of_the_head_is_that_of_the_name():
    assert [getattr(MAR.parse(["--model", "mar_base"]), f"diffloss_{x}") for x in "dw"] == [6, 1024]
    assert [getattr(FLOWAR.parse(["--model", "flowar_small"]), f"diffloss_{x}") for x in "dw"] == [2, 1024]
    assert MAR.parse(["--model", "mar_base", "--diffloss_d", "3"]).diffloss_d == 3


def test_explicit_flags_win_over_a_models_defaults():
    args = MAR.parse(["--img_size", "64", "--model", "mar_fashion", "--diff_sampler", "default"])
    assert (args.img_size, args.diff_sampler, args.class_num) == (64, "default", 10)
    assert (MAR.parse(["--model", "mar_base"]).img_size, MAR.parse([]).model) == (256, "mar_large")


def test_unknown_model_is_refused(capsys):
    with pytest.raises(SystemExit) as end:
        MAR.parse(["--model", "mar_tiny"])
    assert end.value.code == 2
    assert "mar_tiny" in capsys.readouterr().err


FLOW_COMMANDS = [
    (FLOWAR_EVAL, "flowar_small", "--diffloss_d 2 --diffloss_w 1024 --flow_upper_steps 25 --cfg 4.2 --guidance 0.9"),
    (FLOWAR_EVAL, "flowar_large", "--diffloss_d 12 --diffloss_w 1024 --flow_upper_steps 25 --cfg 2.4 --guidance 0.9"),
    (FLOWAR_EVAL, "flowar_huge", "--diffloss_d 12 --diffloss_w 1536 --flow_upper_steps 50 --cfg 2.4 --guidance 0.7"),
    (XAR_EVAL, "xar_base", "--flow_upper_steps 50 --cfg 2.7"),
    (XAR_EVAL, "xar_large", "--flow_upper_steps 50 --cfg 2.3"),
    (XAR_EVAL, "xar_huge", "--flow_upper_steps 50 --cfg 2.2"),
]
COMMON = """--flow_lower_steps 15 --eval_bsz 256 --num_images 50000 --output_dir D --resume F --vae_path V --data_path D
--evaluate"""


@pytest.mark.parametrize(("family", "model", "flags"), FLOW_COMMANDS, ids=[command[1] for command in FLOW_COMMANDS])
def test_released_flow_command_line_builds_the_released_model(family, model, flags):
    args = family.parse(["--model", model, *flags.split(), *COMMON.split()])
    with torch.device("meta"):
        built = build_model(model, **family.arguments(args))
    assert {name: list(value.shape) for name, value in built.named_parameters()} == manifest(model)["parameters"]
    sampling = family.sampling(args)
    found = (sampling.schedule.upper, sampling.schedule.lower, sampling.guidance.scale)
    assert found == (args.flow_upper_steps, 15, args.cfg)
    assert sampling.guidance.max_time == (args.guidance if family is FLOWAR_EVAL else 1)


@pytest.mark.parametrize(
    ("family", "model", "flags", "tokens"),
    [
        (FLOWAR_EVAL, "flowar_small", "--img_size 512 --scales 1 2 4 8 16 32", 1365),
        (XAR_EVAL, "xar_base", "--img_size 512", 1024),
        *((XAR_EVAL, "xar_base", f"--cells_per_side {n}", 256) for n in (1, 2, 4, 8, 16)),
    ],
)
def test_released_sizes_on_other_grids(family, model, flags, tokens):
    args = family.parse(["--model", model, *flags.split()])
    with torch.device("meta"):
        built = build_model(model, **family.arguments(args))
    assert built.encoder_pos_embed_learned.shape[1] == tokens
    ar_steps = args.cells_per_side**2 if family is XAR_EVAL else len(args.scales)
    assert len(built.nfe(**family.sampling(args).steps)) == ar_steps


def test_step_counts_are_the_recorded_ones():
    recorded = load_json("schedules.json")["flow"]
    assert {case["model"] for case in recorded} == {"flowar", "xar"}
    for case in recorded:
        family = FLOWAR_EVAL if case["model"] == "flowar" else XAR_EVAL
        flags = ["--flow_upper_steps", str(case["upper"]), "--flow_lower_steps", str(case["lower"])]
        schedule = family.sampling(family.parse(flags)).schedule
        assert [schedule.steps(step, case["num_iter"]) for step in range(case["num_iter"])] == case["steps"], case


INTERVAL = ["--guidance", "0.8", "--guidance_min_time", "0.1", "--skip_guidance_below", "1.05"]


@pytest.mark.parametrize("family", [MAR, FLOWAR, FLOWAR_EVAL, XAR, XAR_EVAL])
def test_every_command_has_an_interval_of_guidance_and_a_threshold(family):
    guidance = family.sampling(family.parse(["--cfg", "2", *INTERVAL])).guidance
    assert guidance == Guidance(2.0, "linear", 0.8, 0.1, 1.05)
    default = family.sampling(family.parse([])).guidance
    assert default == Guidance(1.0, "linear", 0.9 if family in (FLOWAR, FLOWAR_EVAL) else 1.0)


@pytest.mark.parametrize("family", [MAR, FLOWAR, FLOWAR_EVAL, XAR, XAR_EVAL])
def test_every_command_takes_a_step_schedule(family, tmp_path):
    path = tmp_path / "schedule.json"
    sampler = family.sampling(family.parse([])).sampler
    made_for = {"weights": {}, "sampling": {"sampler": sampler, "cfg": 2.0}}
    path.write_text(json.dumps({**made_for, "counts": [3, 1], "times": [[1.0], [1.0]]}))
    flags = ["--step_schedule", str(path), *(["--num_iter", "2"] if family is MAR else [])]
    assert family.sampling(family.parse([*flags, "--cfg", "2"])).schedule.counts == (3, 1)
    with pytest.raises(ValueError, match=r"for cfg 2.0, not 3.0"):
        family.sampling(family.parse([*flags, "--cfg", "3"]))
    path.unlink()
    with pytest.raises(FileNotFoundError, match="no step schedule"):
        family.sampling(family.parse(flags))


@pytest.mark.parametrize("family", [FLOWAR, FLOWAR_EVAL, XAR, XAR_EVAL])
def test_commands_of_flow_models_have_a_feature_cache(family):
    given = ["--feature_every", "3", "--feature_order", "1", "--feature_fresh", "2"]
    assert family.sampling(family.parse(given)).extrapolation == Extrapolation(3, 1, 2)
    assert family.sampling(family.parse([])).extrapolation == Extrapolation()
    with pytest.raises(ValueError, match="every is 0"):
        family.sampling(family.parse(["--feature_every", "0"]))


def test_mar_has_orders_and_groups_of_tokens(capsys):
    given = ["--token_order", "gtr", "--tokens_per_step", "stages"]
    assert MAR.sampling(MAR.parse(given)).grouping == Grouping("gtr", "stages")
    assert MAR.sampling(MAR.parse([])).grouping == Grouping("random", "cosine")
    with pytest.raises(SystemExit) as end:
        MAR.parse(["--token_order", "spiral"])
    assert end.value.code == 2
    assert "spiral" in capsys.readouterr().err


def test_mar_has_caches_of_its_backbone():
    given = ["--cache_tokens", "9", "--cache_conditions", "3", "--cache_first", "4"]
    assert MAR.sampling(MAR.parse(given)).caching == Caching(9, 3, 4)
    assert MAR.sampling(MAR.parse([])).caching == Caching(1, 1, 5)
    with pytest.raises(ValueError, match=r"Caching\.conditions is 0"):
        MAR.sampling(MAR.parse(["--cache_conditions", "0"]))


def test_xars_cosine_guidance_is_linear():
    """The released training script names one and computes the other."""
    assert XAR.sampling(XAR.parse([])).guidance.schedule == "linear"
    assert XAR.sampling(XAR.parse(["--cfg_schedule", "constant"])).guidance.schedule == "constant"
    with pytest.raises(ValueError, match="cosine"):
        FLOWAR.sampling(FLOWAR.parse(["--cfg_schedule", "cosine"]))
