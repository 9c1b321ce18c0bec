"""Draw many prompts, alone or on many GPUs, resumable at any moment. See README.md in the folder above."""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torchvision.transforms.functional import pil_to_tensor

from disa import distributed
from disa.cli import run
from disa.distributed import resolve_device
from disa.files import atomic_write
from disa.generation import generate_images, is_whole, save_image, tile
from disa.prompted import add_drawing_flags, describe, get_sampler, load, parse, parser


def get_parser() -> argparse.ArgumentParser:
    result = parser(__doc__.splitlines()[0])
    result.add_argument(
        "--data", default="path/to/xxx.json", help="JSON list of prompts, or of objects with a prompt; or JSON lines of either"
    )
    result.add_argument("--output", default="output", help="folder; started again with the same settings, a run goes on in it")
    result.add_argument(
        "--layout", default="flat", choices=("flat", "geneval"), help="a file a prompt, or the folders that GenEval's scorer reads"
    )
    add_drawing_flags(result)
    return result


def read_entries(path: Path) -> list[dict[str, Any]]:
    """The objects in a file of prompts, each with its `prompt`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it does not hold prompts.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no --data {path}")
    try:
        text = path.read_text(encoding="utf-8")
        found = [json.loads(line) for line in text.split("\n") if line.strip()] if path.suffix == ".jsonl" else json.loads(text)
    except ValueError as error:
        raise ValueError(f"--data {path} cannot be read as JSON ({error})") from error
    entries = [{"prompt": entry} if isinstance(entry, str) else entry for entry in found] if isinstance(found, list) else []
    if not entries:
        raise ValueError(f"--data {path} holds no list of prompts")
    for i, entry in enumerate(entries):
        if not (isinstance(entry, dict) and isinstance(entry.get("prompt"), str)):
            raise ValueError(f"entry {i} of --data {path} is {str(entry)[:60]}; a string is needed, or an object with a prompt")
    return entries


def sample_path(folder: Path, prompt: int, number: int) -> Path:
    """Where GenEval's scorer looks for one image of a prompt."""
    return folder / f"{prompt:05d}" / "samples" / f"{number:04d}.png"


def add_summary(folder: Path, prompt: int, entry: dict[str, Any], samples: int) -> None:
    """What GenEval wants in a prompt's folder besides its samples."""
    with atomic_write(folder / f"{prompt:05d}" / "metadata.jsonl") as beside:
        beside.write_text(json.dumps(entry) + "\n")
    grid = folder / f"{prompt:05d}" / "grid.png"
    if not is_whole(grid):
        images = [pil_to_tensor(Image.open(sample_path(folder, prompt, number))) for number in range(samples)]
        save_image(tile(torch.stack(images)), grid)


def main() -> None:
    args, config = parse(get_parser())
    entries, folder, samples = read_entries(Path(args.data)), Path(args.output), args.grid_size**2
    device = resolve_device(args.device)
    distributed.setup(device)
    model = load(args, config, device)
    sampler = get_sampler(args, model, [entry["prompt"] for entry in entries], device)
    settings = {**describe(args, config, model), "grid_size": args.grid_size}
    record = {**settings, "layout": args.layout, "prompts": hashlib.sha256(json.dumps(sampler.prompts).encode()).hexdigest()[:12]}

    def grids(prompts: Sequence[int]) -> torch.Tensor:
        """The images of whole prompts, side by side."""
        ids = [prompt * samples + number for prompt in prompts for number in range(samples)]
        images = torch.cat([sampler(ids[i : i + args.batch_size]) for i in range(0, len(ids), args.batch_size)])
        return torch.stack([tile(images) for images in images.split(samples)])

    if args.layout == "geneval":
        generate_images(
            sampler,
            folder,
            num_images=len(entries) * samples,
            batch_size=args.batch_size,
            settings=record,
            path=lambda folder, image: sample_path(folder, *divmod(image, samples)),
            metadata=lambda image: {"prompt": sampler.prompts[image // samples], "image": image, **settings},
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
            metadata=lambda prompt: {"prompt": sampler.prompts[prompt], "image": prompt * samples, **settings},
        )
    distributed.barrier()
    if distributed.is_main():
        print(f"{len(entries)} prompts are drawn in {folder}")
    distributed.shutdown()


if __name__ == "__main__":
    run(main)
