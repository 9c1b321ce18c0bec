"""Ids to images on disk, across ranks, resumable at any moment.

An image is its id: the id gives its label or its prompt, its seed and its file's name. A folder holds the images of one set of settings,
which `settings.json` in it records; what is there and whole is never generated again.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
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


def blocks(ids: Iterable[int], size: int) -> list[list[int]]:
    """Ids in blocks of at most `size`; which of them share a block does not depend on which others are there."""
    found: dict[int, list[int]] = {}
    for image_id in ids:
        found.setdefault(image_id // size, []).append(image_id)
    return list(found.values())


def hand_out(work: Sequence[Sequence[int]], num_images: int, description: str) -> Iterator[Sequence[int]]:
    """The blocks of ids in `work` that this rank is to do, with a bar of what all ranks did; every rank calls this."""
    done = [num_images - left for left in itertools.accumulate(map(len, reversed(work)))][::-1]  # before each block
    with tqdm(
        total=num_images, initial=done[0] if done else num_images, unit="img", desc=description, disable=not distributed.is_main()
    ) as bar:
        for number in distributed.hand_out(len(work)):
            bar.update(done[number] - bar.n)
            yield work[number]
        bar.update(num_images - bar.n)


def generate_images(
    sample: Callable[[Sequence[int]], Tensor],
    folder: Path,
    *,
    num_images: int,
    batch_size: int,
    settings: Mapping[str, Any],
    path: Callable[[Path, int], Path] = image_path,
    metadata: Callable[[int], Mapping[str, Any]] | None = None,
) -> None:
    """Fill `folder` with the images 0..num_images-1 that it lacks; every rank calls this and does its share.

    Args:
        sample: ids -> images [B, 1 or 3, H, W] in [-1, 1]. What it returns for an id must not depend on the other ids.
        settings: everything that an image depends on besides its id.
        batch_size: images at a time on each rank.
        path: where in a folder the image with an id lies, a PNG file.
        metadata: what the file of an id says about itself.

    Raises:
        ValueError: the folder was made with other settings, or a count is impossible.
    """
    check_counts(num_images, batch_size)
    claim_folder(folder, settings)
    missing = distributed.broadcast(missing_ids(folder, num_images, path) if distributed.is_main() else None) or []
    with ImageWriter(path=path, metadata=metadata) as writer:
        for ids in hand_out(blocks(missing, batch_size), num_images, "generating"):
            writer.save(folder, ids, to_uint8(sample(ids)).cpu())
    distributed.barrier()


def check_counts(num_images: int, batch_size: int) -> None:
    """Refuse counts below 1.

    Raises:
        ValueError: naming which.
    """
    for name, count in (("num_images", num_images), ("batch_size", batch_size)):
        if count < 1:
            raise ValueError(f"{name} is {count}; it must be at least 1")


class ImageWriter:
    """Writes images while the next ones are computed; an error comes up with the next block, or at the end of the context.

    Args:
        path: where in a folder the image with an id lies.
        metadata: what the file of an id says about itself.
    """

    def __init__(self, path: Callable[[Path, int], Path] = image_path, metadata: Callable[[int], Mapping[str, Any]] | None = None) -> None:
        self.path, self.metadata = path, metadata
        self.writers, self.writing = ThreadPoolExecutor(4), list[Future[None]]()

    def save(self, folder: Path, ids: Sequence[int], images: Tensor) -> None:
        """Begin to write uint8 images [B, 1 or 3, H, W], when those of the block before are written."""
        self.wait()
        self.writing = [
            self.writers.submit(save_image, image, self.path(folder, image_id), self.metadata(image_id) if self.metadata else None)
            for image, image_id in zip(images, ids, strict=True)
        ]

    def wait(self) -> None:
        """Until all images are on disk.

        Raises:
            OSError: one could not be written, such as on a full disk.
        """
        for written in self.writing:
            written.result()

    def __enter__(self) -> ImageWriter:
        return self

    def __exit__(self, *error: object) -> None:
        self.writers.shutdown()
        if error[0] is None:
            self.wait()
