"""Captions say what the pixels show."""

import pytest
import torch

from benchmarks.making_of import byte_pairs
from disa.data import captions
from disa.data.fashion import FASHION_CLASSES
from disa.runtime.files import BUNDLED


def garment(light: int, columns: int) -> torch.Tensor:
    """An image of a block of `columns` columns, all of one brightness."""
    image = torch.zeros(32, 32, dtype=torch.uint8)
    image[4:28, 2 : 2 + columns] = light
    return image


@pytest.mark.parametrize(
    ("light", "columns", "said"),
    [
        (90, 10, ["dark", "narrow"]),
        (220, 28, ["bright", "wide"]),
        (160, 20, []),
        (90, 20, ["dark"]),
        (160, 28, ["wide"]),
    ],
)
def test_attributes_are_measured(light, columns, said):
    images = garment(light, columns)[None]
    assert captions.brightness(images).item() == pytest.approx(light)
    assert captions.width(images).item() == columns
    assert captions.attributes(images) == [said]


def test_an_empty_image_has_no_brightness_but_a_caption():
    assert captions.sample_captions(torch.zeros(1, 32, 32, dtype=torch.uint8), torch.tensor([8]))


def test_captions_are_true_and_one_to_thirteen_words():
    images = torch.stack([garment(light, columns) for light in (90, 160, 220) for columns in (10, 20, 28)])
    labels = torch.arange(1, 10)
    torch.manual_seed(0)
    seen = set()
    for _ in range(30):
        for text, label, allowed in zip(
            captions.sample_captions(images, labels), labels.tolist(), captions.attributes(images), strict=True
        ):
            said = {word for word in ("dark", "bright", "narrow", "wide") if word in text.split()}
            assert said <= set(allowed)
            assert FASHION_CLASSES[label] in text
            assert 1 <= len(text.split()) <= 13
            seen.add(text)
    assert len(seen) > 60
    assert captions.describe(9, [], "a {}") == "an ankle boot"
    assert captions.describe(9, ["dark"], "a {}") == "a dark ankle boot"


def test_words_that_no_caption_has_are_told():
    assert captions.unlearned(["a photo of an ankle boot", "a dark, narrow T-shirt"]) == ""
    said = captions.unlearned(["a red dog", "a red bag"])
    assert said == "the model has learned no red, dog; it knows captions like 'a dark narrow dress'"


def test_answers_name_the_class_alone_or_all_that_can_be_said():
    images, labels = garment(90, 10)[None].expand(40, -1, -1), torch.full((40,), 7)
    torch.manual_seed(0)
    for question, answer in captions.sample_questions(images, labels):
        assert answer == ("a dark narrow sneaker" if question.startswith("Describe") else "a sneaker")


def test_the_shipped_byte_pairs_are_what_training_them_gives(tmp_path):
    byte_pairs.main(["--out", str(tmp_path / "tokenizer.json")])
    assert (tmp_path / "tokenizer.json").read_text() == (BUNDLED / "harmon_fashion_tokenizer.json").read_text()
