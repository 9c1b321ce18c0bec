"""`disa score`: FID, Inception score, KID, precision and recall of any images."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from ..evaluation.metrics import (
    Images,
    Statistics,
    Sums,
    add,
    check_metrics,
    feature_batches,
    find_images,
    gather_sums,
    metric_sums,
    scores,
)
from ..evaluation.plan import MetricSpec, plan_metrics, reference_statistics
from ..evaluation.results import Scores
from ..evaluation.run import versions
from ..runtime import distributed
from ..runtime.distributed import print_main
from ..runtime.files import check_folder, write_json
from ..runtime.start import start
from ..tables.report import Column, Columns, decimals, table
from .flags import add_device_flag, add_metrics_flags, value
from .stats import FASHION

COLUMNS: Columns[Scores] = (
    Column("features", lambda row: row.extractor),
    Column("Fréchet distance", lambda row: row.fid, decimals(3)),
    Column("IS", lambda row: row.inception_score_mean, decimals(2)),
    Column("KID", lambda row: row.kid_mean, decimals(5)),
    Column("precision", lambda row: row.precision, decimals(4)),
    Column("recall", lambda row: row.recall, decimals(4)),
)


def add_flags(parser: ArgumentParser) -> None:
    parser.description = (
        "Measure images of any origin as `disa evaluate` measures those of a model. --reference may also be "
        f"{FASHION}, for its test images. Runs alone or under torchrun (torchrun -m disa score …)."
    )
    text = "folder of images, or an .npz file as ADM's scripts write it (arr_0, uint8 [N, H, W, 3])"
    parser.add_argument("images", metavar="IMAGES", help=text)
    add_metrics_flags(parser)
    value(parser, "--batch_size", 64, "images at a time on each rank")
    parser.add_argument("--out", type=Path, metavar="FILE", help="JSON file of everything that was measured")
    add_device_flag(parser)


def main(args: Namespace) -> None:
    """Print the scores; every rank computes a share."""
    check(args)
    device = start(args.device)
    images = distributed.on_all(lambda: find_images(args.images))
    if images is None:
        raise ValueError(f"{args.images} is no folder, and no .npz file with images (arr_0)")
    if args.out is not None:
        distributed.on_main(lambda: check_folder(args.out.parent, "--out"))
    specs, left_out = distributed.on_main(lambda: plan(args, len(images)))
    for sentence in left_out:
        print_main(f"note: {sentence}")
    found = [measure(images, spec, args.batch_size, device) for spec in specs]
    if distributed.is_main():
        print(f"\n{len(images):,} images of {args.images}\n\n{table(found, COLUMNS)}")
        if args.out is not None:
            write_json(args.out, record(args.images, specs, found))
            print(f"\neverything is in {args.out}")
    distributed.shutdown()


def check(args: Namespace) -> None:
    """Refuse impossible flags with a ValueError."""
    if args.batch_size < 1:
        raise ValueError(f"batch_size is {args.batch_size}; it must be at least 1")
    if args.out is not None:
        if args.out.suffix != ".json":
            raise ValueError(f"--out is {args.out}; a name that ends in .json is needed")
        if args.out.exists():
            raise ValueError(f"--out would overwrite {args.out}; give another name, or remove it")
    if "accuracy" in args.metrics.split(","):
        raise ValueError("--metrics has 'accuracy', which needs the labels that were asked for; these are not known")


def plan(args: Namespace, count: int) -> tuple[list[MetricSpec], list[str]]:
    """Choose what to measure of `count` images, and say what is left out.

    Raises:
        ValueError, FileNotFoundError: as `plan_metrics`; or nothing can be measured.
    """
    features, reference, fashion = args.features, args.reference, args.reference == FASHION
    if features == "auto" and Path(reference).suffix == ".npz" and find_images(reference) is None:
        features = Statistics.load(reference).extractor or features
    specs, left_out = plan_metrics(args.metrics, features, "auto" if fashion else reference, bundled=fashion)
    specs = [replace(spec, metrics=tuple(one for one in spec.metrics if one != "accuracy")) for spec in specs]
    if not any(spec.metrics for spec in specs):
        raise ValueError("; ".join(left_out) or "--metrics none measures nothing")
    for spec in specs:
        check_metrics(spec.metrics, count)
    return specs, left_out


def measure(images: Images, spec: MetricSpec, batch_size: int, device: torch.device) -> Scores:
    """Compute the scores in one space, on rank 0; elsewhere those of nothing. Every rank calls this."""
    reference = reference_statistics(spec, batch_size, device)
    sums, kept, count = Sums(), list[Tensor](), len(images)

    def extract() -> None:
        first = count * distributed.rank() // distributed.world_size()
        for features, logits in feature_batches(images, spec.extractor, batch_size, device):
            ids = range(first, first + len(features))
            add(sums, metric_sums(features, logits, spec.metrics, ids, count, None))
            if spec.keeps_features(intervals=False):
                kept.append(features.cpu())
            first = ids.stop

    distributed.on_all(extract)
    total, rows = gather_sums(sums, kept)
    if not distributed.is_main():
        return Scores(spec.extractor, 0)
    features = torch.cat(rows) if rows else None
    found = scores(total, spec.metrics, spec.extractor, count, reference=reference, features=features)
    return replace(found, reference=spec.reference_name)


def record(images: str, specs: Sequence[MetricSpec], found: Sequence[Scores]) -> dict[str, object]:
    """Return everything that was measured, for a file."""
    return {
        "images": images,
        "num_images": found[0].images,
        "measures": [spec.to_dict() for spec in specs],
        "metrics": [one.to_dict() for one in found],
        "versions": versions(),
    }
