"""How every command that computes begins."""

from __future__ import annotations

import sys

import torch

from . import distributed
from .devices import describe_device, has_bfloat16, resolve_device


def start(device: str) -> torch.device:
    """Choose this rank's device and join the other ranks; a ValueError as `resolve_device`."""
    found = resolve_device(device)
    distributed.setup(found)
    return found


def announce(device: torch.device, dtype: str | None = None) -> None:
    """Print to stderr, on rank 0, on what the ranks compute and what makes that slow; every rank calls this."""
    reasons, ranks = distributed.slow_reasons(device), distributed.world_size()
    if device.type == "cpu" and dtype == "bfloat16" and not has_bfloat16():
        reasons = [*reasons, "this CPU has no instructions for bfloat16; --dtype float32 is faster"]
    if distributed.is_main():
        print(
            f"{describe_device(device)}, {ranks} rank{'s' * (ranks > 1)}{f', {dtype}' if dtype else ''}",
            file=sys.stderr,
        )
        for reason in reasons:
            print(f"slow: {reason}", file=sys.stderr)
