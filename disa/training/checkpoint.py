"""Training state on disk, in the layout of the released checkpoints (`checkpoint-last.pth`)."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import nn

from .. import distributed
from ..checkpoints import load_into, read_checkpoint
from ..files import atomic_write
from . import sharding
from .optimization import EMA

LAST = "checkpoint-last.pth"


def save_training(
    path: Path,
    model: nn.Module,
    ema: EMA,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    step: int,
    steps_per_epoch: int,
    args: argparse.Namespace,
) -> None:
    """Write everything that a resumed run needs, whole or not at all; every rank calls this.

    Keys are the released `model`, `model_ema`, `optimizer`, `epoch` (the last finished one), `scaler` and `args`; `step` is
    ours, and lets a run go on in the middle of an epoch.
    """
    # Without second names of a weight (Harmon's output layer is its embedding): the average would not reach them.
    own = {name for name, _ in (*model.named_parameters(), *model.named_buffers())}
    weights = sharding.whole({name: value for name, value in model.state_dict().items() if name in own})
    state = {
        "model": weights,
        "model_ema": {**weights, **sharding.whole(ema.average)},
        "optimizer": sharding.whole(optimizer.state_dict()),
        "epoch": step // steps_per_epoch - 1,
        "scaler": scaler.state_dict(),
        "args": args,
        "step": step,
        "steps_per_epoch": steps_per_epoch,
    }
    if distributed.is_main():
        with atomic_write(path) as beside:
            try:
                torch.save(state, beside)
            except RuntimeError as error:  # which is what torch makes of a full disk
                raise OSError(f"{path} cannot be written ({str(error).splitlines()[0]})") from error
    distributed.barrier()


def find_checkpoint(resume: str | Path) -> Path:
    """The checkpoint that `resume` names: a file, or a folder with checkpoint-last.pth.

    Raises:
        FileNotFoundError: there is none.
    """
    path = Path(resume) / LAST if Path(resume).is_dir() else Path(resume)
    if not path.is_file():
        raise FileNotFoundError(f"there is no checkpoint {path} to resume from")
    return path


def load_training(
    path: Path, model: nn.Module, ema: EMA, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler, steps_per_epoch: int
) -> int:
    """Fill everything from `path`, ours or a released one; returns the number of steps done.

    Raises:
        ValueError: the file is not a training checkpoint of this model.
    """
    state = read_checkpoint(path)
    missing = [key for key in ("model", "model_ema", "optimizer", "epoch") if key not in state]
    if missing:
        raise ValueError(f"{path} cannot be resumed: it has no {', '.join(missing)}; give a checkpoint-last.pth that training wrote")
    averaged = sharding.like_weights(state["model_ema"], model)
    load_into(model, averaged, path)  # checks it
    ema.load(averaged)
    load_into(model, sharding.like_weights(state["model"], model), path)
    try:
        optimizer.load_state_dict(sharding.like_optimizer(state["optimizer"], optimizer))
    except ValueError as error:
        raise ValueError(f"{path} is of another model: {str(error).splitlines()[-1].strip()}") from error
    if state.get("scaler"):
        scaler.load_state_dict(state["scaler"])
    if "step" not in state:
        return (state["epoch"] + 1) * steps_per_epoch
    # With other ranks or another batch size an epoch has another number of steps; what was done of the epochs counts.
    return state["step"] * steps_per_epoch // state["steps_per_epoch"]
