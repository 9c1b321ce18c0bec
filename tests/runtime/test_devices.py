"""Devices by the names that the flags take."""

import platform

import pytest
import torch

from disa.runtime.devices import describe_device, local_rank, resolve_device, resolve_dtype


@pytest.fixture
def machine(monkeypatch):
    """A machine with the accelerators named."""

    def have(*kinds, count=1):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: "cuda" in kinds)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: "mps" in kinds)
        for name in ("LOCAL_RANK", "SLURM_LOCALID", "OMPI_COMM_WORLD_LOCAL_RANK", "MPI_LOCALRANKID", "RANK"):
            monkeypatch.delenv(name, raising=False)

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
    ("said", "expected"),
    [
        ({}, 0),
        ({"RANK": "5"}, 5),
        ({"RANK": "5", "LOCAL_RANK": "1"}, 1),
        ({"RANK": "5", "SLURM_LOCALID": "1"}, 1),  # srun
        ({"RANK": "5", "OMPI_COMM_WORLD_LOCAL_RANK": "1"}, 1),  # Open MPI
        ({"RANK": "5", "MPI_LOCALRANKID": "1"}, 1),  # Intel MPI and MPICH
        ({"LOCAL_RANK": "3", "SLURM_LOCALID": "0"}, 3),  # torchrun in a task of srun
    ],
)
def test_the_rank_on_a_machine_is_what_the_launcher_says(said, expected):
    assert local_rank(said) == expected


def test_ranks_without_a_local_rank_take_their_own_gpu(machine, monkeypatch):
    machine("cuda", count=4)
    for rank, expected in (("0", "cuda:0"), ("3", "cuda:3"), ("6", "cuda:2")):
        monkeypatch.setenv("RANK", rank)
        assert resolve_device("auto") == torch.device(expected)
    machine("cuda", count=1)  # CUDA_VISIBLE_DEVICES shows each rank its own alone
    monkeypatch.setenv("RANK", "3")
    assert resolve_device("auto") == torch.device("cuda:0")


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
    machine("cuda", count=1)  # CUDA_VISIBLE_DEVICES shows each rank its own alone
    assert resolve_device("cuda:0") == torch.device("cuda:0")


@pytest.mark.parametrize(("threads", "words"), [(1, "1 thread per rank"), (2, "2 threads per rank")])
def test_a_cpu_is_described_with_its_threads(monkeypatch, threads, words):
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    assert describe_device(torch.device("cpu")) == f"cpu ({platform.machine()}, {words})"


@pytest.fixture
def switches():
    """What `resolve_dtype` switches, as it was before."""
    cuda, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = cuda.allow_tf32, cudnn.allow_tf32, cudnn.benchmark
    yield lambda: (cuda.allow_tf32, cudnn.allow_tf32, cudnn.benchmark)
    cuda.allow_tf32, cudnn.allow_tf32, cudnn.benchmark = before


@pytest.mark.parametrize(
    ("name", "device", "expected", "fast"),
    [
        ("auto", "cuda", "bfloat16", True),
        ("auto", "cpu", "float32", True),
        ("auto", "mps", "float32", True),
        ("float16", "cuda", "float16", True),
        ("float32", "cuda", "float32", False),
    ],
)
def test_auto_is_half_on_a_gpu_and_float32_by_name_is_exact(switches, name, device, expected, fast):
    assert resolve_dtype(name, torch.device(device), half="bfloat16") == expected
    assert switches() == (fast, fast, fast)


def test_an_unknown_dtype_is_refused():
    with pytest.raises(ValueError, match="dtype is 'half'; allowed are auto, float32, bfloat16, float16"):
        resolve_dtype("half", torch.device("cpu"))
