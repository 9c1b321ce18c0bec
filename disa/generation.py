"""Ids to images on disk, across ranks, resumable at any moment.

An image is its id: the id gives its label or its prompt, its seed and its file's name. A folder holds the images of one set of settings,
which `settings.json` in it records; what is there and whole is never generated again.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import ExifTags, Image, PngImagePlugin
from torch import Tensor
from tqdm import tqdm

from . import distributed
from .files import atomic_write, write_json

METADATA = "disa"
# The last chunk of every PNG file: its length, its name, its checksum.
_PNG_END = b"\x00\x00\x00\x00IEND\xaeB`\x82"


def image_seed(seed: int, image_id: int) -> int:
    """The noise seed of an image: no two (seed, id) share one.

    Raises:
        ValueError: the seed or the id does not fit into its 32 bits.
    """
    if not (0 <= seed < 2**32 and 0 <= image_id < 2**32):
        raise ValueError(f"seed is {seed} and the image id {image_id}; both must be in [0, 2^32)")
    return (seed << 32) + image_id


def image_path(folder: Path, image_id: int) -> Path:
    """Where the image with this id lies."""
    return folder / f"{image_id:06d}.png"


def is_whole(path: Path) -> bool:
    """Whether `path` is a PNG file written to its end."""
    try:
        with open(path, "rb") as file:
            file.seek(-len(_PNG_END), 2)
            return file.read() == _PNG_END
    except OSError:  # not there, or shorter than that
        return False


def missing_ids(folder: Path, num_images: int, path: Callable[[Path, int], Path] = image_path) -> list[int]:
    """The ids below `num_images` without a whole image in `folder`, where `path` says it lies."""
    return [image_id for image_id in range(num_images) if not is_whole(path(folder, image_id))]


def claim_folder(folder: Path, settings: Mapping[str, Any]) -> None:
    """Make `folder` the place of images with `settings`, or check that it is; every rank calls this.

    Raises:
        ValueError: the folder was made with other settings; the differences are named.
    """
    distributed.on_main(lambda: _claim_folder(folder, settings))


def _claim_folder(folder: Path, settings: Mapping[str, Any]) -> None:
    record = folder / "settings.json"
    wanted = json.loads(json.dumps(settings))
    if not record.is_file():
        if any(folder.rglob("*.png")):
            raise ValueError(f"{folder} holds images but no settings.json that says how they were made; give an empty folder")
        write_json(record, wanted)
        return
    try:
        found = json.loads(record.read_text())
    except ValueError as error:
        raise ValueError(f"{record} cannot be read ({error}); remove the folder, or give another") from error
    differences = [
        f"{key}: {found.get(key)!r} there, {wanted.get(key)!r} now" for key in {**found, **wanted} if found.get(key) != wanted.get(key)
    ]
    if differences:
        raise ValueError(f"{folder} was made with other settings ({'; '.join(differences)}); give another folder, or remove this one")
    for leftover in folder.rglob(".*.part.*"):  # of a run that was killed while writing
        leftover.unlink(missing_ok=True)


@dataclass(frozen=True)
class Timing:
    """How long generation took on this rank.

    Attributes:
        images, seconds: generated images and their time, the first batch left out, for it warms things up.
        first_batch_seconds: the time of that first batch.
    """

    images: int
    seconds: float
    first_batch_seconds: float


def save_image(image: Tensor, path: Path, metadata: Mapping[str, Any] | None = None) -> None:
    """Write a uint8 image [1 or 3, H, W] whole or not at all, as PNG or JPEG by the suffix of `path`.

    `metadata` goes into the file as JSON: in a PNG's text chunk METADATA, in a JPEG's EXIF tag ImageDescription.
    """
    picture = Image.fromarray(image[0].numpy() if len(image) == 1 else image.permute(1, 2, 0).numpy())
    options: dict[str, Any] = {} if path.suffix.lower() == ".png" else {"quality": 95}
    if metadata is not None:
        text = json.dumps(metadata)
        if path.suffix.lower() == ".png":
            options["pnginfo"] = PngImagePlugin.PngInfo()
            options["pnginfo"].add_text(METADATA, text)
        else:
            options["exif"] = Image.Exif()
            options["exif"][ExifTags.Base.ImageDescription] = text
    with atomic_write(path) as beside:
        picture.save(beside, **options)


def to_uint8(images: Tensor) -> Tensor:
    """Images in [-1, 1] -> uint8."""
    return (images.float() * 127.5 + 127.5).round().clamp(0, 255).to(torch.uint8)


def tile(images: Tensor) -> Tensor:
    """n² images [n², C, H, W] side by side, row by row: [C, n · H, n · W].

    Raises:
        ValueError: their number is no square.
    """
    side = math.isqrt(len(images))
    if side**2 != len(images):
        raise ValueError(f"{len(images)} images make no square")
    return images.unflatten(0, (side, side)).permute(2, 0, 3, 1, 4).flatten(3).flatten(1, 2)


def generate_images(
    sample: Callable[[Sequence[int]], Tensor],
    folder: Path,
    *,
    num_images: int,
    batch_size: int,
    settings: Mapping[str, Any],
    device: torch.device,
    path: Callable[[Path, int], Path] = image_path,
    metadata: Callable[[int], Mapping[str, Any]] | None = None,
) -> Timing:
    """Fill `folder` with the images 0..num_images-1 that it lacks; every rank calls this and does its share.

    Args:
        sample: ids -> images [B, 1 or 3, H, W] in [-1, 1]. What it returns for an id must not depend on the other ids.
        settings: everything that an image depends on besides its id.
        batch_size: images at a time on each rank.
        device: where `sample` works, for exact times.
        path: where in a folder the image with an id lies, a PNG file.
        metadata: what the file of an id says about itself.

    Raises:
        ValueError: the folder was made with other settings, or a count is impossible.
    """
    for name, count in (("num_images", num_images), ("batch_size", batch_size)):
        if count < 1:
            raise ValueError(f"{name} is {count}; it must be at least 1")
    claim_folder(folder, settings)
    missing = distributed.broadcast(missing_ids(folder, num_images, path) if distributed.is_main() else None) or []
    mine = missing[distributed.rank() :: distributed.world_size()]
    batches = [mine[i : i + batch_size] for i in range(0, len(mine), batch_size)]
    seconds: list[float] = []
    writing: list[Future[None]] = []
    with (
        tqdm(total=num_images, initial=num_images - len(missing), unit="img", desc="generating", disable=not distributed.is_main()) as bar,
        ThreadPoolExecutor(4) as writers,
    ):
        for ids in batches:
            start = time.perf_counter()
            images = to_uint8(sample(ids)).cpu()
            synchronize(device)
            seconds.append(time.perf_counter() - start)
            for written in writing:  # of the batch before: an error there (a full disk) must not pass unseen
                written.result()
            writing = [
                writers.submit(save_image, image, path(folder, image_id), metadata(image_id) if metadata else None)
                for image, image_id in zip(images, ids, strict=True)
            ]
            bar.update(min(len(ids) * distributed.world_size(), num_images - bar.n))
        for written in writing:
            written.result()
    distributed.barrier()
    first = seconds[0] if seconds else 0.0
    return Timing(images=sum(len(ids) for ids in batches[1:]), seconds=sum(seconds[1:]), first_batch_seconds=first)


def synchronize(device: torch.device) -> None:
    """Wait for `device` to finish what was launched on it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
