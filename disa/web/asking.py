"""What the page's controls ask, as arguments of a pipeline."""

from __future__ import annotations

import base64
import binascii
import io
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from PIL import Image
from torchvision.transforms.functional import to_pil_image

from ..data.captions import unlearned
from ..data.transforms import to_uint8
from ..models import MODELS
from ..models.harmon import Harmon
from ..pipeline import Pipeline, fit_image
from ..schedule import STRATEGIES, StepSchedule

WITH, WITHOUT = "With DiSA", "Without DiSA"
MOST_IMAGES = 16  # of one click
MOST_PIXELS = 2**22  # of a picture that somebody opens; the page makes larger ones smaller
NAMES = (*STRATEGIES, "even")


@dataclass(frozen=True)
class Asked:
    """What the controls say.

    Attributes:
        shown: a class, by name or number, or of Harmon a prompt.
        seeds: whole numbers, separated by spaces or commas.
        num_iter: AR steps; models that have a number of their own do not look at it.
        upper, lower: diffusion steps at the first AR step and at the last.
        strategy: one of `NAMES`, or of the step schedules that the page was started with.
        guidance: its scale.
        compare: whether the full count is drawn, too.
    """

    shown: str
    seeds: str
    num_iter: int
    upper: int
    lower: int
    strategy: str
    guidance: float
    compare: bool = True


def can_edit(pipe: Pipeline) -> bool:
    """Whether parts of an image can be drawn anew: with MAR and Harmon."""
    return pipe.sampling.num_iter is not None


def can_answer(pipe: Pipeline) -> bool:
    """Whether the model answers questions on an image: Harmon."""
    return isinstance(pipe.model, Harmon)


def most_ar_steps(pipe: Pipeline) -> int:
    """Tokens of an image: AR steps are no more than that."""
    return (pipe.image_size // token_side(pipe)) ** 2


def token_side(pipe: Pipeline) -> int:
    """Pixels of a token, on each side."""
    return pipe.vae.stride * int(getattr(pipe.model, "patch_size", 1))


def class_choices(pipe: Pipeline) -> list[tuple[str, str]]:
    """Names and numbers of the classes; nothing for a model that takes prompts."""
    if can_answer(pipe):
        return []
    names = pipe.classes or [f"class {i}" for i in range(pipe.model.num_classes)]  # type: ignore[arg-type]  # an int
    return [(name, str(i)) for i, name in enumerate(names)]


def calls(pipe: Pipeline, asked: Asked, schedules: Mapping[str, StepSchedule]) -> dict[str, dict[str, Any]]:
    """Make the arguments of `pipe` for the controls: with DiSA, and if that is wanted with the recipe's full count.

    Raises:
        ValueError: a control says what is impossible.
    """
    what = asked.shown.strip()
    if not what:
        raise ValueError(f"nothing says what to draw; {'write a prompt' if can_answer(pipe) else 'choose a class'}")
    shown = {"prompts": [what]} if can_answer(pipe) else {"labels": [int(what) if what.isdecimal() else what]}
    same = {**shown, "seeds": read_seeds(asked.seeds), "guidance": asked.guidance}
    if can_edit(pipe):
        same["num_iter"] = asked.num_iter
    if asked.strategy in NAMES:
        schedule = StepSchedule(asked.upper, asked.lower, asked.strategy)
    elif asked.strategy in schedules:
        schedule = schedules[asked.strategy]
    else:
        raise ValueError(f"the strategy is {asked.strategy!r}; allowed are {', '.join((*NAMES, *schedules))}")
    full = pipe.sampling.schedule.upper
    both = {WITH: schedule, WITHOUT: StepSchedule(full, full)}
    return {title: {**same, "schedule": one} for title, one in both.items() if asked.compare or title == WITH}


def read_seeds(text: str) -> list[int]:
    """Read whole numbers that are separated by spaces or commas; a ValueError says what is wrong."""
    words = re.split(r"[\s,;]+", text.strip())
    if not all(word.isdecimal() for word in words):
        raise ValueError(f"the seeds are {text.strip()!r}; whole numbers are needed, such as 1 2 3")
    if len(words) > MOST_IMAGES:
        raise ValueError(f"there are {len(words)} seeds; {MOST_IMAGES} are the most at a time")
    return [int(word) for word in words]


def unknown(pipe: Pipeline, prompt: str) -> str:
    """Say which words of a prompt the bundled Harmon has not learned; nothing if it knows all."""
    return unlearned([prompt]) if can_answer(pipe) and MODELS[pipe.name].bundled else ""


def mask_of(cells: object, image: Image.Image, pipe: Pipeline) -> Image.Image:
    """Make the mask of the tokens that were painted: white there, as large as the image.

    Args:
        cells: numbers of tokens, row by row, as they come from the browser.

    Raises:
        ValueError: they are none, or not of this image.
    """
    columns, rows = (pixels // token_side(pipe) for pixels in image.size)
    if not isinstance(cells, Collection) or not cells:
        raise ValueError("nothing is painted; paint in the picture what is to be drawn anew")
    small = bytearray(columns * rows)
    for cell in cells:
        if type(cell) is not int or not 0 <= cell < len(small):
            raise ValueError(f"a painted square is {cell!r}; the picture has {len(small)}")
        small[cell] = 255
    return Image.frombytes("L", (columns, rows), bytes(small)).resize(image.size, Image.Resampling.NEAREST)


def read_picture(data: object, pipe: Pipeline) -> Image.Image:
    """Read a picture that the browser sends (a PNG in a data URL), and fit it as the model saw pictures in training.

    Raises:
        ValueError: it is none, or too large.
    """
    head, _, body = data.partition(",") if isinstance(data, str) else ("", "", "")
    try:
        if head != "data:image/png;base64":
            raise ValueError("it is no PNG")
        picture = Image.open(io.BytesIO(base64.b64decode(body, validate=True)), formats=["PNG"])
        if picture.width * picture.height > MOST_PIXELS:
            raise ValueError(f"it has more than {MOST_PIXELS} pixels")
        # What is transparent counts as black.
        whole = picture.convert("RGBA")
        own = Image.alpha_composite(Image.new("RGBA", whole.size, "black"), whole).convert("RGB")
    except (OSError, ValueError, SyntaxError, binascii.Error) as error:  # a SyntaxError of PIL: a broken PNG
        raise ValueError(f"this is no picture that can be read ({error})") from error
    size = pipe.image_size
    return to_pil_image(to_uint8(fit_image(own, size, size, pipe.vae))[0])
