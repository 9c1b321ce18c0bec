"""Fully sharded training on two processes: the numbers and the checkpoints of training with copies on each."""

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

from disa.training import sharding
from disa.training.checkpoint import LAST
from disa.weights.load import read_checkpoint
from tests.helpers import processes
from tests.helpers.processes import TORCHRUN
from tests.training.test_loop import losses

SCRIPT = """
import sys
from pathlib import Path

import torch

from disa.runtime import distributed
from tests.training.test_loop import run

torch.set_num_threads(1)
distributed.setup(torch.device("cpu"))
calls = 0


def die_in_epoch_2(latents):
    global calls
    calls += 1
    if calls == int(sys.argv[3]):
        sys.exit("died as asked")
    return latents


run(Path(sys.argv[1]), to_latents=die_in_epoch_2, shard=sys.argv[2] == "shard")
distributed.shutdown()
"""


def train(tmp_path, folder, how, die_at=0):
    (tmp_path / "script.py").write_text(SCRIPT)
    ended = processes.run(*TORCHRUN, tmp_path / "script.py", tmp_path / folder, how, die_at, code=None)
    assert (ended.returncode == 0) == (die_at == 0), ended.stderr
    return tmp_path / folder


@pytest.mark.slow
@pytest.mark.distributed
def test_sharded_runs_give_the_copied_ones_losses_and_checkpoints(tmp_path):
    copied, parts = train(tmp_path, "copied", "copy"), train(tmp_path, "parts", "shard", die_at=7)
    assert 0 < len(losses(parts)) < len(losses(copied))
    train(tmp_path, "parts", "shard")
    assert losses(parts) == losses(copied)
    ours, theirs = (read_checkpoint(folder / LAST) for folder in (parts, copied))
    for key in ("model", "model_ema"):
        assert all(torch.equal(value, theirs[key][name]) for name, value in ours[key].items())
    assert all(
        torch.equal(value, theirs["optimizer"]["state"][index][name])
        for index, held in ours["optimizer"]["state"].items()
        for name, value in held.items()
    )


def test_one_process_has_nothing_to_share():
    with pytest.raises(ValueError, match="more than one process"):
        sharding.shard(torch.nn.Linear(2, 2), torch.device("cpu"))


@pytest.fixture
def mesh(tmp_path):
    """A mesh of this process alone."""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    dist.destroy_process_group()


def test_trees_are_gathered(mesh):
    rows = torch.arange(6.0).reshape(3, 2)
    split = distribute_tensor(rows, mesh, [Shard(0)])
    tree = {"a": [split, 1], "b": {"c": split, "d": rows}, 2: "text"}
    found = sharding.whole(tree)
    assert [*found] == ["a", "b", 2]
    assert type(found["a"][0]) is type(found["b"]["c"]) is torch.Tensor
    assert torch.equal(found["a"][0], rows)
    assert torch.equal(found["b"]["c"], rows)
    assert found["b"]["d"] is rows
    assert (found["a"][1], found[2]) == (1, "text")
    assert type(sharding.complete(split)) is torch.Tensor
    assert torch.equal(sharding.complete(split), rows)
    assert sharding.complete(rows) is rows


def test_whole_tensors_are_split_like_others(mesh):
    rows, count = torch.arange(6.0).reshape(3, 2), torch.tensor(3.0)
    split = distribute_tensor(torch.zeros(3, 2), mesh, [Shard(1)])
    found = sharding.like(rows, split)
    assert isinstance(found, DTensor)
    assert found.placements == (Shard(1),)
    assert torch.equal(found.full_tensor(), rows)
    assert sharding.like(rows, torch.zeros(3, 2)) is rows
    assert sharding.like(count, split) is count
    assert sharding.like("text", split) == "text"


def test_states_are_split_like_a_models_and_its_optimizers(mesh):
    model = torch.nn.Linear(2, 3)
    model.weight = torch.nn.Parameter(distribute_tensor(model.weight.detach(), mesh, [Shard(0)]))
    state = {"weight": torch.ones(3, 2), "bias": torch.ones(3), "other": torch.ones(1)}
    found = sharding.like_weights(state, model)
    assert [*found] == [*state]
    assert isinstance(found["weight"], DTensor)
    assert torch.equal(found["weight"].full_tensor(), state["weight"])
    assert found["bias"] is state["bias"]
    assert found["other"] is state["other"]
    optimizer = torch.optim.AdamW([{"params": [model.bias]}, {"params": [model.weight]}])
    moments = {"step": torch.tensor(2.0), "exp_avg": torch.ones(3, 2)}
    whole = {"state": {0: {"exp_avg": torch.ones(3)}, 1: moments, 2: moments}, "param_groups": ["kept"]}
    split = sharding.like_optimizer(whole, optimizer)
    assert split["param_groups"] == ["kept"]
    assert [*split["state"]] == [0, 1]  # torch refuses what the optimiser does not have
    assert split["state"][0]["exp_avg"] is whole["state"][0]["exp_avg"]
    assert split["state"][1]["step"] is moments["step"]
    assert isinstance(split["state"][1]["exp_avg"], DTensor)
    assert torch.equal(split["state"][1]["exp_avg"].full_tensor(), moments["exp_avg"])
