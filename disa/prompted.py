"""What Harmon's commands share: its configs, the flags, and the model and the settings that both ask for."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.functional import pil_to_tensor

from . import distributed
from .checkpoints import load_model
from .configs import read_config
from .evaluation import fingerprint
from .flags import DTYPES, HelpFormatter
from .guidance import Guidance
from .models.tokenizer import SpaceToDepth
from .sampling import PromptSampler, Sampling
from .schedule import StepSchedule
from .text import DRAW_ANYTHING, TextTokenizer
from .training.data import to_signed
from .transforms import pad_and_resize

# What an image depends on besides its prompt, its number and the weights.
SETTINGS = (
    *("image_size", "num_iter", "cfg", "cfg_schedule", "cfg_prompt", "temperature", "sampler", "upper_steps", "lower_steps"),
    *("annealing_strategy", "seed", "dtype"),
)


def read_drawing_config(path: str | Path) -> Any:
    """A config of `configs/models/`: `model`, `text_tokenizer`, `sampler`, `schedule`, and `defaults` of other flags.

    Raises:
        FileNotFoundError, ValueError: as `read_config`; or `defaults` names no flag.
    """
    config = read_config(path, ("model", "text_tokenizer", "sampler", "schedule", "defaults"))
    if lacking := [f"schedule.{key}" for key in ("upper", "lower", "strategy") if key not in config.schedule]:
        raise ValueError(f"{path} says nothing on {', '.join(lacking)}; see the examples in configs/")
    flags = parser("")
    add_drawing_flags(flags)
    # Whatever the command: a config is for drawing and for asking.
    allowed = vars(flags.parse_args([""])).keys() - {"config", "sampler", "upper_steps", "lower_steps", "annealing_strategy"}
    if unknown := sorted(config.defaults.keys() - allowed):
        raise ValueError(f"{path}: defaults has {', '.join(unknown)}; allowed are {', '.join(sorted(allowed))}")
    return config


def _pixels(text: str) -> int | str:
    """An image size as settings record it: 512 and 512x512 are one; what is no size is refused later, by `image_shape`."""
    sides = set(text.lower().split("x"))
    return int(text.lower().split("x")[0]) if len(sides) == 1 and next(iter(sides)).isdecimal() else text


def parser(description: str) -> argparse.ArgumentParser:
    """A parser with the flags of every command."""
    result = argparse.ArgumentParser(description=description, formatter_class=HelpFormatter)
    result.add_argument("config", help="a file of configs/models/")
    group = result.add_argument_group("model")
    group.add_argument("--checkpoint", help="file or folder of weights; to use a model that comes with the package, none")
    group.add_argument("--vae_path", help="KL-16 tokenizer, where the checkpoint holds none")
    group.add_argument("--image_size", default=512, type=_pixels, help="pixels a side, or height x width like 512x768; multiples of 16")
    group.add_argument("--device", default="auto", help="auto (what is there), cuda, cpu or mps")
    group.add_argument("--dtype", default="float32", choices=DTYPES, help="of the networks")
    return result


def add_drawing_flags(parser: argparse.ArgumentParser) -> None:
    """The flags of text to image."""
    group = parser.add_argument_group("drawing")
    group.add_argument("--grid_size", default=2, type=int, help="side of the square of images that each prompt gets")
    group.add_argument("--batch_size", default=4, type=int, help="images at a time")
    group.add_argument("--cfg", default=3.0, type=float, help="guidance scale; 1 is no guidance")
    group.add_argument("--cfg_schedule", default="constant", help="constant, or linear (from 1 to cfg)")
    group.add_argument("--cfg_prompt", default=DRAW_ANYTHING, help="prompt that guidance leads away from")
    group.add_argument("--temperature", default=1.0, type=float, help="factor on the noise of diffusion steps")
    group.add_argument("--num_iter", default=64, type=int, help="AR steps")
    group.add_argument("--sampler", help="DiSA (annealed), default (as released), …; by default the config's")
    group.add_argument("--upper_steps", type=int, help="diffusion steps at the first AR step; by default the config's")
    group.add_argument("--lower_steps", type=int, help="diffusion steps at the last AR step; by default the config's")
    group.add_argument("--annealing_strategy", help="linear, cosine, two-stage or constant; by default the config's")
    group.add_argument("--seed", default=1, type=int, help="with an image's number it gives the image")


def parse(parser: argparse.ArgumentParser, argv: Sequence[str] | None = None) -> tuple[argparse.Namespace, Any]:
    """The flags and the config that they name, whose values are the defaults of flags."""
    config = read_drawing_config(parser.parse_args(argv).config)
    schedule = config.schedule
    parser.set_defaults(
        sampler=config.sampler,
        upper_steps=schedule.upper,
        lower_steps=schedule.lower,
        annealing_strategy=schedule.strategy,
        **config.defaults,
    )
    return parser.parse_args(argv), config


def load(args: argparse.Namespace, config: Any, device: torch.device) -> Any:
    """The config's model on `device`, with its text tokenizer.

    Raises:
        FileNotFoundError, ValueError, OSError: a file is missing, or does not fit.
    """
    text = TextTokenizer.load(config.text_tokenizer) if config.text_tokenizer else None
    model = load_model(config.model, args.checkpoint, vae=args.vae_path).to(device, DTYPES[args.dtype])
    model.text = text or model.text
    choose_attention(model.llm, device)
    return model


def choose_attention(llm: Any, device: torch.device) -> None:
    """Use flash-attn for the language model where it is installed and can work, and say so; torch's own attention elsewhere."""
    from transformers.utils import is_flash_attn_2_available

    half = llm.dtype in (torch.float16, torch.bfloat16)
    llm.set_attn_implementation("flash_attention_2" if device.type == "cuda" and half and is_flash_attn_2_available() else "sdpa")
    if distributed.is_main():
        print(f"the language model attends with {llm.config._attn_implementation}", file=sys.stderr)


def image_shape(size: int | str, stride: int) -> tuple[int, int]:
    """Rows and columns of tokens in an image of `size`: pixels a side, or height x width.

    Raises:
        ValueError: a side is no multiple of `stride`.
    """
    sides = str(size).lower().split("x")
    if len(sides) > 2 or not all(side.isdecimal() and int(side) and int(side) % stride == 0 for side in sides):
        raise ValueError(
            f"image_size is {size}; a multiple of {stride} is needed, or two of them, height x width, like {4 * stride}x{6 * stride}"
        )
    return int(sides[0]) // stride, int(sides[-1]) // stride


def get_sampler(
    args: argparse.Namespace, model: Any, prompts: Sequence[str], device: torch.device, kind: type[PromptSampler] = PromptSampler
) -> PromptSampler:
    """What draws grid_size² images of each prompt as the flags say, a sampler of this `kind`.

    Raises:
        ValueError: a flag or a prompt is impossible.
    """
    for name in ("grid_size", "batch_size"):
        if getattr(args, name) < 1:
            raise ValueError(f"{name} is {getattr(args, name)}; it must be at least 1")
    schedule, guidance = StepSchedule(args.upper_steps, args.lower_steps, args.annealing_strategy), Guidance(args.cfg, args.cfg_schedule)
    return kind(
        model,
        prompts,
        Sampling(args.num_iter, schedule, args.sampler, guidance, args.temperature, args.seed),
        device,
        image_shape=image_shape(args.image_size, model.vae.stride),
        images_per_prompt=args.grid_size**2,
        cfg_prompt=args.cfg_prompt,
    )


def describe(args: argparse.Namespace, config: Any, model: Any) -> dict[str, Any]:
    """The model and the settings of a generation, under the flags' names."""
    return {"model": config.model, "weights": fingerprint(model), **{name: getattr(args, name) for name in SETTINGS}}


def fit_image(image: Image.Image, height: int, width: int, model: Any) -> Tensor:
    """An RGB picture for `model.vae` as the model saw pictures in training: [1, 1 or 3, H, W] in [-1, 1].

    Most are padded with grey to the shape of height × width, then resized. The small grey models saw pictures of 28×28 with black around:
    theirs are shrunk where they are too large, never enlarged, and put in the middle of black.
    """
    if isinstance(model.vae, SpaceToDepth):
        small, fitted = image.convert("L"), Image.new("L", (width, height))
        small.thumbnail((width, height), Image.Resampling.BICUBIC)
        fitted.paste(small, ((width - small.width) // 2, (height - small.height) // 2))
    else:
        fitted = pad_and_resize(image, height, width)
    return to_signed(pil_to_tensor(fitted))[None]
