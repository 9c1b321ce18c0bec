"""Compute KL-16 latents of a data set once, so that training need not: of every image and of its mirror image."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from disa.commands.exit import run
from disa.commands.flags import HelpFormatter, Parser, add_running_flags, naming_flags, value
from disa.data.transforms import crop_to_tensor, to_signed
from disa.runtime import distributed
from disa.runtime.files import atomic_write, check_folder
from disa.runtime.start import announce, start
from disa.training.data import class_folders, read_images
from disa.weights.load import load_vae

VAE_STRIDE = 16  # pixels per latent of KL-16


def get_parser() -> argparse.ArgumentParser:
    parser = Parser(description=__doc__, formatter_class=HelpFormatter)
    value(parser, "--data_path", "./data/imagenet", "ImageNet: its train folder, if any, holds one folder per class")
    value(parser, "--cached_path", "", "where the latents go, one file per image in the same folders")
    value(parser, "--img_size", 256, "pixels per side")
    value(parser, "--vae_path", "pretrained_models/vae/kl16.ckpt", "KL-16's weights")
    value(parser, "--vae_embed_dim", 16, "channels of a latent")
    value(parser, "--batch_size", 128, "images at a time on each rank")
    add_running_flags(parser, seed=0)
    return parser


class Uncached(Dataset[tuple[Tensor, str]]):
    """Images whose latents are missing: (pixels uint8 [3, H, W], file to write)."""

    def __init__(self, todo: list[tuple[str, str]], image_size: int) -> None:
        self.todo, self.image_size = todo, image_size

    def __len__(self) -> int:
        return len(self.todo)

    def __getitem__(self, index: int) -> tuple[Tensor, str]:
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
    for name, least in (("img_size", VAE_STRIDE), ("batch_size", 1), ("num_workers", 0)):
        if getattr(args, name) < least or (name == "img_size" and args.img_size % VAE_STRIDE):
            needed = (
                f"images are {args.img_size}×{args.img_size}, and a multiple of {VAE_STRIDE} is needed"
                if name == "img_size"
                else f"it must be at least {least}"
            )
            raise ValueError(f"--{name} is {getattr(args, name)}; {needed}")
    with naming_flags(args):
        device = start(args.device)
    cache(args, device)
    distributed.shutdown()


@torch.no_grad()
def cache(args: argparse.Namespace, device: torch.device) -> None:
    """Write the files that are missing; every rank does its share."""
    root = class_folders(Path(args.data_path), "--data_path")
    distributed.on_main(lambda: check_folder(args.cached_path, "--cached_path"))
    files = [
        (source, str(Path(args.cached_path) / Path(source).relative_to(root).with_suffix(".npz")))
        for source, _ in distributed.on_main(lambda: read_images(Path(args.data_path)).samples)
    ]
    vae = distributed.on_all(lambda: load_vae(args.vae_path, args.vae_embed_dim)).to(device)
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
    loader = DataLoader(
        mine,
        batch_size=args.batch_size,
        num_workers=args.num_workers,
        pin_memory=args.pin_mem and device.type == "cuda",
    )
    announce(device)
    done, quiet = len(files) - len(todo), not distributed.is_main()
    with tqdm(total=len(files), initial=done, unit="img", desc="caching", disable=quiet) as bar:
        for pixels, targets in loader:
            images = to_signed(pixels.to(device, non_blocking=True))
            both = [vae.moments(view).cpu().numpy() for view in (images, images.flip(-1))]
            for target, moments, moments_flip in zip(targets, *both, strict=True):
                with atomic_write(target) as beside:
                    np.savez(beside, moments=moments, moments_flip=moments_flip)
            bar.update(min(len(targets) * distributed.world_size(), len(files) - bar.n))
    distributed.barrier()


if __name__ == "__main__":
    run(main)
