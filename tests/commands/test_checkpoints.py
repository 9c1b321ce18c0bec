"""`disa checkpoints`: what it lists, verifies and exports."""

import os

import pytest
import torch
from safetensors.torch import load_file

from disa import load_model
from disa.commands import checkpoints
from disa.runtime.files import BUNDLED as FOLDER
from disa.weights.fetch import CATALOGUE
from disa.weights.verify import manifest
from tests.conftest import SMALL_MAR, small_mar
from tests.helpers.scripts import call, command, load_script

BUNDLED = FOLDER / "mar_fashion.safetensors"


def test_list_names_everything_published(capsys):
    assert command("checkpoints", "list") == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == list(CATALOGUE)


@pytest.fixture
def published(tmp_path):
    """A file with the names and shapes of KL-16; its tensors are one repeated value."""
    state = {name: torch.ones(()).expand(shape) for name, shape in manifest("kl16")["parameters"].items()}
    torch.save(state, tmp_path / "kl16.ckpt")
    return tmp_path / "kl16.ckpt"


@pytest.mark.parametrize("named", [[], ["--manifest", "kl16"]], ids=["closest", "named"])
def test_verify_accepts_what_was_published(published, capsys, named):
    assert command("checkpoints", "verify", published, *named) == 0
    assert capsys.readouterr().out == f"{published} matches kl16\n"


def test_verify_prints_every_difference(published, capsys):
    state = torch.load(published, weights_only=True)
    state["stranger"] = state.pop("quant_conv.bias")
    state["post_quant_conv.bias"] = torch.full_like(state["post_quant_conv.bias"], float("nan"))
    torch.save(state, published)
    assert command("checkpoints", "verify", published) == 1
    assert capsys.readouterr().out.splitlines() == [
        "missing: quant_conv.bias",
        "unexpected: stranger",
        "with NaN or infinity: post_quant_conv.bias",
        f"{published} does not match kl16",
    ]


def test_verify_names_the_family_and_few_keys(capsys):
    assert command("checkpoints", "verify", FOLDER / "flowar_fashion.safetensors") == 1
    lines = capsys.readouterr().out.splitlines()
    assert "does not match flowar_" in lines[-1]
    assert 5 < len(lines) < 25
    assert any(line.startswith("… and ") for line in lines)


def test_exported_files_honour_the_umask(tmp_path):
    before = os.umask(0o027)
    try:
        assert command("checkpoints", "export", BUNDLED, tmp_path / "out.safetensors") == 0
    finally:
        os.umask(before)
    assert (tmp_path / "out.safetensors").stat().st_mode & 0o777 == 0o640


def test_export_keeps_the_weights(tmp_path, capsys):
    files = {dtype: tmp_path / f"{dtype}.safetensors" for dtype in ("float32", "float16")}
    for dtype, file in files.items():
        assert command("checkpoints", "export", BUNDLED, file, "--dtype", dtype) == 0
    assert capsys.readouterr().out.split() == [str(file) for file in files.values()]
    assert files["float16"].stat().st_size / files["float32"].stat().st_size == pytest.approx(0.5, abs=0.01)
    assert {value.dtype for value in load_file(files["float16"]).values()} == {torch.float16}
    source, exported = (load_model("mar_fashion", path).state_dict() for path in (BUNDLED, files["float32"]))
    assert all(torch.equal(value, exported[name]) for name, value in source.items())


@pytest.mark.parametrize("weights", ["ema", "model"])
def test_export_chooses_the_weights(tmp_path, weights):
    states = {
        key: {name: value + shift for name, value in small_mar().state_dict().items()}
        for key, shift in (("model", 0), ("model_ema", 1))
    }
    torch.save(states, tmp_path / "checkpoint-last.pth")
    assert command("checkpoints", "export", tmp_path, tmp_path / "out.safetensors", "--weights", weights) == 0
    exported = load_model("mar", tmp_path / "out.safetensors", **SMALL_MAR).state_dict()
    chosen = states["model_ema" if weights == "ema" else "model"]
    assert all(torch.equal(value, chosen[name]) for name, value in exported.items())


BAD = {
    "unknown file": (("fetch", "kl16", "mar_bas"), "did you mean mar_base?"),
    "no checkpoint": (("verify", "nowhere.pth"), "there is no checkpoint nowhere.pth"),
    "unknown manifest": (("verify", BUNDLED, "--manifest", "mar_bas"), "did you mean mar_base?"),
    "no weights": (("verify", "text.pth"), "text.pth cannot be read as a checkpoint"),
    "truncated": (("export", "short.safetensors", "out"), "short.safetensors cannot be read as safetensors"),
    "output is a folder": (("export", BUNDLED, "folder"), "folder"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_ends_in_one_sentence(tmp_path, monkeypatch, capsys, case):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.pth").write_text("no weights")
    (tmp_path / "short.safetensors").write_bytes(BUNDLED.read_bytes()[:1000])
    (tmp_path / "folder").mkdir()
    words, named = BAD[case]
    assert command("checkpoints", *words) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert named in line
    assert not (tmp_path / "out").exists()


@pytest.fixture
def fetched(monkeypatch):
    """What would be fetched, in its order."""
    found = []
    monkeypatch.setattr(checkpoints.fetch, "fetch", lambda name, folder: found.append((name, folder)) or name)
    monkeypatch.setattr(checkpoints, "hub_folder", lambda place, files: found.append((place, files)) or place)
    return found


@pytest.mark.parametrize("name", ["harmon_0.5b", "harmon_1.5b", "harmon_1.5b-o"])
def test_harmon_comes_with_its_text_tokenizer(fetched, capsys, name):
    assert command("checkpoints", "fetch", name, "kl16", "--out", "here") == 0
    text = f"Qwen/Qwen2.5-{name[7:10]}B-Instruct"
    assert fetched == [(name, "here"), (text, ("*.json", "*.txt")), ("kl16", "here")]
    assert capsys.readouterr().out.split() == [name, text, "kl16"]


def test_one_unknown_name_fetches_nothing(fetched):
    assert command("checkpoints", "fetch", "kl16", "mar_bas") == 2
    assert not fetched


def test_harmons_own_download_brings_the_text_tokenizer(fetched, monkeypatch, capsys, tmp_path):
    main = load_script("Harmon_DiSA/util/download.py").main
    assert call(monkeypatch, capsys, tmp_path, main, "harmon_1.5b")[0] == 0
    assert [name for name, _ in fetched] == ["harmon_1.5b", "Qwen/Qwen2.5-1.5B-Instruct"]


def test_a_familys_download_fetches_what_is_named(fetched, monkeypatch, capsys, tmp_path):
    main = load_script("MAR_DiSA/util/download.py").main
    for words, names in ((["kl16"], ["kl16"]), ([], ["kl16", "mar_base", "mar_large", "mar_huge", "adm_in256_stats"])):
        fetched.clear()
        assert call(monkeypatch, capsys, tmp_path, main, *words)[:2] == (0, "".join(f"{name}\n" for name in names))
        assert fetched == [(name, None) for name in names]
