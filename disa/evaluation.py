"""One evaluation: images for a set of settings, their measures, and the record of both."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import platform
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from . import distributed
from .checkpoints import sha256
from .files import atomic_write, image_files, write_json
from .generation import generate_images, image_path, missing_ids
from .metrics import METRICS, Statistics, check_metrics, extract_features, measure
from .sampling import LabelSampler

GRID_IMAGES = 80


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
    sampler: LabelSampler,
    folder: Path,
    *,
    spaces: Sequence[Space],
    settings: Mapping[str, Any],
    num_images: int,
    batch_size: int,
    keep_images: bool,
    log: Path | None = None,
) -> dict[str, Any]:
    """Generate what is missing, measure it, and write `results.json`, `samples.png` and TensorBoard scalars; every rank calls this.

    Args:
        sampler: ids -> images.
        folder: the place of this evaluation; the images go to its folder `images`.
        spaces: what to measure, see `choose_spaces`.
        settings: what an image depends on besides its id, the sampling and the weights.
        keep_images: leave the images after they were measured.
        log: folder of the TensorBoard log.

    Returns:
        What `results.json` holds.

    Raises:
        ValueError: the folder was made with other settings.
    """
    record, images, device = folder / "results.json", folder / "images", sampler.device
    settings = {
        **settings,
        **sampler.sampling.describe(),
        "weights": fingerprint(sampler.model),
        "tokenizer": fingerprint(sampler.tokenizer),
    }
    measures = [
        {"extractor": space.extractor, "metrics": space.metrics, "reference": space.reference_name, "digest": space.reference_digest()}
        for space in spaces
    ]
    for space in spaces:
        check_metrics(space.metrics, num_images)
    asked = json.loads(json.dumps({"settings": settings, "num_images": num_images, "measures": measures}))
    done = distributed.broadcast(_read_record(record, asked) if distributed.is_main() else None)
    if keep_images and distributed.broadcast(bool(missing_ids(images, num_images)) if distributed.is_main() else None):
        done = None  # measured before, but the images are wanted and gone
    if done is not None:
        return done
    timing = generate_images(sampler, images, num_images=num_images, batch_size=batch_size, settings=settings, device=device)
    timings = distributed.gather(timing)
    paths = [image_path(images, image_id) for image_id in range(num_images)]
    scores = measure_images(spaces, paths, sampler.labels(range(num_images)), batch_size=batch_size, device=device)
    rate = sum(rank.images / rank.seconds for rank in timings if rank.images)
    results = {
        **asked,
        "head_evaluations": sampler.head_evaluations,
        "images_per_second": rate or None,
        "seconds_per_image": 1 / rate if rate else None,
        "timed_images": sum(rank.images for rank in timings),
        "timing": [dataclasses.asdict(rank) for rank in timings],
        "metrics": scores,
        "device": describe_device(device),
        "ranks": distributed.world_size(),
        "versions": versions(),
    }
    if distributed.is_main():
        save_grid(paths[:GRID_IMAGES], folder / "samples.png")
        if log is not None:
            _log_scores(log, results)
        write_json(record, results)
        if not keep_images:
            # Settings go last: while an image is left, the folder still says how it was made.
            for path in [*sorted(images.glob("*.png")), images / "settings.json"]:
                path.unlink(missing_ok=True)
            with contextlib.suppress(OSError):  # somebody else's file lies there, too
                images.rmdir()
    distributed.barrier()
    return results


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
        reference: statistics file or folder of images that "fid" and "prc" compare with.
    """

    extractor: str
    metrics: tuple[str, ...]
    reference: str | None

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
    from .features import missing

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
        possible = {"fid": place is not None, "isc": not classifies, "prc": has_features, "accuracy": classifies}
        if asked is None and place is None:
            left_out.append(f"no fid in {extractor}: there is no reference; give --reference, or `disa checkpoints fetch adm_in256_stats`")
        if asked is None and reference != "auto" and not has_features:
            left_out.append(f"no precision and recall in {extractor}: {place} holds no features; give images")
        for name in asked or ():
            # Each of several spaces has the metrics that it can have; what no space can have is refused below.
            if name in ("fid", "prc") and not possible[name]:
                what = "a reference with features, such as images" if name == "prc" else "a reference"
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


def measure_images(
    spaces: Sequence[Space], paths: Sequence[Path], labels: Tensor, *, batch_size: int, device: torch.device
) -> list[dict[str, Any]]:
    """The scores of images in each space; every rank calls this, and extracts the features of its share."""
    results = []
    for space in spaces:
        reference = None
        if space.reference and Path(space.reference).is_dir():
            reference = Statistics.of(extract_features(image_files(space.reference), space.extractor, batch_size=batch_size, device=device))
        elif space.reference:
            reference = Statistics.load(space.reference)
        features = extract_features(paths, space.extractor, batch_size=batch_size, device=device)
        results.append({**measure(features, space.metrics, reference=reference, labels=labels), "reference": space.reference_name})
    return results
