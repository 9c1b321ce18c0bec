"""Devices and number types: what this machine has, and what the flags call it."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping

import torch

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def describe_device(device: torch.device) -> str:
    """Name the device in words."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"{device.type} ({platform.machine()}, {threads} thread{'s' * (threads > 1)} per rank)"


def has_bfloat16() -> bool:
    """Tell whether this CPU multiplies in bfloat16; without AVX-512 it is slower than in float32."""
    return bool(getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", bool)())


def local_rank(environment: Mapping[str, str] = os.environ) -> int:
    """Return the number of this rank on its machine, as its launcher tells it; 0 without a launcher.

    Where the launcher tells only RANK, which counts over all machines, return that: its remainder by the number of
    GPUs is right where every machine is full.
    """
    names = ("LOCAL_RANK", "SLURM_LOCALID", "OMPI_COMM_WORLD_LOCAL_RANK", "MPI_LOCALRANKID", "RANK")
    return int(next((environment[name] for name in names if name in environment), 0))


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
    count = torch.cuda.device_count()  # of the GPUs that this rank sees, which may be its own alone
    if kind == "cuda" and ":" in name and count > 1 and int(os.environ.get("LOCAL_WORLD_SIZE", 1)) > 1:
        raise ValueError(
            f"device is {name!r}, which would put every rank on one GPU; use --device cuda, and each takes its own"
        )
    if name == "cuda":
        return torch.device("cuda", local_rank() % count)
    try:
        return torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"device is {name!r}; allowed are auto, cuda, cpu and mps") from error


def resolve_dtype(name: str, device: torch.device, half: str = "float16") -> str:
    """Return the name of the number type that `name` stands for on `device`; `auto` takes `half` on CUDA, else float32.

    Float32 by name is exact. Otherwise, what stays float32 on CUDA multiplies in TF32, and convolutions are chosen by
    trial: these two switches of torch are set here, for the whole process. An unknown name raises a ValueError.
    """
    if name not in ("auto", *DTYPES):
        raise ValueError(f"dtype is {name!r}; allowed are auto, {', '.join(DTYPES)}")
    fast = name != "float32"
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = torch.backends.cudnn.benchmark = fast
    if name == "auto":
        return half if device.type == "cuda" else "float32"
    return name


def synchronize(device: torch.device) -> None:
    """Wait until `device` has finished what was launched on it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
