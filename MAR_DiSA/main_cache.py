"""Compute KL-16 latents of a data set once, so that training need not: of every image and of its mirror image."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset
from torchvision.datasets import ImageFolder
from tqdm import tqdm

from disa import distributed
from disa.checkpoints import load_tokenizer
from disa.cli import run
from disa.distributed import resolve_device
from disa.files import atomic_write
from disa.flags import HelpFormatter, add_running_flags
from disa.training.data import class_folders, crop_to_tensor, to_signed


def get_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    parser.add_argument("--data_path", default="./data/imagenet", help="ImageNet: its train folder, if it has one, holds a folder a class")
    parser.add_argument("--cached_path", default="", help="where the latents go, a file an image in the same folders")
    parser.add_argument("--img_size", default=256, type=int, help="pixels a side")
    parser.add_argument("--vae_path", default="pretrained_models/vae/kl16.ckpt", help="KL-16 tokenizer")
    parser.add_argument("--vae_embed_dim", default=16, type=int, help="channels of a latent")
    parser.add_argument("--batch_size", default=128, type=int, help="images at a time on each rank")
    add_running_flags(parser, seed=0)
    return parser


class Uncached(Dataset):
    """The images whose latents are not there yet: (pixels uint8 [3, H, W], file to write)."""

    def __init__(self, todo: list[tuple[str, str]], image_size: int) -> None:
        self.todo, self.image_size = todo, image_size

    def __len__(self) -> int:
        return len(self.todo)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, str]:
        from PIL import Image

        source, target = self.todo[index]
        try:
            with Image.open(source) as image:
                return crop_to_tensor(image, self.image_size), target
        except OSError as error:
            raise ValueError(f"{source} cannot be read as an image ({error})") from error


def main() -> None:
    args = get_parser().parse_args()
    if not args.cached_path:
        raise ValueError("--cached_path is empty; say where the latents should go")
    device = resolve_device(args.device)
    distributed.setup(device)
    cache(args, device)
    distributed.shutdown()


@torch.no_grad()
def cache(args: argparse.Namespace, device: torch.device) -> None:
    """Write what is missing; every rank does its share."""
    tokenizer = load_tokenizer(args.vae_path, args.vae_embed_dim).to(device)
    root = class_folders(Path(args.data_path), "--data_path")
    files = [
        (source, str(Path(args.cached_path) / Path(source).relative_to(root).with_suffix(".npz")))
        for source, _ in ImageFolder(str(root)).samples
    ]
    sources: dict[str, str] = {}
    for source, target in files:
        if target in sources:
            raise ValueError(f"{sources[target]} and {source} would both be cached as {target}; rename one")
        sources[target] = source
    if distributed.is_main():
        for leftover in Path(args.cached_path).rglob(".*.part.npz"):  # of a run that was killed while writing
            leftover.unlink(missing_ok=True)
    todo = distributed.broadcast([pair for pair in files if not Path(pair[1]).is_file()])
    mine = Uncached(todo[distributed.rank() :: distributed.world_size()], args.img_size)
    loader = DataLoader(mine, batch_size=args.batch_size, num_workers=args.num_workers, pin_memory=args.pin_mem and device.type == "cuda")
    with tqdm(total=len(files), initial=len(files) - len(todo), unit="img", desc="caching", disable=not distributed.is_main()) as bar:
        for pixels, targets in loader:
            images = to_signed(pixels.to(device, non_blocking=True))
            both = [tokenizer.moments(view).cpu().numpy() for view in (images, images.flip(-1))]
            for target, moments, moments_flip in zip(targets, *both, strict=True):
                with atomic_write(target) as beside:
                    np.savez(beside, moments=moments, moments_flip=moments_flip)
            bar.update(min(len(targets) * distributed.world_size(), len(files) - bar.n))
    distributed.barrier()


if __name__ == "__main__":
    run(main)
