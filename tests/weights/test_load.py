"""Checkpoints of every layout, whole and broken."""

import argparse
import functools
import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from disa import build_model
from disa.models.vae import VAES, AutoencoderKL
from disa.weights import load
from disa.weights.fetch import LAST
from disa.weights.load import export, find_vae, find_weights, load_into, load_model, load_vae, open_checkpoint
from tests.conftest import SMALL_MAR


class Attack:
    """Its pickle runs a command when it is opened."""

    def __init__(self, target) -> None:
        self.target = target

    def __reduce__(self):
        return os.system, (f"touch {self.target}",)


def small_state(seed: int = 0) -> dict[str, torch.Tensor]:
    torch.manual_seed(seed)
    return build_model("mar", **SMALL_MAR).state_dict()


def equal(a, b) -> bool:
    return a.keys() == b.keys() and all(torch.equal(value, b[name]) for name, value in a.items())


@pytest.fixture
def released(tmp_path):
    """A folder with a checkpoint as the released code writes it."""
    model = build_model("mar", **SMALL_MAR)
    optimizer = torch.optim.AdamW(model.parameters())
    sum(parameter.sum() for parameter in model.parameters()).backward()
    optimizer.step()
    torch.save(
        {
            "model": small_state(1),
            "model_ema": small_state(2),
            "optimizer": optimizer.state_dict(),
            "epoch": 399,
            "scaler": torch.amp.GradScaler("cpu").state_dict(),
            "args": argparse.Namespace(model="mar_base", lr=None, nested=argparse.Namespace(cfg=2.9)),
        },
        tmp_path / "checkpoint-last.pth",
    )
    return tmp_path


def test_released_layout_gives_the_average_or_the_last_weights(released):
    assert equal(open_checkpoint(released), small_state(2))
    assert equal(open_checkpoint(released / "checkpoint-last.pth", weights="model"), small_state(1))
    with pytest.raises(ValueError, match="weights is 'best'"):
        open_checkpoint(released, weights="best")


@pytest.mark.parametrize(
    "wrap",
    [
        lambda s: s,
        lambda s: {"model": s},
        lambda s: {"state_dict": s},
        lambda s: {f"module.{k}": v for k, v in s.items()},
    ],
)
@pytest.mark.parametrize("zipped", [True, False])
def test_other_layouts(tmp_path, wrap, zipped):
    torch.save(wrap(small_state()), tmp_path / "weights.pth", _use_new_zipfile_serialization=zipped)
    assert equal(open_checkpoint(tmp_path / "weights.pth"), small_state())


def test_safetensors(tmp_path):
    save_file(small_state(), tmp_path / "weights.safetensors")
    assert equal(open_checkpoint(tmp_path / "weights.safetensors"), small_state())
    (tmp_path / "weights.safetensors").write_bytes((tmp_path / "weights.safetensors").read_bytes()[:-100])
    with pytest.raises(ValueError, match="cannot be read as safetensors"):
        open_checkpoint(tmp_path / "weights.safetensors")


@pytest.mark.parametrize("average", [None, {}])
def test_a_checkpoint_without_average_says_so(tmp_path, average):
    torch.save({"model": small_state(), "model_ema": average, "optimizer": {}}, tmp_path / "weights.pth")
    with pytest.warns(UserWarning, match="no moving average"):
        assert equal(open_checkpoint(tmp_path / "weights.pth"), small_state())


def one_sentence(error: pytest.ExceptionInfo) -> bool:
    return "\n" not in str(error.value)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.99])
def test_a_truncated_file_is_named(tmp_path, share, zipped):
    path = tmp_path / "weights.pth"
    torch.save({"model": small_state()}, path, _use_new_zipfile_serialization=zipped)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    with pytest.raises(ValueError, match=r"weights.pth cannot be read as a checkpoint; it may be truncated") as error:
        open_checkpoint(path)
    assert one_sentence(error)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("zipped", [True, False])
def test_damaged_files_never_end_in_a_traceback(tmp_path, zipped):
    path = tmp_path / "weights.pth"
    torch.save(
        {"model": {"a": torch.randn(4, 4)}, "args": argparse.Namespace(x=1)},
        path,
        _use_new_zipfile_serialization=zipped,
    )
    whole, refused = path.read_bytes(), 0
    generator = torch.Generator().manual_seed(0)
    for _ in range(400):
        damaged = bytearray(whole)
        for place, value in zip(
            *(torch.randint(high, (3,), generator=generator).tolist() for high in (len(whole), 256)), strict=True
        ):
            damaged[place] = value
        path.write_bytes(damaged)
        try:
            open_checkpoint(path)
        except ValueError:
            refused += 1
    assert refused > 40


@pytest.mark.parametrize("zipped", [True, False])
def test_code_in_a_file_is_refused_and_not_executed(tmp_path, zipped):
    torch.save(
        {"model": small_state(), "extra": Attack(tmp_path / "done")},
        tmp_path / "weights.pth",
        _use_new_zipfile_serialization=zipped,
    )
    with pytest.raises(ValueError, match="system, which is code") as error:
        open_checkpoint(tmp_path / "weights.pth")
    assert one_sentence(error)
    assert not (tmp_path / "done").exists()


def test_what_is_no_checkpoint_at_all(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no checkpoint .*checkpoint-last.pth"):
        open_checkpoint(tmp_path)
    (tmp_path / "page.ckpt").write_text("<html>Not found</html>")
    with pytest.raises(ValueError, match=r"page.ckpt cannot be read"):
        open_checkpoint(tmp_path / "page.ckpt")
    torch.save(torch.zeros(3), tmp_path / "tensor.pth")
    with pytest.raises(ValueError, match="holds a Tensor"):
        open_checkpoint(tmp_path / "tensor.pth")
    torch.save({"epoch": 3, "args": {}}, tmp_path / "empty.pth")
    with pytest.raises(ValueError, match="holds no weights; its keys are epoch, args"):
        open_checkpoint(tmp_path / "empty.pth")


def test_export_of_two_names_for_one_weight(tmp_path):
    weight = torch.randn(3, 3)
    torch.save({"embed": weight, "head": weight}, tmp_path / "tied.pth")
    export(tmp_path / "tied.pth", tmp_path / "tied.safetensors")
    assert equal(open_checkpoint(tmp_path / "tied.safetensors"), {"embed": weight, "head": weight})


def test_load_model_fills_everything(released):
    model = load_model("mar", released, **SMALL_MAR)
    assert equal(model.state_dict(), small_state(2))
    assert not model.training
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_every_kind_of_misfit_is_named():
    state = small_state()
    state["mask_token"] = torch.zeros(7)
    del state["z_proj.weight"], state["z_proj.bias"]
    state["stranger"] = torch.zeros(1)
    state["z_proj_ln.bias"] = torch.full_like(state["z_proj_ln.bias"], float("nan"))
    with pytest.raises(ValueError, match=r"^weights.pth does not fit") as error:
        load_into(build_model("mar", **SMALL_MAR), state, "weights.pth")
    said = str(error.value)
    assert one_sentence(error)
    for part in (
        "2 missing: z_proj.weight, z_proj.bias",
        "1 unexpected: stranger",
        "mask_token [7] instead of [1, 1, 48]",
        "infinity: z_proj_ln.bias",
    ):
        assert part in said


def test_a_misfit_of_everything_is_counted_not_listed():
    state = {f"wrong.{i}": torch.zeros(1) for i in range(50)}
    with pytest.raises(ValueError, match=r"50 unexpected: wrong.0, wrong.1, wrong.2, …"):
        load_into(build_model("mar", **SMALL_MAR), state, "weights.pth")


def test_models_without_bundled_weights_need_a_file():
    with pytest.raises(FileNotFoundError, match=r"no weights of mar_base come with the package.*mar_fashion"):
        load_model("mar_base")
    with pytest.raises(ValueError, match="model is 'mar_tiny'"):
        load_model("mar_tiny")


def test_vae_files(tmp_path):
    with pytest.raises(FileNotFoundError, match="disa checkpoints fetch kl16"):
        load_vae(tmp_path / "kl16.ckpt")
    state = AutoencoderKL().state_dict()
    torch.save({"model": {**state, "loss.discriminator.weight": torch.zeros(1)}}, tmp_path / "kl16.ckpt")  # as released
    vae = load_vae(tmp_path / "kl16.ckpt")
    assert equal(vae.state_dict(), state)
    assert not any(one.requires_grad for one in vae.parameters())  # what it decodes keeps no gradients
    with pytest.raises(ValueError, match="does not fit"):
        load_vae(tmp_path / "kl16.ckpt", latent_channels=8)


def test_paths_below_pretrained_models_are_those_of_the_shared_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("DISA_WEIGHTS", str(tmp_path / "weights"))
    monkeypatch.chdir(tmp_path)
    kl16, model = "pretrained_models/vae/kl16.ckpt", "pretrained_models/mar/mar_base"
    with pytest.raises(FileNotFoundError, match=f"there is no VAE {kl16}; `disa checkpoints fetch kl16`"):
        find_vae(kl16)
    for path in ("vae/kl16.ckpt", f"mar/mar_base/{LAST}"):
        (tmp_path / "weights" / path).parent.mkdir(parents=True)
        (tmp_path / "weights" / path).touch()
    (tmp_path / model).mkdir(parents=True)  # an --output_dir of this name, with results
    assert find_vae(kl16) == tmp_path / "weights" / "vae" / "kl16.ckpt"
    assert find_weights(model) == tmp_path / "weights" / "mar" / "mar_base" / LAST
    (tmp_path / model / LAST).touch()
    assert find_weights(model) == Path(model, LAST)  # what is here comes first


SMALL_HARMON = {
    "mar": {
        "image_size": 64,
        "width": 32,
        "depth": 1,
        "num_heads": 2,
        "buffer_size": 4,
        "head_depth": 1,
        "head_width": 16,
    },
    "llm": {
        "hidden_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "intermediate_size": 48,
        "vocab_size": 64,
        "max_position_embeddings": 64,
    },
}
COPY = "llm.lm_head.weight"  # the language model's embedding once more


@pytest.fixture
def harmon(monkeypatch):
    """The weights of a small Harmon, as the released files have them; KL-16 is thinner, for speed."""
    thin = functools.partial(AutoencoderKL, widths=(32,) * 5)
    monkeypatch.setattr(load, "AutoencoderKL", thin)
    monkeypatch.setitem(VAES, "kl16", (thin, {}))
    torch.manual_seed(0)
    return build_model("harmon", **SMALL_HARMON).state_dict()


def load_harmon(path, **more):
    model = load_model("harmon", path, **SMALL_HARMON, **more)
    assert model.llm.lm_head.weight is model.llm.model.embed_tokens.weight
    return model


def shard(state, folder):
    """A folder as Hugging Face's repositories are: the embedding once, the weights in two files, and an index."""
    folder.mkdir()
    names = [name for name in state if name != COPY]
    places = {name: f"model-0000{1 + (i % 2)}-of-00002.safetensors" for i, name in enumerate(names)}
    for file in set(places.values()):
        save_file({name: state[name] for name in names if places[name] == file}, folder / file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    return folder


def test_harmon_from_every_kind_of_file(harmon, tmp_path):
    torch.save(harmon, tmp_path / "harmon.pth")
    shard(harmon, tmp_path / "sharded")
    (tmp_path / "whole").mkdir()
    save_file({name: value for name, value in harmon.items() if name != COPY}, tmp_path / "whole" / "model.safetensors")
    for name in ("harmon.pth", "sharded", "whole", "sharded/model.safetensors.index.json"):
        model = load_harmon(tmp_path / name)
        assert equal(model.state_dict(), harmon)
        assert not model.training
        fresh = dict(
            build_model("harmon", **SMALL_HARMON).named_buffers()
        )  # what no file holds, such as the rotary angles
        assert fresh
        assert all(torch.equal(buffer, fresh[key]) for key, buffer in model.named_buffers())


def test_a_training_checkpoint_goes_before_safetensors(harmon, tmp_path):
    folder = shard(harmon, tmp_path / "both")
    torch.save({"model": {**harmon, "proj_in.0.bias": harmon["proj_in.0.bias"] + 1}}, folder / "checkpoint-last.pth")
    assert not equal(open_checkpoint(folder), harmon)


def test_broken_repositories_are_named(harmon, tmp_path):
    folder = shard(harmon, tmp_path / "sharded")
    (folder / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"sharded lacks model-00002-of-00002.safetensors"):
        open_checkpoint(folder)
    for text in ("{", "[]", '{"weight_map": []}'):
        (folder / "model.safetensors.index.json").write_text(text)
        with pytest.raises(ValueError, match="cannot be read as an index of safetensors"):
            open_checkpoint(folder)


def test_fine_tuned_harmon_takes_its_vae_from_its_own_file(harmon, tmp_path):
    vae = {name.removeprefix("vae."): value for name, value in harmon.items() if name.startswith("vae.")}
    rest = {name: value for name, value in harmon.items() if not name.startswith("vae.")}
    torch.save({"model": rest, "model_ema": rest, "optimizer": {}}, tmp_path / "checkpoint-last.pth")
    with pytest.raises(ValueError, match=r"holds no VAE.*--vae_path") as error:
        load_harmon(tmp_path)
    assert one_sentence(error)
    torch.save({"model": vae}, tmp_path / "kl16.ckpt")
    assert equal(load_harmon(tmp_path, vae=tmp_path / "kl16.ckpt").state_dict(), harmon)
    with pytest.raises(FileNotFoundError, match="there is no VAE"):
        load_harmon(tmp_path, vae=tmp_path / "nowhere.ckpt")


def test_harmon_is_loaded_strictly(harmon, tmp_path):
    del harmon["mar.z_proj.bias"]
    torch.save({**harmon, "llm.model.norm.weight": torch.ones(7), "stranger": torch.ones(1)}, tmp_path / "harmon.pth")
    with pytest.raises(
        ValueError,
        match=r"1 missing: mar.z_proj.bias; 1 unexpected: stranger; 1 of another shape: llm.model.norm.weight",
    ):
        load_harmon(tmp_path / "harmon.pth")


def test_loading_draws_no_weights(harmon, tmp_path):
    torch.save(harmon, tmp_path / "harmon.pth")
    before = torch.random.get_rng_state()
    load_harmon(tmp_path / "harmon.pth")
    assert torch.equal(torch.random.get_rng_state(), before)


def test_bundled_harmon_brings_its_text_tokenizer(tmp_path):
    torch.save(build_model("harmon_fashion").state_dict(), tmp_path / "harmon.pth")
    text = load_model("harmon_fashion", tmp_path / "harmon.pth").text
    assert text.decode(text.ids("a bright sneaker")) == "a bright sneaker"
    assert len(text) <= 512
