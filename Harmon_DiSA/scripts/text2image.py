"""Generate images of prompts, with and without diffusion step annealing. See README.md in the folder above."""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
from tqdm import tqdm

from disa import StepTrace
from disa.commands.exit import run
from disa.commands.generate import read_prompts
from disa.commands.harmon import add_image_flags, check, get_generator, get_settings, load, parse, parser
from disa.data.transforms import tile, to_uint8
from disa.generation.generators import PromptGenerator
from disa.generation.images import save_image
from disa.noise import NoiseSource
from disa.runtime.files import check_folder
from disa.runtime.start import start

JPEG_ROOM = 65_000  # bytes of metadata: an EXIF segment's 64 KiB less what stands around them


def get_parser() -> argparse.ArgumentParser:
    result = parser(__doc__.splitlines()[0])
    asked = result.add_mutually_exclusive_group()
    default = "a dog on the left and a cat on the right."
    asked.add_argument("--prompt", nargs="+", default=default, help="what the image shows; each gets a file")
    asked.add_argument("--prompt_file", metavar="FILE", help="prompts, one per line; - is standard input")
    text = "PNG or JPEG file; with several prompts output_000.jpg, output_001.jpg, …"
    result.add_argument("--output", default="output.jpg", help=text)
    add_image_flags(result, several_seeds=True)
    return result


def get_prompts(args: argparse.Namespace) -> list[str]:
    """The prompts that the flags give."""
    if args.prompt_file is None:
        return [args.prompt] if isinstance(args.prompt, str) else args.prompt
    return read_prompts(args.prompt_file)


def get_paths(output: Path, count: int) -> list[Path]:
    """Choose a file for the images of each of `count` prompts."""
    if output.suffix.lower() not in (".png", ".jpg", ".jpeg"):
        raise ValueError(f"--output is {output}; a name that ends in .png, .jpg or .jpeg is needed")
    paths = [output] if count == 1 else [output.with_stem(f"{output.stem}_{i:03d}") for i in range(count)]
    if folder := next((path for path in paths if path.is_dir()), None):
        raise ValueError(f"--output would replace the folder {folder}; give another name")
    return paths


def check_metadata(path: Path, metadata: Mapping[str, object]) -> None:
    """Refuse, before anything is generated, metadata that a JPEG file cannot hold."""
    size = len(json.dumps(metadata))
    if path.suffix.lower() != ".png" and size > JPEG_ROOM:
        problem = f"what {path} is to say of itself takes {size} bytes, and a JPEG holds {JPEG_ROOM}"
        raise ValueError(f"{problem}; shorten the prompt, or write a .png")


class PromptSeededGenerator(PromptGenerator):
    """Images that depend on their prompt and their number in its grid, not on the other prompts."""

    def noise(self, ids: Sequence[int]) -> NoiseSource:
        return super().noise([image_id % self.images_per_prompt for image_id in ids])


def generate(generator: PromptGenerator, batch_size: int) -> Iterator[torch.Tensor]:
    """Yield the images of each prompt, uint8 [N, C, H, W], as soon as they are all there, under a progress bar.

    A batch goes on where the one before stopped, across prompts.
    """
    ids = range(len(generator.prompts) * generator.images_per_prompt)
    batches = [ids[i : i + batch_size] for i in range(0, len(ids), batch_size)]
    nfe = 0
    waiting: list[torch.Tensor] = []
    with tqdm(total=len(batches) * len(generator.nfe_per_step), desc="generating", unit="AR step") as bar:

        def advance(trace: StepTrace) -> None:
            nonlocal nfe
            nfe += trace.evaluations
            bar.set_postfix({"diffusion steps": trace.diffusion_steps, "NFE": nfe})
            bar.update()

        generator.on_step = advance
        for batch in batches:
            waiting.extend(to_uint8(generator(batch)).cpu())
            while len(waiting) >= generator.images_per_prompt:
                yield torch.stack(waiting[: generator.images_per_prompt])
                del waiting[: generator.images_per_prompt]


def main() -> None:
    args, config = parse(get_parser())
    prompts = get_prompts(args)
    seeds = [args.seed] if isinstance(args.seed, int) else args.seed
    paths = get_paths(Path(args.output), len(prompts) * len(seeds))
    check(args, config, seeds, prompts)
    check_folder(paths[0].parent, "--output")
    device = start(args.device)
    model = load(args, config, device)
    args.seed = seeds[0]
    generator = get_generator(args, model, prompts, device, PromptSeededGenerator)
    settings = {**get_settings(args, config, model), "grid_size": args.grid_size, "checkpoint": args.checkpoint}
    records = [{"prompt": prompt, **settings, "seed": seed} for seed in seeds for prompt in prompts]
    for path, metadata in zip(paths, records, strict=True):
        check_metadata(path, metadata)
    files = zip(paths, records, strict=True)
    for seed in seeds:
        generator.sampling = dataclasses.replace(generator.sampling, seed=seed)
        for images in generate(generator, args.batch_size):
            path, metadata = next(files)
            save_image(tile(images), path, metadata)
            tqdm.write(str(path))


if __name__ == "__main__":
    run(main)
