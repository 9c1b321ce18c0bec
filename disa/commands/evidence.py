"""`disa evidence`: observe in a model what annealing rests on."""

from __future__ import annotations

import argparse
import contextlib
from pathlib import Path

from tqdm import tqdm

from ..annealing import AnnealedModel
from ..runtime.extras import extra
from ..runtime.files import check_folder
from ..runtime.packed import PackedLinear
from ..runtime.start import start
from ..tables.evidence import Evidence, write_evidence
from ..tables.measure import check_weights, load_weights
from .calibrate import add_settings, get_recipe, make_generator
from .flags import add_device_flag, value


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Observe at each AR step how well the condition alone predicts a token, how much tokens vary given their "
        "condition, and how straight the paths from noise to them are. Writes evidence.json, evidence.md and "
        "evidence.png. Needs no images; minutes for a bundled model on a CPU, and for the others on a GPU. What is not "
        "given here is as in the model's first annealed recipe."
    )
    parser.add_argument("model", metavar="MODEL", help="a model that has recipes, such as mar_fashion")
    parser.add_argument("--checkpoint", help="weights; by default those of the recipe")
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="where the files go")
    group = parser.add_argument_group("observing")
    value(group, "--images", 64, "images to generate and observe")
    value(group, "--draws", 16, "samples per condition")
    value(group, "--diffusion_steps", 50, "of every sample, at all AR steps")
    value(group, "--batch_size", 64, "images at a time")
    add_device_flag(group)
    add_settings(parser)


def main(args: argparse.Namespace) -> int:
    check(args)
    recipe = get_recipe(args, args.images)
    check_weights(recipe)
    device = start(args.device)
    generator = make_generator(load_weights(recipe), recipe, device)
    model, sampling, ar_steps = generator.model, recipe.sampling, len(generator.nfe_per_step)
    assert isinstance(model, AnnealedModel)
    evidence = Evidence(model, sampling.sampler, args.diffusion_steps, args.draws, sampling.seed)
    packed = PackedLinear() if device.type == "cpu" else contextlib.nullcontext()
    batches = -(-args.images // args.batch_size)
    with packed, tqdm(total=ar_steps * batches, unit=" AR steps", disable=None) as bar:
        steps = evidence.observe(lambda ids: generator.latents(ids, model), args.images, args.batch_size, bar.update)
    observed = {name: getattr(args, name) for name in ("images", "draws", "diffusion_steps")}
    settings = {"model": recipe.model, "settings": sampling.to_dict(), "observed": observed}
    print(write_evidence(steps, settings, args.out))
    print(f"everything is in {args.out}: evidence.json, evidence.md, evidence.png")
    return 0


def check(args: argparse.Namespace) -> None:
    """Refuse flags that are impossible, before weights are loaded.

    Raises:
        ValueError: naming one.
    """
    with extra("eval"):
        import matplotlib  # noqa: F401  # for the picture at the end
    for name, least in (("images", 2), ("draws", 2), ("diffusion_steps", 2), ("batch_size", 1)):
        if getattr(args, name) < least:
            raise ValueError(f"{name} is {getattr(args, name)}; it must be at least {least}")
    check_folder(args.out, "--out")
