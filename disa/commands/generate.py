"""`disa generate`: pictures of labels or prompts."""

from __future__ import annotations

import dataclasses
import json
import math
import re
import secrets
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any, cast

import torch
from PIL import Image
from torchvision.transforms.functional import pil_to_tensor
from tqdm import tqdm

from ..annealing import AnnealedModel
from ..data.fashion import FASHION_CLASSES
from ..data.transforms import open_image
from ..generation.generators import LabelModel, Sampling, check_ar_steps, image_shape
from ..generation.images import image_grid, save_image
from ..models import MODELS, build_model
from ..models.harmon import Harmon
from ..pipeline import Output, Pipeline, Step, list_models
from ..runtime.devices import DTYPES, resolve_device
from ..runtime.files import atomic_write, check_folder
from ..runtime.fingerprint import fingerprint
from ..runtime.names import did_you_mean
from ..schedule import StepSchedule
from ..tables.recipes import disa_recipe
from ..weights.load import find_model, find_vae
from .flags import add_device_flag, add_step_schedule_flag, switch

BATCH = 64  # images at a time; the pipeline halves what memory does not hold
FRAME, LAST_FRAME = 120, 2000  # milliseconds that an animation shows one of its pictures
_STEPS = {"upper_steps": "upper", "lower_steps": "lower", "annealing_strategy": "strategy"}  # flag -> of `StepSchedule`


def add_flags(parser: ArgumentParser) -> None:
    parser.description = (
        "Make pictures. A label or prompt takes a seed each, or as many as another; the same seed with the same "
        "settings makes the same picture. What is not given here is as in the model's recipe with DiSA. A file says "
        "how it was made: disa.generation.images.read_metadata(FILE)."
    )
    text = "a folder that training or save_pretrained wrote, or owner/name on the Hugging Face hub"
    parser.add_argument("model", metavar="MODEL", help=f"one of {', '.join(list_models())}; {text}")
    _add_contents(parser)
    group = parser.add_argument_group("settings, by default the model's own")
    group.add_argument("--num_iter", type=int, help="AR steps, of MAR and Harmon")
    group.add_argument("--upper_steps", type=int, help="diffusion steps at the first AR step")
    group.add_argument("--lower_steps", type=int, help="diffusion steps at the last AR step")
    group.add_argument("--annealing_strategy", help="linear, cosine, two-stage, constant or even")
    add_step_schedule_flag(group)
    group.add_argument("--sampler", help="DiSA, default, DDIM, …; of FlowAR and xAR euler, heun, …")
    group.add_argument("--cfg", type=float, help="guidance scale; 1 is no guidance")
    group.add_argument("--temperature", type=float, help="factor on the noise of diffusion steps")
    group = parser.add_argument_group("weights and device")
    text = "file or folder of weights; by default those that come with the package or were fetched"
    group.add_argument("--checkpoint", help=text)
    group.add_argument("--vae_path", dest="vae", metavar="FILE", help="KL-16's weights; by default the fetched ones")
    add_device_flag(group)
    text = "of the networks; auto: on CUDA half precision, elsewhere float32"
    group.add_argument("--dtype", default="auto", choices=("auto", *DTYPES), help=text)
    group = parser.add_argument_group("output")
    text = "folder of the pictures, or a .png or .gif file of one; nothing that is there is overwritten"
    group.add_argument("--out", type=Path, default=Path("pictures"), help=text)
    text = "enlarge small pictures so many times, without smoothing"
    group.add_argument("--scale", type=int, default=1, metavar="N", help=text)
    switch(group, "--grid", "put all pictures into one file; in a folder, besides their own")
    switch(group, "--gif", "animate the order in which each picture appears, in a file beside it")


def _add_contents(parser: ArgumentParser) -> None:
    """Add what pictures show."""
    group = parser.add_argument_group("what to show")
    either = group.add_mutually_exclusive_group(required=True)
    either.add_argument("--labels", nargs="+", metavar="LABEL", help="classes, by number or name")
    either.add_argument("--prompt", nargs="+", metavar="TEXT", help="of Harmon, what pictures show")
    either.add_argument("--prompt_file", metavar="FILE", help="of Harmon, prompts, one per line; - is standard input")
    either = group.add_mutually_exclusive_group()
    either.add_argument("--seeds", nargs="+", type=int, metavar="SEED", help="one per picture; by default fresh ones")
    either.add_argument("--num_images", type=int, metavar="N", help="so many pictures with fresh seeds")
    group.add_argument("--negative_prompt", help="of Harmon, what guidance leads away from")
    group.add_argument("--image_size", metavar="SIZE", help="of Harmon, pixels per side, or height x width")
    text = "picture to draw anew where --mask is not black, with MAR or Harmon"
    group.add_argument("--edit", metavar="IMAGE", help=text)
    group.add_argument("--mask", metavar="IMAGE", help="of the size of --edit")


@dataclass(frozen=True)
class Drawing:
    """A file to write.

    Attributes:
        numbers: of the pictures in it.
        path: a .gif shows how they appear.
    """

    numbers: Sequence[int]
    path: Path

    @property
    def animated(self) -> bool:
        return self.path.suffix.lower() == ".gif"


def main(args: Namespace) -> None:
    """Make pictures, and write each file as soon as its pictures are there."""
    asked, seeds = get_pictures(args)
    drawings = get_drawings(args, asked, seeds)
    edit = get_edit(args)
    pipe = load(args, asked)
    sampling = check(args, asked, pipe.name, pipe.model, pipe.sampling)
    facts = {"model": pipe.name, "weights": fingerprint(pipe.model), **get_facts(args, pipe, sampling)}
    animated, seconds = any(drawing.animated for drawing in drawings), 0.0
    made: list[list[Image.Image]] = []  # of each picture, how it appears; it is the last of these
    for output, stages in draw(args, pipe, sampling, edit, asked, seeds, animated):
        before, seconds = len(made), seconds + output.seconds
        made += stages
        for drawing in drawings:
            if before <= drawing.numbers[-1] < len(made):
                shown: dict[str, Sequence[object]] = {"seed": seeds}
                shown |= {"label": [*map(_label, asked)]} if args.labels else {"prompt": asked}
                first, *others = drawing.numbers
                own = {
                    name: [values[i] for i in drawing.numbers] if others else values[first]
                    for name, values in shown.items()
                }
                write(drawing, made, args.scale, columns(asked), {**own, **facts})
                tqdm.write(str(drawing.path))
    what = f"{len(seeds)} pictures" if len(seeds) > 1 else "1 picture"
    used = f"seed{'s' * (len(seeds) > 1)} {' '.join(map(str, seeds))}"
    print(f"{what}, NFE {output.nfe} per image, {seconds:.2f} seconds, {used}")


def draw(
    args: Namespace,
    pipe: Pipeline,
    sampling: Sampling,
    edit: tuple[Image.Image, Image.Image] | None,
    asked: Sequence[str],
    seeds: Sequence[int],
    animated: bool,
) -> Iterator[tuple[Output, list[list[Image.Image]]]]:
    """Make the pictures block by block, under a bar of AR steps.

    Yields:
        what the pipeline returns, and how each of these pictures appears, if `animated`; else each alone.
    """
    make = pipe if edit is None else partial(pipe.edit, *edit)
    size = 1 if animated else BATCH  # an AR step says not of which pictures it is
    ar_steps = len(pipe.model.nfe(sampling.schedule, sampling.sampler, sampling.num_iter))
    total = ar_steps * -(-len(asked) // size) if edit is None else None  # of an edit, the mask says how many
    stages: list[Image.Image] = []
    with tqdm(total=total, desc="generating", unit=" AR steps") as bar:

        def on_step(step: Step) -> None:
            if animated:
                stages[:] = [*(stages if step.step else ()), *step.preview()]
            bar.update()

        for first in range(0, len(asked), size):
            block = slice(first, first + size)
            call = get_call(args, pipe, asked[block])
            output = make(seeds=seeds[block], callback_on_step_end=on_step, **call)
            yield output, [list(stages)] if animated else [[picture] for picture in output.images]


def write(
    drawing: Drawing, made: Sequence[Sequence[Image.Image]], scale: int, columns: int, facts: Mapping[str, object]
) -> None:
    """Write a file, enlarged `scale` times; several pictures in `columns`."""
    shown = [made[number] for number in drawing.numbers]
    if not drawing.animated:
        picture = arrange([stages[-1] for stages in shown], scale, columns)
        save_image(pil_to_tensor(picture), drawing.path, facts)
        return
    first, *others = [arrange(pictures, scale, columns) for pictures in zip(*shown, strict=True)]
    duration = [*[FRAME] * len(others), LAST_FRAME]
    with atomic_write(drawing.path) as beside:
        first.save(
            beside, save_all=True, append_images=others, duration=duration, loop=0, comment=json.dumps(facts).encode()
        )


def arrange(pictures: Sequence[Image.Image], scale: int, columns: int) -> Image.Image:
    """Enlarge pictures of one size without smoothing; put several side by side."""
    if len(pictures) > 1:
        return image_grid(torch.stack([pil_to_tensor(one) for one in pictures]), columns, scale)
    (one,) = pictures
    return one.resize((one.width * scale, one.height * scale), Image.Resampling.NEAREST)


def columns(asked: Sequence[str]) -> int:
    """Choose the columns of a grid: one per label or prompt if each comes as often, else as many as rows."""
    different = len(set(asked))
    return different if 1 < different < len(asked) else math.ceil(len(asked) ** 0.5)


def get_facts(args: Namespace, pipe: Pipeline, sampling: Sampling) -> dict[str, object]:
    """Return the settings of the pictures, under the flags' names."""
    settings = {name: value for name, value in sampling.to_dict().items() if name != "seed"}
    others = {name: getattr(args, name) for name in ("negative_prompt", "image_size", "edit", "mask")}
    given = {name: value for name, value in others.items() if value is not None}
    dtype = str(next(pipe.model.parameters()).dtype).removeprefix("torch.")
    return {**settings, **given, "dtype": dtype, "disa": metadata.version("disa")}


def get_pictures(args: Namespace) -> tuple[list[str], list[int]]:
    """Return what each picture shows, and its seed.

    Raises:
        ValueError: a flag is impossible.
    """
    asked = args.labels or args.prompt or read_prompts(args.prompt_file)
    if args.num_images is not None and args.num_images < 1:
        raise ValueError(f"num_images is {args.num_images}; it must be at least 1")
    seeds = args.seeds or [secrets.randbelow(2**32) for _ in range(args.num_images or len(asked))]
    if wrong := [seed for seed in seeds if not 0 <= seed < 2**64]:
        raise ValueError(f"--seeds has {wrong[0]}; seeds are whole numbers in [0, 2^64)")
    if len(seeds) % len(asked):
        flag, what = ("--seeds", "seeds") if args.seeds else ("--num_images", "pictures")
        raise ValueError(
            f"{flag}: {len(seeds)} {what} cannot be shared out evenly over {len(asked)} labels or prompts; "
            "each takes one, or as many as another"
        )
    return asked * (len(seeds) // len(asked)), seeds


def read_prompts(file: str) -> list[str]:
    """Read the prompts of --prompt_file, one per line; "-" is standard input.

    Raises:
        ValueError: the file cannot be read, or holds none.
    """
    try:
        text = sys.stdin.read() if file == "-" else Path(file).read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise ValueError(f"--prompt_file {file} cannot be read ({error})") from error
    prompts = [line.strip() for line in text.splitlines() if line.strip()]
    if not prompts:
        raise ValueError(f"--prompt_file {file} holds no prompt; write one per line")
    return prompts


def get_drawings(args: Namespace, asked: Sequence[str], seeds: Sequence[int]) -> list[Drawing]:
    """Choose the files to write.

    Raises:
        ValueError: one is there already, or cannot be written.
    """
    out, everything = args.out, range(len(asked))
    suffix = "" if out.is_dir() else out.suffix.lower()
    if suffix in Image.registered_extensions():
        if suffix not in (".png", ".gif"):
            raise ValueError(f"--out is {out}; a name that ends in .png or .gif, or a folder, is needed")
        if len(asked) > 1 and not args.grid:
            raise ValueError(f"--out is {out}, and there are {len(asked)} pictures; give a folder, or --grid")
        found = [Drawing(everything, out)]
    else:
        names = (f"{i:03d}-{_slug(one)}-seed{seed}.png" for i, (one, seed) in enumerate(zip(asked, seeds, strict=True)))
        found = [Drawing([i], out / file) for i, file in enumerate(names)]
        found += [Drawing(everything, out / "grid.png")] if args.grid else []
    if args.gif and suffix != ".gif":
        found += [Drawing(one.numbers, one.path.with_suffix(".gif")) for one in found]
    if there := next((one.path for one in found if one.path.exists()), None):
        raise ValueError(f"--out would overwrite {there}; give another place, or remove it")
    check_folder(found[0].path.parent, "--out")
    if args.scale < 1:
        raise ValueError(f"--scale is {args.scale}; it must be at least 1")
    return found


def _slug(text: str) -> str:
    """Make a part of a file's name of a label or a prompt."""
    return re.sub(r"\W+", "-", text).strip("-")[:40] or "picture"


def get_edit(args: Namespace) -> tuple[Image.Image, Image.Image] | None:
    """Open the picture to edit and its mask.

    Raises:
        ValueError: one is missing, or cannot be read.
    """
    if args.edit is None and args.mask is None:
        return None
    if args.edit is None or args.mask is None:
        raise ValueError("--edit and --mask go together; give the picture, and where it is to be drawn anew")
    if args.image_size is not None:
        raise ValueError(f"image_size is {args.image_size}; an edited picture keeps its size, leave the flag out")
    return open_image(args.edit), open_image(args.mask)


def load(args: Namespace, asked: Sequence[str]) -> Pipeline:
    """Load the pipeline; of a model's name, judge the flags before."""
    resolve_device(args.device)
    if args.model in MODELS:
        with torch.device("meta"):
            outline = build_model(args.model)
        check(args, asked, args.model, outline, disa_recipe(args.model).sampling)
        if args.checkpoint:
            find_model(args.model, args.checkpoint)
    if args.vae:
        find_vae(args.vae)
    places = {"checkpoint": args.checkpoint, "vae": args.vae}
    return Pipeline.from_pretrained(args.model, **places, device=args.device, dtype=args.dtype)


def check(args: Namespace, asked: Sequence[str], name: str, model: AnnealedModel, own: Sampling) -> Sampling:
    """Return the settings that the flags make of the model's `own`; no weights are needed.

    Raises:
        ValueError: the model cannot take a flag.
    """
    if isinstance(model, Harmon):
        if args.labels:
            raise ValueError(f"{name} takes prompts, and no labels; give --prompt")
        shape = model.mar.grid, model.mar.grid
        if args.image_size is not None:
            shape = image_shape(args.image_size, model.vae.stride)
    else:
        _check_labels(args, asked, name, cast(LabelModel, model).num_classes)
        shape = cast(int, model.grid), cast(int, model.grid)
    if own.num_iter is None and args.num_iter is not None:
        raise ValueError(f"num_iter is {args.num_iter}; the AR steps of {name} are fixed, leave the flag out")
    if own.num_iter is None and args.edit:
        raise ValueError(f"{name} draws in an order of its own; only MAR and Harmon can --edit")
    changed = dataclasses.replace(own, **get_settings(args, own))
    check_ar_steps(model, changed, shape[0] * shape[1])
    return changed


def _check_labels(args: Namespace, labels: Sequence[str], name: str, count: int) -> None:
    """Refuse prompts, and unknown classes; names of others than Fashion-MNIST's are left to the pipeline."""
    if not args.labels:
        raise ValueError(f"{name} takes labels, and no prompts; give --labels")
    for flag in ("negative_prompt", "image_size"):
        if getattr(args, flag) is not None:
            raise ValueError(f"{flag} is {getattr(args, flag)!r}; {name} is not of Harmon, leave the flag out")
    known = FASHION_CLASSES if MODELS[name].bundled else ()
    for label in labels:
        if (int(label) >= count) if label.isdecimal() else (known and label.lower() not in known):
            classes = f"0 to {count - 1}" + f" ({', '.join(known)})" * bool(known)
            raise ValueError(f"--labels has {label!r}; {name} knows {classes}{did_you_mean(label, known)}")


def get_settings(args: Namespace, own: Sampling) -> dict[str, Any]:  # Any: of several types
    """Return the settings of the call that flags give; for what they do not say of a whole, as in `own`."""
    found = {name: getattr(args, name) for name in ("num_iter", "sampler", "temperature")}
    steps = {name: getattr(args, flag) for flag, name in _STEPS.items() if getattr(args, flag) is not None}
    if args.step_schedule:
        found["schedule"] = StepSchedule.load(args.step_schedule)
    elif steps:
        strategy = own.schedule.strategy if own.schedule.counts is None else "linear"
        found["schedule"] = StepSchedule(
            **{"upper": own.schedule.upper, "lower": own.schedule.lower, "strategy": strategy, **steps}
        )
    if args.cfg is not None:
        found["guidance"] = dataclasses.replace(own.guidance, scale=args.cfg)
    return {name: value for name, value in found.items() if value is not None}


def get_call(args: Namespace, pipe: Pipeline, asked: Sequence[str]) -> dict[str, Any]:  # Any: of several types
    """Return the arguments of the pipeline that the flags give."""
    call = get_settings(args, pipe.sampling)
    if args.labels:
        return {**call, "labels": [_label(one) for one in asked]}
    call |= {"prompts": list(asked), "image_size": args.image_size}
    if args.edit:
        del call["image_size"]  # it is the picture's
    return call if args.negative_prompt is None else {**call, "negative_prompt": args.negative_prompt}


def _label(text: str) -> int | str:
    return int(text) if text.isdecimal() else text
