"""Pipelines as files: bit for bit the same, the hub, trainings, released weights, and what is refused."""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

import disa
from disa import Pipeline
from disa.models.vae import AutoencoderKL
from disa.pipeline import files
from tests.conftest import SMALL_MAR, fill, small_mar
from tests.helpers.pipelines import LOW, NAMES, asked, call, load, same


@pytest.mark.parametrize("name", NAMES)
def test_saved_pipelines_make_the_same_images_bit_for_bit(name, tmp_path):
    pipe = load(name)
    folder = pipe.save_pretrained(tmp_path / "saved")
    again = Pipeline.from_pretrained(folder, device="cpu")
    assert again.model is not pipe.model
    for attribute in ("name", "sampling", "image_size"):
        assert getattr(again, attribute) == getattr(pipe, attribute)
    words = asked(name, 9, 8)
    few = {"num_iter": 4} if again.sampling.num_iter else {}
    ours, theirs = (one(**words, seeds=[1, 2], output_type="tensor", **few).images for one in (pipe, again))
    assert torch.equal(ours, theirs)
    if name == "harmon_fashion":
        assert again.describe(Image.new("L", (32, 32))) == pipe.describe(Image.new("L", (32, 32)))
    else:
        assert list(again.classes) == list(pipe.classes)
    config = json.loads((folder / "config.json").read_text())
    assert config["model"] == name
    card = (folder / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: disa\n")
    assert f"# {name}\n" in card


@pytest.fixture
def released(tmp_path):
    """A small MAR and a small KL-16 in files, as if they were released."""
    sizes = {key: value for key, value in SMALL_MAR.items() if "drop" not in key and key != "diffusion_batch_mul"}
    model, vae = tmp_path / "mar.safetensors", tmp_path / "kl16.ckpt"
    save_file({name: value.clone() for name, value in small_mar().state_dict().items()}, model)
    torch.manual_seed(0)
    torch.save(AutoencoderKL(widths=(32,) * 5).state_dict(), vae)
    return model, vae, sizes


def test_released_weights_and_their_vae_go_into_the_folder(released, tmp_path, monkeypatch):
    model, vae, sizes = released
    monkeypatch.setattr("disa.weights.load.AutoencoderKL", lambda channels: AutoencoderKL(channels, widths=(32,) * 5))
    pipe = Pipeline.from_pretrained(
        "mar", checkpoint=str(model), vae=str(vae), device="cpu", dtype=torch.float32, **sizes
    )
    assert (pipe.image_size, pipe.sampling.num_iter) == (64, 16)  # no more AR steps than tokens
    out = pipe(labels=[3], seeds=[1], schedule=LOW, output_type="tensor")
    assert out.images.shape == (1, 3, 64, 64)
    assert pipe(labels=[3], seeds=[1], schedule=LOW).images[0].mode == "RGB"
    monkeypatch.undo()
    again = Pipeline.from_pretrained(str(pipe.save_pretrained(str(tmp_path / "saved"))), device="cpu")
    assert torch.equal(again(labels=[3], seeds=[1], schedule=LOW, output_type="tensor").images, out.images)
    for one in (pipe, again):
        assert not one.vae.decode(torch.randn(1, 16, 2, 2)).requires_grad
    start = pipe(labels=[3], seeds=[1], schedule=LOW).images[0]
    mask = Image.new("L", start.size)
    mask.paste(255, (32, 0, 64, 64))
    steps = []
    pipe.edit(start, mask, labels=[3], seeds=[1], schedule=LOW, output_type="latent", callback_on_step_end=steps.append)
    assert sum(step.tokens for step in steps) == 8


def test_half_precision_is_saved_as_it_is(tmp_path):
    pipe = Pipeline.from_pretrained("flowar_fashion", device="cpu", dtype="bfloat16")
    out = pipe(labels=[1], seeds=[1], schedule=LOW, output_type="tensor").images
    again = Pipeline.from_pretrained(pipe.save_pretrained(tmp_path), device="cpu", dtype="bfloat16")
    assert torch.equal(again(labels=[1], seeds=[1], schedule=LOW, output_type="tensor").images, out)
    assert out.dtype == torch.bfloat16


def test_imagenets_class_names_are_known():
    names = files.class_names(disa.build_model("mar", **{**SMALL_MAR, "num_classes": 1000}), bundled=False)
    assert (len(names), names[207], names[0]) == (1000, "golden retriever", "tench")
    assert files.class_names(fill(disa.build_model("mar", **SMALL_MAR)), bundled=False) is None


SMALL_HARMON = {
    "mar": {"width": 32, "depth": 1, "head_width": 32, "head_depth": 1},
    "llm": {"hidden_size": 32, "num_hidden_layers": 1, "intermediate_size": 64, "num_attention_heads": 2},
}


def test_a_training_of_harmon_says_what_it_trained(tmp_path):
    state = {
        name: one
        for name, one in disa.build_model("harmon_fashion", **SMALL_HARMON).state_dict().items()
        if not name.startswith("vae.")
    }
    load("harmon_fashion").model.text.tokenizer.save_pretrained(tmp_path / "text")
    args = argparse.Namespace(model="harmon_fashion", arguments=SMALL_HARMON, text_tokenizer=str(tmp_path / "text"))
    torch.save({"model": state, "model_ema": state, "args": args}, tmp_path / "checkpoint-last.pth")
    pipe = Pipeline.from_pretrained(tmp_path, device="cpu")
    assert (pipe.name, pipe.arguments) == ("harmon_fashion", SMALL_HARMON)
    assert pipe.model.text.tokenizer.name_or_path == str(tmp_path / "text")
    assert pipe(prompts=["a bag"], seeds=[1], num_iter=2, schedule=LOW).images[0].size == (32, 32)
    again = Pipeline.from_pretrained(pipe.save_pretrained(tmp_path / "saved"), device="cpu")
    assert again.arguments == SMALL_HARMON


def test_a_training_says_what_it_trained(tmp_path):
    small = {"width": 32, "depth": 1, "head_width": 32, "head_depth": 1}
    model = disa.build_model("mar_fashion", **small)
    state = dict(model.state_dict())
    args = argparse.Namespace(model="mar_fashion", arguments=small)
    torch.save({"model": state, "model_ema": state, "args": args}, tmp_path / "checkpoint-last.pth")
    pipe = Pipeline.from_pretrained(tmp_path, device="cpu")
    assert (pipe.name, pipe.arguments, pipe.sampling) == ("mar_fashion", small, load("mar_fashion").sampling)
    assert pipe(labels=["bag"], seeds=[1], num_iter=2, schedule=LOW).images[0].size == (32, 32)
    torch.save({"model": state, "model_ema": state}, tmp_path / "checkpoint-last.pth")
    with pytest.raises(ValueError, match="does not say which model it is of; give its name, and checkpoint="):
        Pipeline.from_pretrained(tmp_path, device="cpu")


# ---------------------------------------------------------------------------------------------------------------- hub


def test_a_repository_of_push_to_hub_comes_back(monkeypatch, tmp_path):
    calls = []

    class Api:
        def __init__(self, token):
            calls.append(("token", token))

        def create_repo(self, repository, private, exist_ok):
            calls.append((repository, private, exist_ok))
            return f"https://hub/{repository}"

        def upload_folder(self, repo_id, folder_path, **_):
            load("flowar_fashion").save_pretrained(tmp_path / "hub")
            names = sorted(path.name for path in (tmp_path / "hub").iterdir())
            assert sorted(path.name for path in Path(folder_path).iterdir()) == names
            calls.append(repo_id)

    def fetch(repository, allow_patterns):
        calls.append(("fetched", repository))
        assert "*.safetensors" in allow_patterns
        return str(tmp_path / "hub")

    monkeypatch.setattr("huggingface_hub.HfApi", Api)
    monkeypatch.setattr("huggingface_hub.snapshot_download", fetch)
    assert load("flowar_fashion").push_to_hub("me/flowar", private=True, token="t") == "https://hub/me/flowar"
    again = Pipeline.from_pretrained("me/flowar", device="cpu")
    assert calls == [("token", "t"), ("me/flowar", True, True), "me/flowar", ("fetched", "me/flowar")]
    assert same(again(labels=[8], seeds=[1], schedule=LOW), call("flowar_fashion", 8, seeds=[1]))


def test_harmons_repositories_are_known(monkeypatch, tmp_path):
    seen = []
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: str(tmp_path))

    def loaded(name, checkpoint, *_, **__):
        seen.append((name, checkpoint))
        raise FileNotFoundError("far enough")

    monkeypatch.setattr(files, "load_model", loaded)
    for repository, name in files.HUB.items():
        with pytest.raises(FileNotFoundError, match="far enough"):
            Pipeline.from_pretrained(repository, device="cpu")
        assert seen.pop() == (name, tmp_path)


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """The files that are asked of the hub; the first use of one raises."""
    asked = []
    monkeypatch.setenv("DISA_WEIGHTS", str(tmp_path / "weights"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda *place: asked.append(place) or "there.pth")
    return asked


def test_published_weights_on_the_hub_come_from_it(hub, tmp_path):
    (tmp_path / "weights" / "vae").mkdir(parents=True)
    (tmp_path / "weights" / "vae" / "kl16.ckpt").touch()
    for name in disa.list_models("[!m]*_[!f]*"):
        with pytest.raises(FileNotFoundError, match=r"there is no checkpoint there\.pth"):
            Pipeline.from_pretrained(name, device="cpu")
    assert ("OliverRen/FlowAR", "FlowAR-S.pth") in hub
    assert ("wusize/harmon", "harmon_1.5b.pth") in hub
    assert len(hub) == 8
    with pytest.raises(FileNotFoundError, match="disa checkpoints fetch mar_base"):
        Pipeline.from_pretrained("mar_base", device="cpu")


@pytest.mark.parametrize(
    ("name", "arguments", "sentence"),
    [
        ("xar_base", {}, "disa checkpoints fetch kl16"),
        ("xar_base", {"vae": "nowhere.ckpt"}, "there is no VAE nowhere.ckpt"),
        ("harmon_1.5b", {"checkpoint": "nowhere.pth", "text_tokenizer": "me/text"}, "no checkpoint nowhere.pth"),
        ("harmon_1.5b", {"vae": "nowhere.ckpt"}, "there is no VAE nowhere.ckpt"),
        ("xar_base", {"dtype": "int8"}, "dtype is 'int8'"),
        ("me/mar", {"dtype": "int8"}, "dtype is 'int8'"),
    ],
)
def test_what_is_missing_is_named_before_anything_is_fetched(hub, monkeypatch, name, arguments, sentence):
    monkeypatch.setattr(files, "hub_folder", None)
    monkeypatch.setattr(files.TextTokenizer, "load", None)
    with pytest.raises((OSError, ValueError), match=sentence):
        Pipeline.from_pretrained(name, device="cpu", **arguments)
    assert not hub


def test_a_repository_that_cannot_be_reached_is_one_sentence(monkeypatch):
    def fail(*_, **__):
        raise OSError("no network\nmore")

    monkeypatch.setattr("huggingface_hub.snapshot_download", fail)
    with pytest.raises(OSError, match=r"^me/mar could not be fetched from the hub \(no network\)$"):
        Pipeline.from_pretrained("me/mar", device="cpu")


@pytest.mark.parametrize(
    ("source", "arguments", "error", "sentence"),
    [
        ("mar_fashon", {}, ValueError, r"no model or folder 'mar_fashon'; did you mean mar_fashion\?"),
        ("./nowhere", {}, ValueError, "no model or folder './nowhere'"),
        ("me/mar", {"checkpoint": "x.pth"}, ValueError, "checkpoint go with a model's name"),
        ("mar_fashion", {"vae": "kl16.ckpt"}, ValueError, "mar_fashion has a VAE of its own"),
        ("harmon_fashion", {"vae": "kl16.ckpt"}, ValueError, "harmon_fashion has a VAE of its own"),
        (
            "mar_fashion",
            {"text_tokenizer": "me/text"},
            ValueError,
            "text_tokenizer is me/text; mar_fashion takes class",
        ),
        ("mar_fashion", {"wdth": 8}, ValueError, "model mar_fashion has no setting wdth; allowed are"),
        ("mar_fashion", {"device": "tpu"}, ValueError, "device is 'tpu'"),
        ("mar_fashion", {"dtype": "int8"}, ValueError, "dtype is 'int8'"),
        ("mar", {}, ValueError, "mar is the name of a shape, without weights; give a checkpoint"),
        ("mar_base", {}, FileNotFoundError, "disa checkpoints fetch kl16"),
        ("mar_base", {"checkpoint": "nowhere.pth"}, FileNotFoundError, "disa checkpoints fetch kl16"),
        ("mar_base", {"checkpoint": "nowhere.pth", "vae": "x"}, FileNotFoundError, r"nowhere\.pth|no VAE x"),
    ],
)
def test_a_wrong_source_is_one_sentence(source, arguments, error, sentence, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error, match=sentence) as raised:
        Pipeline.from_pretrained(source, **{"device": "cpu", **arguments})
    assert "\n" not in str(raised.value)


def test_without_transformers_harmon_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ImportError, match=r"pip install 'disa\[harmon\]'"):
        Pipeline.from_pretrained("harmon_fashion", device="cpu")


def test_a_saved_pipeline_takes_no_other_vae(tmp_path):
    with pytest.raises(ValueError, match="holds its own VAE and text tokenizer; give none"):
        Pipeline.from_pretrained(tmp_path, vae="kl16.ckpt", device="cpu")


def test_folders_that_are_no_pipelines_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"has no config\.json"):
        Pipeline.from_pretrained(tmp_path, device="cpu")
    for wrong in ("{", "{}", '{"model": 1}', "[]"):
        (tmp_path / "config.json").write_text(wrong)
        with pytest.raises(ValueError, match=r"config\.json is not a pipeline's"):
            Pipeline.from_pretrained(tmp_path, device="cpu")


def test_models_are_listed():
    assert disa.list_models("*_fashion") == NAMES
    assert {"mar_base", "harmon_1.5b"} < set(disa.list_models())
    assert not {"mar", "harmon"} & set(disa.list_models())


def test_importing_disa_imports_no_torch():
    program = "import sys, disa; disa.__all__; assert 'torch' not in sys.modules; print(disa.Pipeline.__name__)"
    assert (
        subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
        == "Pipeline\n"
    )
