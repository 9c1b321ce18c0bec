"""Training state on disk, in the layout of the released checkpoints (`checkpoint-last.pth`)."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import nn

from ..checkpoints import read_checkpoint
from ..files import atomic_write
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
    """Write everything that a resumed run needs, whole or not at all.

    Keys are the released `model`, `model_ema`, `optimizer`, `epoch` (the last finished one), `scaler` and `args`; `step` is
    ours, and lets a run go on in the middle of an epoch.
    """
    state = {
        "model": model.state_dict(),
        "model_ema": {**model.state_dict(), **ema.average},
        "optimizer": optimizer.state_dict(),
        "epoch": step // steps_per_epoch - 1,
        "scaler": scaler.state_dict(),
        "args": args,
        "step": step,
    }
    with atomic_write(path) as beside:
        torch.save(state, beside)


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
    try:
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
    except (RuntimeError, ValueError) as error:
        raise ValueError(f"{path} is of another model: {str(error).splitlines()[-1].strip()}") from error
    ema.load(state["model_ema"])
    if state.get("scaler"):
        scaler.load_state_dict(state["scaler"])
    return state.get("step", (state["epoch"] + 1) * steps_per_epoch)
