"""Devices by the names that the flags take."""

import platform

import pytest
import torch

from disa.runtime.devices import describe_device, resolve_device


@pytest.fixture
def machine(monkeypatch):
    """A machine with the accelerators named."""

    def have(*kinds, count=1):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: "cuda" in kinds)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: "mps" in kinds)
        monkeypatch.delenv("LOCAL_RANK", raising=False)

    return have


def test_auto_takes_what_is_there(machine):
    for kinds, expected in (((), "cpu"), (("mps",), "mps"), (("cuda", "mps"), "cuda:0")):
        machine(*kinds)
        assert resolve_device("auto") == torch.device(expected)


def test_each_rank_of_a_machine_takes_its_own_gpu(machine, monkeypatch):
    machine("cuda", count=2)
    for rank, expected in (("0", "cuda:0"), ("1", "cuda:1"), ("2", "cuda:0")):
        monkeypatch.setenv("LOCAL_RANK", rank)
        assert resolve_device("cuda") == torch.device(expected)
    assert resolve_device("cuda:0") == torch.device("cuda:0")


@pytest.mark.parametrize(
    ("name", "named"), [("tpu", "'tpu'; allowed are auto"), ("", "''"), ("cuda", "has none"), ("cuda:1", "'cuda:1'")]
)
def test_devices_that_are_not_there_are_refused(machine, name, named):
    machine()
    with pytest.raises(ValueError, match=named):
        resolve_device(name)


def test_no_rank_of_many_takes_a_numbered_gpu(machine, monkeypatch):
    machine("cuda", count=2)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="would put every rank on one GPU"):
        resolve_device("cuda:1")


@pytest.mark.parametrize(("threads", "words"), [(1, "1 thread per rank"), (2, "2 threads per rank")])
def test_a_cpu_is_described_with_its_threads(monkeypatch, threads, words):
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    assert describe_device(torch.device("cpu")) == f"cpu ({platform.machine()}, {words})"
