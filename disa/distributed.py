"""Ranks: the few collective operations that generation, metrics and training need.

Every function works without a process group too, as rank 0 of 1, so that callers never ask whether there is one.
"""

from __future__ import annotations

import datetime
import os
import uuid
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch
import torch.distributed as dist

T = TypeVar("T")

# What a user can mend (a wrong setting, a missing or broken file, a full disk or memory, a NaN): one sentence says it.
MENDABLE = (ValueError, OSError, FloatingPointError, torch.OutOfMemoryError)


def resolve_device(name: str) -> torch.device:
    """The device that `name` stands for on this rank; `auto` takes what is there: cuda, then mps, then cpu.

    Raises:
        ValueError: `name` is unknown, or this machine does not have it.
    """
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        name = next(kind for kind, there in available.items() if there)
    kind = name.partition(":")[0]
    if kind not in available:
        raise ValueError(f"device is {name!r}; allowed are auto, cuda, cpu and mps")
    if not available[kind]:
        raise ValueError(f"device is {name!r}, but this machine has none; use --device auto or --device cpu")
    if kind == "cuda" and ":" in name and int(os.environ.get("LOCAL_WORLD_SIZE", 1)) > 1:
        raise ValueError(f"device is {name!r}, which would put every rank on one GPU; use --device cuda, and each takes its own")
    if name == "cuda":
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)) % torch.cuda.device_count())
    try:
        return torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"device is {name!r}; allowed are auto, cuda, cpu and mps") from error


def setup(device: torch.device) -> None:
    """Join the process group that torchrun describes in the environment (nccl on GPUs, gloo elsewhere); alone, do nothing."""
    if "RANK" not in os.environ or dist.is_initialized():
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    # Ranks wait for each other at the end of a generation, where the slowest may be long behind.
    # nccl refuses two ranks on one GPU.
    crowded = int(os.environ.get("LOCAL_WORLD_SIZE", 1)) > torch.cuda.device_count()
    dist.init_process_group("nccl" if device.type == "cuda" and not crowded else "gloo", timeout=datetime.timedelta(hours=2))


def shutdown() -> None:
    """Leave the process group, if there is one. Not after an error: ranks that still wait for this one must see it die."""
    if dist.is_initialized():
        dist.destroy_process_group()


def rank() -> int:
    """This process's number, 0 when it is alone."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """The number of processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


def is_main() -> bool:
    """Whether this is rank 0, the one that prints and writes summaries."""
    return rank() == 0


def barrier() -> None:
    """Wait for every rank."""
    if dist.is_initialized():
        dist.barrier()


def broadcast(value: T) -> T:
    """Rank 0's `value`, on every rank."""
    if not dist.is_initialized():
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def on_main(action: Callable[[], T]) -> T:
    """What `action` returns on rank 0, which alone does it; what a user can mend is raised on every rank, so that none waits."""
    result: T | None = None
    error: Exception | None = None
    if is_main():
        try:
            result = action()
        except MENDABLE as caught:
            error = caught
    result, error = broadcast((result, error))
    try:
        if error is not None:
            raise error
    finally:
        del error  # with this frame in its traceback, it would keep all frames alive, and a GPU's memory in them
    return result  # type: ignore[return-value]


def together(action: Callable[[], T]) -> T:
    """What `action` returns on this rank; every rank does it, and what a user can mend on one is raised on all, so that none waits.

    Ranks do not wait for each other within `action`.
    """
    result: T | None = None
    error: Exception | None = None
    try:
        result = action()
    except MENDABLE as caught:
        error = caught
    first = next((found for found in gather(error) if found is not None), None)
    try:
        if first is not None:
            raise error or first
    finally:
        del error, first  # as above
    return result  # type: ignore[return-value]


def hand_out(count: int) -> Iterator[int]:
    """The numbers 0..count-1, each to the one rank that first asks for it, so that a slow rank does fewer; every rank calls this.

    A rank that leaves its loop early, as by an error, ends those of the others, too.
    """
    if not dist.is_initialized():
        yield from range(count)
        return
    # The store that the ranks met in counts across machines, too, and torchrun gives a new one to ranks that it starts again.
    store, counter = dist.distributed_c10d._get_default_store(), broadcast(f"hand_out/{uuid.uuid4()}")
    try:
        while (number := store.add(counter, 1) - 1) < count:
            yield number
    except GeneratorExit:
        store.add(counter, count)
        raise


def gather_to_main(value: T) -> list[T]:
    """Every rank's `value` in rank order, on rank 0; nothing elsewhere."""
    if not dist.is_initialized():
        return [value]
    values: list[Any] | None = [None] * dist.get_world_size() if is_main() else None
    dist.gather_object(value, values)
    return values or []


def gather(value: T) -> list[T]:
    """Every rank's `value` in rank order, on every rank."""
    if not dist.is_initialized():
        return [value]
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values
