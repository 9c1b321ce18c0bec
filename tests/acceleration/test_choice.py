"""Graphs and compiled blocks are applied where they pay or were asked for, and refused where they cannot be."""

import pytest
import torch

from disa.acceleration import Acceleration, Captured
from disa.annealing import run
from disa.models.vae import AutoencoderKL, SpaceToDepth
from tests.conftest import small_mar, small_xar
from tests.models.test_harmon import small_harmon

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
OFF = {"compiled": "off", "graphs": "off"}


@pytest.fixture(autouse=True)
def complete_machine(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr("disa.acceleration.choice.lacking", lambda _: None)


def apply(model, vae=None, device=CUDA, batch_size=1, images=100_000, **modes):
    chosen = Acceleration(**{**OFF, **modes})
    return chosen.apply(model, vae or SpaceToDepth(), device=device, batch_size=batch_size, images=images)


def compiled(model):
    return sum(module._compiled_call_impl is not None for module in model.modules())


@pytest.mark.parametrize(
    ("device", "batch_size", "images", "graphs"),
    [(CUDA, 1, 8, True), (CUDA, 1, 7, False), (CUDA, 8, 64, True), (CUDA, 9, 9_000, False), (CPU, 1, 100, False)],
)
def test_graphs_pay_on_a_gpu_at_small_batches_that_are_not_few(device, batch_size, images, graphs):
    model = small_mar()
    said = apply(model, device=device, batch_size=batch_size, images=images, graphs="auto")
    assert isinstance(model.run, Captured) == graphs
    assert len(said) == graphs


def test_graphs_that_are_asked_for_are_captured_at_any_batch():
    model = small_mar()
    (said,) = apply(model, graphs="on", batch_size=64, images=64)
    assert said == "diffusion steps run as CUDA graphs, captured in the first batch of 64"
    assert isinstance(model.run, Captured)


def test_harmon_and_its_mar_share_their_graphs():
    model = small_harmon()
    apply(model, graphs="on")
    assert isinstance(model.run, Captured)
    assert model.run is model.mar.run


@pytest.mark.parametrize(
    ("device", "dtype", "images", "pays"),
    [
        (CUDA, torch.float32, 2_000, True),
        (CUDA, torch.float16, 1_999, False),
        (CPU, torch.bfloat16, 10**6, False),
    ],
)
def test_compiling_pays_in_long_runs_on_a_gpu(device, dtype, images, pays):
    model = small_xar().to(dtype)
    said = apply(model, device=device, images=images, compiled="auto")
    assert said == (["4 blocks are compiled when they first run"] if pays else [])
    assert compiled(model) == (4 if pays else 0)


def test_blocks_that_are_asked_for_are_compiled_with_those_of_the_vae():
    """Of KL-16 the residual blocks of all levels, and the attention of the lowest ones."""
    model, vae = small_xar(), AutoencoderKL(widths=(32, 64))
    apply(model, vae, device=CPU, images=1, compiled="on")
    levels = [*vae.encoder.down, *vae.decoder.up]
    blocks = sum(len(level.block) + len(level.attn) for level in levels)
    assert (compiled(model), compiled(vae)) == (4, blocks)
    assert not any(compiled(part) for part in (vae.decoder.mid, vae.quant_conv))


def test_off_leaves_everything_as_it_is():
    model = small_mar()
    assert apply(model) == []
    assert model.run is run
    assert compiled(model) == 0


def test_impossible_wishes_are_refused(monkeypatch):
    model = small_mar()
    for modes, message in (
        ({"compiled": "yes"}, "compile is 'yes'; allowed are auto, on, off"),
        ({"graphs": "1"}, "graphs is '1'; allowed are auto, on, off"),
        ({"graphs": "on", "device": CPU}, "graphs needs a CUDA device, and this is cpu"),
    ):
        with pytest.raises(ValueError, match=message):
            apply(model, **modes)
    monkeypatch.setattr("disa.acceleration.choice.lacking", lambda _: "a C++ compiler")
    with pytest.raises(ValueError, match=r"compile needs a C\+\+ compiler, and there is none"):
        apply(model, device=CPU, compiled="on")
    assert apply(model, device=CUDA, compiled="auto") == []
    assert compiled(model) == 0


def test_a_device_without_a_threshold_is_left_alone(monkeypatch):
    monkeypatch.undo()
    assert apply(small_mar(), device=torch.device("mps"), compiled="auto", graphs="auto") == []
