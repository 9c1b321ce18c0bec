"""Captions of Fashion-MNIST from a small grammar: class, brightness and width of the garment, as measured, so that they are true."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .data import FASHION_CLASSES

# About a third of the training images are darker, and a third brighter; few are narrower, and shoes and most bags wider.
DARK, BRIGHT = 140, 180
NARROW, WIDE = 18, 25
GARMENT = 16  # a pixel brighter than this belongs to the garment

QUESTIONS = ("Describe the image in detail.", "Describe the image.", "What is this?", "What is in the picture?", "Name the garment.")
# Frames of the description: a caption has one word to thirteen.
FRAMES = ("{}", "a {}", "a photo of a {}", "a picture of a {}", "a grey photo of a {} on a black ground")


def brightness(images: Tensor) -> Tensor:
    """Mean of the garment's pixels, of images uint8 [N, H, W]: [N]."""
    on = images > GARMENT
    return (images * on).sum((1, 2)) / on.sum((1, 2)).clamp(min=1)


def width(images: Tensor) -> Tensor:
    """Columns that the garment takes, of images uint8 [N, H, W]: [N]."""
    return (images > GARMENT).any(1).sum(1).float()


def attributes(images: Tensor) -> list[list[str]]:
    """What may be said of each image uint8 [N, H, W] besides its class: nothing where it is neither."""
    words = []
    for light, columns in zip(brightness(images).tolist(), width(images).tolist(), strict=True):
        said = ["dark"] if light < DARK else ["bright"] if light > BRIGHT else []
        said += ["narrow"] if columns < NARROW else ["wide"] if columns > WIDE else []
        words.append(said)
    return words


def describe(label: int, said: Sequence[str], frame: str) -> str:
    """A caption: the frame around the attributes and the class's name."""
    text = frame.format(" ".join([*said, FASHION_CLASSES[label]]))
    return text.replace("a ankle", "an ankle")


def grammar_prompts(count: int) -> tuple[list[str], Tensor]:
    """Prompts that run through classes, frames and attributes, and the classes they ask for."""
    lights, labels = ("", "dark", "bright"), [i % len(FASHION_CLASSES) for i in range(count)]
    said = [[word for word in (lights[i // len(FASHION_CLASSES) % len(lights)],) if word] for i in range(count)]
    frames = [FRAMES[i // 7 % len(FRAMES)] for i in range(count)]
    return [describe(*words) for words in zip(labels, said, frames, strict=True)], torch.tensor(labels)


def draw_captions(images: Tensor, labels: Tensor) -> list[str]:
    """A caption an image uint8 [N, H, W], drawn from torch's generator: how it is framed, and which attributes are left out."""
    captions = []
    for label, said in zip(labels.tolist(), attributes(images), strict=True):
        kept = [word for word in said if torch.rand(()) < 0.7]
        captions.append(describe(label, kept, FRAMES[int(torch.randint(len(FRAMES), ()))]))
    return captions


def draw_questions(images: Tensor, labels: Tensor) -> list[tuple[str, str]]:
    """A question and its answer an image: all that can be said of it, or, asked to name it, the class alone."""
    pairs = []
    for label, said in zip(labels.tolist(), attributes(images), strict=True):
        question = QUESTIONS[int(torch.randint(len(QUESTIONS), ()))]
        pairs.append((question, describe(label, said if question.startswith("Describe") else [], FRAMES[1])))
    return pairs
