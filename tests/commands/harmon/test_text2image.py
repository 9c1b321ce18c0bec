"""text2image.py: files and what they say of themselves, prompts from anywhere, refusals."""

import io
import json

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image
from safetensors.torch import save_file

from disa import Guidance, StepSchedule, load_model
from disa.generation.generators import PromptGenerator, Sampling
from disa.models.harmon import Harmon
from disa.runtime.fingerprint import fingerprint
from tests.commands.harmon.conftest import CONFIG, FOLDER, QUICK, refused
from tests.conftest import small_mar

CPU = torch.device("cpu")


def pixels(path):
    return np.array(Image.open(path), int)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_prompt_gets_a_grid_that_says_how_it_was_made(call, tmp_path):
    for name in ("grid.png", "grid.jpg"):
        flags = ["--prompt", "a bag, “größer”", "--output", tmp_path / "new" / name, "--seed", 7, "--cfg", 2]
        result = call("text2image", *QUICK, *flags)
        assert (result.code, result.out) == (0, f"{tmp_path / 'new' / name}\n")
    assert names(tmp_path / "new") == ["grid.jpg", "grid.png"]
    png, jpg = Image.open(tmp_path / "new" / "grid.png"), Image.open(tmp_path / "new" / "grid.jpg")
    assert png.size == jpg.size == (64, 64)
    assert (png.format, jpg.format) == ("PNG", "JPEG")
    said = json.loads(png.text["disa"])
    assert said == json.loads(jpg.getexif()[ExifTags.Base.ImageDescription])
    expected = {"prompt": "a bag, “größer”", "seed": 7, "cfg": 2.0, "num_iter": 2, "upper_steps": 4, "lower_steps": 3}
    expected |= {"sampler": "DiSA", "annealing_strategy": "linear", "temperature": 1.0}
    expected |= {"model": "harmon_fashion", "image_size": 32, "grid_size": 2}
    expected |= {"cfg_schedule": "constant", "cfg_prompt": "Generate an image.", "dtype": "float32"}
    assert expected.items() <= said.items()
    assert len(said["weights"]) == 12
    assert said["checkpoint"].endswith("harmon.pth")


def test_orders_groups_caches_and_guidance_are_said_where_they_are_not_the_default(call, tmp_path):
    flags = {"token_order": "gtr", "tokens_per_step": "stages", "guidance": 0.8, "guidance_min_time": 0.1}
    flags |= {"skip_guidance_below": 1.05, "cache_tokens": 2, "cache_conditions": 3, "cache_first": 1}
    given = [word for name, value in flags.items() for word in (f"--{name}", value)]
    for name, more in (("own.png", given), ("plain.png", [])):
        assert call("text2image", *QUICK, "--cfg", 2, *more, "--output", tmp_path / name).code == 0
    own, plain = (json.loads(Image.open(tmp_path / name).text["disa"]) for name in ("own.png", "plain.png"))
    assert own == {**plain, **flags}
    assert (pixels(tmp_path / "own.png") != pixels(tmp_path / "plain.png")).any()


def test_a_step_schedule_is_said_with_its_counts(call, checkpoint, tmp_path):
    weights = fingerprint(load_model("harmon_fashion", checkpoint))
    content = {"weights": {"float32": weights}, "sampling": {"sampler": "DiSA", "cfg": 2.0}}
    (tmp_path / "one.json").write_text(json.dumps({**content, "counts": [3, 2], "times": [[0, 500, 950], [0, 950]]}))
    flags = ["--num_iter", 2, "--step_schedule", tmp_path / "one.json", "--output", tmp_path / "own.png"]
    assert call("text2image", *flags, "--cfg", 2).code == 0
    said = json.loads(Image.open(tmp_path / "own.png").text["disa"])
    assert (said["upper_steps"], said["lower_steps"], said["step_schedule"]) == (3, 2, str(tmp_path / "one.json"))
    assert said["annealing_strategy"].startswith("calibrated-")
    assert refused(call("text2image", *flags), "for cfg 2.0, not 3.0")
    (tmp_path / "one.json").write_text(
        json.dumps({**content, "weights": {}, "counts": [3, 2], "times": [[0, 500, 950], [0, 950]]})
    )
    assert refused(call("text2image", *flags, "--cfg", 2), "for weights")


def test_images_depend_on_prompt_and_seed_and_not_on_company(call, tmp_path):
    call("text2image", *QUICK, "--prompt", "a bag", "a dark narrow bag", "a bag", "--output", tmp_path / "o.png")
    assert names(tmp_path) == ["o_000.png", "o_001.png", "o_002.png"]
    first, second, third = (pixels(tmp_path / name) for name in names(tmp_path))
    assert (first == third).all()
    assert (first != second).any()
    call("text2image", *QUICK, "--prompt", "a dark narrow bag", "--output", tmp_path / "alone.png", "--batch_size", 1)
    assert abs(pixels(tmp_path / "alone.png") - second).max() <= 1  # rounding: another number of rows
    call("text2image", *QUICK, "--prompt", "a dark narrow bag", "--output", tmp_path / "one.png", "--grid_size", 1)
    assert abs(pixels(tmp_path / "one.png") - second[:32, :32]).max() <= 1
    call("text2image", *QUICK, "--prompt", "a bag", "--output", tmp_path / "other.png", "--seed", 2)
    assert (pixels(tmp_path / "other.png") != first).any()


def test_prompts_of_a_file_and_of_standard_input(call, tmp_path, monkeypatch):
    (tmp_path / "prompts.txt").write_text("a bag\n\n  a coat \n")
    monkeypatch.setattr("sys.stdin", io.StringIO("a bag\na coat\n"))
    for source, name in ((tmp_path / "prompts.txt", "file"), ("-", "stdin")):
        result = call(
            "text2image", *QUICK, "--prompt_file", source, "--grid_size", 1, "--output", tmp_path / f"{name}.png"
        )
        assert result.code == 0
        assert json.loads(Image.open(tmp_path / f"{name}_001.png").text["disa"])["prompt"] == "a coat"
    assert (pixels(tmp_path / "file_001.png") == pixels(tmp_path / "stdin_001.png")).all()


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_other_shapes_and_types(call, tmp_path, dtype):
    flags = ["--image_size", "16x48", "--dtype", dtype, "--grid_size", 1, "--output", tmp_path / "o.png", "--cfg", 1]
    result = call("text2image", *QUICK, *flags)
    assert result.code == 0
    assert Image.open(tmp_path / "o.png").size == (48, 16)


def test_progress_shows_ar_steps_and_diffusion_steps(call, tmp_path, monkeypatch):
    shown = []
    monkeypatch.setattr("tqdm.tqdm.set_postfix", lambda self, values: shown.append((self.total, self.n, values)))
    assert call("text2image", *QUICK, "--output", tmp_path / "o.png", "--batch_size", 2).code == 0
    assert [(total, n) for total, n, _ in shown] == [(4, n) for n in range(4)]  # two batches of two AR steps
    assert [values["diffusion steps"] for *_, values in shown] == [4, 3, 4, 3]
    assert [values["NFE"] for *_, values in shown] == [4, 7, 11, 14]


def test_a_batch_holds_images_of_several_prompts(call, tmp_path, monkeypatch):
    rows, there, generate = [], [], Harmon.generate

    def watched(self, **settings):
        rows.append(len(settings["noise"].seeds))
        there.append(names(tmp_path / "o"))
        return generate(self, **settings)

    monkeypatch.setattr(Harmon, "generate", watched)
    (tmp_path / "o").mkdir()
    prompts = ["a bag", "a dark narrow bag", "a coat"]
    flags = ["--prompt", *prompts, "--grid_size", 1, "--batch_size", 2, "--output", tmp_path / "o" / "o.png"]
    result = call("text2image", *QUICK, *flags)
    files = [f"o_00{i}.png" for i in range(3)]
    assert (result.code, result.out.split()) == (0, [str(tmp_path / "o" / name) for name in files])
    assert (rows, there) == ([2, 1], [[], files[:2]])
    rows.clear()
    there.clear()
    call("text2image", *QUICK, "--prompt", *prompts, "--batch_size", 5, "--output", tmp_path / "o" / "grid.png")
    grids = [f"grid_00{i}.png" for i in range(3)]
    assert (rows, there) == ([5, 5, 2], [files, [*grids[:1], *files], [*grids[:2], *files]])
    for file, grid, prompt in zip(files, grids, prompts, strict=True):
        assert abs(pixels(tmp_path / "o" / file) - pixels(tmp_path / "o" / grid)[:32, :32]).max() <= 1
        assert json.loads(Image.open(tmp_path / "o" / grid).text["disa"])["prompt"] == prompt


def test_what_a_jpeg_cannot_say_is_refused_before_anything_is_generated(call, tmp_path, monkeypatch):
    def generate(prompt, name):
        return call("text2image", *QUICK, "--grid_size", 1, "--prompt", "a bag", prompt, "--output", tmp_path / name)

    def said(name):
        return Image.open(tmp_path / name).getexif()[ExifTags.Base.ImageDescription]

    assert generate("a bag", "short.jpg").code == 0
    spaces = 65_000 - len(said("short_001.jpg"))  # which cost no tokens
    assert generate("a bag" + " " * spaces, "long.jpg").code == 0
    assert len(said("long_001.jpg")) == 65_000
    assert generate("a bag" + " " * (spaces + 1), "longer.png").code == 0
    monkeypatch.setattr(Harmon, "generate", None)
    result = generate("a bag" + " " * (spaces + 1), "longer.jpg")
    problem = "longer_001.jpg is to say of itself takes 65001 bytes, and a JPEG holds 65000; shorten the prompt"
    assert refused(result, problem)
    assert not list(tmp_path.glob("longer*.jpg"))


def test_each_seed_gets_a_file(call, tmp_path):
    flags = ["--grid_size", 1, "--prompt", "a bag", "--negative_prompt", "a coat"]
    result = call("text2image", *QUICK, *flags, "--seed", 5, 2, "--output", tmp_path / "o.png")
    assert (result.code, names(tmp_path)) == (0, ["o_000.png", "o_001.png"])
    assert call("text2image", *QUICK, *flags, "--seed", 2, "--output", tmp_path / "two.png").code == 0
    assert (tmp_path / "two.png").read_bytes() == (tmp_path / "o_001.png").read_bytes()
    said = json.loads(Image.open(tmp_path / "o_000.png").text["disa"])
    assert (said["seed"], said["cfg_prompt"]) == (5, "a coat")


def test_words_that_the_bundled_model_has_not_learned_are_told(call, tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr("builtins.print", lambda *words, **_: said.append(" ".join(map(str, words))))
    flags = ["--grid_size", 1, "--output", tmp_path / "o.png"]
    assert call("text2image", *QUICK, *flags, "--prompt", "a dark dog", "a t-shirt").code == 0
    assert next(line for line in said if "learned" in line).startswith("note: the model has learned no dog; it knows")
    said.clear()
    assert call("text2image", *QUICK, *flags, "--prompt", "a photo of an ankle boot").code == 0
    assert not [line for line in said if "learned" in line]


BAD = {
    "empty prompt": (["--prompt", " "], "a prompt is empty"),
    "one of them empty": (["--prompt", "a bag", ""], "a prompt is empty"),
    "long prompt": (["--prompt", "a bag", "very " * 600 + "dark bag"], "the prompt 'very very"),
    "image size": (["--image_size", "30"], "image_size is 30; a multiple of 4 is needed"),
    "other side": (["--image_size", "32x30"], "image_size is 32x30; a multiple of 4 is needed"),
    "huge image": (
        ["--image_size", "96"],
        "the language model has room for 0; take a smaller image",
    ),
    "other checkpoint": (["--checkpoint", "{folder}/other.safetensors"], "other.safetensors does not fit this model"),
    "no checkpoint": (["--checkpoint", "nowhere.pth"], "there is no checkpoint nowhere.pth"),
    "AR steps": (["--num_iter", "65"], "num_iter is 65; an image of 64 tokens takes 1 to 64 AR steps"),
    "no AR steps": (["--num_iter", "0"], "num_iter is 0; at least 1 AR step is needed"),
    "schedule": (["--upper_steps", "2"], "upper is 2, below lower = 3"),
    "sampler": (["--sampler", "euler"], "'euler'; allowed are"),
    "guidance": (["--cfg", "-1"], "scale is -1.0"),
    "guidance interval": (["--guidance", "0.4", "--guidance_min_time", "0.5"], "min_time is 0.5"),
    "guidance threshold": (["--skip_guidance_below", "0.9"], "skip_below is 0.9"),
    "temperature": (["--temperature", "nan"], "temperature is nan"),
    "seed": (["--seed", "-1"], "seed is -1"),
    "grid": (["--grid_size", "0"], "grid_size is 0; it must be at least 1"),
    "batch": (["--batch_size", "0"], "batch_size is 0; it must be at least 1"),
    "device": (["--device", "tpu"], "'tpu'; allowed are"),
    "no prompts": (["--prompt_file", "{folder}/empty.txt"], "empty.txt holds no prompt"),
    "no file of prompts": (["--prompt_file", "nowhere.txt"], "nowhere.txt"),
    "kind of file": (["--output", "{folder}/out/o.gif"], "a name that ends in .png, .jpg or .jpeg is needed"),
    "folder": (["--output", "{folder}/folder.png"], "would replace the folder"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_ends_in_one_sentence_and_no_file(call, tmp_path, case):
    save_file(small_mar().state_dict(), tmp_path / "other.safetensors")
    (tmp_path / "empty.txt").write_text("\n")
    (tmp_path / "folder.png").mkdir()
    flags, named = BAD[case]
    result = call(
        "text2image", *QUICK, "--output", tmp_path / "out" / "o.png", *[flag.format(folder=tmp_path) for flag in flags]
    )
    assert refused(result, named)
    assert result.out == ""
    assert not (tmp_path / "out").exists()
    assert names(tmp_path / "folder.png") == []


def test_wrong_configs_are_named(call, tmp_path):
    assert refused(call("text2image", config="configs/models/mine.py"), "there is no config configs/models/mine.py")
    (tmp_path / "mine.py").write_text(f"_base_ = '{FOLDER / CONFIG}'\ndefaults = dict(num_itre=8)")
    assert refused(
        call("text2image", config=tmp_path / "mine.py"), "mine.py: defaults has num_itre; allowed are batch_size, "
    )


def test_prompts_of_different_lengths_share_a_batch(checkpoint):
    model = load_model("harmon_fashion", checkpoint)
    sampling = Sampling(3, StepSchedule(4, 2), guidance=Guidance(3.0, "constant"))
    prompts = ["a bag", "a grey photo of a dark narrow dress on a black ground"]
    generator = PromptGenerator(model, prompts, sampling, CPU, image_shape=(8, 8))
    both = generator([0, 1])
    differences = [(generator([i])[0] - both[i]).abs().max().item() for i in (0, 1)]
    assert max(differences) < 3e-4
