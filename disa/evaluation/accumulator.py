"""Resumable accumulator shared by all ranks: an evaluation killed at any moment goes on from its file, on any ranks.

Everything is a sum over images, so nobody needs to know who counted which. An image is in the sums if its id is in the
file beside them, and the file is replaced as a whole: no image is lost or counted twice.
"""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..runtime.files import atomic_write, locked
from .metrics import Sums, add


@dataclass
class Partial:
    """What one rank counted since it last saved: images, sums, and features [B, D] per block where they are kept.

    Tensors stay on the device that made them until they are saved: a copy per block would wait for it.
    """

    ids: list[int] = field(default_factory=list)
    sums: Sums = field(default_factory=dict)
    features: dict[str, list[Tensor]] = field(default_factory=dict)


class Accumulator:
    """The images that were counted of `num_images`, and the sums over them, in a file in `folder`, which all ranks see.

    `asked` says what is evaluated, and how; another question has another file. The attribute `folder` holds what
    belongs to the file and is not a sum.
    """

    def __init__(self, folder: Path, asked: Mapping[str, object], num_images: int) -> None:
        digest = hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:12]
        self.path, self.lock = folder / f"progress-{digest}.npz", folder / f".progress-{digest}.lock"
        self.folder, self.num_images = folder / f"progress-{digest}", num_images

    def load(self) -> tuple[np.ndarray, Sums]:
        """Read which images were counted, bool [num_images], and the sums; a damaged file raises a ValueError."""
        if not self.path.is_file():
            return np.zeros(self.num_images, bool), {}
        try:
            with np.load(self.path) as file:
                arrays = dict(file)
            counted = np.unpackbits(arrays.pop("counted"), count=self.num_images).astype(bool)
            return counted, {name: _unpack(name, torch.from_numpy(array)) for name, array in arrays.items()}
        except Exception as error:  # a damaged archive can fail in any way
            raise ValueError(f"{self.path} cannot be read ({error}); remove it to begin again") from error

    def save(self, part: Partial) -> None:
        """Add `part` to the file; ranks take turns. An image that was counted before raises a ValueError."""
        if not part.ids:
            return
        with locked(self.lock):
            self._remove_leftovers()
            counted, sums = self.load()
            if counted[part.ids].any():
                raise ValueError(
                    f"another run is evaluating in {self.path.parent}, too; stop one of them, and start the other again"
                )
            counted[part.ids] = True
            add(sums, {name: value.cpu() for name, value in part.sums.items()})
            if part.features:
                # Features count once the sums do. Those that a killed run left are ignored, or written anew.
                rows = {name: torch.cat(blocks).cpu().numpy() for name, blocks in part.features.items()}
                _write(self.folder / f"{part.ids[0]:08d}.npz", ids=np.array(part.ids), **rows)
            packed = {name: _pack(name, value).numpy() for name, value in sums.items()}
            _write(self.path, counted=np.packbits(counted), **packed)

    def features(self, name: str) -> Tensor:
        """Read the features of all images by id, float32 [num_images, D]; damaged or lost ones raise a ValueError."""
        again = f"remove {self.path} and {self.folder} to begin again"
        ids, rows, path = [np.empty(0, int)], [], self.folder
        try:
            for path in sorted(self.folder.glob("[0-9]*.npz")):
                with np.load(path) as part:
                    ids.append(part["ids"])
                    rows.append(part[name])
        except Exception as error:  # as above
            raise ValueError(f"{path} cannot be read ({error}); {again}") from error
        # The images of a part that was never counted are in another one, too.
        found, first = np.unique(np.concatenate(ids), return_index=True)
        if len(found) != self.num_images:
            raise ValueError(f"{self.folder} lacks features of {self.num_images - len(found)} images; {again}")
        return torch.from_numpy(np.concatenate(rows)[first])

    def remove(self) -> None:
        """Remove the file and all that belongs to it."""
        self.path.unlink(missing_ok=True)
        self._remove_leftovers()
        self.lock.unlink(missing_ok=True)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _remove_leftovers(self) -> None:
        """Remove the half-written files of killed ranks; nobody writes any without the lock."""
        for leftover in (*self.path.parent.glob(f".{self.path.stem}.*.part.npz"), *self.folder.glob(".*.part.npz")):
            leftover.unlink(missing_ok=True)


def _write(path: Path, **arrays: np.ndarray) -> None:
    with atomic_write(path) as beside:
        np.savez(beside, **arrays)  # type: ignore[arg-type]  # any name may be that of its own argument


def _pack(name: str, value: Tensor) -> Tensor:
    """Take the upper triangle of a sum of outer products, which is symmetric: the file is half as large."""
    return value[torch.ones_like(value, dtype=torch.bool).triu()] if name.endswith("products") else value


def _unpack(name: str, value: Tensor) -> Tensor:
    """Inverse of `_pack`."""
    if not name.endswith("products"):
        return value
    side = (math.isqrt(8 * len(value) + 1) - 1) // 2
    matrix = value.new_zeros(side, side)
    matrix[torch.ones_like(matrix, dtype=torch.bool).triu()] = value
    return matrix + matrix.triu(1).T
