"""The training loop of every family; what a family's loss is, its model's `forward` knows."""

from __future__ import annotations

import argparse
import contextlib
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from .. import distributed
from ..flags import DTYPES
from . import sharding
from .checkpoint import LAST, load_training, save_training
from .optimization import EMA, learning_rate, parameter_groups

SAVE_SECONDS = 600  # a killed run loses at most this much


@dataclass(frozen=True)
class TrainingSettings:
    """How to train.

    Attributes:
        batch_size: images a step on each rank.
        epochs, warmup_epochs: the length of the run and of its warm-up.
        lr: peak learning rate; None takes `blr` · (images a step over all ranks) / 256.
        lr_schedule: "constant" or "cosine" (down to `min_lr`).
        grad_clip: largest norm of the gradient; 0 does not clip.
        dtype: of the autocast forward pass; float32 is none.
        save_epochs, eval_epochs: how often to save and (where there is an `evaluate`) to evaluate.
    """

    batch_size: int
    epochs: int
    warmup_epochs: float
    lr: float | None
    blr: float
    min_lr: float
    lr_schedule: str
    weight_decay: float
    grad_clip: float
    ema_rate: float
    seed: int
    dtype: torch.dtype
    save_epochs: int
    eval_epochs: int
    num_workers: int = 0
    pin_memory: bool = False

    def __post_init__(self) -> None:
        if self.lr_schedule not in ("constant", "cosine"):
            raise ValueError(f"lr_schedule is {self.lr_schedule!r}; allowed are constant and cosine")
        for name in ("batch_size", "epochs", "save_epochs", "eval_epochs"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if not self.grad_clip >= 0:
            raise ValueError(f"grad_clip is {self.grad_clip}; it must be at least 0 (0 does not clip)")
        if self.seed < 0:
            raise ValueError(f"seed is {self.seed}; it must be at least 0")
        if not 0 <= self.ema_rate < 1:
            raise ValueError(f"ema_rate is {self.ema_rate}; it must be in [0, 1)")


def settings_from_flags(args: argparse.Namespace) -> TrainingSettings:
    """The settings that the commands' shared flags ask for."""
    return TrainingSettings(
        batch_size=args.batch_size,
        epochs=args.epochs,
        warmup_epochs=args.warmup_epochs,
        lr=args.lr,
        blr=args.blr,
        min_lr=args.min_lr,
        lr_schedule=args.lr_schedule,
        weight_decay=args.weight_decay,
        grad_clip=args.grad_clip,
        ema_rate=args.ema_rate,
        seed=args.seed,
        dtype=DTYPES[args.dtype],
        save_epochs=args.save_last_freq,
        eval_epochs=args.eval_freq,
        num_workers=args.num_workers,
        pin_memory=args.pin_mem,
    )


def _epoch_batches(count: int, settings: TrainingSettings, epoch: int, first: int) -> list[list[int]]:
    """This rank's batches of one epoch from batch `first` on: the order depends on seed and epoch alone."""
    generator = torch.Generator().manual_seed(settings.seed + epoch)
    mine = torch.randperm(count, generator=generator)[distributed.rank() :: distributed.world_size()]
    steps = count // (settings.batch_size * distributed.world_size())
    return mine[: steps * settings.batch_size].view(steps, -1)[first:].tolist()


@contextlib.contextmanager
def _stop_requests() -> Iterator[list[int]]:
    """A list that is filled when the process is asked to stop (SIGTERM, SIGINT), so that the step can be finished and saved.

    Who asks twice does not want to wait.
    """
    asked: list[int] = []

    def ask(number: int, frame: FrameType | None) -> None:
        asked.append(number)
        if len(asked) > 1:
            raise KeyboardInterrupt("stopped at once; what was saved last is whole")

    before = {number: signal.signal(number, ask) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def train(
    model: nn.Module,
    dataset: Any,  # map-style, with a length
    prepare: Callable[..., tuple[Any, ...]],
    settings: TrainingSettings,
    *,
    device: torch.device,
    output: Path,
    log: Path,
    args: argparse.Namespace,
    resume: Path | None = None,
    evaluate: Callable[[nn.Module, int], dict[str, float]] | None = None,
    shard: bool = False,
) -> nn.Module:
    """Train `model` on `device`, in place; returns it holding the averaged weights.

    Every random draw of a step depends on the seed, the step and the rank alone, so that a resumed run repeats what an
    uninterrupted one would have done.

    Args:
        dataset: items, tuples; the same item whenever asked for.
        prepare: the parts of a batch of items, tensors on `device` -> the arguments of the model's `forward`; what is random
            belongs here.
        output: folder of `checkpoint-last.pth`, from which a run in the same folder goes on.
        log: folder of the TensorBoard log.
        args: kept in the checkpoint, as released.
        resume: another checkpoint to go on from when `output` has none yet.
        evaluate: (model with averaged weights, epoch) -> scores for the log.
        shard: split weights, gradients, average and optimiser over the ranks (FSDP) instead of copying them to each (DDP).

    Raises:
        FloatingPointError: the loss became NaN or infinite.
        KeyboardInterrupt: the process was asked to stop; the state is saved.
    """
    world, last = distributed.world_size(), output / LAST
    steps_per_epoch = len(dataset) // (settings.batch_size * world)
    if steps_per_epoch == 0:
        raise ValueError(f"the data set has {len(dataset)} images, fewer than one step of {settings.batch_size} on {world} ranks")
    images_a_step = settings.batch_size * world
    peak = settings.blr * images_a_step / 256 if settings.lr is None else settings.lr

    start = last if last.is_file() else resume
    model.to(device).train()
    if shard:
        sharding.shard(model, device)
    ema = EMA(model, settings.ema_rate)
    optimizer = torch.optim.AdamW(parameter_groups(model, settings.weight_decay), lr=peak, betas=(0.9, 0.95))
    scaler = torch.amp.GradScaler(device.type, enabled=settings.dtype == torch.float16)
    step = load_training(start, model, ema, optimizer, scaler, steps_per_epoch) if start else 0
    network = model if shard or world == 1 else DistributedDataParallel(model, device_ids=[device] if device.type == "cuda" else None)

    total = settings.epochs * steps_per_epoch
    writer = SummaryWriter(str(log), purge_step=step) if distributed.is_main() else None
    bar = tqdm(
        total=total * images_a_step, initial=step * images_a_step, unit="img", unit_scale=True, disable=writer is None, desc="training"
    )

    def falls_on(epochs: int) -> bool:
        return (step // steps_per_epoch) % epochs == 0 or step == total

    def evaluate_average() -> None:
        assert evaluate is not None
        ema.swap()
        scores = evaluate(model.eval(), step // steps_per_epoch)
        ema.swap()
        model.train()
        for name, score in scores.items():
            if writer is not None:
                writer.add_scalar(f"eval/{name}", score, step)

    def save() -> None:
        save_training(last, model, ema, optimizer, scaler, step, steps_per_epoch, args)

    if evaluate is not None and step and step % steps_per_epoch == 0 and falls_on(settings.eval_epochs):
        evaluate_average()  # in case that is where the run was stopped; one that was finished is not repeated
    with _stop_requests() as stop:
        saved_at = time.monotonic()
        while step < total:
            epoch, first = divmod(step, steps_per_epoch)
            batches = _epoch_batches(len(dataset), settings, epoch, first)
            loader = DataLoader(
                dataset, batch_sampler=batches, num_workers=settings.num_workers, pin_memory=settings.pin_memory and device.type == "cuda"
            )
            for batch in loader:
                torch.manual_seed((settings.seed * 1_000_003 + step) * world + distributed.rank())
                for group in optimizer.param_groups:
                    group["lr"] = learning_rate(
                        step / steps_per_epoch,
                        lr=peak,
                        min_lr=settings.min_lr,
                        warmup_epochs=settings.warmup_epochs,
                        epochs=settings.epochs,
                        schedule=settings.lr_schedule,
                    )
                arguments = prepare(*(part.to(device, non_blocking=True) if isinstance(part, Tensor) else part for part in batch))
                with torch.autocast(device.type, settings.dtype, enabled=settings.dtype != torch.float32):
                    loss = network(*arguments)
                value = loss.item()
                if not torch.isfinite(loss):
                    known = f"the last good checkpoint is {last}" if last.is_file() else "nothing was saved yet"
                    raise FloatingPointError(
                        f"the loss is {value} at step {step} (epoch {epoch}); {known}; try a lower --lr or --grad_clip"
                    )
                optimizer.zero_grad(set_to_none=True)
                scaler.scale(loss).backward()
                scaler.unscale_(optimizer)
                norm = sharding.complete(nn.utils.clip_grad_norm_(model.parameters(), settings.grad_clip or float("inf")))
                scaler.step(optimizer)
                scaler.update()
                ema.update()
                if writer is not None:
                    writer.add_scalar("train/loss", value, step)
                    writer.add_scalar("train/grad_norm", norm, step)
                    writer.add_scalar("train/lr", optimizer.param_groups[0]["lr"], step)
                step += 1
                bar.update(images_a_step)
                bar.set_postfix(epoch=epoch, loss=f"{value:.4f}", refresh=False)
                # Ranks must agree on when to save: the collective below costs little beside a step, and is asked for seldom.
                if step % 16 == 0 or world == 1:
                    due, asked = distributed.broadcast((time.monotonic() - saved_at > SAVE_SECONDS, bool(stop)))
                    if due or asked:
                        save()
                        saved_at = time.monotonic()
                    if asked:
                        bar.close()
                        raise KeyboardInterrupt(f"stopped at step {step}; start the same command again to go on from {last}")
            evaluating = evaluate is not None and falls_on(settings.eval_epochs)
            if evaluating or falls_on(settings.save_epochs):
                save()
            if evaluating:
                evaluate_average()
    bar.close()
    if writer is not None:
        writer.close()
    ema.swap()
    return model.eval()
