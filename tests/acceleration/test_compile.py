"""Compiled blocks compute what eager ones do, and what was compiled is counted."""

import os
import re
import sys
import tempfile

import pytest
import torch
from torch import nn

from disa import Guidance, ImageNoise, StepSchedule
from disa.acceleration import compile_blocks, compile_report
from disa.acceleration.compile import lacking
from tests.conftest import small_xar
from tests.models.test_harmon import small_harmon


@pytest.fixture(autouse=True)
def own_cache(monkeypatch):
    """Compiling takes a minute; a second run of the tests finds what the first one compiled."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", os.path.join(tempfile.gettempdir(), "disa_tests_inductor"))


@pytest.mark.slow
def test_compiled_blocks_give_the_latents_of_eager_ones():
    """Of batches of several sizes, without graphs for each."""
    settings = {"schedule": StepSchedule(2, 1), "sampler": "euler", "guidance": Guidance(2.0)}
    batches = ([1, 2], [3, 4, 5], [6, 7, 8, 9])
    expected = [small_xar().generate(torch.tensor(ids), noise=ImageNoise(ids), **settings) for ids in batches]
    model, before = small_xar(), graphs()
    assert compile_blocks(model) == 4
    for ids, latents in zip(batches, expected, strict=True):
        compiled = model.generate(torch.tensor(ids), noise=ImageNoise(ids), **settings)
        torch.testing.assert_close(compiled, latents, rtol=1e-4, atol=1e-4)
    assert 1 <= graphs() - before <= 6


def graphs():
    """Graphs compiled so far, as the report says."""
    report = compile_report() or "0 graphs were compiled in 0 s"
    return int(re.fullmatch(r"(\d+) graphs were compiled in \d+ s", report)[1])


def test_a_block_that_cannot_be_compiled_runs_as_it_is(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))  # nothing is known already
    monkeypatch.setattr("torch._inductor.config.cpp.cxx", ("no-such-compiler",))
    block = nn.Sequential(nn.Linear(5, 7), nn.Softplus(), nn.Linear(7, 5))
    x = torch.randn(3, 5)
    expected = block(x)
    compile_blocks(nn.ModuleList([block]))
    assert torch.equal(block(x), expected)


def test_of_language_layers_what_knows_no_number_is_compiled():
    """Else every layer would have graphs of its own, for its place in the cache."""
    model = small_harmon()
    layers = model.llm.model.layers
    compile_blocks(model.llm)
    for layer in layers:
        names = {name for name, child in layer.named_children() if child._compiled_call_impl is not None}
        assert names == {"mlp", "input_layernorm", "post_attention_layernorm"}
        assert layer._compiled_call_impl is None


def test_lists_within_lists_are_compiled_where_they_end():
    inner, outer = nn.ModuleList([nn.Linear(1, 1)]), nn.Module()
    outer.block = inner
    model = nn.ModuleList([outer, nn.Linear(1, 1)])
    assert compile_blocks(model) == 2
    assert inner[0]._compiled_call_impl is not None
    assert model[1]._compiled_call_impl is not None
    assert outer._compiled_call_impl is None


def test_what_was_compiled_is_kept_where_the_user_says(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "mine")
    compile_blocks(nn.Module())
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == "mine"
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    compile_blocks(nn.Module())
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == str(tmp_path / "disa" / "inductor")


def test_what_a_machine_lacks(monkeypatch):
    monkeypatch.setattr("shutil.which", lambda name: "/bin/g++" if name == "g++" else None)
    assert lacking(torch.device("cpu")) is None
    monkeypatch.setattr("shutil.which", lambda _: None)
    assert lacking(torch.device("cpu")) == "a C++ compiler"
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    assert lacking(torch.device("cuda")) == "triton"
    assert lacking(torch.device("mps")) == "a CUDA device or a CPU"


def test_nothing_is_said_where_nothing_was_compiled(monkeypatch):
    monkeypatch.delitem(sys.modules, "torch._dynamo.utils", raising=False)
    assert compile_report() is None
