"""What Harmon is trained on, and its training from a config."""

import json
import signal
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from disa import Pipeline, load_model
from disa.data.text import TextTokenizer
from disa.models.harmon import IGNORED
from disa.models.vae import AutoencoderKL
from disa.runtime.files import BUNDLED
from disa.training.checkpoint import LAST
from disa.training.harmon import (
    ImageTexts,
    TrainingConfig,
    folder_text,
    image_to_text_batch,
    load_training_config,
    run_training,
    starting_model,
    text_to_image_batch,
)
from disa.weights.load import read_checkpoint
from tests.conftest import SMALL_MAR, load_json
from tests.helpers import processes
from tests.helpers.data import write_fashion
from tests.helpers.processes import ROOT, TORCHRUN

TEXT = TextTokenizer.load(BUNDLED / "harmon_fashion_tokenizer.json")
LATENTS = torch.zeros(2, 16, 8, 8)


def test_some_captions_are_replaced_by_the_unconditional_prompt():
    torch.manual_seed(0)
    whole = text_to_image_batch(TEXT, LATENTS, ["a dark bag", "a sneaker"], 0.0)
    assert [
        TEXT.tokenizer.decode(row[mask.bool()])
        for row, mask in zip(whole["input_ids"], whole["attention_mask"], strict=True)
    ] == [
        f"<|im_start|>user\nGenerate an image: {caption}<|im_end|>\n<|im_start|>assistant\n"
        for caption in ("a dark bag", "a sneaker")
    ]
    dropped = text_to_image_batch(TEXT, LATENTS, ["a dark bag", "a sneaker"], 1.0)
    assert (
        TEXT.tokenizer.decode(dropped["input_ids"][0])
        == "<|im_start|>user\nGenerate an image.<|im_end|>\n<|im_start|>assistant\n"
    )


def test_the_loss_is_on_the_answers():
    batch = image_to_text_batch(
        TEXT, LATENTS, [("What is this?", "a bag"), ("Describe the image.", "a dark wide sneaker")], 4
    )
    ids, labels = batch["input_ids"], batch["labels"]
    assert (ids == TEXT.image_token).sum(1).tolist() == [68, 68]
    assert [TEXT.tokenizer.decode(row[row != IGNORED]) for row in labels] == [
        "a bag<|im_end|>",
        "a dark wide sneaker<|im_end|>",
    ]
    assert torch.equal(ids[labels != IGNORED], labels[labels != IGNORED])
    assert (batch["attention_mask"][labels != IGNORED] == 1).all()


@pytest.fixture
def folders(tmp_path):
    """Three images with captions in three places, and one with a question."""
    rng = np.random.default_rng(0)
    for name in ("a.png", "b.png", "c.jpg"):
        (tmp_path / "images").mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (40, 50, 3), np.uint8)).save(tmp_path / "images" / name)
    (tmp_path / "captions").mkdir()
    (tmp_path / "captions" / "b.json").write_text(json.dumps({"caption": "a b", "re_caption": "a long b"}))
    described = [{"image": "a.png", "caption": "an a"}, {"image": "b.png", "annotation": "b.json"}]
    asked = [{"image": "c.jpg", "conversations": [{"value": "<image>\nWhat is it?"}, {"value": "c"}]}]
    for name, entries in (("described", described), ("asked", asked)):
        (tmp_path / f"{name}.json").write_text(json.dumps(entries))
    text_to_image = {
        "data_path": tmp_path / "described.json",
        "local_folder": tmp_path / "images",
        "cap_folder": tmp_path / "captions",
    }
    return text_to_image, {"data_path": tmp_path / "asked.json", "local_folder": tmp_path / "images"}


def test_folders_in_the_released_layout(folders):
    text_to_image, image_to_text = folders
    data = ImageTexts(text_to_image, image_to_text, 32)
    assert len(data) == 2
    assert [(caption, question, answer) for _, caption, _, question, answer in data] == [
        ("an a", "<image>\nWhat is it?", "c"),
        ("a b", "<image>\nWhat is it?", "c"),
    ]
    assert data[0][0].shape == data[0][2].shape == (3, 32, 32)
    assert ImageTexts({**text_to_image, "cap_source": "re_caption"}, None, 32)[1][1] == "a long b"
    dataset, prepare = folder_text(
        TEXT,
        AutoencoderKL(widths=(32,) * 5),
        4,
        text_to_image=text_to_image,
        image_to_text=image_to_text,
        image_size=32,
    )
    pixels, caption, asked, question, answer = dataset[0]
    described, answered = prepare(pixels[None], [caption], asked[None], [question], [answer])
    assert described["latents"].shape == answered["latents"].shape == (1, 16, 2, 2)
    assert TEXT.decode(answered["labels"][answered["labels"] != IGNORED]) == "c"
    assert ImageTexts(text_to_image, None, 32)[0][1:] == ("an a",)
    assert prepare(pixels[None], [caption])[1] is None


def test_broken_lists_are_named(folders, tmp_path):
    text_to_image, image_to_text = folders
    for content, named in (("{", "is no JSON"), ("[]", "is no list"), ('[{"picture": 1}]', "is no list")):
        (tmp_path / "broken.json").write_text(content)
        with pytest.raises(ValueError, match=named):
            ImageTexts({**text_to_image, "data_path": tmp_path / "broken.json"}, None, 32)
    (tmp_path / "images" / "a.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"a.png cannot be read as an image"):
        ImageTexts(text_to_image, image_to_text, 32)[0]
    (tmp_path / "bare.json").write_text('[{"image": "b.png"}]')
    with pytest.raises(ValueError, match="without a caption or an annotation"):
        ImageTexts({**text_to_image, "data_path": tmp_path / "bare.json"}, None, 32)[0]
    with pytest.raises(ValueError, match="has no caption under 'other'"):
        ImageTexts({**text_to_image, "cap_source": "other"}, None, 32)[1]
    (tmp_path / "mute.json").write_text('[{"image": "b.png", "conversations": [{"value": "What is it?"}]}]')
    with pytest.raises(ValueError, match=r"mute.json has an entry without a question and an answer"):
        ImageTexts(text_to_image, {**image_to_text, "data_path": tmp_path / "mute.json"}, 32)[1]
    with pytest.raises(FileNotFoundError):
        ImageTexts({**text_to_image, "data_path": tmp_path / "missing.json"}, None, 32)


TINY = {
    "mar": {"width": 16, "depth": 1, "num_heads": 2, "head_depth": 1, "head_width": 16},
    "llm": {
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "intermediate_size": 16,
    },
}


@pytest.fixture
def config(tmp_path):
    write_fashion(tmp_path, 12)
    path = tmp_path / "config.py"
    path.write_text(
        f"model = 'harmon_fashion'\nmar = {TINY['mar'] | {'grad_checkpointing': True}}\nllm = {TINY['llm']}\n"
        f"data = dict(type='fashion', root={str(tmp_path)!r})\ntraining = dict(batch_size=4, epochs=2, lr=1e-3)\n"
    )
    return str(path)


def test_training_from_a_config_gives_a_model_that_loads(config, tmp_path, capsys):
    run_training(load_training_config(config), tmp_path / "out", device="cpu")
    assert "12 items" in capsys.readouterr().out
    content = read_checkpoint(tmp_path / "out" / "checkpoint-last.pth")
    assert content["step"] == 6
    assert not any(name.startswith("vae") for name in content["model"])
    assert load_model("harmon_fashion", tmp_path / "out", **TINY).text is not None
    assert Pipeline.from_pretrained(tmp_path / "out", device="cpu").arguments["llm"] == TINY["llm"]
    # A second run finds it finished.
    run_training(load_training_config(config), tmp_path / "out", device="cpu")
    # The language model stays as it was where it is frozen.
    frozen = replace(load_training_config(config), freeze_llm=True, checkpoint=str(tmp_path / "out"))
    run_training(frozen, tmp_path / "frozen", device="cpu")
    after = read_checkpoint(tmp_path / "frozen" / "checkpoint-last.pth")["model"]
    for name, value in content["model_ema"].items():
        assert torch.equal(after[name], value) == (name.startswith("llm.") or name == "mar.class_emb.weight"), name


def test_configs_say_what_they_lack(config, tmp_path):
    plain, changed = load_training_config(config), load_training_config(config, {"training.lr": 3e-4}, seed=7)
    assert changed == replace(plain, training=replace(plain.training, lr=3e-4, seed=7))
    assert (plain.training.batch_size, plain.training.ema_rate, plain.training.dtype) == (4, 0.9999, torch.float32)
    for content, named in (
        ("model = 'harmon_fashion'", "says nothing on data"),
        ("model = 'harmon_fashion'\ndata = dict()\nmodle = 1", "has modle; allowed are"),
        ("model = 'harmon_fashion'\ndata = dict()\ntraining = dict(steps=1)", "training has steps; allowed are"),
        (
            "model = 'harmon_fashion'\ndata = dict()\ntraining = dict(dtype='bf16')",
            "dtype is 'bf16'; allowed are float32",
        ),
        ("model = 'harmon_fashion'\ndata = dict()\ntraining = dict(epochs=0)", "epochs is 0"),
        ("model = 'harmon_1.5b'\ndata = dict(drawing=dict())", r"data.drawing is called data.text_to_image now"),
        ("model = 'harmon_1.5b'\ndata = dict(answering=dict())", r"data.answering is called data.image_to_text now"),
    ):
        (tmp_path / "wrong.py").write_text(content)
        with pytest.raises(ValueError, match=named):
            load_training_config(str(tmp_path / "wrong.py"))
    with pytest.raises(ValueError, match="data does not fit"):
        run_training(replace(plain, data={"type": "fashion", "rot": 1}), tmp_path / "out", device="cpu")
    with pytest.raises(FileNotFoundError, match=r"no checkpoint .* to resume from"):
        run_training(plain, tmp_path / "out", resume=str(tmp_path / "nowhere.pth"), device="cpu")
    with pytest.raises(ValueError, match="neither a checkpoint nor a vae_path"):
        starting_model(TrainingConfig("harmon", {}, mar=SMALL_MAR, llm=load_json("harmon/index.json")["llm"]))
    lists = {"data_path": str(tmp_path / "nowhere.json")}
    for changes, named in (
        ({"data": {"type": "fashion", "drop": 2}}, "data.drop is 2; a share"),
        ({"model": "harmon_1.5b", "data": {"type": "folders"}}, "missing a required argument: 'text_to_image'"),
        ({"model": "harmon_1.5b", "data": {"type": "folders", "text_to_image": "x"}}, "data.text_to_image is 'x'"),
        ({"model": "harmon_1.5b", "data": {"type": "folders", "text_to_image": lists}}, "there is no data.text_to_im"),
        ({"vae_path": "nowhere.ckpt"}, "there is no VAE nowhere.ckpt"),
        ({"mar_weights": "nowhere.pth"}, "there is no checkpoint nowhere.pth"),
        ({"text_tokenizer": str(tmp_path / "wrong.json")}, "wrong.json cannot be read as a text tokenizer"),
    ):
        (tmp_path / "wrong.json").write_text("[]")
        with pytest.raises((ValueError, OSError), match=named):
            run_training(replace(plain, **changes), tmp_path / "out", device="cpu")
    for data in ({"type": "folders"}, {}):
        with pytest.raises(ValueError, match="harmon_fashion is trained on fashion"):
            run_training(replace(plain, data=data), tmp_path / "out", device="cpu")


def words(config, folder, *launcher):
    """scripts/train.py as words after `python`, from the folder Harmon_DiSA."""
    return *launcher, "scripts/train.py", config, "--work-dir", folder, "--device", "cpu", "--launcher", "pytorch"


@pytest.mark.slow
@pytest.mark.distributed
def test_a_killed_training_goes_on_as_if_it_had_not_been(config, tmp_path):
    with open(config, "a") as file:
        # 12 steps between checkpoints, most of them lost in a kill
        file.write("training.update(batch_size=1, epochs=8)\n")
    last = tmp_path / "killed" / LAST
    process = processes.start(*words(config, last.parent), cwd=ROOT / "Harmon_DiSA")
    processes.kill_when(process, last.is_file)
    assert process.returncode == -signal.SIGKILL
    assert 0 < read_checkpoint(last)["step"] < 96

    for folder in (last.parent, tmp_path / "whole"):
        run_training(load_training_config(config), folder, device="cpu")
    killed, whole = read_checkpoint(last), read_checkpoint(tmp_path / "whole" / LAST)
    assert killed["step"] == whole["step"] == 96
    for key in ("model", "model_ema"):
        assert killed[key].keys() == whole[key].keys()
        assert all(torch.equal(killed[key][name], value) for name, value in whole[key].items())


@pytest.mark.slow
@pytest.mark.distributed
def test_two_ranks_with_copies_and_with_shares_learn_the_same(config, tmp_path):
    for name, environment in (("copies", {}), ("shares", {"ACCELERATE_USE_FSDP": "true"})):
        ended = processes.run(*words(config, tmp_path / name, *TORCHRUN), cwd=ROOT / "Harmon_DiSA", **environment)
        assert "2 ranks, float32" in ended.stderr
    copies, shares = (read_checkpoint(tmp_path / name / LAST) for name in ("copies", "shares"))
    assert copies["step"] == shares["step"] == 2
    for key in ("model", "model_ema"):
        assert "llm.lm_head.weight" not in copies[key]
        assert copies[key].keys() == shares[key].keys()
        for name, value in copies[key].items():
            torch.testing.assert_close(shares[key][name], value, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    "path", sorted((ROOT / "Harmon_DiSA" / "configs" / "examples").glob("*.py")), ids=lambda path: path.stem
)
def test_examples_are_whole(path):
    assert load_training_config(str(path)).model.startswith("harmon_")
