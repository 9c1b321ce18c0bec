"""Devices and number types: what this machine has, and what the flags call it."""

from __future__ import annotations

import os
import platform

import torch

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def describe_device(device: torch.device) -> str:
    """Name the device in words."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"{device.type} ({platform.machine()}, {threads} thread{'s' * (threads > 1)} per rank)"


def resolve_device(name: str) -> torch.device:
    """Return the device that `name` stands for on this rank; `auto` takes what is there: cuda, then mps, then cpu.

    A name that is unknown, or of what this machine does not have, raises a ValueError.
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
        raise ValueError(
            f"device is {name!r}, which would put every rank on one GPU; use --device cuda, and each takes its own"
        )
    if name == "cuda":
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)) % torch.cuda.device_count())
    try:
        return torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"device is {name!r}; allowed are auto, cuda, cpu and mps") from error


def synchronize(device: torch.device) -> None:
    """Wait until `device` has finished what was launched on it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
