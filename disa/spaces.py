"""Feature spaces to measure in: which there are, what a model is measured by, and what it is compared with."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import torch

from . import distributed
from .checkpoints import sha256
from .features import WIDTH, WITHOUT_LOGITS, missing
from .files import image_files
from .metrics import FROM_FEATURES, METRICS, Statistics, image_statistics

IMAGENET_STATISTICS = ("fid_stats/adm_in256_stats.npz", "pretrained_models/fid_stats/adm_in256_stats.npz")
BUNDLED_STATISTICS = Path(__file__).parent / "bundled"


@dataclass(frozen=True)
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
            how = "`disa checkpoints fetch adm_in256_stats`" if extractor == "inception" else "make one with `disa stats`"
            left_out.append(f"no fid in {extractor}: there is no reference; give --reference, or {how}")
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
    if reference != "auto" and left_out and not any(space.reference for space in spaces):
        raise ValueError(f"--reference fits none of {', '.join(extractors)}; {left_out[0]}")
    impossible = [name for name in asked or () if not any(name in space.metrics for space in spaces)]
    if impossible:
        raise ValueError(f"--metrics {', '.join(impossible)} cannot be measured in {', '.join(extractors)}; choose other --features")
    return spaces, left_out


def _misfit(reference: str | None, extractor: str) -> str | None:
    """Why `reference` cannot be compared with features of `extractor`, in a sentence."""
    if reference is None or Path(reference).is_dir():
        return None
    found = Statistics.load(reference)
    if found.extractor not in (None, extractor):
        return f"{reference} holds statistics of {found.extractor}, not of {extractor}"
    if len(found.mu) != WIDTH[extractor]:
        return f"{reference} holds statistics of {len(found.mu)} features, and {extractor} has {WIDTH[extractor]}"
    return None


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
    """What a space compares with, on rank 0; every rank calls this, for images are shared out."""
    if space.reference is None:
        return None
    if Path(space.reference).is_dir():
        files, needed = image_files(space.reference), any(name in space.metrics for name in FROM_FEATURES)
        return image_statistics(files, space.extractor, keep_features=needed, batch_size=batch_size, device=device)
    path = space.reference
    return distributed.together(lambda: Statistics.load(path) if distributed.is_main() else None)
