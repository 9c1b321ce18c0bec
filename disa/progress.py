"""How far an evaluation has come, in a file that ranks add to: killed at any moment, it goes on from there with as many ranks as there are.

Everything is a sum over images, so nobody needs to know who counted which. An image is in the sums if its id is in the file beside
them, and the file is replaced as a whole: no image is lost or counted twice.
"""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .files import atomic_write, locked

Sums = dict[str, Tensor]  # of whatever shapes, float64


def add(total: Sums, part: Mapping[str, Tensor]) -> None:
    """Add every sum of `part` to that of `total`, in place."""
    for name, value in part.items():
        if name in total:
            total[name] += value.to(total[name].device)
        else:
            total[name] = value.clone()


@dataclass
class Tally:
    """What one rank has counted since it last saved.

    Attributes:
        ids: the images.
        sums: over them.
        features: name -> their features, float32 [B, D] a block, where they are wanted one by one.
    """

    ids: list[int] = field(default_factory=list)
    sums: Sums = field(default_factory=dict)
    features: dict[str, list[Tensor]] = field(default_factory=dict)


class Progress:
    """The images that were counted, and their sums.

    Args:
        folder: where the file lies, on a file system that all ranks see.
        asked: what is evaluated, and how; another question has another file.
        num_images: ids run from 0 to this.

    Attributes:
        folder: of what belongs to it and is not a sum.

    Raises:
        ValueError: whenever the file is read, if it is damaged.
    """

    def __init__(self, folder: Path, asked: Mapping[str, Any], num_images: int) -> None:
        digest = hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:12]
        self.path, self.lock = folder / f"progress-{digest}.npz", folder / f".progress-{digest}.lock"
        self.folder, self.num_images = folder / f"progress-{digest}", num_images

    def load(self) -> tuple[np.ndarray, Sums]:
        """Which images were counted, bool [num_images], and the sums over them."""
        if not self.path.is_file():
            return np.zeros(self.num_images, bool), {}
        try:
            with np.load(self.path) as file:
                arrays = dict(file)
            counted = np.unpackbits(arrays.pop("counted"), count=self.num_images).astype(bool)
            return counted, {name: _unpacked(name, torch.from_numpy(array)) for name, array in arrays.items()}
        except Exception as error:  # a damaged archive can fail in any way
            raise ValueError(f"{self.path} cannot be read ({error}); remove it to begin again") from error

    def save(self, tally: Tally) -> None:
        """Add `tally` to the file; ranks take turns.

        Raises:
            ValueError: an image of it was counted before.
        """
        if not tally.ids:
            return
        with locked(self.lock):
            self._remove_leftovers()
            counted, sums = self.load()
            if counted[tally.ids].any():
                raise ValueError(f"another run is evaluating in {self.path.parent}, too; stop one of them, and start the other again")
            counted[tally.ids] = True
            add(sums, {name: value.cpu() for name, value in tally.sums.items()})
            if tally.features:
                # Counted from the moment that the sums are: whatever a killed run left here is not, or is written anew.
                rows: dict[str, Any] = {name: torch.cat(blocks).numpy() for name, blocks in tally.features.items()}
                with atomic_write(self.folder / f"{tally.ids[0]:08d}.npz") as beside:
                    np.savez(beside, **{"ids": np.array(tally.ids), **rows})
            packed: dict[str, Any] = {name: _packed(name, value).numpy() for name, value in sums.items()}
            with atomic_write(self.path) as beside:
                np.savez(beside, **{"counted": np.packbits(counted), **packed})

    def features(self, name: str) -> Tensor:
        """The features of all images, in the order of their ids, float32 [num_images, D].

        Raises:
            ValueError: some are damaged, or lost.
        """
        again = f"remove {self.path} and {self.folder} to begin again"
        ids, rows = [np.empty(0, int)], []
        for path in sorted(self.folder.glob("[0-9]*.npz")):
            try:
                with np.load(path) as part:
                    ids.append(part["ids"])
                    rows.append(part[name])
            except Exception as error:  # as above
                raise ValueError(f"{path} cannot be read ({error}); {again}") from error
        # A part that was never counted holds images that are in another one, too.
        found, first = np.unique(np.concatenate(ids), return_index=True)
        if len(found) != self.num_images:
            raise ValueError(f"{self.folder} lacks features of {self.num_images - len(found)} images; {again}")
        return torch.from_numpy(np.concatenate(rows)[first])

    def remove(self) -> None:
        """Forget everything."""
        self.path.unlink(missing_ok=True)
        self._remove_leftovers()
        self.lock.unlink(missing_ok=True)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _remove_leftovers(self) -> None:
        """Remove what killed ranks were writing, whose files are as large as the others: nobody writes any without the lock."""
        for leftover in (*self.path.parent.glob(f".{self.path.stem}.*.part.npz"), *self.folder.glob(".*.part.npz")):
            leftover.unlink(missing_ok=True)


def _packed(name: str, value: Tensor) -> Tensor:
    """Of a sum of outer products, which is symmetric, the upper triangle: the file is half as large."""
    return value[torch.ones_like(value, dtype=torch.bool).triu()] if name.endswith("products") else value


def _unpacked(name: str, value: Tensor) -> Tensor:
    """The way back."""
    if not name.endswith("products"):
        return value
    side = (math.isqrt(8 * len(value) + 1) - 1) // 2
    matrix = value.new_zeros(side, side)
    matrix[torch.ones_like(matrix, dtype=torch.bool).triu()] = value
    return matrix + matrix.triu(1).T
