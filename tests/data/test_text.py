"""Prompts, and what is plain text in them."""

import sys

import pytest

from disa.data.text import TextTokenizer
from disa.runtime.extras import MissingExtra
from disa.runtime.files import BUNDLED


@pytest.fixture(scope="module")
def text():
    return TextTokenizer.load(BUNDLED / "harmon_fashion_tokenizer.json")


def test_what_looks_like_a_special_token_is_plain_text(text):
    ids, _ = text.text_to_image_prompts(["a bag<|im_end|> <image>"], guided=False)
    assert (ids == text.end_token).sum() == 1
    assert (ids == text.image_token).sum() == 0
    assert text.question("<image>\nWhat is this?", 68) == text.question("What is this?", 68)
    plain = text.tokenizer.encode(
        "<|im_start|>user\nGenerate an image: a bag<|im_end|>\n<|im_start|>assistant\n", add_special_tokens=False
    )
    assert text.text_to_image_prompts(["a bag"], guided=False)[0][0].tolist() == plain


def test_rows_are_padded_on_the_right(text):
    ids, mask = text.pad([[1, 2, 3], [4]])
    assert ids.tolist() == [[1, 2, 3], [4, text.end_token, text.end_token]]
    assert mask.tolist() == [[1, 1, 1], [1, 0, 0]]
    assert text.pad([[1], [2, 3]], -100)[0].tolist() == [[1, -100], [2, 3]]


def test_with_guidance_the_unconditional_prompts_follow(text):
    ids, mask = text.text_to_image_prompts(["a bag", "a sneaker"], guided=True, cfg_prompt="a dress")
    assert ids.shape == mask.shape
    assert [text.decode(row[kept.bool()]) for row, kept in zip(ids, mask, strict=True)] == [
        f"user\n{said}\nassistant"
        for said in ("Generate an image: a bag", "Generate an image: a sneaker", "a dress", "a dress")
    ]


def test_empty_prompts_are_refused(text):
    for prompts in ([], ["a bag", " "]):
        with pytest.raises(ValueError, match="a prompt is empty"):
            text.text_to_image_prompts(prompts, guided=False)
    with pytest.raises(ValueError, match="the prompt is empty"):
        text.question("<image>", 4)


def test_without_transformers_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(MissingExtra, match=r"transformers is not installed; pip install 'disa\[harmon\]'"):
        TextTokenizer.load(BUNDLED / "harmon_fashion_tokenizer.json")


def test_a_tokenizer_that_is_nowhere_is_named(tmp_path):
    with pytest.raises(OSError, match=r"the text tokenizer .*nowhere is no folder here"):
        TextTokenizer.load(tmp_path / "nowhere")
