"""Fully sharded training on two processes: the numbers and the checkpoints of training with copies on each."""

import pytest
import torch

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
