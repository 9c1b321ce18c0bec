"""Compare a checkpoint with the published parameter names and shapes."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import TypedDict, cast

from ..runtime.names import did_you_mean
from .load import Shapes, differences, open_checkpoint

MANIFESTS = Path(__file__).parent / "manifests"


class Manifest(TypedDict):
    """Every parameter and buffer of a published model: name -> shape."""

    parameters: Shapes
    buffers: Shapes
    parameter_count: int


def manifests() -> list[str]:
    """List the published models whose parameters are known."""
    return sorted(path.stem for path in MANIFESTS.glob("*.json"))


@functools.cache
def manifest(name: str) -> Manifest:
    """Read the manifest of a published model; raise ValueError if there is none of that name."""
    if name not in manifests():
        advice = did_you_mean(name, manifests())
        raise ValueError(f"there is no manifest {name!r}; allowed are {', '.join(manifests())}{advice}")
    return cast(Manifest, json.loads((MANIFESTS / f"{name}.json").read_text()))


def verify(path: str | Path, name: str | None = None, weights: str = "ema") -> tuple[str, list[str]]:
    """Compare a file with a published model, by default the closest: its name, and every one of the `differences`."""
    state = {key: value for key, value in open_checkpoint(path, weights).items() if not key.startswith("loss.")}

    def agreement(candidate: str) -> tuple[float, int]:
        shapes = manifest(candidate)["parameters"]
        common = len(shapes.keys() & state.keys())  # names tell the family, shapes the size
        fitting = sum(shapes.get(key) == list(value.shape) for key, value in state.items())
        return common / len(shapes.keys() | state.keys()), fitting

    name = name or max(manifests(), key=agreement)
    known = manifest(name)
    found = differences(state, {**known["parameters"], **known["buffers"]}, optional=known["buffers"])
    return name, [f"{kind}: {one}" for kind, names in found.items() for one in names]
