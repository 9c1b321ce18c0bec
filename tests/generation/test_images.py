"""Ids to files: names, balance, resuming, broken files, refusals."""

import json

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image

from disa.generation.images import (
    METADATA,
    blocks,
    claim_ids,
    generate_images,
    image_grid,
    image_path,
    is_whole,
    missing_ids,
    save_image,
)


class Sample:
    """Each image is a flat grey that its id tells; remembers what it was asked for."""

    def __init__(self):
        self.asked = []

    def __call__(self, ids):
        self.asked += ids
        return torch.stack([torch.full((1, 8, 8), image_id / 127.5 - 1) for image_id in ids])


def generate(folder, sample, num_images=10, batch_size=4, **settings):
    generate_images(sample, folder, num_images=num_images, batch_size=batch_size, settings=settings)


def test_every_id_becomes_its_file(tmp_path):
    generate(tmp_path, Sample(), cfg=2.0)
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"{i:06d}.png" for i in range(10)] + ["settings.json"]
    assert [Image.open(image_path(tmp_path, i)).getpixel((0, 0)) for i in range(10)] == list(range(10))
    assert json.loads((tmp_path / "settings.json").read_text()) == {"cfg": 2.0}


def test_what_is_there_is_not_generated_again(tmp_path):
    generate(tmp_path, Sample(), num_images=4)
    again = Sample()
    generate(tmp_path, again, num_images=7)
    assert again.asked == [4, 5, 6]


@pytest.mark.parametrize("kept", [0, 3, 40])
def test_broken_files_are_made_again(tmp_path, kept):
    generate(tmp_path, Sample())
    broken = image_path(tmp_path, 3)
    broken.write_bytes(broken.read_bytes()[:kept])
    assert not is_whole(broken)
    assert missing_ids(tmp_path, 10) == [3]
    again = Sample()
    generate(tmp_path, again)
    assert again.asked == [3]
    assert is_whole(broken)


def test_leftovers_of_a_killed_writer_are_no_images(tmp_path):
    generate(tmp_path, Sample(), num_images=2)
    leftover = tmp_path / ".000002.123.part.png"
    leftover.write_bytes(b"half")
    generate(tmp_path, Sample(), num_images=3)
    assert not leftover.exists()
    assert missing_ids(tmp_path, 3) == []


def test_other_settings_are_refused_by_name(tmp_path):
    generate(tmp_path, Sample(), cfg=2.0, seed=1)
    with pytest.raises(ValueError, match=r"cfg: 2.0 there, 3.0 now"):
        generate(tmp_path, Sample(), cfg=3.0, seed=1)


def test_a_folder_of_unknown_images_is_refused(tmp_path):
    Image.new("L", (8, 8)).save(tmp_path / "000000.png")
    with pytest.raises(ValueError, match=r"no settings.json"):
        generate(tmp_path, Sample())


def test_a_failed_write_ends_the_run_and_leaves_no_half_file(tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Image.Image, "save", full)
        with pytest.raises(OSError, match="No space left"):
            generate(tmp_path, Sample())
    assert [path.name for path in tmp_path.iterdir()] == ["settings.json"]
    generate(tmp_path, Sample())
    assert missing_ids(tmp_path, 10) == []


def test_ids_share_a_block_whoever_else_is_missing():
    assert blocks(range(7), 3) == [[0, 1, 2], [3, 4, 5], [6]]
    assert blocks([1, 2, 5, 6], 3) == [[1, 2], [5], [6]]
    assert blocks([], 3) == []


def test_a_rank_alone_does_all_blocks_in_order():
    work = blocks([1, 2, 5, 6], 3)
    assert list(claim_ids(work, 7, "testing")) == work
    assert list(claim_ids([], 7, "testing")) == []


@pytest.mark.parametrize("wrong", [{"num_images": 0}, {"batch_size": 0}])
def test_impossible_counts_are_refused(tmp_path, wrong):
    with pytest.raises(ValueError, match=f"{next(iter(wrong))} is 0"):
        generate(tmp_path / "images", Sample(), **wrong)
    assert not (tmp_path / "images").exists()


@pytest.mark.parametrize(("count", "columns", "scale", "gap"), [(1, 8, 1, 2), (5, 2, 3, 2), (3, 3, 1, 0), (2, 5, 2, 1)])
@pytest.mark.parametrize("channels", [None, 1, 3])
def test_images_stand_in_a_grid(count, columns, scale, gap, channels):
    shape = (count, 4, 6) if channels is None else (count, channels, 4, 6)
    images = torch.randint(255, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    grid = np.asarray(image_grid(images, columns, scale, gap)).copy()
    rows, height, width = -(-count // columns), 4 * scale + gap, 6 * scale + gap
    assert grid.shape == (rows * height - gap, min(columns, count) * width - gap, 3)
    for number, image in enumerate(images.reshape(count, -1, 4, 6).expand(-1, 3, -1, -1)):
        top, left = number // columns * height, number % columns * width
        place = grid[top : top + 4 * scale, left : left + 6 * scale]
        assert (place == np.kron(image.permute(1, 2, 0).numpy(), np.ones((scale, scale, 1), np.uint8))).all()
        place[:] = 255
    assert (grid == 255).all()


def test_files_say_how_they_were_made(tmp_path):
    image, metadata = torch.zeros(1, 8, 8, dtype=torch.uint8), {"prompt": "a bag"}
    for suffix in ("png", "jpg"):
        save_image(image, tmp_path / f"with.{suffix}", metadata)
        save_image(image, tmp_path / f"without.{suffix}")
    assert json.loads(Image.open(tmp_path / "with.png").text[METADATA]) == metadata
    assert json.loads(Image.open(tmp_path / "with.jpg").getexif()[ExifTags.Base.ImageDescription]) == metadata
    assert Image.open(tmp_path / "without.png").text == {}
    assert "exif" not in Image.open(tmp_path / "without.jpg").info
