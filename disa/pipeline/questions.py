"""Answers of Harmon to questions on an image."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.functional import pil_to_tensor

from ..data.text import TextTokenizer
from ..data.transforms import pad_and_resize, to_signed
from ..generation.generators import question_room
from ..models.harmon import Harmon
from ..models.vae import VAE


@torch.no_grad()
def answer_question(
    model: Harmon,
    image: Image.Image,
    shape: tuple[int, int],
    question: str,
    max_new_tokens: int,
    streamer: object = None,
    called: str = "question",
) -> str:
    """Answer a question on an image that is fitted to `shape` (rows, columns) of tokens.

    `model` has a text tokenizer. `streamer` is one of transformers'; `called` is what an error calls the question.

    Raises:
        ValueError: question and image are too long.
    """
    room = question_room(model, question, shape, called)
    text, stride = cast(TextTokenizer, model.text), model.vae.stride
    pixels = fit_image(image, shape[0] * stride, shape[1] * stride, model.vae)
    device = model.mar.mask_token.device
    answer = model.answer(
        model.vae.encode(pixels.to(device, model.llm.dtype)),
        torch.tensor([text.question(question, model.image_tokens(shape))], device=device),
        text.image_token,
        max_new_tokens=min(max_new_tokens, room),
        do_sample=False,
        eos_token_id=text.end_token,
        pad_token_id=text.end_token,
        streamer=streamer,
    )
    return text.decode(answer[0])


def fit_image(image: Image.Image, height: int, width: int, vae: VAE) -> Tensor:
    """Fit an RGB image for `vae` as the model saw images in training: [1, 1 or 3, H, W] in [-1, 1].

    It is padded with grey to the shape of height × width, then resized. The small grey models saw images of 28×28 with
    black around: theirs are shrunk where they are too large, never enlarged, and put in the middle of black.
    """
    if vae.image_channels == 1:
        small, fitted = image.convert("L"), Image.new("L", (width, height))
        small.thumbnail((width, height), Image.Resampling.BICUBIC)
        fitted.paste(small, ((width - small.width) // 2, (height - small.height) // 2))
    else:
        fitted = pad_and_resize(image, height, width)
    return to_signed(pil_to_tensor(fitted))[None]


def make_streamer(
    text: TextTokenizer, on_text: Callable[[str], None]
) -> Any:  # Any: transformers' classes are not typed
    """Hand on the pieces of an answer as transformers makes them."""
    from transformers import TextStreamer

    class Streamer(TextStreamer):
        def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
            if text or stream_end:
                on_text(text)

    return Streamer(text.tokenizer, skip_prompt=True, skip_special_tokens=True)
