"""Ids to images on disk, across ranks, resumable at any moment.

An image is its id: the id gives its label or its prompt, its seed and its file's name. A folder holds the images of one
set of settings, which `settings.json` in it records; what is there and whole is never generated again.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from einops import repeat
from PIL import ExifTags, Image, PngImagePlugin
from torch import Tensor
from torchvision.utils import make_grid
from tqdm import tqdm

from ..data.transforms import to_uint8
from ..runtime import distributed
from ..runtime.files import atomic_write, write_json

RECORD = "settings.json"  # of what the images of a folder depend on
METADATA = "disa"  # the text chunk of a PNG file that says how the image was made
_PNG_END = b"\x00\x00\x00\x00IEND\xaeB`\x82"  # the last chunk of every PNG file: its length, its name, its checksum

Locate = Callable[[Path, int], Path]  # folder and id -> the image's file
Describe = Callable[[int], Mapping[str, object] | None]  # id -> what the image's file says about itself
Watch = Callable[[Callable[[float], object]], object]  # takes what moves the bar to a share of the block that comes


def image_grid(images: Tensor, columns: int = 8, scale: int = 1, gap: int = 2) -> Image.Image:
    """Arrange images, uint8 [N, H, W] or [N, 1 or 3, H, W], row by row on white, each enlarged `scale` times."""
    images = images[:, None] if images.ndim == 3 else images
    enlarged = repeat(images, "n c h w -> n c (h a) (w b)", a=scale, b=scale)
    grid = make_grid(enlarged, nrow=columns, padding=gap, pad_value=255)
    edge = gap if len(images) > 1 else 0  # `make_grid` puts a gap around the grid too, but not around a single image
    return Image.fromarray(grid[:, edge : grid.shape[1] - edge, edge : grid.shape[2] - edge].permute(1, 2, 0).numpy())


def image_path(folder: Path, image_id: int) -> Path:
    """The file of the image with this id."""
    return folder / f"{image_id:06d}.png"


def is_whole(path: Path) -> bool:
    """Whether `path` is a PNG file written to its end."""
    try:
        with open(path, "rb") as file:
            file.seek(-len(_PNG_END), 2)
            return file.read() == _PNG_END
    except OSError:  # not there, or shorter than that
        return False


def missing_ids(folder: Path, num_images: int, path: Locate = image_path) -> list[int]:
    """List the ids below `num_images` that have no whole image in `folder`."""
    return [image_id for image_id in range(num_images) if not is_whole(path(folder, image_id))]


def check_origin(folder: Path) -> None:
    """Refuse a folder with images that nothing says how they were made; a ValueError names it."""
    if not (folder / RECORD).is_file() and any(folder.rglob("*.png")):
        raise ValueError(f"{folder} holds images but no {RECORD} that says how they were made; give an empty folder")


def claim_folder(folder: Path, settings: Mapping[str, object]) -> None:
    """Make `folder` the place of images with `settings`, or check that it is; every rank calls this.

    A folder that was made with other settings raises a ValueError that names the differences.
    """
    record, wanted = folder / RECORD, json.loads(json.dumps(settings))

    def claim() -> None:
        check_origin(folder)
        if not record.is_file():
            write_json(record, wanted)
        try:
            found = json.loads(record.read_text())
        except ValueError as error:
            raise ValueError(f"{record} cannot be read ({error}); remove the folder, or give another") from error
        if names := [name for name in {**found, **wanted} if found.get(name) != wanted.get(name)]:
            differences = "; ".join(f"{name}: {found.get(name)!r} there, {wanted.get(name)!r} now" for name in names)
            raise ValueError(
                f"{folder} was made with other settings ({differences}); give another folder, or remove this one"
            )
        for leftover in folder.rglob(".*.part.*"):  # of a run that was killed while writing
            leftover.unlink(missing_ok=True)

    distributed.on_main(claim)


def save_image(image: Tensor, path: Path, metadata: Mapping[str, object] | None = None) -> None:
    """Write a uint8 image [1 or 3, H, W] whole or not at all, as PNG or JPEG by the suffix of `path`.

    `metadata` is written as JSON: to a PNG's text chunk METADATA, to a JPEG's EXIF tag ImageDescription.
    """
    picture = Image.fromarray(image[0].numpy() if len(image) == 1 else image.permute(1, 2, 0).numpy())
    text, exif, chunks = json.dumps(metadata), Image.Exif(), PngImagePlugin.PngInfo()
    if metadata is not None:
        chunks.add_text(METADATA, text)
        exif[ExifTags.Base.ImageDescription] = text
    with atomic_write(path) as beside:
        if path.suffix.lower() == ".png":
            picture.save(beside, pnginfo=chunks)
        else:
            picture.save(beside, quality=95, exif=exif or b"")


def read_metadata(path: str | Path) -> dict[str, Any] | None:  # Any: values of several types, from JSON
    """Read what a picture's file says on how it was made: of `save_image`, or of an animation; None if it says nothing.

    Raises:
        OSError: the file is no picture.
    """
    with Image.open(path) as picture:
        exif = picture.getexif().get(ExifTags.Base.ImageDescription)
        text = picture.info.get(METADATA) or picture.info.get("comment") or exif
    try:
        found = json.loads(text or "null")
    except ValueError:  # another program's comment
        return None
    return found if isinstance(found, dict) else None


def blocks(ids: Iterable[int], size: int) -> list[list[int]]:
    """Divide ascending ids into blocks of at most `size`; the other ids do not change which two share a block."""
    return [list(block) for _, block in itertools.groupby(ids, lambda image_id: image_id // size)]


def share(num_images: int) -> int:
    """Return the images that fall to each rank, if all do equally many."""
    return max(-(-num_images // distributed.world_size()), 1)


def _advance(bar: tqdm[NoReturn], before: int, size: int, done: float) -> None:
    """Move a bar to a share of a block of `size` images, with `before` images before it."""
    bar.update(before + done * size - bar.n)


def claim_ids(
    work: Sequence[Sequence[int]],
    num_images: int,
    description: str,
    watch: Watch = lambda _: None,
) -> Iterator[Sequence[int]]:
    """Yield the blocks of `work` that fall to this rank, under a bar of what all ranks did; every rank calls this.

    `watch` is called with a function that moves the bar within a block, to a share of it in [0, 1].
    """
    left = [*itertools.accumulate(map(len, reversed(work)), initial=0)][::-1]  # before each block, and at the end
    with tqdm(
        total=num_images,
        initial=num_images - left[0],
        unit="img",
        desc=description,
        disable=not distributed.is_main(),
        bar_format="{l_bar}{bar}| {n:.4g}/{total_fmt} [{elapsed}<{remaining}, {rate_fmt}]",  # {n_fmt} has 17 digits
    ) as bar:
        for number in distributed.claim_blocks(len(work)):
            before = num_images - left[number]
            bar.update(before - bar.n)
            watch(partial(_advance, bar, before, len(work[number])))
            yield work[number]
        bar.update(num_images - bar.n)


def generate_images(
    sample: Callable[[Sequence[int]], Tensor],
    folder: Path,
    *,
    num_images: int,
    batch_size: int,
    settings: Mapping[str, object],
    path: Locate = image_path,
    metadata: Describe | None = None,
    watch: Watch = lambda _: None,
) -> None:
    """Fill `folder` with the images 0..num_images-1 that it lacks; every rank calls this and does its share.

    A folder that was made with other settings, or an impossible count, raises a ValueError.

    Args:
        sample: ids -> images [B, 1 or 3, H, W] in [-1, 1]; its result for an id must not depend on the other ids.
        batch_size: images at a time per rank.
        settings: everything that an image depends on besides its id.
        path: names the PNG file of an id.
        watch: as for `claim_ids`.
    """
    check_counts(num_images, batch_size)
    claim_folder(folder, settings)
    missing = distributed.on_main(lambda: missing_ids(folder, num_images, path))
    with ImageWriter(path, metadata) as writer:
        work = blocks(missing, min(batch_size, share(len(missing))))
        for ids in claim_ids(work, num_images, "generating", watch):
            writer.save(folder, ids, to_uint8(sample(ids)).cpu())
    distributed.barrier()


def check_counts(num_images: int, batch_size: int) -> None:
    """Refuse counts below 1 with a ValueError."""
    for name, count in (("num_images", num_images), ("batch_size", batch_size)):
        if count < 1:
            raise ValueError(f"{name} is {count}; it must be at least 1")


class ImageWriter:
    """Writes images while the next ones are computed; an error is raised with the next block, or at the end."""

    def __init__(self, path: Locate = image_path, metadata: Describe | None = None) -> None:
        self.path, self.metadata = path, metadata or (lambda _: None)
        self.writers, self.writing = ThreadPoolExecutor(4), list[Future[None]]()

    def save(self, folder: Path, ids: Sequence[int], images: Tensor) -> None:
        """Begin to write uint8 images [B, 1 or 3, H, W], when those of the block before are written."""
        self.wait()
        self.writing = [
            self.writers.submit(save_image, image, self.path(folder, image_id), self.metadata(image_id))
            for image, image_id in zip(images, ids, strict=True)
        ]

    def wait(self) -> None:
        """Wait until all images are on disk; one that cannot be written raises an OSError."""
        for written in self.writing:
            written.result()

    def __enter__(self) -> ImageWriter:
        return self

    def __exit__(self, *error: object) -> None:
        self.writers.shutdown()
        if error[0] is None:
            self.wait()
