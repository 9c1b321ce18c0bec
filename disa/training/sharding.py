"""Fully sharded training (FSDP, Zhao et al. 2023): weights, gradients and optimiser state split over the ranks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim.optimizer import StateDict

from ..runtime import distributed

T = TypeVar("T")


def shard(model: nn.Module, device: torch.device) -> None:
    """Split `model` over several ranks (else ValueError), in place; each block of a list is gathered when it runs."""
    if distributed.world_size() == 1:
        raise ValueError(
            "sharding needs more than one process; start with torchrun or accelerate launch, or without --use_fsdp"
        )
    mesh = init_device_mesh(device.type, (distributed.world_size(),))
    for block in [block for blocks in model.modules() if isinstance(blocks, nn.ModuleList) for block in blocks]:
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)


def complete(tensor: Tensor) -> Tensor:
    """Gather a tensor on every rank; every rank calls this."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def whole(tree: T) -> T:
    """Gather `tree` of dicts, lists and tensors in rank 0's main memory, empty elsewhere; every rank calls this."""
    if isinstance(tree, DTensor):
        full = tree.full_tensor()  # other ranks keep nothing of it: a model that needs splitting does not fit them
        return full.cpu() if distributed.is_main() else full.new_empty(0)  # type: ignore[return-value]
    if isinstance(tree, dict):
        return type(tree)((key, whole(value)) for key, value in tree.items())
    if isinstance(tree, list):
        return [whole(value) for value in tree]  # type: ignore[return-value]
    return tree


def like(value: T, target: Tensor) -> T:
    """Split a whole tensor as `target` is. What has no dimensions, such as a count of steps, stays whole."""
    if not (isinstance(target, DTensor) and isinstance(value, Tensor) and value.ndim):
        return value
    return distribute_tensor(value.to(target.device), target.device_mesh, target.placements)  # type: ignore[return-value]


def like_weights(state: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Split whole weights as those of `model` are."""
    targets = model.state_dict()
    return {name: like(value, targets[name]) if name in targets else value for name, value in state.items()}


def like_optimizer(state: StateDict, optimizer: torch.optim.Optimizer) -> StateDict:
    """Split an optimiser's whole state as the parameters of `optimizer` are."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    held = {
        index: {key: like(value, parameters[index]) for key, value in moments.items()}
        for index, moments in state["state"].items()
        if index < len(parameters)
    }
    return {**state, "state": held}
