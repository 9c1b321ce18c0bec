"""Regional `torch.compile`: the blocks that a network repeats, compiled once each and not the loop around them."""

from __future__ import annotations

from torch import nn


def compile_blocks(model: nn.Module) -> int:
    """Compile every block of every list of blocks in `model`, in place; torch does it when a block first runs.

    Blocks of one class share their graphs. Shapes are dynamic, so that the lengths of AR steps do not each need one.

    Returns:
        Blocks to compile.
    """
    blocks = [block for module in model.modules() if isinstance(module, nn.ModuleList) for block in module]
    for block in blocks:
        block.compile(dynamic=True)
    return len(blocks)
