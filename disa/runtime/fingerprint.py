"""Short names of weights."""

from __future__ import annotations

import hashlib
from typing import Protocol

import torch
from torch import Tensor


class Weights(Protocol):
    """What has weights, as an `nn.Module` does."""

    def extra_repr(self) -> str: ...

    def state_dict(self) -> dict[str, Tensor]: ...


def fingerprint(model: Weights, dtype: torch.dtype | None = None) -> str:
    """Hash the beginning of every tensor: twelve hexadecimal digits that tell two sets of weights apart.

    Weights in another number type are other weights; with `dtype`, hash those that the model has once it is cast to it.
    """
    digest = hashlib.sha256(model.extra_repr().encode())
    for name, tensor in model.state_dict().items():
        digest.update(f"{name} {tuple(tensor.shape)}".encode())
        values = tensor.flatten()[:256]
        values = values.to(dtype) if dtype and values.is_floating_point() else values
        digest.update(values.float().cpu().numpy().tobytes())
    return digest.hexdigest()[:12]
