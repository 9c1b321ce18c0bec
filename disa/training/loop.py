"""The training loop of every family; a model's `forward` is its loss."""

from __future__ import annotations

import argparse
import contextlib
import math
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from ..runtime import distributed
from ..runtime.start import announce
from ..runtime.stop import stop_requests
from ..runtime.tracking import Scalars, track
from . import sharding
from .checkpoint import LAST, TrainingState
from .optimization import TrainingSettings

Prepare = Callable[..., tuple[object, ...]]
Evaluate = Callable[[nn.Module, int], Mapping[str, float]]


def train(
    model: nn.Module,
    dataset: Dataset[tuple[object, ...]],
    prepare: Prepare,
    settings: TrainingSettings,
    *,
    device: torch.device,
    output: Path,
    log: Path,
    args: argparse.Namespace,
    resume: Path | None = None,
    evaluate: Evaluate | None = None,
    shard: bool = False,
    save_seconds: float = 600.0,
) -> nn.Module:
    """Train `model` on `device`, in place; return it with the averaged weights.

    Args:
        dataset: tuples by index, the same whenever asked for; it has a length.
        prepare: parts of a batch, tensors on `device` -> arguments of the model's `forward`; augmentation belongs here.
        output, log: folders of `checkpoint-last.pth`, from which a later run continues, and of the tracker's log.
        resume: another checkpoint to continue from when `output` has none yet.
        evaluate: (model with averaged weights, epoch) -> scores for the log.
        args: kept in the checkpoint, as in the released ones.
        shard: split weights, average and optimiser over the ranks (FSDP) instead of copying them to each (DDP).
        save_seconds: longest time between checkpoints.

    Raises FloatingPointError if the loss is not finite; KeyboardInterrupt on a request to stop, with the state saved.
    """
    count = len(dataset)  # type: ignore[arg-type]  # torch's class does not promise a length
    images_per_step = settings.batch_size * distributed.world_size()
    if count < images_per_step:
        needed = f"one step of {settings.batch_size} on {distributed.world_size()} ranks"
        raise ValueError(f"the data set has {count} images, fewer than {needed}")
    model.to(device).train()
    if shard:
        sharding.shard(model, device)
    state = TrainingState(model, settings, count // images_per_step, output / LAST, args)
    if start := state.path if state.path.is_file() else resume:
        state.load(start)
    if distributed.world_size() > 1 and not shard:
        devices = [device] if device.type == "cuda" else None
        state.network = DistributedDataParallel(model, device_ids=devices, gradient_as_bucket_view=True)
    announce(device, str(settings.dtype).removeprefix("torch."))
    total, done = (steps * images_per_step for steps in (settings.epochs * state.steps_per_epoch, state.step))
    silent = not distributed.is_main()
    with (
        _log(log, state) as write,
        tqdm(total=total, initial=done, unit="img", unit_scale=True, desc="training", disable=silent) as bar,
    ):
        write(_scores(state, evaluate), state.step)  # in case the run was stopped before its evaluation
        with stop_requests() as stop:
            while state.epoch < settings.epochs:
                for batch in _batches(state, dataset, count):
                    step, epoch = state.step, state.epoch
                    with _attention(device):
                        scalars = _step(state, prepare, batch)
                    write(scalars, step)
                    bar.update(images_per_step)
                    bar.set_postfix(epoch=epoch, loss=f"{scalars['train/loss']:.4f}", refresh=False)
                    _save_if_due(state, save_seconds, stop)
                if state.has_ended(settings.save_epochs) or (evaluate and state.has_ended(settings.eval_epochs)):
                    state.save()
                write(_scores(state, evaluate), state.step)
    state.ema.swap()
    return model.eval()


def _batches(state: TrainingState, dataset: Dataset[tuple[object, ...]], count: int) -> Iterator[list[object]]:
    """Load this rank's remaining batches of the epoch; their order depends on seed and epoch alone."""
    settings = state.settings
    order = torch.randperm(count, generator=torch.Generator().manual_seed(settings.seed + state.epoch))
    mine = order[distributed.rank() :: distributed.world_size()][: state.steps_per_epoch * settings.batch_size]
    loader = DataLoader(
        dataset,
        batch_sampler=mine.view(-1, settings.batch_size)[state.step % state.steps_per_epoch :].tolist(),
        num_workers=settings.num_workers,
        pin_memory=settings.pin_memory and state.device.type == "cuda",
    )
    for batch in loader:
        yield [part.to(state.device, non_blocking=True) if isinstance(part, Tensor) else part for part in batch]


def _attention(device: torch.device) -> contextlib.AbstractContextManager[None]:
    """Choose attention: on CPUs, the backward pass of torch's fused one takes as long as everything else together."""
    return sdpa_kernel(SDPBackend.MATH) if device.type == "cpu" else contextlib.nullcontext()


def _step(state: TrainingState, prepare: Prepare, batch: list[object]) -> Scalars:
    """Make a step; return what is logged."""
    settings, ranks = state.settings, distributed.world_size()
    # Random draws depend on seed, step and rank alone, so that a resumed run repeats them.
    torch.manual_seed((settings.seed * 1_000_003 + state.step) * ranks + distributed.rank())
    lr = settings.learning_rate(state.step / state.steps_per_epoch, ranks)
    for group in state.optimizer.param_groups:
        group["lr"] = lr
    arguments = prepare(*batch)
    with torch.autocast(state.device.type, settings.dtype, enabled=settings.dtype != torch.float32):
        loss = state.network(*arguments)
    value = loss.item()
    if not math.isfinite(value):
        known = f"the last good checkpoint is {state.path}" if state.path.is_file() else "nothing was saved yet"
        raise FloatingPointError(
            f"the loss is {value} at step {state.step} (epoch {state.epoch}); {known}; try a lower --lr or --grad_clip"
        )
    state.optimizer.zero_grad(set_to_none=True)
    state.scaler.scale(loss).backward()
    state.scaler.unscale_(state.optimizer)
    norm = sharding.complete(nn.utils.clip_grad_norm_(state.model.parameters(), settings.grad_clip or math.inf))
    state.scaler.step(state.optimizer)
    state.scaler.update()
    state.ema.update(state.step)
    state.step += 1
    return {"train/loss": value, "train/grad_norm": norm, "train/lr": lr}


def _scores(state: TrainingState, evaluate: Evaluate | None) -> Scalars:
    """Evaluate the averaged weights, if that is due."""
    if evaluate is None or not state.has_ended(state.settings.eval_epochs):
        return {}
    state.ema.swap()
    scores = evaluate(state.model.eval(), state.epoch)
    state.ema.swap()
    state.model.train()
    return {f"eval/{name}": score for name, score in scores.items()}


def _save_if_due(state: TrainingState, save_seconds: float, stop: list[int]) -> None:
    """Save if the last time is `save_seconds` ago; if there is a request to stop, save and raise KeyboardInterrupt."""
    # Ranks must agree: the collective below costs little beside a step, and is used seldom.
    if state.step % 16 and distributed.world_size() > 1:
        return
    due, asked = distributed.broadcast((time.monotonic() - state.saved_at > save_seconds, bool(stop)))
    if due or asked:
        state.save()
    if asked:
        raise KeyboardInterrupt(
            f"stopped at step {state.step}; start the same command again to go on from {state.path}"
        )


def _log(folder: Path, state: TrainingState) -> contextlib.AbstractContextManager[Callable[[Scalars, int], object]]:
    """Open the log in `folder`; only the main rank writes."""
    if not distributed.is_main():
        return contextlib.nullcontext(lambda *_: None)
    return track(state.settings.tracker, folder, state.step, vars(state.args))
