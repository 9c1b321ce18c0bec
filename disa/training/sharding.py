"""Fully sharded training (FSDP, Zhao et al. 2023): weights, gradients and the optimiser's state split over the ranks."""

from __future__ import annotations

from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from .. import distributed

T = TypeVar("T")


def shard(model: nn.Module, device: torch.device) -> None:
    """Split the parameters of `model` over the ranks, in place; each block of a list of blocks is gathered by itself when it runs.

    Raises:
        ValueError: there is one rank, and nothing to split over.
    """
    if distributed.world_size() == 1:
        raise ValueError("sharding needs more than one process; start with torchrun or accelerate launch, or without --use_fsdp")
    mesh = init_device_mesh(device.type, (distributed.world_size(),))
    for blocks in [module for module in model.modules() if isinstance(module, nn.ModuleList)]:
        for block in blocks:
            fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)


def complete(tensor: Tensor) -> Tensor:
    """A tensor put together, on every rank; every rank calls this."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def whole(tree: T) -> T:
    """`tree` of dicts, lists and tensors with what is split put together in rank 0's main memory; every rank calls this.

    Other ranks get empty tensors instead: a model that needs splitting does not fit them.
    """
    if isinstance(tree, DTensor):
        full = tree.full_tensor()
        return full.cpu() if distributed.is_main() else full.new_empty(0)  # type: ignore[return-value]
    if isinstance(tree, dict):
        return type(tree)((key, whole(value)) for key, value in tree.items())  # type: ignore[call-arg,return-value]
    if isinstance(tree, list):
        return [whole(value) for value in tree]  # type: ignore[return-value]
    return tree


def like(value: Any, target: Tensor) -> Any:
    """A whole tensor split as `target` is."""
    return distribute_tensor(value.to(target.device), target.device_mesh, target.placements) if isinstance(target, DTensor) else value


def like_weights(state: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Whole weights split as those of `model` are."""
    targets = model.state_dict()
    return {name: like(value, targets[name]) if name in targets else value for name, value in state.items()}


def like_optimizer(state: dict[str, Any], optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """An optimiser's whole state split as the parameters of `optimizer` are."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]

    def of(index: int, held: dict[str, Any]) -> dict[str, Any]:
        # Moments have their parameter's shape; a count of steps has none, and stays whole.
        return {key: like(value, parameters[index]) if isinstance(value, Tensor) and value.ndim else value for key, value in held.items()}

    return {**state, "state": {index: of(index, held) for index, held in state["state"].items() if index < len(parameters)}}
