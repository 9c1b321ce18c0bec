"""Shared by several test files: reference outputs, a replayed noise source, tiny models with reference weights."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from disa.models import build_model
from tests.reference.weights import parity_tensor

REFERENCE = Path(__file__).parent / "reference"
NO_DROPOUT = {"attn_dropout": 0.0, "proj_dropout": 0.0, "label_drop_prob": 0.0}
SMALL_MAR = {
    "image_size": 64,
    "width": 48,
    "depth": 2,
    "num_heads": 4,
    "num_classes": 10,
    "buffer_size": 4,
    "head_depth": 2,
    "head_width": 32,
    "diffusion_batch_mul": 2,
    **NO_DROPOUT,
}


def relative_error(ours: Tensor, reference: np.ndarray) -> float:
    """‖ours - reference‖ / ‖reference‖."""
    return float(np.linalg.norm(ours.detach().numpy() - reference) / np.linalg.norm(reference))


def load_reference(name: str) -> dict[str, Tensor]:
    """A file of reference outputs, as tensors."""
    with np.load(REFERENCE / name) as arrays:
        return {key: torch.from_numpy(arrays[key]) for key in arrays}


def load_json(name: str):
    return json.loads((REFERENCE / name).read_text())


def fill(model):
    """`model` with the weights of the reference outputs, in eval mode."""
    model.load_state_dict(
        {
            name: torch.from_numpy(np.asarray(parity_tensor(name, tuple(value.shape))))
            for name, value in model.state_dict().items()
        }
    )
    return model.eval()


def small_mar(**overrides):
    """The small MAR of the reference outputs, with their weights."""
    return fill(build_model("mar", **{**SMALL_MAR, **overrides}))


def small_flowar(**overrides):
    """The small FlowAR of the reference outputs, with their weights."""
    sizes = {"width": 64, "depth": 2, "num_heads": 4, "head_depth": 2, "head_width": 128}
    return fill(build_model("flowar", **{**sizes, **NO_DROPOUT, **overrides}))


def small_xar(**overrides):
    """The small xAR of the reference outputs, with their weights."""
    return fill(build_model("xar", **{"width": 64, "depth": 2, "num_heads": 4, **NO_DROPOUT, **overrides}))


class ReplayedNoise:
    """The recorded draws of a reference generation."""

    def __init__(self, recorded: dict[str, Tensor]) -> None:
        self.recorded = recorded

    def normal(self, ar_step: int, draws: int, tokens: int, channels: int) -> Tensor:
        noise = self.recorded[f"noise_{ar_step}"]
        assert noise.shape[0] == draws
        assert noise.shape[2:] == (tokens, channels)
        return noise

    def orders(self, length: int) -> Tensor:
        assert self.recorded["orders"].shape[1] == length
        return self.recorded["orders"]


@pytest.fixture(autouse=True)
def _one_thread():
    """Tests run beside each other's processes; more threads than cores only make them wait."""
    torch.set_num_threads(1)
