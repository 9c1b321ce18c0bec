"""`disa generate`: pictures, grids, animations, edits, and what their files say."""

import io
import re

import numpy as np
import pytest
import torch
from PIL import Image

import disa
from disa.commands import generate
from disa.generation.images import read_metadata
from disa.pipeline import Pipeline
from tests.helpers.scripts import command

FEW = ("--num_iter", "3", "--upper_steps", "3", "--lower_steps", "1", "--device", "cpu")
SETTINGS = {"num_iter": 3, "schedule": disa.StepSchedule(3, 1)}


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def pipe():
    return Pipeline.from_pretrained("mar_fashion", device="cpu")


def pixels(picture):
    return np.asarray(picture if isinstance(picture, Image.Image) else Image.open(picture))


def frames(path):
    animation = Image.open(path)
    for number in range(animation.n_frames):
        animation.seek(number)
        yield pixels(animation.convert("L"))


def test_one_picture_is_that_of_the_pipeline_and_its_file_says_how_it_was_made(tmp_path, pipe, capsys):
    words = ("--cfg", "2", "--temperature", "0.9", "--sampler", "DDIM", "--annealing_strategy", "cosine")
    assert (
        command("generate", "mar_fashion", "--labels", "Bag", "--seeds", "7", *FEW, *words, "--out", "new/o.png") == 0
    )
    schedule = disa.StepSchedule(3, 1, "cosine")
    expected = pipe(labels=[8], seeds=[7], num_iter=3, schedule=schedule, sampler="DDIM", guidance=2.0, temperature=0.9)
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["o.png"]
    np.testing.assert_array_equal(pixels("new/o.png"), pixels(expected.images[0]))
    said = read_metadata("new/o.png")
    assert said.pop("disa") == disa.__version__
    assert re.fullmatch("[0-9a-f]{12}", said.pop("weights"))
    assert said == {
        "label": "Bag",
        "seed": 7,
        "model": "mar_fashion",
        "num_iter": 3,
        "diff_sampler": "DDIM",
        "diff_upper_steps": 3,
        "diff_lower_steps": 1,
        "diff_annealing_strategy": "cosine",
        "cfg": 2.0,
        "cfg_schedule": "linear",
        "temperature": 0.9,
        "dtype": "float32",
    }
    printed = capsys.readouterr()
    assert re.fullmatch(
        rf"new/o.png\n1 picture, NFE {expected.nfe} per image, \d+\.\d\d seconds, seed 7\n", printed.out
    )
    assert "3/3" in printed.err  # the bar goes through the AR steps


def test_a_folder_gets_a_picture_for_each_seed_and_a_grid_with_a_column_per_label(pipe):
    words = ("--labels", "9", "ankle boot", "--seeds", "1", "2", "3", "4", *FEW, "--out", "o", "--grid", "--scale", "2")
    assert command("generate", "mar_fashion", *words) == 0
    names = ["000-9-seed1", "001-ankle-boot-seed2", "002-9-seed3", "003-ankle-boot-seed4"]
    expected = [pixels(one) for one in pipe(labels=[9] * 4, seeds=[1, 2, 3, 4], **SETTINGS).images]
    for name, one in zip(names, expected, strict=True):
        np.testing.assert_array_equal(pixels(f"o/{name}.png"), one.repeat(2, 0).repeat(2, 1))
    grid = pixels(Image.open("o/grid.png").convert("L"))
    assert grid.shape == (64 + 2 + 64,) * 2
    for i, one in enumerate(expected):
        row, column = 66 * (i // 2), 66 * (i % 2)
        np.testing.assert_array_equal(grid[row : row + 64 : 2, column : column + 64 : 2], one)
    said = read_metadata("o/grid.png")
    assert (said["label"], said["seed"]) == ([9, "ankle boot"] * 2, [1, 2, 3, 4])
    assert read_metadata("o/001-ankle-boot-seed2.png")["label"] == "ankle boot"


def test_fresh_seeds_are_printed_and_make_the_picture_again(capsys):
    assert command("generate", "flowar_fashion", "--labels", "1", "--num_images", "2", "--out", "o.png", "--grid") == 0
    seeds = capsys.readouterr().out.split("seeds ")[-1].split()
    assert len(set(seeds)) == 2
    assert (
        command("generate", "flowar_fashion", "--labels", "1", "--seeds", *seeds, "--out", "again.png", "--grid") == 0
    )
    np.testing.assert_array_equal(pixels("o.png"), pixels("again.png"))


@pytest.mark.parametrize("model", ["mar_fashion", "flowar_fashion", "xar_fashion"])
def test_an_animation_ends_with_the_picture(model):
    few = FEW[2:] if model != "mar_fashion" else FEW
    words = ("--labels", "trouser", "bag", "--seeds", "1", "2", *few, "--out", "o", "--gif", "--grid")
    assert command("generate", model, *words) == 0
    for name, size in (("000-trouser-seed1", (32, 32)), ("grid", (66, 32))):
        shown = list(frames(f"o/{name}.gif"))
        assert len(shown) == {"mar_fashion": 3}.get(model, 4)
        assert Image.open(f"o/{name}.gif").size == size
        assert len({one.tobytes() for one in shown}) == len(shown)
        last = pixels(Image.open(f"o/{name}.png").convert("L"))
        assert np.abs(shown[-1].astype(int) - last).max() <= 1  # a palette
        assert read_metadata(f"o/{name}.gif") == read_metadata(f"o/{name}.png")


def test_a_gif_alone_and_of_several_pictures():
    words = ("--labels", "1", "--seeds", "1", *FEW)
    assert command("generate", "mar_fashion", *words, "--out", "o.gif") == 0
    assert command("generate", "mar_fashion", *words, "--out", "p.png", "--gif") == 0
    assert sorted(path.name for path in generate.Path().iterdir()) == ["o.gif", "p.gif", "p.png"]
    np.testing.assert_array_equal(list(frames("o.gif")), list(frames("p.gif")))


@pytest.mark.slow
def test_prompts_from_a_file_of_harmon(monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("a bag\n\na purple shoe\n"))
    words = ("--prompt_file", "-", "--negative_prompt", "a coat", "--image_size", "32", "--seeds", "1", "2", *FEW)
    with pytest.warns(UserWarning, match="learned no purple"):
        assert command("generate", "harmon_fashion", *words, "--out", "o") == 0
    said = read_metadata("o/001-a-purple-shoe-seed2.png")
    asked = ("prompt", "negative_prompt", "image_size", "seed")
    assert [said[name] for name in asked] == ["a purple shoe", "a coat", "32", 2]
    harmon = Pipeline.from_pretrained("harmon_fashion", device="cpu")
    call = dict(prompts=["a bag", "a purple shoe"], seeds=[1, 2], negative_prompt="a coat", **SETTINGS)
    for path, one in zip(sorted(generate.Path("o").iterdir()), harmon(**call).images, strict=True):
        np.testing.assert_array_equal(pixels(path), pixels(one))


def test_an_edit_keeps_what_the_mask_leaves(pipe):
    image, mask = pipe(labels=[1], seeds=[1], **SETTINGS).images[0], Image.new("L", (32, 32))
    mask.paste(255, (16, 0, 32, 32))
    image.save("image.png")
    mask.save("mask.png")
    words = ("--labels", "bag", "--seeds", "5", *FEW, "--edit", "image.png", "--mask", "mask.png")
    assert command("generate", "mar_fashion", *words, "--out", "o.png") == 0
    (expected,) = pipe.edit(image, mask, labels=[8], seeds=[5], **SETTINGS).images
    np.testing.assert_array_equal(pixels("o.png"), pixels(expected))
    change = np.abs(pixels("o.png").astype(int) - pixels(image))
    assert change[:, :12].mean() <= 3 < 10 < change[:, 16:].mean()  # the VAE is not lossless
    assert [read_metadata("o.png")[name] for name in ("edit", "mask")] == ["image.png", "mask.png"]


@pytest.mark.parametrize(
    ("mask", "named"),
    [(Image.new("L", (32, 32)), "the mask is black everywhere"), (Image.new("L", (8, 8)), "one size")],
)
def test_a_wrong_mask_is_refused(mask, named, capsys):
    Image.new("L", (32, 32)).save("image.png")
    mask.save("mask.png")
    words = ("generate", "mar_fashion", "--labels", "1", "--edit", "image.png", "--mask", "mask.png", "--out", "o")
    assert command(*words) == 2
    assert named in capsys.readouterr().err
    assert not generate.Path("o").exists()


def test_nothing_is_overwritten(monkeypatch, capsys):
    words = ("generate", "flowar_fashion", "--labels", "1", "--seeds", "1", "--out", "o")
    assert command(*words) == 0
    written = generate.Path("o/000-1-seed1.png").read_bytes()
    monkeypatch.setattr(generate, "load", None)  # refused before
    assert command(*words, "--grid") == 2
    assert "--out would overwrite o/000-1-seed1.png" in capsys.readouterr().err
    assert [path.name for path in generate.Path("o").iterdir()] == ["000-1-seed1.png"]
    assert generate.Path("o/000-1-seed1.png").read_bytes() == written


def test_a_saved_pipeline_is_a_model_too(pipe, capsys):
    pipe.save_pretrained("saved")
    words = ("generate", "saved", "--labels", "bag", "--seeds", "1", *FEW[2:])
    assert command(*words, "--num_iter", "3", "--out", "o.png") == 0
    np.testing.assert_array_equal(pixels("o.png"), pixels(pipe(labels=[8], seeds=[1], **SETTINGS).images[0]))
    for wrong, named in (("--num_iter 65", "--num_iter is 65"), ("--upper_steps 0", "--upper_steps: upper is 0")):
        assert command(*words, *wrong.split(), "--out", "p.png") == 2
        assert named in capsys.readouterr().err


def test_the_own_settings_are_the_default():
    """What is given changes nothing else."""
    args = disa.commands.cli.get_parser(["generate"]).parse_args(["generate", "mar_fashion", "--labels", "1"])
    own = generate.disa_recipe("mar_fashion").sampling
    assert generate.get_settings(args, own) == {}
    args.lower_steps, args.cfg = 5, 3.0
    found = generate.get_settings(args, own)
    assert found == {
        "schedule": disa.StepSchedule(own.schedule.upper, 5, own.schedule.strategy),
        "guidance": generate.dataclasses.replace(own.guidance, scale=3.0),
    }


def test_two_pictures_of_one_block_and_alone_are_alike(pipe):
    """An animation makes them one by one."""
    call = dict(output_type="latent", **SETTINGS)
    alone = [pipe(labels=[label], seeds=[seed], **call).images for label, seed in ((1, 1), (8, 2))]
    together = pipe(labels=[1, 8], seeds=[1, 2], **call).images
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-4, atol=1e-4)
