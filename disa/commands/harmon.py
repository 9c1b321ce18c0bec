"""What Harmon's commands share: configs, flags, the model, and the settings of a generation."""

from __future__ import annotations

import functools
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from pathlib import Path

import torch

from ..acceleration import Acceleration
from ..acceleration.caching import Caching
from ..data.captions import unlearned
from ..data.text import UNCONDITIONAL_PROMPT, TextTokenizer
from ..generation.generators import (
    OPTIONAL,
    PromptGenerator,
    Sampling,
    check_ar_steps,
    check_prompts,
    choose_attention,
    image_shape,
    question_room,
)
from ..grouping import Grouping
from ..guidance import Guidance
from ..models import MODELS, build_model
from ..models.harmon import Harmon
from ..runtime import distributed
from ..runtime.configs import Config, read_config
from ..runtime.devices import DTYPES, resolve_device, resolve_dtype
from ..runtime.files import BUNDLED
from ..runtime.fingerprint import fingerprint
from ..runtime.start import announce
from ..schedule import StepSchedule
from ..solver import get_solver
from ..weights.load import find_model, find_vae, load_model
from .flags import (
    HelpFormatter,
    Parser,
    add_cache_flags,
    add_device_flag,
    add_grouping_flags,
    add_guidance_flags,
    add_speed_flags,
    add_step_schedule_flag,
    naming_flags,
    value,
)

# The flags that an image depends on, besides its prompt, its number and the weights, and those in OPTIONAL.
_IMAGE = ("image_size", "num_iter", "cfg", "cfg_schedule", "cfg_prompt", "temperature")
_STEPS = ("sampler", "upper_steps", "lower_steps", "annealing_strategy")
SETTINGS = (*_IMAGE, *_STEPS, "seed", "dtype")


def read_model_config(path: str | Path) -> Config:
    """Read a config of `configs/models/`: model, text_tokenizer, sampler, schedule, and defaults of other flags.

    Raises:
        FileNotFoundError, ValueError: as `read_config`; or `defaults` names no flag.
    """
    config = read_config(path, ("model", "text_tokenizer", "sampler", "schedule", "defaults"))
    if lacking := [f"schedule.{key}" for key in ("upper", "lower", "strategy") if key not in config["schedule"]]:
        raise ValueError(f"{path} says nothing on {', '.join(lacking)}; see the examples in configs/")
    flags = parser("")
    add_image_flags(flags)  # a config serves every command
    allowed = vars(flags.parse_args([""])).keys() - {"config", *_STEPS}
    if unknown := sorted(config["defaults"].keys() - allowed):
        raise ValueError(f"{path}: defaults has {', '.join(unknown)}; allowed are {', '.join(sorted(allowed))}")
    return config


def _pixels(text: str) -> int | str:
    """Parse an image size: 512 and 512x512 become one. `image_shape` refuses what is no size."""
    first, *others = text.lower().split("x")
    return int(first) if first.isdecimal() and others in ([], [first]) else text


def parser(description: str) -> Parser:
    """Build a parser with the flags of every command."""
    result = Parser(description=description, formatter_class=HelpFormatter)
    result.add_argument("config", help="a file of configs/models/")
    group = result.add_argument_group("model")
    group.add_argument("--checkpoint", help="file or folder of weights; none for a model that comes with the package")
    group.add_argument("--vae_path", help="KL-16's weights, where the checkpoint holds none")
    text = "pixels per side, or height x width like 512x768; multiples of 16"
    group.add_argument("--image_size", default=512, type=_pixels, help=text)
    add_device_flag(group)
    add_speed_flags(group)
    return result


def add_image_flags(parser: ArgumentParser, *, several_seeds: bool = False) -> None:
    """Add the flags of text to image."""
    group = parser.add_argument_group("text to image")
    value(group, "--grid_size", 2, "side of the square of images that each prompt gets")
    value(group, "--batch_size", 4, "images at a time")
    value(group, "--cfg", 3.0, "guidance scale; 1 is no guidance")
    value(group, "--cfg_schedule", "constant", "constant, or linear (from 1 to cfg)")
    value(group, "--guidance", 1.0, "diffusion time above which guidance is off (1 is noise, 0 is data)")
    add_guidance_flags(group)
    text = "prompt that guidance leads away from"
    group.add_argument("--cfg_prompt", "--negative_prompt", default=UNCONDITIONAL_PROMPT, help=text)
    value(group, "--temperature", 1.0, "factor on the noise of diffusion steps")
    value(group, "--num_iter", 64, "AR steps")
    add_grouping_flags(group)
    add_cache_flags(group)
    group.add_argument("--sampler", help="DiSA (annealed), default (as released), …; by default the config's")
    group.add_argument("--upper_steps", type=int, help="diffusion steps at the first AR step; by default the config's")
    group.add_argument("--lower_steps", type=int, help="diffusion steps at the last AR step; by default the config's")
    add_step_schedule_flag(group)
    group.add_argument("--annealing_strategy", help="linear, cosine, two-stage, constant or even; else the config's")
    text = "with an image's number it gives the image" + "; each of several gets a file" * several_seeds
    group.add_argument("--seed", default=1, type=int, nargs="+" if several_seeds else None, help=text)


def parse(parser: ArgumentParser, argv: Sequence[str] | None = None) -> tuple[Namespace, Config]:
    """Parse flags, and read the config that they name; its values are the defaults of flags."""
    config = read_model_config(parser.parse_args(argv).config)
    schedule = config["schedule"]
    steps = (config["sampler"], schedule["upper"], schedule["lower"], schedule["strategy"])
    parser.set_defaults(**dict(zip(_STEPS, steps, strict=True)), **config["defaults"])
    return parser.parse_args(argv), config


def check(
    args: Namespace, config: Config, seeds: Sequence[int] = (), prompts: Sequence[str] = (), question: str | None = None
) -> None:
    """Refuse what is impossible, before weights are loaded.

    Args:
        seeds, prompts: of the images that are generated, if any are.
        question: that is asked, if one is.

    Raises:
        FileNotFoundError, ValueError: naming a file or a flag.
        OSError: the text tokenizer cannot be fetched.
    """
    with naming_flags(args):
        resolve_device(args.device)
        if config["model"] in MODELS:
            find_model(config["model"], args.checkpoint)
        if args.vae_path:
            find_vae(args.vae_path)
        with torch.device("meta"):
            model = build_model(config["model"])
        if not isinstance(model, Harmon):
            raise ValueError(f"{config['model']} takes no prompts; the model of {args.config} must be one of Harmon's")
        rows, columns = image_shape(args.image_size, model.vae.stride)
        for seed in seeds:
            for name in ("grid_size", "batch_size"):
                if getattr(args, name) < 1:
                    raise ValueError(f"{name} is {getattr(args, name)}; it must be at least 1")
            sampling = make_sampling(args, seed)
            get_solver(model.solvers, sampling.sampler)
            check_ar_steps(model, sampling, rows * columns)
        model.text = load_text(config)  # last: it may be fetched
        if prompts:
            check_prompts(model, prompts, (rows, columns), args.cfg_prompt)
        if question is not None:
            question_room(model, question, (rows, columns), "prompt")


@functools.cache
def _load_text(source: str) -> TextTokenizer:
    return TextTokenizer.load(source)


def load_text(config: Config) -> TextTokenizer | None:
    """Load the config's text tokenizer, or that which comes with its model."""
    bundled = BUNDLED / f"{config['model']}_tokenizer.json"
    source = config["text_tokenizer"] or (bundled if bundled.is_file() else None)
    return _load_text(str(source)) if source else None


def load(args: Namespace, config: Config, device: torch.device) -> Harmon:
    """Load the config's model and its text tokenizer; from now on `args.dtype` says what `auto` stands for.

    Raises:
        FileNotFoundError, ValueError, OSError: a file is missing, or does not fit.
    """
    Acceleration(args.compile, args.graphs).check(device)
    args.dtype = resolve_dtype(args.dtype, device, MODELS[config["model"]].half)
    model = load_model(config["model"], args.checkpoint, vae=args.vae_path).to(device, DTYPES[args.dtype])
    assert isinstance(model, Harmon)  # or `check` refused it
    model.text = load_text(config)
    choose_attention(model.llm, device)
    announce(device, args.dtype)
    return model


def get_generator(
    args: Namespace,
    model: Harmon,
    prompts: Sequence[str],
    device: torch.device,
    kind: type[PromptGenerator] = PromptGenerator,
) -> PromptGenerator:
    """Build what generates grid_size² images of each prompt as the flags say, a generator of this `kind`.

    Raises:
        ValueError: a flag or a prompt is impossible.
    """
    generator = kind(
        model,
        prompts,
        make_sampling(args, args.seed),
        device,
        image_shape=image_shape(args.image_size, model.vae.stride),
        images_per_prompt=args.grid_size**2,
        cfg_prompt=args.cfg_prompt,
    )
    if model.vae.image_channels == 1 and (said := unlearned(prompts)):
        print(f"note: {said}", file=sys.stderr)
    images = -(-len(prompts) * generator.images_per_prompt // distributed.world_size())
    acceleration = Acceleration(args.compile, args.graphs)
    for sentence in acceleration.apply(model, model.vae, device=device, batch_size=args.batch_size, images=images):
        print(sentence, file=sys.stderr)
    return generator


def make_sampling(args: Namespace, seed: int) -> Sampling:
    """Make the settings of a generation that the flags give; ValueError if one is impossible."""
    guidance = Guidance(args.cfg, args.cfg_schedule, args.guidance, args.guidance_min_time, args.skip_guidance_below)
    settings = args.sampler, guidance, args.temperature, seed
    grouping = Grouping(args.token_order, args.tokens_per_step)
    caching = Caching(args.cache_tokens, args.cache_conditions, args.cache_first)
    return Sampling(args.num_iter, _schedule(args), *settings, grouping, caching=caching)


def get_settings(args: Namespace, config: Config, model: Harmon) -> dict[str, object]:
    """Record the model and the settings of a generation, under the flags' names."""
    others = [name for name, default in OPTIONAL["diff"].items() if getattr(args, name) != default]
    flags = {name: getattr(args, name) for name in (*SETTINGS, *others)}
    if args.step_schedule:
        schedule = _schedule(args)
        counts = (schedule.upper, schedule.lower, schedule.strategy)
        flags |= dict(zip(_STEPS[1:], counts, strict=True))
    return {"model": config["model"], "weights": fingerprint(model), **flags}


def _schedule(args: Namespace) -> StepSchedule:
    """Load the step schedule that the flags name, or make that of their counts."""
    if args.step_schedule:
        return StepSchedule.load(args.step_schedule)
    return StepSchedule(args.upper_steps, args.lower_steps, args.annealing_strategy)
