"""Ranks: one alone, and two real ones."""

import contextlib
import gc
import json
import os
import time
import weakref

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
        "backend": dist.get_backend(),
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
    assert second.pop("left") == 1
    assert (first.pop("on_all"), second.pop("on_all")) == (0, 10)
    assert first.pop("again") + second.pop("again") == [0]
    assert (second.pop("rank"), second.pop("main"), second.pop("acted")) == (1, False, [])
    assert (
        first
        == second
        == {
            "world_size": 2,
            "backend": "gloo",
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
