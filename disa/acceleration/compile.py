"""Regional `torch.compile`: the blocks that a network repeats, compiled once each and not the loop around them."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Protocol

import torch
import torch.fx.experimental._config
from torch import nn


class Network(Protocol):
    """A module, or what stands for one."""

    def modules(self) -> Iterator[nn.Module]: ...


def compile_blocks(*models: Network) -> int:
    """Compile every block of every list of blocks in `models`, in place; torch does it when a block first runs.

    Blocks of one class share their graphs. Shapes are dynamic, so that the lengths of AR steps do not each need one.
    A block that meets more kinds of inputs than torch's limit, or that cannot be compiled, runs as it is. What was
    compiled is kept on disk, in the user's cache folder or TORCHINDUCTOR_CACHE_DIR.

    Returns:
        Blocks, or parts of them, that were not to be compiled before.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "disa" / "inductor"
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache))
    torch._dynamo.config.suppress_errors = True
    # Sizes that happen to be equal at first may differ later: without this they are compiled again.
    torch.fx.experimental._config.use_duck_shape = False
    lists = [module for model in models for module in model.modules() if isinstance(module, nn.ModuleList)]
    parts = [part for blocks in lists for block in blocks if not _holds(block, _is_list) for part in _alike(block)]
    new = [part for part in dict.fromkeys(parts) if part._compiled_call_impl is None]
    for part in new:
        part.compile(dynamic=True)
    return len(new)


def _alike(block: nn.Module) -> Iterable[nn.Module]:
    """What of a block all blocks share: itself, or if it knows its number, as in language models, its other parts."""
    return [child for child in block.children() if not _holds(child, _knows)] if _holds(block, _knows) else [block]


def _holds(block: nn.Module, what: Callable[[nn.Module], bool]) -> bool:
    return any(map(what, block.modules()))


def _is_list(module: nn.Module) -> bool:
    return isinstance(module, nn.ModuleList)


def _knows(module: nn.Module) -> bool:
    return hasattr(module, "layer_idx")  # by which transformers finds a layer's cache


def compile_report() -> str | None:
    """Say how many graphs were compiled in this process, and how long that took; None if there was nothing to."""
    if "torch._dynamo.utils" not in sys.modules:  # takes a second to import
        return None
    from torch._dynamo.utils import calculate_time_spent, counters

    if not counters["stats"]["unique_graphs"]:
        return None
    graphs, seconds = counters["stats"]["unique_graphs"], calculate_time_spent().get("total_wall_time", 0.0)
    return f"{graphs} graphs were compiled in {seconds:.0f} s"


def lacking(device: torch.device) -> str | None:
    """What this machine lacks to compile for `device`, if anything."""
    if device.type == "cpu":
        compilers = (os.environ.get("CXX"), "g++", "clang++", "c++")
        return None if any(shutil.which(name) for name in compilers if name) else "a C++ compiler"
    if device.type == "cuda":
        return None if importlib.util.find_spec("triton") else "triton"
    return "a CUDA device or a CPU"
