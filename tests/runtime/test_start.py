"""What a command says before it computes."""

import pytest
import torch

from disa.runtime import distributed
from disa.runtime.start import announce, start

CPU = torch.device("cpu")


def test_the_device_is_chosen_and_nothing_is_printed_yet(capsys):
    assert start("cpu") == CPU
    with pytest.raises(ValueError, match="device is 'tpu'"):
        start("tpu")
    assert capsys.readouterr() == ("", "")


def test_device_ranks_and_dtype_are_announced_with_what_is_slow(capsys, monkeypatch):
    announce(CPU, "float32")
    out, error = capsys.readouterr()
    assert out == ""
    assert error.startswith("cpu (")
    assert error.endswith("1 rank, float32\n")
    monkeypatch.setattr(distributed, "slow_reasons", lambda device: [f"no GPU beside this {device}"])
    announce(CPU)
    assert capsys.readouterr().err.endswith("1 rank\nslow: no GPU beside this cpu\n")


def test_a_cpu_without_bfloat16_says_that_it_is_slow(capsys, monkeypatch):
    for has, said in ((True, False), (False, True)):
        monkeypatch.setattr("disa.runtime.start.has_bfloat16", lambda has=has: has)
        announce(CPU, "bfloat16")
        assert ("slow: this CPU has no instructions for bfloat16" in capsys.readouterr().err) is said
    announce(CPU, "float32")
    assert "slow" not in capsys.readouterr().err


def test_other_ranks_print_nothing(capsys, monkeypatch):
    monkeypatch.setattr(distributed, "is_main", lambda: False)
    announce(CPU, "float32")
    assert capsys.readouterr() == ("", "")
