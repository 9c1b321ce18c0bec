"""`disa stats`: reference statistics of images."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from pathlib import Path

from ..data.fashion import fashion_mnist
from ..evaluation.extractors import missing
from ..evaluation.metrics import image_statistics
from ..runtime import distributed
from ..runtime.files import check_folder, image_files
from ..runtime.names import did_you_mean
from ..runtime.start import start
from .flags import add_device_flag, switch, value

FASHION = "fashion-mnist"


def add_flags(parser: ArgumentParser) -> None:
    parser.description = (
        "Mean, covariance and features of images, with the extractor and how it resizes named in the file. Runs alone "
        "or under torchrun (torchrun -m disa stats …)."
    )
    parser.add_argument("data", metavar="DATA", help=f"folder of images, or {FASHION} for its test images")
    value(parser, "--features", "inception", "inception, dinov2-vit-l-14, efficientnet-lite0 or fashion-classifier")
    text = "cut the central square of each image, with so many pixels per side"
    parser.add_argument("--image_size", type=int, metavar="SIDE", help=text)
    parser.add_argument("--out", type=Path, default=Path("stats.npz"), help="file to write")
    switch(parser, "--no_features", "store mean and covariance alone: no KID, precision and recall")
    value(parser, "--batch_size", 64, "images at a time on each rank")
    add_device_flag(parser)


def main(args: Namespace) -> None:
    """Write the statistics; every rank computes a share."""
    if args.out.suffix != ".npz":
        raise ValueError(f"--out is {args.out}; statistics are an .npz file")
    for name in ("batch_size", "image_size"):
        if (count := getattr(args, name)) is not None and count < 1:
            raise ValueError(f"--{name} is {count}; it must be at least 1")
    if args.image_size and args.data == FASHION:
        raise ValueError("--image_size is for a folder of images; Fashion-MNIST's are 32×32")
    try:
        images = fashion_mnist(False)[0] if args.data == FASHION else image_files(args.data)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{error}{did_you_mean(args.data, [FASHION])}") from error
    device = start(args.device)
    distributed.on_main(lambda: check_folder(args.out.parent, "--out"))  # better refused before the work
    if problem := distributed.on_main(lambda: missing(args.features)):  # may download, which one rank shall do
        raise FileNotFoundError(f"--features {args.features}: {problem}")
    found = image_statistics(
        images,
        args.features,
        keep_features=not args.no_features,
        batch_size=args.batch_size,
        device=device,
        crop=args.image_size,
    )
    if found is not None:
        found.save(args.out)
        features = f"{len(found.mu)} features of {found.extractor} (resized: {found.resize})"
        print(f"{args.out}: {found.count} images, {features}")
    distributed.shutdown()
