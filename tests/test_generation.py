"""Ids to files: names, balance, resuming, broken files, refusals."""

import json

import pytest
import torch
from PIL import Image

from disa.generation import blocks, generate_images, hand_out, image_path, image_seed, is_whole, missing_ids


class Sampler:
    """Each image is a flat grey that its id tells; remembers what it was asked for."""

    def __init__(self):
        self.asked = []

    def __call__(self, ids):
        self.asked += ids
        return torch.stack([torch.full((1, 8, 8), image_id / 127.5 - 1) for image_id in ids])


def generate(folder, sampler, num_images=10, batch_size=4, **settings):
    generate_images(sampler, folder, num_images=num_images, batch_size=batch_size, settings=settings)


def test_every_id_becomes_its_file(tmp_path):
    generate(tmp_path, Sampler(), cfg=2.0)
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"{i:06d}.png" for i in range(10)] + ["settings.json"]
    assert [Image.open(image_path(tmp_path, i)).getpixel((0, 0)) for i in range(10)] == list(range(10))
    assert json.loads((tmp_path / "settings.json").read_text()) == {"cfg": 2.0}


def test_what_is_there_is_not_generated_again(tmp_path):
    generate(tmp_path, Sampler(), num_images=4)
    again = Sampler()
    generate(tmp_path, again, num_images=7)
    assert again.asked == [4, 5, 6]


@pytest.mark.parametrize("kept", [0, 3, 40])
def test_broken_files_are_made_again(tmp_path, kept):
    generate(tmp_path, Sampler())
    broken = image_path(tmp_path, 3)
    broken.write_bytes(broken.read_bytes()[:kept])
    assert not is_whole(broken) and missing_ids(tmp_path, 10) == [3]
    again = Sampler()
    generate(tmp_path, again)
    assert again.asked == [3] and is_whole(broken)


def test_leftovers_of_a_killed_writer_are_no_images(tmp_path):
    generate(tmp_path, Sampler(), num_images=2)
    leftover = tmp_path / ".000002.123.part.png"
    leftover.write_bytes(b"half")
    generate(tmp_path, Sampler(), num_images=3)
    assert not leftover.exists() and missing_ids(tmp_path, 3) == []


def test_other_settings_are_refused_by_name(tmp_path):
    generate(tmp_path, Sampler(), cfg=2.0, seed=1)
    with pytest.raises(ValueError, match=r"cfg: 2.0 there, 3.0 now"):
        generate(tmp_path, Sampler(), cfg=3.0, seed=1)


def test_a_folder_of_unknown_images_is_refused(tmp_path):
    Image.new("L", (8, 8)).save(tmp_path / "000000.png")
    with pytest.raises(ValueError, match="no settings.json"):
        generate(tmp_path, Sampler())


def test_a_failed_write_ends_the_run_and_leaves_no_half_file(tmp_path, monkeypatch):
    def full(self, *args, **kwargs):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Image.Image, "save", full)
        with pytest.raises(OSError, match="No space left"):
            generate(tmp_path, Sampler())
    assert [path.name for path in tmp_path.iterdir()] == ["settings.json"]
    generate(tmp_path, Sampler())
    assert missing_ids(tmp_path, 10) == []


def test_ids_share_a_block_whoever_else_is_missing():
    assert blocks(range(7), 3) == [[0, 1, 2], [3, 4, 5], [6]]
    assert blocks([1, 2, 5, 6], 3) == [[1, 2], [5], [6]]
    assert blocks([], 3) == []


def test_a_rank_alone_does_all_blocks_in_order():
    work = blocks([1, 2, 5, 6], 3)
    assert list(hand_out(work, 7, "testing")) == work and list(hand_out([], 7, "testing")) == []


@pytest.mark.parametrize("wrong", [{"num_images": 0}, {"batch_size": 0}])
def test_impossible_counts_are_refused(tmp_path, wrong):
    with pytest.raises(ValueError, match=f"{next(iter(wrong))} is 0"):
        generate(tmp_path / "images", Sampler(), **wrong)
    assert not (tmp_path / "images").exists()


def test_seeds_differ_between_images_and_runs():
    seeds = {image_seed(seed, image_id) for seed in range(50) for image_id in range(50)}
    assert len(seeds) == 2500
    with pytest.raises(ValueError, match="-1"):
        image_seed(-1, 0)
