"""Configs: each is a model that was published, and a schedule; what is wrong with one is said in a sentence."""

import pytest
import torch

from disa import StepSchedule
from disa.commands.harmon import add_image_flags, parse, parser, read_model_config
from disa.generation.generators import choose_attention, image_shape
from tests.commands.harmon.conftest import FOLDER

CONFIGS = FOLDER / "configs" / "models"
# config -> model, sampler, diffusion steps at the first and the last AR step
EXPECTED = {
    "qwen2_5_1_5b_kl16_mar_h": ("harmon_1.5b", "default", 100, 5),
    "qwen2_5_1_5b_kl16_mar_h_disa_100_5": ("harmon_1.5b", "DiSA", 100, 5),
    "qwen2_5_1_5b_kl16_mar_h_disa_50_5": ("harmon_1.5b", "DiSA", 50, 5),
    "qwen2_5_1_5b_kl16_mar_h_disa_25_5": ("harmon_1.5b", "DiSA", 25, 5),
    "qwen2_5_0_5b_kl16_mar_b": ("harmon_0.5b", "default", 100, 5),
    "qwen2_5_0_5b_kl16_mar_b_disa_50_5": ("harmon_0.5b", "DiSA", 50, 5),
}


def flags(*argv):
    known = parser("")
    add_image_flags(known)
    return parse(known, argv)


def test_every_config_is_expected():
    assert {path.stem for path in CONFIGS.glob("*.py")} == {*EXPECTED, "harmon_fashion"}


@pytest.mark.parametrize("name", EXPECTED)
def test_config_says_what_its_name_says(name):
    args, config = flags(str(CONFIGS / f"{name}.py"))
    assert (config["model"], args.sampler, args.upper_steps, args.lower_steps) == EXPECTED[name]
    assert args.annealing_strategy == "linear"
    assert (args.image_size, args.num_iter, args.cfg) == (512, 64, 3.0)
    size = config["model"].removeprefix("harmon_").upper()
    assert config["text_tokenizer"] == f"Qwen/Qwen2.5-{size}-Instruct"


def test_flags_win_over_the_config():
    path = str(CONFIGS / "harmon_fashion.py")
    args, config = flags(path)
    assert (args.image_size, args.num_iter) == (32, 16)  # the config's defaults
    schedule = StepSchedule(args.upper_steps, args.lower_steps, args.annealing_strategy)
    assert schedule == StepSchedule(**config["schedule"])
    steps = ["--upper_steps", "9", "--lower_steps", "2", "--annealing_strategy", "cosine"]
    args, _ = flags("--image_size", "16x32", path, *steps)
    assert (args.image_size, args.upper_steps, args.lower_steps, args.annealing_strategy) == ("16x32", 9, 2, "cosine")


def test_wrong_configs_are_named(tmp_path):
    path = tmp_path / "mine.py"
    with pytest.raises(FileNotFoundError, match=r"there is no config .*mine\.py"):
        read_model_config(path)
    for text, message in (
        ("model = 'harmon'\nsampler = 'DiSA'", "says nothing on text_tokenizer, schedule, defaults"),
        (
            f"_base_ = '{CONFIGS}/harmon_fashion.py'\nschedule = dict(_delete_=True, upper=5)",
            "says nothing on schedule.lower, schedule.strategy",
        ),
        (
            f"_base_ = '{CONFIGS}/harmon_fashion.py'\ndefaults = dict(num_itre=8, upper_steps=9, cfg=2.0)",
            "defaults has num_itre, upper_steps; allowed are batch_size, cache_conditions, ",
        ),
        ("model = ", "mine.py cannot be read as a config"),
        ("_base_ = 'yours.py'", "mine.py cannot be read as a config"),
    ):
        path.write_text(text)
        with pytest.raises(ValueError, match=message) as error:
            read_model_config(path)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("size", "stride", "shape"),
    [(512, 16, (32, 32)), ("512", 16, (32, 32)), ("512x768", 16, (32, 48)), ("16X32", 4, (4, 8)), (1024, 16, (64, 64))],
)
def test_image_sizes(size, stride, shape):
    assert image_shape(size, stride) == shape


@pytest.mark.parametrize("size", [500, "512x700", "0", "-16", "512x", "16x16x16", "big", "", "5e2", "1²6"])
def test_image_sizes_that_are_none(size):
    with pytest.raises(ValueError, match=f"image_size is {size}; a multiple of 16 is needed"):
        image_shape(size, 16)


@pytest.mark.parametrize(
    ("device", "dtype", "installed", "expected"),
    [
        ("cuda", torch.bfloat16, True, "flash_attention_2"),
        ("cuda", torch.float32, True, "sdpa"),
        ("cuda", torch.bfloat16, False, "sdpa"),
        ("cpu", torch.bfloat16, True, "sdpa"),
    ],
)
def test_flash_attention_where_it_can_work(monkeypatch, capsys, device, dtype, installed, expected):
    class Model:
        def __init__(self):
            self.dtype, self.config = dtype, type("Config", (), {})()

        def set_attn_implementation(self, name):
            self.config._attn_implementation = name

    monkeypatch.setattr("transformers.utils.is_flash_attn_2_available", lambda: installed)
    model = Model()
    choose_attention(model, torch.device(device))
    assert model.config._attn_implementation == expected
    assert capsys.readouterr().err == f"the language model attends with {expected}\n"
