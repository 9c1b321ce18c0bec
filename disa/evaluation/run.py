"""One evaluation: generate images, measure them on the way, and record scores and costs."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..acceleration import compile_report
from ..data.transforms import to_uint8
from ..generation import images
from ..generation.generators import Generator
from ..runtime import distributed
from ..runtime.devices import describe_device
from ..runtime.files import atomic_write, sha256
from ..runtime.fingerprint import fingerprint
from ..runtime.stop import stop_requests
from ..runtime.tracking import track
from ..trace import StepTrace
from .accumulator import Accumulator, Partial
from .extractors import EXTRACTORS, Extractor, feature_extractor
from .metrics import Statistics, Sums, add, check_metrics, frechet_interval, metric_sums, read_images, scores
from .plan import MetricSpec, reference_statistics
from .results import Results, Scores, describe_machine

GRID_IMAGES, GRID_COLUMNS = 80, 10  # of samples.png


def versions() -> dict[str, str]:
    """Versions of what the numbers may depend on."""
    packages = ("disa", "torch", "torchvision", "torch-fidelity", "numpy")
    return {"python": platform.python_version(), **{name: metadata.version(name) for name in packages}}


def evaluate(
    generator: Generator,
    folder: Path,
    *,
    specs: Sequence[MetricSpec],
    settings: Mapping[str, object],
    num_images: int,
    batch_size: int,
    keep_images: bool = False,
    intervals: bool = False,
    exclusive: bool = False,
    log: Path | None = None,
    tracker: str = "tensorboard",
    save_seconds: float = 120.0,
    extractors: Mapping[str, Extractor] = EXTRACTORS,
) -> Results:
    """Generate images, measure them, and write `results.json`, `samples.png` and a log of scores.

    Every rank calls this. An evaluation that was killed goes on from what it last saved, on any number of ranks.
    An impossible count, or a folder of images that were made with other settings, raises a ValueError. Other results in
    `folder` are kept, as results-<digest>.json. A request to stop (SIGINT, SIGTERM) saves what is counted, and raises a
    KeyboardInterrupt that says how to go on.

    Args:
        specs: what to measure, see `plan_metrics`.
        settings: what an image depends on besides its id, the sampling and the weights.
        batch_size: images at a time per rank; at most its share of them.
        keep_images: write the images to `folder`/images; those that are there are not generated again.
        intervals: give each Fréchet distance a 95 % interval, which takes every image's features in memory and on disk.
        exclusive: results of other settings in `folder` raise a ValueError.
        log, tracker: folder of the log of scores, and one of `runtime.tracking.TRACKERS` that writes it.
        save_seconds: how often each rank saves its sums.
    """
    check_evaluation(specs, num_images, batch_size, intervals)
    record, kept = folder / "results.json", folder / "images" if keep_images else None
    weights = {"weights": fingerprint(generator.model), "tokenizer": fingerprint(generator.vae)}
    settings, measures = {**settings, **generator.to_dict(), **weights}, [spec.to_dict() for spec in specs]
    asked = {"settings": settings, "num_images": num_images, "measures": measures, "intervals": intervals}
    asked = json.loads(json.dumps(asked))  # as it is read
    # What is counted does not depend on what it will be compared with.
    counted = {**asked, "measures": [{**measure, "reference": None, "digest": None} for measure in measures]}
    accumulator = Accumulator(folder, counted, num_images)
    batch_size = min(batch_size, images.share(num_images))
    work = _Work(generator, accumulator, specs, batch_size, intervals, kept)

    def read() -> Results | None:
        done = Results.read(record)
        if exclusive and done is not None:
            refuse_others(done, folder, settings)
        if done is None or any(getattr(done, name) != value for name, value in asked.items()):
            return None
        accumulator.remove()  # of a run that was killed at its very end
        return None if kept and images.missing_ids(kept, num_images) else done

    def finish() -> Results:
        results = work.results(asked, references)
        save_grid([work.path(image_id) for image_id in range(min(GRID_IMAGES, num_images))], folder / "samples.png")
        if log is not None:
            _log_scores(log, tracker, results)
        if record.is_file() and Results.read(record) != results:  # of other images, or otherwise measured
            record.rename(record.with_name(f"results-{sha256(record)[:6]}.json"))
        results.write(record)
        accumulator.remove()
        return results

    if done := distributed.on_main(read):
        return done
    if kept:
        images.claim_folder(kept, settings)
    references = [reference_statistics(spec, batch_size, generator.device) for spec in specs]
    work.count(extractors, save_seconds)
    if report := compile_report():
        distributed.print_main(report)
    return distributed.on_main(finish)


def refuse_others(done: Results, folder: Path, settings: Mapping[str, object]) -> None:
    """Refuse, with a ValueError, a folder that holds the results `done` of images with other settings."""
    found, wanted = done.settings, json.loads(json.dumps(settings))
    if names := [name for name in {**found, **wanted} if found.get(name) != wanted.get(name)]:
        differences = "; ".join(f"{name}: {found.get(name)!r} there, {wanted.get(name)!r} now" for name in names)
        raise ValueError(f"{folder} holds results of other settings ({differences}); give another folder")


def check_evaluation(specs: Sequence[MetricSpec], num_images: int, batch_size: int, intervals: bool) -> None:
    """Refuse counts that are impossible, or too small for the metrics, with a ValueError."""
    images.check_counts(num_images, batch_size)
    for spec in specs:
        check_metrics(spec.metrics, num_images)
        if intervals and "fid" in spec.metrics and num_images < 4:
            raise ValueError(f"intervals need at least 4 images; there are {num_images}")


class _Stopped(Exception):
    """A request to stop ended a block."""


@dataclass(frozen=True)
class _Work:
    """The work of one evaluation; `kept` is the folder of images to keep."""

    generator: Generator
    accumulator: Accumulator
    specs: Sequence[MetricSpec]
    batch_size: int
    intervals: bool
    kept: Path | None

    def path(self, image_id: int) -> Path:
        return images.image_path(self.kept or self.accumulator.folder, image_id)

    def lacks(self, image_id: int) -> bool:
        """Whether the file of an image is wanted, to be kept or for the grid of samples, and not there."""
        return (self.kept is not None or image_id < GRID_IMAGES) and not images.is_whole(self.path(image_id))

    def count(self, extractors: Mapping[str, Extractor], save_seconds: float) -> None:
        """Generate what was not counted, and count it; every rank calls this and does its share."""
        build = partial(feature_extractor, device=self.generator.device, extractors=extractors)
        nets = distributed.on_all(lambda: [build(spec.extractor) for spec in self.specs])
        while missing := distributed.on_main(self.missing):
            distributed.on_all(partial(self.count_share, *missing, nets, save_seconds))

    def missing(self) -> tuple[list[list[int]], np.ndarray] | None:
        """The blocks with ids that were not counted or lack their file, and which ids were counted."""
        counted, _ = self.accumulator.load()
        wanted = {image_id for image_id in range(len(counted)) if not counted[image_id] or self.lacks(image_id)}
        todo = [ids for ids in images.blocks(range(len(counted)), self.batch_size) if not wanted.isdisjoint(ids)]
        return (todo, counted) if todo else None

    def count_share(
        self, todo: Sequence[Sequence[int]], counted: np.ndarray, nets: Sequence[nn.Module], save_seconds: float
    ) -> None:
        """Count the blocks that fall to this rank; on a request to stop save what is counted, and raise it."""
        clock, part, saved, lap, warm = self.generator.clock, Partial(), time.monotonic(), 0.0, False
        with stop_requests() as stop:
            watch = partial(self.watch, stop)
            with contextlib.suppress(_Stopped), images.ImageWriter() as writer:
                for ids in images.claim_ids(todo, len(counted), "evaluating", watch):
                    clock.seconds.clear()
                    pixels, generated = self.pixels(ids)
                    if lacking := [row for row, image_id in enumerate(ids) if self.lacks(image_id)]:
                        folder = self.kept or self.accumulator.folder
                        writer.save(folder, [ids[row] for row in lacking], pixels[lacking].cpu())
                    if new := [row for row, image_id in enumerate(ids) if not counted[image_id]]:
                        with clock("metrics"):
                            self.measure(part, [ids[row] for row in new], pixels[new], nets)
                    if warm and generated:
                        seconds = {**clock.seconds, "all": time.perf_counter() - lap, "images": len(ids)}
                        add(part.sums, {self.timed + name: torch.tensor(seconds[name]).double() for name in seconds})
                    if retried := self.generator.retried:
                        add(part.sums, {f"retried/{name}": torch.tensor(float(retried[name])) for name in retried})
                        retried.clear()
                    lap, warm = time.perf_counter(), warm or generated  # the first generated block warms up
                    if stop:
                        break
                    if time.monotonic() - saved > save_seconds:
                        writer.wait()
                        self.accumulator.save(part)
                        part, saved = Partial(), time.monotonic()
            self.accumulator.save(part)
            self.generator.on_step = None
        if stop:
            done = f"stopped; {self.accumulator.load()[0].sum()} of {len(counted)} images are counted"
            raise KeyboardInterrupt(f"{done}; start the same command again to go on from {self.accumulator.path}")

    def watch(self, stop: Sequence[int], advance: Callable[[float], object]) -> None:
        """Move the bar after each AR step of the block that comes, and end it there on a request to stop."""

        def on_step(trace: StepTrace) -> None:
            advance((trace.step + 1) / ar_steps)
            if stop and trace.step + 1 < ar_steps:
                raise _Stopped

        ar_steps = len(self.generator.nfe_per_step)
        self.generator.on_step = on_step

    def pixels(self, ids: Sequence[int]) -> tuple[Tensor, bool]:
        """Images uint8 [B, 1 or 3, H, W], and whether they were generated; they are read if all of them are kept."""
        if self.kept is not None and not any(map(self.lacks, ids)):
            return read_images([self.path(image_id) for image_id in ids]).to(self.generator.device), False
        return to_uint8(self.generator(ids)), True

    def measure(self, part: Partial, ids: Sequence[int], pixels: Tensor, nets: Sequence[nn.Module]) -> None:
        """Add images uint8 [B, 1 or 3, H, W] to `part`: the sums that metrics follow from, and features to be kept."""
        part.ids += ids
        labels = self.generator.labels(ids)
        for spec, net in zip(self.specs, nets, strict=True):
            features, logits = (output.float() for output in net(pixels.expand(-1, 3, -1, -1)))
            sums = metric_sums(features, logits, spec.metrics, ids, self.accumulator.num_images, labels)
            add(part.sums, {f"{spec.extractor}/{name}": value for name, value in sums.items()})
            if spec.keeps_features(self.intervals):
                part.features.setdefault(spec.extractor, []).append(features)

    def score(self, sums: Sums, spec: MetricSpec, reference: Statistics | None) -> Scores:
        """Compute the scores in one space from the sums over all images."""
        own, count = _starting(sums, f"{spec.extractor}/"), self.accumulator.num_images
        features = self.accumulator.features(spec.extractor) if spec.keeps_features(self.intervals) else None
        found = scores(own, spec.metrics, spec.extractor, count, reference=reference, features=features)
        if self.intervals and reference is not None and features is not None and found.fid is not None:
            # Minutes on a CPU, for many images with many features; Apple's GPUs have no float64.
            there = features.to(self.generator.device) if self.generator.device.type == "cuda" else features
            found = replace(found, fid_interval=frechet_interval(there, reference, found.fid))
        return replace(found, reference=spec.reference_name)

    @property
    def timed(self) -> str:
        """Prefix of the sums of seconds on the present machine."""
        device, ranks = describe_device(self.generator.device), distributed.world_size()
        return f"seconds/{describe_machine(device, ranks, self.batch_size)}/"

    def results(self, asked: Mapping[str, Any], references: Sequence[Statistics | None]) -> Results:  # Any: from JSON
        """Compute scores, and costs from the sums of all ranks' seconds on the present machine.

        Writing and waiting is "other"; an image costs what its generation and decoding take.
        """
        _, sums = self.accumulator.load()
        with _every_core():
            metrics = tuple(map(partial(self.score, sums), self.specs, references))
        seconds = {name: value.item() for name, value in _starting(sums, self.timed).items()}
        parts = {part: seconds.get(part, 0.0) for part in ("generation", "decoding", "metrics")}
        sampling, timed = parts["generation"] + parts["decoding"], seconds.get("images", 0.0)
        rate = distributed.world_size() * timed / sampling if sampling else None
        parts["other"] = seconds.get("all", 0.0) - sum(parts.values())
        return Results(
            **asked,
            nfe=self.generator.nfe,
            images_per_second=rate,
            seconds_per_image=1 / rate if rate else None,
            timed_images=int(timed),
            retried={name: int(value.item()) for name, value in _starting(sums, "retried/").items()},
            fractions={part: value / seconds["all"] for part, value in parts.items()} if timed else {},
            metrics=metrics,
            device=describe_device(self.generator.device),
            batch_size=self.batch_size,
            ranks=distributed.world_size(),
            versions=versions(),
        )


def _starting(sums: Sums, prefix: str) -> Sums:
    """The sums whose names start with `prefix`, without it."""
    return {name.removeprefix(prefix): value for name, value in sums.items() if name.startswith(prefix)}


@contextlib.contextmanager
def _every_core() -> Iterator[None]:
    """Compute on all cores while other ranks wait: on the one that torchrun gives, precision may take half an hour."""
    threads = torch.get_num_threads()
    torch.set_num_threads(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def save_grid(paths: Sequence[Path], path: Path, columns: int = GRID_COLUMNS) -> None:
    """Write image files of one size as a grid, small ones enlarged."""
    pixels = read_images(paths)
    with atomic_write(path) as beside:
        images.image_grid(pixels, columns, scale=max(1, 96 // pixels.shape[-1])).save(beside)


def _log_scores(log: Path, tracker: str, results: Results) -> None:
    numbers = {f"{one.extractor}/{name}": value for one in results.metrics for name, value in one.numbers().items()}
    if results.seconds_per_image:
        numbers["seconds_per_image"] = results.seconds_per_image
    with track(tracker, log, config=results.settings) as write:
        write(numbers, 0)
