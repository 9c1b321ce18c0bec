"""Generate images of many prompts, alone or on many GPUs, resumable at any time. See README.md in the folder above."""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torchvision.transforms.functional import pil_to_tensor

from disa import StepTrace
from disa.acceleration import compile_report
from disa.commands.exit import run
from disa.commands.flags import naming_flags
from disa.commands.harmon import add_image_flags, check, get_generator, get_settings, load, parse, parser
from disa.data.transforms import tile
from disa.generation.generators import PromptGenerator
from disa.generation.images import check_origin, generate_images, is_whole, save_image
from disa.runtime import distributed
from disa.runtime.files import atomic_write, check_folder
from disa.runtime.start import start


def get_parser() -> argparse.ArgumentParser:
    result = parser(__doc__.splitlines()[0])
    text = "JSON list of prompts, or of objects with a prompt; or JSON lines of either"
    result.add_argument("--data", default="path/to/xxx.json", help=text)
    text = "folder; started again with the same settings, a run goes on in it"
    result.add_argument("--output", default="output", help=text)
    text = "one file per prompt, or the folders that GenEval's scorer reads"
    result.add_argument("--layout", default="flat", choices=("flat", "geneval"), help=text)
    add_image_flags(result)
    return result


def read_entries(path: Path) -> list[dict[str, Any]]:
    """Read the objects in a file of prompts, each with its `prompt`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it does not hold prompts.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no --data {path}")
    try:
        text = path.read_text(encoding="utf-8")
        lines = [line for line in text.split("\n") if line.strip()]
        found = list(map(json.loads, lines)) if path.suffix == ".jsonl" else json.loads(text)
    except ValueError as error:
        raise ValueError(f"--data {path} cannot be read as JSON ({error})") from error
    if not isinstance(found, list) or not found:
        raise ValueError(f"--data {path} holds no list of prompts")
    entries = [{"prompt": entry} if isinstance(entry, str) else entry for entry in found]
    for i, entry in enumerate(entries):
        if not (isinstance(entry, dict) and isinstance(entry.get("prompt"), str)):
            needed = "a string is needed, or an object with a prompt"
            raise ValueError(f"entry {i} of --data {path} is {str(entry)[:60]}; {needed}")
    return entries


def sample_path(folder: Path, prompt: int, number: int) -> Path:
    """Where GenEval's scorer looks for one image of a prompt."""
    return folder / f"{prompt:05d}" / "samples" / f"{number:04d}.png"


def add_summary(folder: Path, prompt: int, entry: dict[str, Any], samples: int) -> None:
    """Write what GenEval wants in a prompt's folder besides its samples."""
    with atomic_write(folder / f"{prompt:05d}" / "metadata.jsonl") as beside:
        beside.write_text(json.dumps(entry) + "\n")
    grid = folder / f"{prompt:05d}" / "grid.png"
    if not is_whole(grid):
        images = [pil_to_tensor(Image.open(sample_path(folder, prompt, number))) for number in range(samples)]
        save_image(tile(torch.stack(images)), grid)


class Progress:
    """Generates images, at most `batch_size` at a time, and moves a bar after each AR step; `watch` is given it."""

    def __init__(self, generator: PromptGenerator, batch_size: int) -> None:
        self.generator, self.batch_size, self.ar_steps = generator, batch_size, len(generator.nfe_per_step)
        self.advance: Callable[[float], object] = lambda _: None

    def watch(self, advance: Callable[[float], object]) -> None:
        """Take the function that moves the bar to a share of the block that comes."""
        self.advance = advance

    def __call__(self, ids: Sequence[int]) -> torch.Tensor:
        images = list[torch.Tensor]()

        def on_step(trace: StepTrace) -> None:
            self.advance((len(images) + (trace.step + 1) / self.ar_steps) / len(batches))

        batches = [ids[i : i + self.batch_size] for i in range(0, len(ids), self.batch_size)]
        self.generator.on_step = on_step
        for batch in batches:
            images.append(self.generator(batch))
        return torch.cat(images)


def main() -> None:
    args, config = parse(get_parser())
    entries, folder, samples = read_entries(Path(args.data)), Path(args.output), args.grid_size**2
    prompts = [entry["prompt"] for entry in entries]
    with naming_flags(args):
        device = start(args.device)
    distributed.on_main(lambda: check(args, config, [args.seed], prompts))
    distributed.on_main(lambda: check_folder(folder, "--output"))
    distributed.on_main(lambda: check_origin(folder))
    model = load(args, config, device)
    generator = get_generator(args, model, prompts, device)
    progress = Progress(generator, args.batch_size)
    settings = {**get_settings(args, config, model), "grid_size": args.grid_size}
    digest = hashlib.sha256(json.dumps(generator.prompts).encode()).hexdigest()[:12]
    record = {**settings, "layout": args.layout, "prompts": digest}

    def grids(prompts: Sequence[int]) -> torch.Tensor:
        """Generate the images of whole prompts, side by side."""
        images = progress([prompt * samples + number for prompt in prompts for number in range(samples)])
        return torch.stack([tile(images) for images in images.split(samples)])

    if args.layout == "geneval":
        generate_images(
            progress,
            folder,
            num_images=len(entries) * samples,
            batch_size=args.batch_size,
            settings=record,
            path=lambda folder, image: sample_path(folder, *divmod(image, samples)),
            watch=progress.watch,
            metadata=lambda image: {"prompt": generator.prompts[image // samples], "image": image, **settings},
        )
        for prompt in range(len(entries))[distributed.rank() :: distributed.world_size()]:
            add_summary(folder, prompt, entries[prompt], samples)
    else:
        generate_images(
            grids,
            folder,
            num_images=len(entries),
            batch_size=max(args.batch_size // samples, 1),
            settings=record,
            watch=progress.watch,
            metadata=lambda prompt: {"prompt": generator.prompts[prompt], "image": prompt * samples, **settings},
        )
    distributed.barrier()
    if report := compile_report():
        distributed.print_main(report)
    distributed.print_main(f"the images of {len(entries)} prompts are in {folder}")
    distributed.shutdown()


if __name__ == "__main__":
    run(main)
