"""Draw what prompts say, with and without diffusion step annealing. See README.md in the folder above."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
from tqdm import tqdm

from disa import StepTrace
from disa.cli import run
from disa.distributed import resolve_device
from disa.generation import save_image, tile, to_uint8
from disa.prompted import add_drawing_flags, describe, get_sampler, load, parse, parser
from disa.sampling import PromptSampler


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


def draw(sampler: PromptSampler, batch_size: int, title: str) -> torch.Tensor:
    """All images of a sampler's one prompt, uint8 [N, C, H, W], under a progress bar."""
    ids = range(sampler.images_per_prompt)
    batches = [ids[i : i + batch_size] for i in range(0, len(ids), batch_size)]
    evaluations = 0
    with tqdm(total=len(batches) * len(sampler.step_counts), desc=title, unit="AR step") as bar:

        def advance(trace: StepTrace) -> None:
            nonlocal evaluations
            evaluations += trace.evaluations
            bar.set_postfix({"diffusion steps": trace.diffusion_steps, "head evaluations": evaluations})
            bar.update()

        sampler.on_step = advance
        return torch.cat([to_uint8(sampler(batch)).cpu() for batch in batches])


def main() -> None:
    args, config = parse(get_parser())
    prompts = get_prompts(args)
    paths = get_paths(Path(args.output), len(prompts))
    device = resolve_device(args.device)
    model = load(args, config, device)
    # A prompt alone: what comes out does not depend on the others. All are checked before the first is drawn.
    samplers = [get_sampler(args, model, [prompt], device) for prompt in prompts]
    settings = {**describe(args, config, model), "grid_size": args.grid_size, "checkpoint": args.checkpoint}
    for i, (prompt, sampler, path) in enumerate(zip(prompts, samplers, paths, strict=True)):
        images = draw(sampler, args.batch_size, f"prompt {i + 1} of {len(prompts)}")
        save_image(tile(images), path, {"prompt": prompt, **settings})
        print(path)


if __name__ == "__main__":
    run(main)
