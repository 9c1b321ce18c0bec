"""The state of a training, and its file in the layout of the released checkpoints (`checkpoint-last.pth`)."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch
from torch import nn

from ..runtime import distributed
from ..runtime.files import atomic_write
from ..runtime.shared import places
from ..weights.fetch import LAST as LAST  # what training writes
from ..weights.load import load_into, read_checkpoint
from . import sharding
from .optimization import EMA, TrainingSettings, parameter_groups


def find_checkpoint(resume: str | Path) -> Path:
    """Return the checkpoint that `resume` names, a file or in a folder checkpoint-last.pth; else FileNotFoundError."""
    for place in places(resume):
        for file in (place, place / LAST):
            if file.is_file():
                return file
    missing = Path(resume) / LAST if Path(resume).is_dir() else Path(resume)
    raise FileNotFoundError(f"there is no checkpoint {missing} to resume from")


class TrainingState:
    """A model in training, `network` when wrapped for several ranks, and what a resumed run needs, kept in `path`."""

    def __init__(
        self, model: nn.Module, settings: TrainingSettings, steps_per_epoch: int, path: Path, args: argparse.Namespace
    ) -> None:
        self.model, self.network, self.settings, self.path, self.args = model, model, settings, path, args
        self.step, self.steps_per_epoch, self.saved_at = 0, steps_per_epoch, time.monotonic()
        self.device = next(model.parameters()).device
        self.ema = EMA(model, settings.ema_rate)
        groups = parameter_groups(model, settings.weight_decay)
        self.optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.95), fused=True)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=settings.dtype == torch.float16)

    @property
    def epoch(self) -> int:
        """Number of epochs done."""
        return self.step // self.steps_per_epoch

    def has_ended(self, epochs: int) -> bool:
        """Whether an epoch has just ended that is the last, or a multiple of `epochs`."""
        between = self.step > 0 and self.step % self.steps_per_epoch == 0
        return between and (self.epoch % epochs == 0 or self.epoch == self.settings.epochs)

    def save(self) -> None:
        """Write a checkpoint with the released keys, whole or not at all; every rank calls this."""
        # Without second names of a weight (Harmon's output layer is its embedding): the average would not reach them.
        own = {name for name, _ in (*self.model.named_parameters(), *self.model.named_buffers())}
        weights = sharding.whole({name: value for name, value in self.model.state_dict().items() if name in own})
        content = {
            "model": weights,
            "model_ema": {**weights, **sharding.whole(self.ema.average)},
            "optimizer": sharding.whole(self.optimizer.state_dict()),
            "epoch": self.epoch - 1,  # the last finished one
            "scaler": self.scaler.state_dict(),
            "args": self.args,
            "step": self.step,  # not in released ones: a run can continue within an epoch
            "steps_per_epoch": self.steps_per_epoch,
        }
        if distributed.is_main():
            with atomic_write(self.path) as beside:
                try:
                    torch.save(content, beside)
                except RuntimeError as error:  # as torch reports a full disk
                    raise OSError(f"{self.path} cannot be written ({str(error).splitlines()[0]})") from error
        distributed.barrier()
        self.saved_at = time.monotonic()

    def load(self, path: Path) -> None:
        """Fill everything from a training's checkpoint, ours or a released one; raise ValueError if it does not fit."""
        content = read_checkpoint(path)
        if missing := [key for key in ("model", "model_ema", "optimizer", "epoch") if key not in content]:
            advice = "give a checkpoint-last.pth that training wrote"
            raise ValueError(f"{path} cannot be resumed: it has no {', '.join(missing)}; {advice}")
        averaged = sharding.like_weights(content["model_ema"], self.model)
        load_into(self.model, averaged, path)  # checks it
        self.ema.load(averaged)
        load_into(self.model, sharding.like_weights(content["model"], self.model), path)
        try:
            moments = sharding.like_optimizer(content["optimizer"], self.optimizer)
            # Fused, even if the file is of an optimiser that was not.
            fused = [{**group, "fused": True} for group in moments["param_groups"]]
            self.optimizer.load_state_dict({**moments, "param_groups": fused})
        except ValueError as error:
            raise ValueError(f"{path} is of another model: {str(error).splitlines()[-1].strip()}") from error
        if content.get("scaler"):
            self.scaler.load_state_dict(content["scaler"])
        # With other ranks or another batch size an epoch has another number of steps; a released file counts epochs.
        done = {"step": content["epoch"] + 1, "steps_per_epoch": 1, **content}
        self.step = done["step"] * self.steps_per_epoch // done["steps_per_epoch"]
