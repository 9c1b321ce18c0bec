"""One evaluation: images for a set of settings, their measures, and the record of both."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from . import distributed
from .features import feature_extractor
from .files import atomic_write, write_json
from .generation import ImageWriter, blocks, check_counts, claim_folder, hand_out, image_path, is_whole, missing_ids, to_uint8
from .metrics import Statistics, check_metrics, frechet_interval, metric_sums, read_images, scores
from .progress import Progress, Tally, add
from .sampling import Sampler
from .spaces import Space, reference_statistics

RECORDED = {"settings", "metrics", "seconds_per_image", "images_per_second", "device", "ranks", "batch_size", "versions"}  # among others
GRID_IMAGES = 80
SAVE_SECONDS = 120.0  # between two savings of a rank's sums: what a killed run does again


def fingerprint(model: nn.Module) -> str:
    """Twelve hexadecimal digits that tell two sets of weights apart: a hash over the beginning of every tensor."""
    digest = hashlib.sha256(model.extra_repr().encode())
    for name, tensor in model.state_dict().items():
        digest.update(f"{name} {tuple(tensor.shape)}".encode())
        digest.update(tensor.flatten()[:256].float().cpu().numpy().tobytes())
    return digest.hexdigest()[:12]


def versions() -> dict[str, str]:
    """Versions of what the numbers may depend on."""
    packages = ("torch", "torchvision", "torch-fidelity", "numpy")
    return {"disa": _own_version(), "python": platform.python_version(), **{name: metadata.version(name) for name in packages}}


def _own_version() -> str:
    from . import __version__

    return __version__


def describe_device(device: torch.device) -> str:
    """The device in words."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"{device.type} ({platform.machine()}, {threads} thread{'s' * (threads > 1)} a rank)"


def evaluate(
    sampler: Sampler,
    folder: Path,
    *,
    spaces: Sequence[Space],
    settings: Mapping[str, Any],
    num_images: int,
    batch_size: int,
    keep_images: bool = False,
    intervals: bool = False,
    log: Path | None = None,
) -> dict[str, Any]:
    """Generate images, measure them on the way, and write `results.json`, `samples.png` and TensorBoard scalars; every rank calls this.

    What was counted is saved in `folder` every few minutes; an evaluation that was killed goes on from there, on any number of ranks.

    Args:
        sampler: ids -> images.
        folder: the place of this evaluation.
        spaces: what to measure, see `choose_spaces`.
        settings: what an image depends on besides its id, the sampling and the weights.
        batch_size: images at a time on each rank.
        keep_images: write the images to the folder `images` in `folder`, too; those that are there are not generated again.
        intervals: give each Fréchet distance a 95 % interval, which takes every image's features in memory and on disk.
        log: folder of the TensorBoard log.

    Returns:
        What `results.json` holds.

    Raises:
        ValueError: a count is impossible, or the images in the folder were made with other settings.
    """
    check_evaluation(spaces, num_images, batch_size, intervals)
    record, images, device = folder / "results.json", folder / "images", sampler.device
    settings = {
        **settings,
        **sampler.describe(),
        "weights": fingerprint(sampler.model),
        "tokenizer": fingerprint(sampler.tokenizer),
    }
    measures = [
        {"extractor": space.extractor, "metrics": space.metrics, "reference": space.reference_name, "digest": space.reference_digest()}
        for space in spaces
    ]
    asked = json.loads(json.dumps({"settings": settings, "num_images": num_images, "measures": measures, "intervals": intervals}))
    # What is counted does not depend on what it will be compared with.
    counted = {**asked, "measures": [{**measure, "reference": None, "digest": None} for measure in measures]}
    progress = Progress(folder, counted, num_images)
    kept = images if keep_images else None

    def read() -> dict[str, Any] | None:
        done = read_results(record)
        if done is None or any(done.get(key) != value for key, value in asked.items()):
            return None
        progress.remove()  # of a run that was killed at its very end
        return None if kept and missing_ids(kept, num_images) else done  # measured before, but the images are wanted and gone

    def finish() -> dict[str, Any]:
        with _every_core():
            metrics = _scores(sampler, progress, spaces, references, intervals)
        results = {**asked, **_results(sampler, progress, metrics, batch_size)}
        samples = [image_path(kept or progress.folder, image_id) for image_id in range(min(GRID_IMAGES, num_images))]
        save_grid(samples, folder / "samples.png")
        if log is not None:
            _log_scores(log, results)
        write_json(record, results)
        progress.remove()
        return results

    if done := distributed.on_main(read):
        return done
    if kept:
        claim_folder(kept, settings)
    references = [reference_statistics(space, batch_size, device) for space in spaces]
    count_images(sampler, progress, spaces, batch_size=batch_size, intervals=intervals, images=kept)
    return distributed.on_main(finish)


def check_evaluation(spaces: Sequence[Space], num_images: int, batch_size: int, intervals: bool) -> None:
    """Whether so many images can be evaluated.

    Raises:
        ValueError: a count is impossible, or too small for what is to be measured.
    """
    check_counts(num_images, batch_size)
    for space in spaces:
        check_metrics(space.metrics, num_images)
        if intervals and "fid" in space.metrics and num_images < 4:
            raise ValueError(f"intervals need at least 4 images; there are {num_images}")


def count_images(
    sampler: Sampler, progress: Progress, spaces: Sequence[Space], *, batch_size: int, intervals: bool, images: Path | None
) -> None:
    """Generate what was not counted, and count it; every rank calls this and does its share.

    Args:
        images: folder to write images to, and to read them from where they are there; None if they are not kept.
    """
    counter = distributed.together(lambda: _Counter(sampler, spaces, progress.num_images, intervals))

    def count_share(todo: Sequence[Sequence[int]], counted: np.ndarray) -> None:
        tally, saved, lap, warm = Tally(), time.monotonic(), time.perf_counter(), False
        timed = f"seconds/{_where(sampler, batch_size)}"
        with ImageWriter() as writer:
            for ids in hand_out(todo, progress.num_images, "evaluating"):
                sampler.clock.seconds.clear()
                pixels, generated = _images(sampler, ids, images)
                if lacking := [row for row, image_id in enumerate(ids) if _lacks(image_id, images, progress)]:
                    writer.save(images or progress.folder, [ids[row] for row in lacking], pixels[lacking].cpu())
                new = [row for row, image_id in enumerate(ids) if not counted[image_id]]
                if new:
                    with sampler.clock("metrics"):
                        counter.add(tally, [ids[row] for row in new], pixels[new])
                if warm and generated:
                    seconds = {**sampler.clock.seconds, "all": time.perf_counter() - lap, "images": len(ids)}
                    add(tally.sums, {f"{timed}/{part}": torch.tensor(float(value)).double() for part, value in seconds.items()})
                lap, warm = time.perf_counter(), warm or generated  # the first block that is generated warms things up
                if time.monotonic() - saved > SAVE_SECONDS:
                    writer.wait()
                    progress.save(tally)
                    tally, saved = Tally(), time.monotonic()
        progress.save(tally)

    while work := distributed.on_main(lambda: _missing_work(progress, batch_size, images)):
        distributed.together(partial(count_share, *work))


def _missing_work(progress: Progress, batch_size: int, images: Path | None) -> tuple[list[list[int]], np.ndarray] | None:
    """The blocks with ids that were not counted, or whose image is wanted and not there, and which ids were counted."""
    counted, _ = progress.load()
    wanted = {image_id for image_id in range(progress.num_images) if not counted[image_id] or _lacks(image_id, images, progress)}
    todo = [ids for ids in blocks(range(progress.num_images), batch_size) if not wanted.isdisjoint(ids)]
    return (todo, counted) if todo else None


def _lacks(image_id: int, images: Path | None, progress: Progress) -> bool:
    """Whether the file of an image is wanted, in `images` or else for the grid of samples, and not there."""
    if images is None:
        return image_id < GRID_IMAGES and not is_whole(image_path(progress.folder, image_id))
    return not is_whole(image_path(images, image_id))


def _images(sampler: Sampler, ids: Sequence[int], folder: Path | None) -> tuple[Tensor, bool]:
    """Images as uint8 [B, 1 or 3, H, W], and whether they were generated: all of them, unless all of them are in `folder`."""
    paths = [image_path(folder, image_id) for image_id in ids] if folder else []
    if paths and all(map(is_whole, paths)):
        with ThreadPoolExecutor(4) as readers:
            return read_images(paths, readers).to(sampler.device), False
    return to_uint8(sampler(ids)), True


class _Counter:
    """Adds images to a tally: the sums that the metrics of each space follow from, and features where they are kept."""

    def __init__(self, sampler: Sampler, spaces: Sequence[Space], num_images: int, intervals: bool) -> None:
        self.sampler, self.num_images = sampler, num_images
        self.spaces = [(space, feature_extractor(space.extractor, sampler.device), space.keeps_features(intervals)) for space in spaces]

    def add(self, tally: Tally, ids: Sequence[int], pixels: Tensor) -> None:
        """Images uint8 [B, 1 or 3, H, W] of `ids`."""
        tally.ids += ids
        for space, net, keeps_features in self.spaces:
            features, logits = (output.float() for output in net(pixels.expand(-1, 3, -1, -1)))
            if self.sampler.device.type == "mps":  # has no float64
                features, logits = features.cpu(), logits.cpu()
            sums = metric_sums(features, logits, space.metrics, ids, self.num_images, self.sampler.labels(ids))
            add(tally.sums, {f"{space.extractor}/{name}": value for name, value in sums.items()})
            if keeps_features:
                tally.features.setdefault(space.extractor, []).append(features.cpu())


def _scores(
    sampler: Sampler, progress: Progress, spaces: Sequence[Space], references: Sequence[Statistics | None], intervals: bool
) -> list[dict[str, Any]]:
    """The scores in each space, when every image is counted."""
    _, sums = progress.load()
    metrics = []
    for space, reference in zip(spaces, references, strict=True):
        own = {name.partition("/")[2]: value for name, value in sums.items() if name.startswith(f"{space.extractor}/")}
        features = progress.features(space.extractor) if space.keeps_features(intervals) else None
        found = scores(own, space.metrics, space.extractor, progress.num_images, reference=reference, features=features)
        if intervals and reference is not None and features is not None and "fid" in found:
            # Minutes on a CPU, for many images with many features; Apple's GPUs have no float64.
            there = features.to(sampler.device) if sampler.device.type == "cuda" else features
            found["fid_interval"] = frechet_interval(there, reference, found["fid"])
        metrics.append({**found, "reference": space.reference_name})
    return metrics


def _results(sampler: Sampler, progress: Progress, metrics: Sequence[Mapping[str, Any]], batch_size: int) -> dict[str, Any]:
    """Scores and costs."""
    _, sums = progress.load()
    return {
        "head_evaluations": sampler.head_evaluations,
        **_speed(sums, f"seconds/{_where(sampler, batch_size)}/"),
        "metrics": metrics,
        "device": describe_device(sampler.device),
        "batch_size": batch_size,
        "ranks": distributed.world_size(),
        "versions": versions(),
    }


def describe_machine(device: str, ranks: int, batch_size: int) -> str:
    """What times depend on, in words, from how results have it: those of other machines do not count."""
    return f"{device}, {ranks} rank{'s' * (ranks > 1)}, batches of {batch_size}"


def _where(sampler: Sampler, batch_size: int) -> str:
    return describe_machine(describe_device(sampler.device), distributed.world_size(), batch_size)


def _speed(sums: Mapping[str, Tensor], timed: str) -> dict[str, Any]:
    """How fast it went on the present machine, from the sums of all ranks' seconds there; the first block of each is not in them.

    Writing and waiting is "other"; an image costs what its generation and decoding take.
    """
    seconds = {name.removeprefix(timed): value.item() for name, value in sums.items() if name.startswith(timed)}
    images, parts = seconds.get("images", 0.0), {part: seconds.get(part, 0.0) for part in ("generation", "decoding", "metrics")}
    sampling = parts["generation"] + parts["decoding"]
    rate = distributed.world_size() * images / sampling if sampling else None
    return {
        "images_per_second": rate,
        "seconds_per_image": 1 / rate if rate else None,
        "timed_images": int(images),
        "fractions": {part: value / seconds["all"] for part, value in {**parts, "other": seconds["all"] - sum(parts.values())}.items()}
        if images
        else {},
    }


@contextlib.contextmanager
def _every_core() -> Iterator[None]:
    """Compute on all cores while the other ranks wait: on one, which torchrun gives each, precision and recall may take half an hour."""
    threads = torch.get_num_threads()
    torch.set_num_threads(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def read_results(record: Path) -> dict[str, Any] | None:
    """What `evaluate` wrote to `record`, if it is there and whole."""
    try:
        results = json.loads(record.read_text())
    except (OSError, ValueError):  # not there, not ours, or damaged: measured again and written anew
        return None
    return results if isinstance(results, dict) and results.keys() >= RECORDED else None


def save_grid(paths: Sequence[Path], path: Path, columns: int = 10) -> None:
    """A picture of pictures."""
    from .report import image_grid

    tensors = [torch.from_numpy(np.array(Image.open(one).convert("RGB"))).permute(2, 0, 1) for one in paths]
    grid = image_grid(torch.stack(tensors), columns=columns, scale=max(1, 96 // tensors[0].shape[-1]))
    with atomic_write(path) as beside:
        grid.save(beside)


def _log_scores(log: Path, results: Mapping[str, Any]) -> None:
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(log)) as writer:
        for scores in results["metrics"]:
            for name, value in scores.items():
                if isinstance(value, float):
                    writer.add_scalar(f"{scores['extractor']}/{name}", value)
        if results["seconds_per_image"]:
            writer.add_scalar("seconds_per_image", results["seconds_per_image"])
