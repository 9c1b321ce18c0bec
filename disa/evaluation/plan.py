"""Plan of an evaluation: the feature spaces, the metrics of each, and what they compare with."""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from ..runtime import distributed
from ..runtime.files import BUNDLED, image_files, sha256
from ..runtime.shared import places
from .extractors import EXTRACTORS, Extractor, missing
from .metrics import FROM_FEATURES, METRICS, Images, Statistics, find_images, image_statistics

IMAGENET_STATISTICS = ("fid_stats/adm_in256_stats.npz", "pretrained_models/fid_stats/adm_in256_stats.npz")


@dataclass(frozen=True)
class MetricSpec:
    """What to measure in the feature space of an extractor."""

    extractor: str
    metrics: tuple[str, ...]  # of `METRICS`
    reference: str | None  # statistics file, folder or .npz of images that "fid", "kid" and "prc" compare with

    def keeps_features(self, intervals: bool) -> bool:
        """Whether every image's features are needed at the end, not their sums alone."""
        return any(name in self.metrics for name in FROM_FEATURES) or (intervals and "fid" in self.metrics)

    @property
    def reference_name(self) -> str | None:
        """The reference as results name it: the folder of a bundled file says nothing."""
        return Path(self.reference).name if self.reference else None

    def reference_digest(self) -> str | None:
        """Hash a file's bytes, or the file names and sizes of a folder: twelve hexadecimal digits."""
        if self.reference is None:
            return None
        if Path(self.reference).is_file():
            return sha256(self.reference)[:12]
        listing = [(str(path.relative_to(self.reference)), path.stat().st_size) for path in image_files(self.reference)]
        return hashlib.sha256(repr(listing).encode()).hexdigest()[:12]

    def to_dict(self) -> dict[str, object]:
        """What `results.json` says of it, and what tells two of them apart."""
        return {**vars(self), "reference": self.reference_name, "digest": self.reference_digest()}


def plan_metrics(
    metrics: str,
    features: str,
    reference: str,
    *,
    bundled: bool,
    extractors: Mapping[str, Extractor] = EXTRACTORS,
    statistics: Path = BUNDLED,
) -> tuple[list[MetricSpec], list[str]]:
    """Plan what to measure from the flags of these names, each "auto" or names separated by commas.

    What was asked for by name must be possible here; "auto" takes what is, and sentences on what it left out are
    returned with the plan. The references of a model that comes with the package, `bundled`, are in `statistics`.
    An unknown name, or a metric that lacks what it needs, raises a ValueError; an extractor or reference that was asked
    for and is not on this machine raises a FileNotFoundError.
    """
    check_flags(metrics, features, reference, extractors)
    if metrics == "none":
        return [], []
    asked = None if metrics == "auto" else tuple(dict.fromkeys(metrics.split(",")))
    automatic = ("efficientnet-lite0", "fashion-classifier") if bundled else ("inception",)
    names = automatic if features == "auto" else tuple(dict.fromkeys(features.split(",")))
    specs, left_out = list[MetricSpec](), list[str]()
    for name in names:
        place = reference if reference != "auto" else _automatic_reference(name, statistics if bundled else None)
        absent = missing(name, extractors)
        images = _images(place)
        file = Statistics.load(place) if place is not None and images is None else None
        misfit = file and _misfit(file, place, name, extractors[name])
        if features == "auto" and (misfit or (absent and asked is None)):
            left_out.append(f"nothing is measured in {name}: {misfit or absent}")
            continue
        if absent:
            raise FileNotFoundError(f"--features {name}: {absent}")
        if misfit:
            raise ValueError(f"--reference {misfit}")
        with_features = file.features is not None if file else images is not None
        if asked is None:
            left_out += _gaps(name, place, reference != "auto", with_features)
        if chosen := _choose(asked, name, extractors[name], place is not None, with_features):
            specs.append(MetricSpec(name, chosen, place))
    if reference != "auto" and left_out and not any(spec.reference for spec in specs):
        raise ValueError(f"--reference fits none of {', '.join(names)}; {left_out[0]}")
    if lost := ", ".join(metric for metric in asked or () if not any(metric in spec.metrics for spec in specs)):
        raise ValueError(f"--metrics {lost} cannot be measured in {', '.join(names)}; choose other --features")
    return specs, left_out


def check_flags(metrics: str, features: str, place: str, extractors: Mapping[str, Extractor] = EXTRACTORS) -> None:
    """Refuse unknown names with a ValueError, and a reference that is not there with a FileNotFoundError."""
    for metric in metrics.split(","):
        if metric not in METRICS and metrics not in ("auto", "none"):
            raise ValueError(f"--metrics has {metric!r}; allowed are {', '.join(METRICS)}, auto and none")
    for name in features.split(","):
        if name not in extractors and features != "auto":
            raise ValueError(f"--features are {name!r}; allowed are {', '.join(extractors)} and auto")
    if place != "auto" and not Path(place).exists():
        raise FileNotFoundError(f"there is no --reference {place}; a statistics file or a folder of images is needed")
    if Path(place).is_file() and Path(place).suffix != ".npz":
        raise ValueError(f"--reference is {place}; a statistics file (.npz) or a folder of images is needed")


def _images(reference: str | None) -> Images | None:
    """The images of a reference; None if it is none, or a statistics file, which may hold images, too."""
    if reference is None:
        return None
    if zipfile.is_zipfile(reference):
        with zipfile.ZipFile(reference) as archive:
            if "mu.npy" in archive.namelist():
                return None
    return find_images(reference)


def _automatic_reference(extractor: str, bundled: Path | None) -> str | None:
    """The reference that comes with the package, in the folder `bundled`, or that was fetched for ImageNet."""
    files = [file for place in IMAGENET_STATISTICS if extractor == "inception" for file in places(place)]
    if bundled is not None:
        files = [bundled / f"fashion_test_{extractor}.npz"]
    return next((str(file) for file in files if file.is_file()), None)


def _misfit(reference: Statistics, place: str | None, name: str, extractor: Extractor) -> str | None:
    """Why statistics cannot be compared with features of an extractor; None if they can."""
    if reference.extractor not in (None, name):
        return f"{place} holds statistics of {reference.extractor}, not of {name}"
    if len(reference.mu) != extractor.width:
        return f"{place} holds statistics of {len(reference.mu)} features, and {name} has {extractor.width}"
    return None


def _gaps(name: str, reference: str | None, given: bool, with_features: bool) -> list[str]:
    """Say which metrics lack a reference."""
    if reference is None:
        how = "`disa checkpoints fetch adm_in256_stats`" if name == "inception" else "make one with `disa stats`"
        return [f"no fid in {name}: there is no reference; give --reference, or {how}"]
    if given and not with_features:
        return [f"no precision and recall in {name}: {reference} holds no features; give images"]
    return []


def _choose(
    asked: Sequence[str] | None, name: str, extractor: Extractor, referenced: bool, with_features: bool
) -> tuple[str, ...]:
    """Choose the metrics of one space; those that it cannot have may be measured in another one."""
    classifies = name == "fashion-classifier"
    possible = {"fid": referenced, "isc": extractor.has_logits and not classifies, "accuracy": classifies}
    possible |= dict.fromkeys(FROM_FEATURES, with_features)
    for metric in asked or ():
        if metric in ("fid", *FROM_FEATURES) and not possible[metric]:
            what = "a reference" if metric == "fid" else "a reference with features, such as images"
            raise ValueError(f"--metrics {metric} in {name} needs {what}; give --reference")
    return tuple(metric for metric in asked or METRICS if possible[metric])


def reference_statistics(spec: MetricSpec, batch_size: int, device: torch.device) -> Statistics | None:
    """Load or compute what a space compares with, on rank 0; every rank calls this, for images are shared out."""
    path = spec.reference
    if path is None:
        return None
    images = _images(path)
    if images is None:
        return distributed.on_all(lambda: Statistics.load(path) if distributed.is_main() else None)
    needed = any(name in spec.metrics for name in FROM_FEATURES)
    return image_statistics(images, spec.extractor, keep_features=needed, batch_size=batch_size, device=device)
