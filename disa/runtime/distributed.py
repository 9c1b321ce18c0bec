"""Collective operations; without a process group, each works as on rank 0 of 1.

Objects and barriers go through gloo and main memory, on GPUs too: of a group with several backends, torch takes the
CPU's for objects.
"""

from __future__ import annotations

import datetime
import hashlib
import os
import uuid
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import torch
import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous

from .extras import MissingExtra

T = TypeVar("T")

# What a user can mend (a wrong setting, a missing file or package, a full disk or memory, a NaN): one sentence says it.
USER_ERRORS = (ValueError, OSError, FloatingPointError, MissingExtra, torch.OutOfMemoryError)


def setup(device: torch.device) -> None:
    """Join the process group that the launcher describes in the environment; without a launcher, do nothing.

    Tensors on GPUs go through NCCL where each rank has a GPU of its own, everything else through gloo. An incomplete
    description, such as RANK without MASTER_ADDR, raises a ValueError.
    """
    if "RANK" not in os.environ or dist.is_initialized():
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    timeout = datetime.timedelta(hours=2)  # at the end of a generation, the slowest rank may be long behind
    store, rank, world_size = next(rendezvous("env://", timeout=timeout))
    store.set_timeout(timeout)
    # The group cannot tell who has which GPU: NCCL needs to know before there is one.
    store.set(f"gpu/{rank}", _gpu(device))
    nccl = _own_gpus([store.get(f"gpu/{other}").decode() for other in range(world_size)])
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if nccl else "gloo",
        store=store,
        rank=rank,
        world_size=world_size,
        timeout=timeout,
        device_id=device if nccl else None,
    )


def _gpu(device: torch.device) -> str:
    """Identify the GPU of this rank, by what does not depend on which GPUs the rank sees."""
    return str(torch.cuda.get_device_properties(device).uuid) if device.type == "cuda" else device.type


def _own_gpus(gpus: Sequence[str]) -> bool:
    """Whether NCCL can connect ranks on these GPUs, one entry per rank: it refuses two ranks on one GPU."""
    return dist.is_nccl_available() and {"cpu", "mps"}.isdisjoint(gpus) and len(set(gpus)) == len(gpus)


def slow_reasons(device: torch.device) -> list[str]:
    """Say in a sentence each what makes several ranks slow: no GPU, a GPU with several ranks, gloo between GPUs.

    Every rank calls this.
    """
    gpus = gather(_gpu(device))
    ranks, used = len(gpus), [gpu for gpu in gpus if gpu != "cpu"]
    reasons = []
    if ranks > 1 and len(used) < ranks:
        advice = "see whether nvidia-smi lists GPUs, and PyTorch is built for CUDA"
        reasons.append(f"{ranks - len(used)} of {ranks} ranks compute on a CPU; {advice}")
    if len(set(used)) < len(used):
        reasons.append(f"{len(used)} ranks share {len(set(used))} GPU{'s' * (len(set(used)) > 1)}; start one per GPU")
    if ranks > 1 and used and not _own_gpus(gpus):
        reasons.append("tensors on GPUs go between ranks through gloo and main memory, not through NCCL")
    return reasons


def shutdown() -> None:
    """Leave the process group, if there is one. Not after an error: ranks that wait for this one must see it die."""
    if dist.is_initialized():
        dist.destroy_process_group()


def rank() -> int:
    """Return the number of this process, 0 when it is alone."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """Return the number of processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


def is_main() -> bool:
    """Whether this is rank 0, which prints and writes summaries."""
    return rank() == 0


def print_main(text: str) -> None:
    """Print on rank 0 alone."""
    if is_main():
        print(text, flush=True)


def barrier() -> None:
    """Wait for every rank."""
    if dist.is_initialized():
        # Through gloo: with a GPU, `dist.barrier` would work on it, and wait for all that was launched there.
        dist.all_reduce(torch.zeros(1, device="cpu"))


def broadcast(value: T) -> T:
    """Return rank 0's `value` on every rank."""
    box = [value]
    if dist.is_initialized():
        dist.broadcast_object_list(box, src=0)
    return box[0]


def gather(value: T) -> list[T]:
    """Return every rank's `value` in rank order, on every rank."""
    values = [value] * world_size()
    if dist.is_initialized():
        dist.all_gather_object(values, value)
    return values


def gather_to_main(value: T) -> list[T]:
    """Return every rank's `value` in rank order on rank 0, and nothing elsewhere."""
    values = [value] * world_size() if is_main() else []
    if dist.is_initialized():
        dist.gather_object(value, values or None)
    return values


def on_main(action: Callable[[], T]) -> T:
    """Return what `action` returns on rank 0, which alone calls it; one of `USER_ERRORS` is raised on every rank."""
    return _result(*broadcast(_attempt(action) if is_main() else (None, None)))


def on_all(action: Callable[[], T]) -> T:
    """Return what `action` returns on this rank; one of `USER_ERRORS` on any rank is raised on every rank.

    Every rank calls `action`; within it, ranks do not wait for each other.
    """
    return _result(*_share_errors(*_attempt(action)))


def _attempt(action: Callable[[], T]) -> tuple[T | None, Exception | None]:
    try:
        return action(), None
    except USER_ERRORS as error:
        return None, error


def _share_errors(value: T | None, error: Exception | None) -> tuple[T | None, Exception | None]:
    """Add the error of the first rank that has one where there is none."""
    return value, next(filter(None, [error, *gather(error)]), None)


def _result(value: T | None, error: Exception | None) -> T:
    try:
        if error is not None:
            raise error
    finally:
        del error  # with this frame in its traceback, it would keep all frames alive, and a GPU's memory in them
    return value  # type: ignore[return-value]


def first_to_say(text: str) -> bool:
    """Whether no other rank has said `text`; ranks that fail alike, also before they have met, so say it once."""
    if "RANK" not in os.environ:
        return True
    try:
        store = (
            _store() if dist.is_initialized() else next(rendezvous("env://", timeout=datetime.timedelta(seconds=9)))[0]
        )
        return store.add(f"said/{hashlib.sha256(text.encode()).hexdigest()}", 1) == 1
    except (RuntimeError, ValueError):  # nobody answers: better said twice than not at all
        return True


def _store() -> dist.distributed_c10d.Store:
    """Return the store in which the ranks met, across machines; ranks that are started again get a new one.

    torch has no public name for it. Should the private one go: rank 0 opens a `TCPStore` and broadcasts its address.
    """
    return dist.distributed_c10d._get_default_store()


def claim_blocks(count: int) -> Iterator[int]:
    """Yield the numbers 0 to count - 1, each on the one rank that first asks for it, so that a slow rank does fewer.

    Every rank calls this. A rank that leaves its loop early, as by an error, ends the loops of the others.
    """
    if not dist.is_initialized():
        yield from range(count)
        return
    store, name = _store(), broadcast(f"claim_blocks/{uuid.uuid4()}")
    try:
        while (number := store.add(name, 1) - 1) < count:
            yield number
    except GeneratorExit:
        store.add(name, count)
        raise
