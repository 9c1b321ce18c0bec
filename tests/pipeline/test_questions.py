"""Answers to questions on an image."""

import pytest
from PIL import Image

from tests.helpers.pipelines import load


def test_harmon_answers_and_streams():
    pipe, pieces = load("harmon_fashion"), []
    bag = pipe(prompts=["a bag"], seeds=[1]).images[0]
    assert "bag" in pipe.describe(bag, "What is this?", on_text=pieces.append)
    assert "".join(pieces).strip() == pipe.describe(bag, "What is this?")
    assert len(pieces) > 1
    assert len(pipe.describe(bag, max_new_tokens=1).split()) <= 1


def test_impossible_questions_are_refused():
    image = Image.new("L", (32, 32))
    with pytest.raises(ValueError, match=r"mar_fashion answers no questions; load one of .*harmon_fashion"):
        load("mar_fashion").describe(image)
    with pytest.raises(ValueError, match="max_new_tokens is 0"):
        load("harmon_fashion").describe(image, max_new_tokens=0)
    with pytest.raises(ValueError, match="the prompt is empty"):
        load("harmon_fashion").describe(image, " ")
    with pytest.raises(ValueError, match="too many; shorten the question"):
        load("harmon_fashion").describe(image, "bag " * 600)
