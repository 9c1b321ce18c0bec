"""One evaluation: images for a set of settings, their measures, and the record of both."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import platform
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from . import distributed
from .checkpoints import sha256
from .features import WITHOUT_LOGITS, feature_extractor, missing
from .files import atomic_write, image_files, write_json
from .generation import ImageWriter, blocks, check_counts, claim_folder, hand_out, image_path, is_whole, missing_ids, to_uint8
from .metrics import (
    FROM_FEATURES,
    METRICS,
    Statistics,
    check_metrics,
    extract_features,
    frechet_interval,
    metric_sums,
    read_images,
    scores,
)
from .progress import Progress, Tally, add
from .sampling import Sampler

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
    return f"{device.type} ({platform.machine()}, {torch.get_num_threads()} threads a rank)"


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
    check_counts(num_images, batch_size)
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
    for space in spaces:
        check_metrics(space.metrics, num_images)
    if intervals and num_images < 4:
        raise ValueError(f"intervals need at least 4 images; there are {num_images}")
    asked = json.loads(json.dumps({"settings": settings, "num_images": num_images, "measures": measures, "intervals": intervals}))
    done = distributed.broadcast(_read_record(record, asked) if distributed.is_main() else None)
    if keep_images and distributed.broadcast(bool(missing_ids(images, num_images)) if distributed.is_main() else None):
        done = None  # measured before, but the images are wanted and gone
    if done is not None:
        return done
    if keep_images:
        claim_folder(images, settings)
    progress = Progress(folder, asked, num_images)
    kept = images if keep_images else None
    count_images(sampler, progress, spaces, batch_size=batch_size, intervals=intervals, images=kept)
    references = [reference_statistics(space, batch_size, device) for space in spaces]
    results = distributed.on_main(lambda: {**asked, **_results(sampler, progress, spaces, references, intervals)})
    if distributed.is_main():
        samples = [image_path(kept or progress.folder, image_id) for image_id in range(min(GRID_IMAGES, num_images))]
        save_grid(samples, folder / "samples.png")
        if log is not None:
            _log_scores(log, results)
        write_json(record, results)
        progress.remove()
    distributed.barrier()
    return results


def count_images(
    sampler: Sampler, progress: Progress, spaces: Sequence[Space], *, batch_size: int, intervals: bool, images: Path | None
) -> None:
    """Generate what was not counted, and count it; every rank calls this and does its share.

    Args:
        images: folder to write images to, and to read them from where they are there; None if they are not kept.
    """
    counter = _Counter(sampler, spaces, progress.num_images, intervals)
    while work := distributed.on_main(lambda: _missing_work(progress, batch_size, images)):
        todo, counted = work
        tally, saved, lap = Tally(), time.monotonic(), None
        with ImageWriter() as writer:
            for ids in hand_out(todo, progress.num_images, "evaluating"):
                sampler.clock.seconds.clear()
                pixels, generated = _images(sampler, ids, images)
                if generated and (images or ids[0] < GRID_IMAGES):
                    seen = len(ids) if images else GRID_IMAGES - ids[0]
                    writer.save(images or progress.folder, ids[:seen], pixels[:seen].cpu())
                new = [row for row, image_id in enumerate(ids) if not counted[image_id]]
                if new:
                    with sampler.clock("metrics"):
                        counter.add(tally, [ids[row] for row in new], pixels[new])
                if lap is not None and generated:  # the first block warms things up
                    seconds = {**sampler.clock.seconds, "all": time.perf_counter() - lap, "images": len(ids)}
                    add(tally.sums, {f"seconds/{part}": torch.tensor(float(value)).double() for part, value in seconds.items()})
                lap = time.perf_counter()
                if time.monotonic() - saved > SAVE_SECONDS:
                    writer.wait()
                    progress.save(tally)
                    tally, saved = Tally(), time.monotonic()
        progress.save(tally)
        distributed.barrier()


def _missing_work(progress: Progress, batch_size: int, images: Path | None) -> tuple[list[list[int]], np.ndarray] | None:
    """The ids that were not counted, or whose image is wanted and not there, in blocks, and which ids were counted."""
    counted, _ = progress.load()
    wanted = set(np.flatnonzero(~counted).tolist())
    if images is not None:
        wanted.update(missing_ids(images, progress.num_images))
    return (blocks(sorted(wanted), batch_size), counted) if wanted else None


def _images(sampler: Sampler, ids: Sequence[int], folder: Path | None) -> tuple[Tensor, bool]:
    """Images as uint8 [B, 1 or 3, H, W], and whether they had to be generated."""
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


def _results(
    sampler: Sampler, progress: Progress, spaces: Sequence[Space], references: Sequence[Statistics | None], intervals: bool
) -> dict[str, Any]:
    """What came out, when every image is counted."""
    _, sums = progress.load()
    metrics = []
    for space, reference in zip(spaces, references, strict=True):
        own = {name.partition("/")[2]: value for name, value in sums.items() if name.startswith(f"{space.extractor}/")}
        features = progress.features(space.extractor) if space.keeps_features(intervals) else None
        found = scores(own, space.metrics, space.extractor, progress.num_images, reference=reference, features=features)
        if intervals and reference is not None and features is not None and "fid" in found:
            found["fid_interval"] = frechet_interval(features, reference)
        metrics.append({**found, "reference": space.reference_name})
    return {
        "head_evaluations": sampler.head_evaluations,
        **_speed({name.partition("/")[2]: value.item() for name, value in sums.items() if name.startswith("seconds/")}),
        "metrics": metrics,
        "device": describe_device(sampler.device),
        "ranks": distributed.world_size(),
        "versions": versions(),
    }


def _speed(seconds: Mapping[str, float]) -> dict[str, Any]:
    """How fast it went, from seconds of all ranks; the first block of each is not in them.

    Writing and waiting is "other"; an image costs what its generation and decoding take.
    """
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


def _read_record(record: Path, asked: Mapping[str, Any]) -> dict[str, Any] | None:
    """The results in `record`, if they are of what is asked."""
    if not record.is_file():
        return None
    try:
        results = json.loads(record.read_text())
    except ValueError:  # not ours, or damaged: measured again and written anew
        return None
    return results if isinstance(results, dict) and all(results.get(key) == value for key, value in asked.items()) else None


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


# ---------------------------------------------------------------------------------------------------- what is measured

IMAGENET_STATISTICS = ("fid_stats/adm_in256_stats.npz", "pretrained_models/fid_stats/adm_in256_stats.npz")
BUNDLED_STATISTICS = Path(__file__).parent / "bundled"


@dataclasses.dataclass(frozen=True)
class Space:
    """A feature space to measure in.

    Attributes:
        extractor: its name.
        metrics: of `disa.metrics.METRICS`.
        reference: statistics file or folder of images that "fid", "kid" and "prc" compare with.
    """

    extractor: str
    metrics: tuple[str, ...]
    reference: str | None

    def keeps_features(self, intervals: bool) -> bool:
        """Whether every image's features are needed at the end, not their sums alone."""
        return any(name in self.metrics for name in FROM_FEATURES) or intervals and "fid" in self.metrics

    @property
    def reference_name(self) -> str | None:
        """The reference as results name it: the place of a bundled file says nothing."""
        return Path(self.reference).name if self.reference else None

    def reference_digest(self) -> str | None:
        """Twelve hexadecimal digits that tell two references apart: of a file's bytes, or of a folder's file names and sizes."""
        if self.reference is None:
            return None
        if Path(self.reference).is_file():
            return sha256(self.reference)[:12]
        listing = [(str(path.relative_to(self.reference)), path.stat().st_size) for path in image_files(self.reference)]
        return hashlib.sha256(repr(listing).encode()).hexdigest()[:12]


def choose_spaces(metrics: str, features: str, reference: str, *, bundled: bool) -> tuple[list[Space], list[str]]:
    """What to measure, from the flags of these names ("auto", or names separated by commas).

    What was asked for by name must be possible here; "auto" takes what is.

    Args:
        bundled: whether the model is one of Fashion-MNIST that comes with the package.

    Returns:
        The spaces, and sentences on what "auto" left out.

    Raises:
        ValueError: a name is unknown, or a metric lacks what it needs.
        FileNotFoundError: an extractor or reference that was asked for is not on this machine.
    """
    if metrics == "none":
        return [], []
    asked = None if metrics == "auto" else tuple(dict.fromkeys(metrics.split(",")))
    for name in asked or ():
        if name not in METRICS:
            raise ValueError(f"--metrics has {name!r}; allowed are {', '.join(METRICS)}, auto and none")
    if reference != "auto" and not Path(reference).exists():
        raise FileNotFoundError(f"there is no --reference {reference}; a statistics file or a folder of images is needed")
    automatic = ("efficientnet-lite0", "fashion-classifier") if bundled else ("inception",)
    extractors = automatic if features == "auto" else tuple(dict.fromkeys(features.split(",")))
    spaces, left_out = [], []
    for extractor in extractors:
        place = _automatic_reference(extractor, bundled) if reference == "auto" else reference
        absent, misfit = missing(extractor), _misfit(place, extractor)
        if features == "auto" and (misfit or absent and asked is None):
            left_out.append(f"nothing is measured in {extractor}: {misfit or absent}")
            continue
        if absent:
            raise FileNotFoundError(f"--features {extractor}: {absent}")
        if misfit:
            raise ValueError(f"--reference {misfit}")
        classifies, has_features = extractor == "fashion-classifier", _has_features(place)
        possible = {"fid": place is not None, "isc": not classifies and extractor not in WITHOUT_LOGITS, "accuracy": classifies}
        possible |= dict.fromkeys(FROM_FEATURES, has_features)
        if asked is None and place is None:
            left_out.append(f"no fid in {extractor}: there is no reference; give --reference, or `disa checkpoints fetch adm_in256_stats`")
        if asked is None and reference != "auto" and not has_features:
            left_out.append(f"no precision and recall in {extractor}: {place} holds no features; give images")
        for name in asked or ():
            # Each of several spaces has the metrics that it can have; what no space can have is refused below.
            if name in ("fid", *FROM_FEATURES) and not possible[name]:
                what = "a reference" if name == "fid" else "a reference with features, such as images"
                raise ValueError(f"--metrics {name} in {extractor} needs {what}; give --reference")
        chosen = tuple(name for name in asked or METRICS if possible[name])
        if chosen:
            spaces.append(Space(extractor, chosen, place))
    impossible = [name for name in asked or () if not any(name in space.metrics for space in spaces)]
    if impossible:
        raise ValueError(f"--metrics {', '.join(impossible)} cannot be measured in {', '.join(extractors)}; choose other --features")
    return spaces, left_out


def _misfit(reference: str | None, extractor: str) -> str | None:
    """Why `reference` cannot be compared with features of `extractor`, in a sentence."""
    if reference is None or Path(reference).is_dir():
        return None
    of = Statistics.load(reference).extractor
    return None if of in (None, extractor) else f"{reference} holds statistics of {of}, not of {extractor}"


def _has_features(reference: str | None) -> bool:
    """Whether `reference` has what precision and recall need: images, or their features."""
    if reference is None:
        return False
    return bool(image_files(reference)) if Path(reference).is_dir() else Statistics.load(reference).features is not None


def _automatic_reference(extractor: str, bundled: bool) -> str | None:
    candidates = (
        [BUNDLED_STATISTICS / f"fashion_test_{extractor}.npz"]
        if bundled
        else [Path(place) for place in IMAGENET_STATISTICS if extractor == "inception"]
    )
    return next((str(place) for place in candidates if place.is_file()), None)


def reference_statistics(space: Space, batch_size: int, device: torch.device) -> Statistics | None:
    """What a space compares with; every rank calls this, for images are shared out."""
    if space.reference is None:
        return None
    if Path(space.reference).is_dir():
        files = image_files(space.reference)
        return Statistics.of(extract_features(files, space.extractor, batch_size=batch_size, device=device))
    return Statistics.load(space.reference)
