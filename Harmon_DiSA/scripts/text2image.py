"""Draw what prompts say, with and without diffusion step annealing. See README.md in the folder above."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from disa import StepTrace
from disa.cli import run
from disa.distributed import resolve_device
from disa.generation import save_image, tile, to_uint8
from disa.noise import ImageNoise
from disa.prompted import add_drawing_flags, describe, get_sampler, load, parse, parser
from disa.sampling import PromptSampler

JPEG_ROOM = 65_000  # bytes of metadata: an EXIF segment's 64 KiB less what stands around them


def get_parser() -> argparse.ArgumentParser:
    result = parser(__doc__.splitlines()[0])
    asked = result.add_mutually_exclusive_group()
    asked.add_argument("--prompt", nargs="+", default="a dog on the left and a cat on the right.", help="what to draw; each gets a file")
    asked.add_argument("--prompt_file", metavar="FILE", help="prompts, one a line; - is standard input")
    result.add_argument("--output", default="output.jpg", help="PNG or JPEG file; with several prompts output_000.jpg, output_001.jpg, …")
    add_drawing_flags(result)
    return result


def get_prompts(args: argparse.Namespace) -> list[str]:
    """The prompts that the flags give."""
    if args.prompt_file is None:
        return [args.prompt] if isinstance(args.prompt, str) else args.prompt
    text = sys.stdin.read() if args.prompt_file == "-" else Path(args.prompt_file).read_text(encoding="utf-8")
    prompts = [line.strip() for line in text.splitlines() if line.strip()]
    if not prompts:
        raise ValueError(f"--prompt_file {args.prompt_file} holds no prompt; write one a line")
    return prompts


def get_paths(output: Path, count: int) -> list[Path]:
    """Where the images of `count` prompts go."""
    if output.suffix.lower() not in (".png", ".jpg", ".jpeg"):
        raise ValueError(f"--output is {output}; a name that ends in .png, .jpg or .jpeg is needed")
    paths = [output] if count == 1 else [output.with_stem(f"{output.stem}_{i:03d}") for i in range(count)]
    if folder := next((path for path in paths if path.is_dir()), None):
        raise ValueError(f"--output would replace the folder {folder}; give another name")
    return paths


def check_metadata(path: Path, said: Mapping[str, Any]) -> None:
    """Refuse, before anything is drawn, what a JPEG file cannot say of itself."""
    size = len(json.dumps(said))
    if path.suffix.lower() != ".png" and size > JPEG_ROOM:
        raise ValueError(
            f"what {path} is to say of itself takes {size} bytes, and a JPEG holds {JPEG_ROOM}; shorten the prompt, or write a .png"
        )


class PromptSeededSampler(PromptSampler):
    """Images that depend on their prompt and their number in its grid, not on what is drawn beside them."""

    def noise(self, ids: Sequence[int]) -> ImageNoise:
        return super().noise([image_id % self.images_per_prompt for image_id in ids])


def draw(sampler: PromptSampler, batch_size: int) -> Iterator[torch.Tensor]:
    """Yield the images of each prompt, uint8 [N, C, H, W], as soon as they are all there, under a progress bar.

    A batch goes on where the one before stopped, across prompts.
    """
    ids = range(len(sampler.prompts) * sampler.images_per_prompt)
    batches = [ids[i : i + batch_size] for i in range(0, len(ids), batch_size)]
    evaluations = 0
    waiting: list[torch.Tensor] = []
    with tqdm(total=len(batches) * len(sampler.step_counts), desc="drawing", unit="AR step") as bar:

        def advance(trace: StepTrace) -> None:
            nonlocal evaluations
            evaluations += trace.evaluations
            bar.set_postfix({"diffusion steps": trace.diffusion_steps, "head evaluations": evaluations})
            bar.update()

        sampler.on_step = advance
        for batch in batches:
            waiting.extend(to_uint8(sampler(batch)).cpu())
            while len(waiting) >= sampler.images_per_prompt:
                yield torch.stack(waiting[: sampler.images_per_prompt])
                del waiting[: sampler.images_per_prompt]


def main() -> None:
    args, config = parse(get_parser())
    prompts = get_prompts(args)
    paths = get_paths(Path(args.output), len(prompts))
    device = resolve_device(args.device)
    model = load(args, config, device)
    sampler = get_sampler(args, model, prompts, device, PromptSeededSampler)
    settings = {**describe(args, config, model), "grid_size": args.grid_size, "checkpoint": args.checkpoint}
    said = [{"prompt": prompt, **settings} for prompt in prompts]
    for path, metadata in zip(paths, said, strict=True):
        check_metadata(path, metadata)
    for path, metadata, images in zip(paths, said, draw(sampler, args.batch_size), strict=True):
        save_image(tile(images), path, metadata)
        tqdm.write(str(path))


if __name__ == "__main__":
    run(main)
