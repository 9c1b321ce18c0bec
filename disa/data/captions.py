"""Captions of Fashion-MNIST from a small grammar: the class, and the brightness and width measured from the pixels."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from .fashion import FASHION_CLASSES

# About a third of the training images are darker, and a third brighter; few are narrower; shoes and bags are wider.
DARK, BRIGHT, NARROW, WIDE = 140, 180, 18, 25
GARMENT = 16  # a pixel brighter than this belongs to the garment
QUESTIONS = (
    "Describe the image in detail.",
    "Describe the image.",
    "What is this?",
    "What is in the picture?",
    "Name the garment.",
)
LIGHTS, WIDTHS = ("dark", "bright"), ("narrow", "wide")
FRAMES = ("{}", "a {}", "a photo of a {}", "a picture of a {}", "a grey photo of a {} on a black ground")


def brightness(images: Tensor) -> Tensor:
    """Average the garment's pixels, of images uint8 [N, H, W]: [N]."""
    on = images > GARMENT
    return (images * on).sum((1, 2)) / on.sum((1, 2)).clamp(min=1)


def width(images: Tensor) -> Tensor:
    """Count the columns that the garment takes, of images uint8 [N, H, W]: [N]."""
    return (images > GARMENT).any(1).sum(1).float()


def attributes(images: Tensor) -> list[list[str]]:
    """List the attributes that are true of each image uint8 [N, H, W]: dark or bright, narrow or wide, or none."""
    return [
        (["dark"] if light < DARK else ["bright"] if light > BRIGHT else [])
        + (["narrow"] if columns < NARROW else ["wide"] if columns > WIDE else [])
        for light, columns in zip(brightness(images).tolist(), width(images).tolist(), strict=True)
    ]


def unlearned(prompts: Iterable[str]) -> str:
    """Say which words of `prompts` no caption has; nothing if there are none."""
    known = {"an", *LIGHTS, *WIDTHS, *" ".join((*FRAMES, *FASHION_CLASSES)).split()}
    asked = re.findall(r"[\w-]+", " ".join(prompts).lower())
    words = ", ".join(dict.fromkeys(word for word in asked if word not in known))
    return f"the model has learned no {words}; it knows captions like 'a dark narrow dress'" if words else ""


def describe(label: int, said: Sequence[str], frame: str) -> str:
    """Put the attributes `said` and the class's name into a frame."""
    return frame.format(" ".join([*said, FASHION_CLASSES[label]])).replace("a ankle", "an ankle")


def grammar_prompts(count: int) -> tuple[list[str], Tensor]:
    """Return prompts that run through classes, frames and attributes, and the classes that they ask for."""
    classes, lights = len(FASHION_CLASSES), ((), ("dark",), ("bright",))
    frames = [FRAMES[i // 7 % len(FRAMES)] for i in range(count)]
    prompts = [describe(i % classes, lights[i // classes % len(lights)], frame) for i, frame in enumerate(frames)]
    return prompts, torch.arange(count) % classes


def sample_captions(images: Tensor, labels: Tensor) -> list[str]:
    """Sample a caption of each image uint8 [N, H, W]: its frame, and which attributes are left out."""
    return [
        describe(label, [word for word in said if torch.rand(()) < 0.7], FRAMES[int(torch.randint(len(FRAMES), ()))])
        for label, said in zip(labels.tolist(), attributes(images), strict=True)
    ]


def sample_questions(images: Tensor, labels: Tensor) -> list[tuple[str, str]]:
    """Sample a question on each image uint8 [N, H, W], with its answer: all attributes and the class, or the class."""
    questions = [QUESTIONS[int(torch.randint(len(QUESTIONS), ()))] for _ in labels]
    return [
        (question, describe(label, said if question.startswith("Describe") else [], FRAMES[1]))
        for question, label, said in zip(questions, labels.tolist(), attributes(images), strict=True)
    ]
