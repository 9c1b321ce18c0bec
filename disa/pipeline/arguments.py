"""What a call of a pipeline is given, checked: each error is one sentence, before any work."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from ..acceleration.caching import Caching
from ..acceleration.feature_cache import Extrapolation
from ..generation.generators import LabelModel, Sampling, image_shape
from ..grouping import Grouping
from ..guidance import Guidance
from ..models.harmon import Harmon
from ..runtime.names import did_you_mean
from ..schedule import StepSchedule
from .files import Pretrained, tokens

Labels = Sequence[int | str]


def check_shape(pipe: Pretrained, image_size: int | str | None) -> tuple[int, int]:
    """Return the rows and columns of latents in an image of that size."""
    shape = image_shape(pipe.image_size if image_size is None else image_size, pipe.vae.stride)
    if not isinstance(pipe.model, Harmon) and shape != image_shape(pipe.image_size, pipe.vae.stride):
        raise ValueError(f"image_size is {image_size}; {pipe.name} makes images of {pipe.image_size} pixels per side")
    return shape


def check_asked(
    pipe: Pretrained, labels: Labels | Tensor | None, prompts: Sequence[str] | None
) -> list[int] | list[str]:
    """Return what to show: numbers of classes, or prompts."""
    name, given, other = ("prompts", prompts, labels) if isinstance(pipe.model, Harmon) else ("labels", labels, prompts)
    if given is None or other is not None:
        raise ValueError(f"{pipe.name} takes {name}, and nothing else says what to show; give {name}=[…]")
    if isinstance(given, (str, int)):
        raise ValueError(f"{name} is {given!r}; give a list, {name}=[{given!r}]")
    values: list[int | str] = given.tolist() if isinstance(given, Tensor) else list(given)
    if not values:
        raise ValueError(f"{name} is empty; say what to show")
    if name == "labels":
        return [_class_number(pipe, label) for label in values]
    texts = [prompt for prompt in values if isinstance(prompt, str)]
    if len(texts) < len(values):
        raise ValueError(f"prompts are {values!r}; texts are needed")
    return texts


def _class_number(pipe: Pretrained, label: object) -> int:
    """Return the number of a class, given that or its name."""
    count = cast(LabelModel, pipe.model).num_classes
    if isinstance(label, str):
        names = [name.lower() for name in pipe.classes or ()]
        if label.lower() in names:
            return names.index(label.lower())
        numbers = f"its classes are 0 to {count - 1}{did_you_mean(label, pipe.classes or ())}"
        raise ValueError(f"{pipe.name} has no class {label!r}; {numbers}")
    if type(label) is not int or not 0 <= label < count:
        raise ValueError(f"a label is {label!r}; {pipe.name} knows 0 to {count - 1}")
    return label


def check_settings(pipe: Pretrained, given: Mapping[str, Any]) -> Sampling:  # Any: of several types, checked here
    """Return the pipeline's settings with those of a call; None is the pipeline's own."""
    flow = pipe.sampling.kind == "flow"
    kinds: dict[str, tuple[type, ...]] = {
        **({"extrapolation": (Extrapolation,)} if flow else {"num_iter": (int,), "grouping": (Grouping,)}),
        **({} if flow else {"caching": (Caching,)}),
        "schedule": (StepSchedule, str, Path),
        "sampler": (str,),
        "guidance": (Guidance, int, float),
        "temperature": (int, float),
    }
    values = {name: value for name, value in given.items() if value is not None}
    for name, value in values.items():
        if name not in kinds:
            raise ValueError(
                f"{pipe.name} has no setting {name}; there are {', '.join(kinds)}{did_you_mean(name, kinds)}"
            )
        if isinstance(value, bool) or not isinstance(value, kinds[name]):
            raise ValueError(f"{name} is {value!r}; needed is {' or '.join(kind.__name__ for kind in kinds[name])}")
    if isinstance(values.get("schedule"), (str, Path)):
        values["schedule"] = StepSchedule.load(str(values["schedule"]))
    if isinstance(values.get("guidance"), (int, float)):
        values["guidance"] = replace(pipe.sampling.guidance, scale=float(values["guidance"]))
    sampling = replace(pipe.sampling, **values)
    pipe.model.nfe(sampling.schedule, sampling.sampler, sampling.num_iter)  # refuses an unknown sampler
    length = tokens(pipe.model)
    if not isinstance(pipe.model, Harmon) and sampling.num_iter is not None and sampling.num_iter > length:
        raise ValueError(f"num_iter is {sampling.num_iter}; an image has {length} tokens")
    return sampling


def check_seeds(seeds: Sequence[int] | Tensor | None, num_images: int | None, asked: int) -> list[int]:
    """Return a seed per image, for `asked` labels or prompts."""
    if seeds is not None and num_images is not None:
        raise ValueError("both seeds and num_images are given; the seeds say how many images there are")
    if isinstance(seeds, (str, int)):
        raise ValueError(f"seeds is {seeds!r}; give a list, seeds=[{seeds!r}]")
    if seeds is None:
        if num_images is not None and (type(num_images) is not int or num_images < 1):
            raise ValueError(f"num_images is {num_images!r}; it must be a whole number of at least 1")
        found = torch.randint(2**32, (num_images or asked,)).tolist()
    else:
        found = seeds.tolist() if isinstance(seeds, Tensor) else list(seeds)
    if wrong := [seed for seed in found if type(seed) is not int or not 0 <= seed < 2**64]:
        raise ValueError(f"a seed is {wrong[0]!r}; seeds are whole numbers in [0, 2^64)")
    if not found or (asked > 1 and len(found) != asked):
        what = "num_images is" if seeds is None else "the number of seeds is"
        raise ValueError(
            f"{what} {len(found)}, and {asked} labels or prompts are given; each takes one, and a single one any number"
        )
    return found
