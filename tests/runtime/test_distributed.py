"""Ranks: one alone, and two real ones."""

import contextlib
import datetime
import gc
import json
import os
import time
import weakref
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from disa.runtime import distributed
from tests.helpers.processes import free_port


def test_a_process_alone_is_rank_0_of_1(monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    distributed.setup(torch.device("cpu"))
    assert not dist.is_initialized()
    assert (distributed.rank(), distributed.world_size(), distributed.is_main()) == (0, 1, True)
    distributed.barrier()
    assert list(distributed.claim_blocks(3)) == [0, 1, 2]
    assert distributed.broadcast("own") == "own"
    assert distributed.gather("own") == ["own"]
    done = []
    distributed.on_main(lambda: done.append(1))
    assert done == [1]
    with pytest.raises(ValueError, match="named"):
        distributed.on_main(fail_with(ValueError("named")))
    assert distributed.on_all(lambda: "own") == "own"
    with pytest.raises(ValueError, match="named"):
        distributed.on_all(fail_with(ValueError("named")))
    distributed.shutdown()


CROWDED = "start one per GPU"
GLOO = "tensors on GPUs go between ranks through gloo and main memory, not through NCCL"


@pytest.fixture
def launched(monkeypatch):
    """Rank 0 of several on a stand-in for a GPU, by the UUIDs of the others' GPUs: what it asks torch for."""

    def launch(*others, nccl=True):
        asked, store = {}, dist.HashStore()
        for rank, other in enumerate(others, 1):
            store.set(f"gpu/{rank}", other)
        monkeypatch.setenv("RANK", "0")
        monkeypatch.setattr(torch.cuda, "set_device", lambda device: asked.update(set_device=device))
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(uuid="GPU-a"))
        monkeypatch.setattr(dist, "is_nccl_available", lambda: nccl)
        monkeypatch.setattr(distributed, "rendezvous", lambda *_, **__: iter([(store, 0, 1 + len(others))]))
        monkeypatch.setattr(dist, "init_process_group", lambda backend, **given: asked.update(given, backend=backend))
        monkeypatch.setattr(distributed, "gather", lambda value: [value, *others])
        return asked

    return launch


@pytest.mark.parametrize("others", [[], ["GPU-b"], ["GPU-b", "GPU-c"]])
def test_ranks_with_a_gpu_each_use_nccl(launched, others):
    """Each may call its own `cuda:0`, as the only one that CUDA_VISIBLE_DEVICES shows it."""
    asked, device = launched(*others), torch.device("cuda:0")
    distributed.setup(device)
    assert asked["backend"] == "cpu:gloo,cuda:nccl"
    assert asked["device_id"] == asked["set_device"] == device
    assert (asked["rank"], asked["world_size"]) == (0, 1 + len(others))
    assert asked["timeout"] == datetime.timedelta(hours=2)
    assert asked["store"].get("gpu/0") == b"GPU-a"  # for the others
    assert distributed.slow_reasons(device) == []


@pytest.mark.parametrize(
    ("others", "nccl", "reasons"),
    [
        (["GPU-a"], True, [f"2 ranks share 1 GPU; {CROWDED}", GLOO]),
        (["GPU-b", "GPU-b", "GPU-a"], True, [f"4 ranks share 2 GPUs; {CROWDED}", GLOO]),
        (["GPU-b", "cpu"], True, ["1 of 3 ranks compute on a CPU", GLOO]),
        (["GPU-b"], False, [GLOO]),
    ],
)
def test_other_ranks_use_gloo_and_are_told_why_they_are_slow(launched, others, nccl, reasons):
    asked, device = launched(*others, nccl=nccl), torch.device("cuda:0")
    distributed.setup(device)
    assert asked["backend"] == "gloo"
    assert asked["device_id"] is None  # torch would connect NCCL at once
    assert [said.partition("; see")[0] for said in distributed.slow_reasons(device)] == reasons


@pytest.mark.parametrize(
    ("kind", "others", "reasons"),
    [
        ("cpu", [], []),
        ("cpu", ["cpu"], ["2 of 2 ranks compute on a CPU; see whether nvidia-smi lists GPUs, and PyTorch is built"]),
        ("mps", [], []),
        ("mps", ["mps"], [f"2 ranks share 1 GPU; {CROWDED}", GLOO]),
    ],
)
def test_without_cuda_there_is_gloo(launched, kind, others, reasons):
    asked = launched(*others)
    distributed.setup(torch.device(kind))
    assert asked["backend"] == "gloo"
    assert "set_device" not in asked
    found = distributed.slow_reasons(torch.device(kind))
    assert len(found) == len(reasons)
    assert all(map(str.startswith, found, reasons))


def test_an_incomplete_description_of_the_ranks_is_refused(monkeypatch):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "1")
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    with pytest.raises(ValueError, match="MASTER_ADDR"):
        distributed.setup(torch.device("cpu"))


def test_a_barrier_is_in_main_memory(monkeypatch):
    used = []
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "all_reduce", lambda tensor: used.append(tensor.device.type))
    with torch.device("meta"):  # as code that makes tensors on a GPU
        distributed.barrier()
    assert used == ["cpu"]


@pytest.mark.parametrize("collective", [distributed.on_main, distributed.on_all])
def test_what_failed_lets_go_of_its_memory(collective):
    """At once, not when garbage is collected: the next batch may need it."""
    kept = []

    def fail():
        tensor = torch.zeros(1)
        kept.append(weakref.ref(tensor))
        raise torch.OutOfMemoryError("full")

    gc.disable()
    try:
        with contextlib.suppress(torch.OutOfMemoryError):
            collective(fail)
        assert kept[0]() is None
    finally:
        gc.enable()


def fail_with(error):
    def action():
        raise error

    return action


def two_ranks(rank, port, folder):
    """What each of two processes does and writes down."""
    os.environ.update(
        RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port)
    )
    distributed.setup(torch.device("cpu"))
    distributed.setup(torch.device("cpu"))  # a second time does nothing
    acted, errors = [], []
    distributed.on_main(lambda: acted.append(rank))
    for error in (ValueError("bad value"), OSError(28, "disk full"), FileNotFoundError(2, "no such file")):
        try:
            distributed.on_main(fail_with(error))
        except (ValueError, OSError) as raised:  # noqa: PERF203  each has its turn
            errors.append([type(raised).__name__, str(raised)])
    try:
        distributed.on_all(fail_with(FloatingPointError("NaN")) if rank == 1 else (lambda: rank))
    except FloatingPointError as raised:
        errors.append([type(raised).__name__, str(raised)])
    left = []
    with contextlib.suppress(KeyError):
        for number in distributed.claim_blocks(1000):
            left.append(number)
            time.sleep(0.01)
            if rank == 1:
                raise KeyError  # it leaves, and so must the other
    mine = [number for number in distributed.claim_blocks(20) if not time.sleep(0.02 * (1 - rank))]  # rank 0 is slow
    found = {
        "mine": mine,
        "left": len(left),
        "on_all": distributed.on_all(lambda: 10 * rank),
        "again": list(distributed.claim_blocks(1)),
        "rank": distributed.rank(),
        "world_size": distributed.world_size(),
        "main": distributed.is_main(),
        "backends": dist.get_backend_config(),
        "slow": len(distributed.slow_reasons(torch.device("cpu"))),
        "broadcast": distributed.broadcast({"from": rank}),
        "nothing": distributed.broadcast(None if rank == 0 else "lost"),
        "gathered": distributed.gather([rank] * (rank + 1)),
        "acted": acted,
        "errors": errors,
    }
    distributed.barrier()
    distributed.shutdown()
    found["alone"] = [distributed.rank(), distributed.world_size()]
    (folder / f"{rank}.json").write_text(json.dumps(found))


@pytest.mark.distributed
def test_two_ranks_agree(tmp_path):
    mp.spawn(two_ranks, (free_port(), tmp_path), nprocs=2)
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    assert (first.pop("rank"), first.pop("main"), first.pop("acted")) == (0, True, [0])
    assert sorted(first["mine"] + second["mine"]) == list(range(20))
    assert len(first.pop("mine")) < len(second.pop("mine"))
    assert first.pop("left") < 900
    # Of a backend for GPUs, too, as with NCCL: objects and barriers that went through it would fail here.
    assert {"cpu:gloo", "cuda:gloo"} <= set(first["backends"].split(","))
    assert first.pop("backends") == second.pop("backends")
    assert second.pop("left") == 1
    assert (first.pop("on_all"), second.pop("on_all")) == (0, 10)
    assert first.pop("again") + second.pop("again") == [0]
    assert (second.pop("rank"), second.pop("main"), second.pop("acted")) == (1, False, [])
    assert (
        first
        == second
        == {
            "world_size": 2,
            "slow": 1,
            "broadcast": {"from": 0},
            "nothing": None,
            "gathered": [[0], [1, 1]],
            "errors": [
                ["ValueError", "bad value"],
                ["OSError", "[Errno 28] disk full"],
                ["FileNotFoundError", "[Errno 2] no such file"],
                ["FloatingPointError", "NaN"],
            ],
            "alone": [0, 1],
        }
    )
