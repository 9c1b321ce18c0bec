"""What an evaluation found: scores and costs, as `results.json` holds them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from ..runtime.files import write_json


@dataclass(frozen=True)
class Scores:
    """The scores of images in the feature space of `extractor`; None where not measured."""

    extractor: str
    images: int
    reference: str | None = None
    fid: float | None = None  # Fréchet distance to `reference`
    fid_interval: tuple[float, float] | None = None  # of 95 %
    inception_score_mean: float | None = None
    inception_score_std: float | None = None
    kid_mean: float | None = None
    kid_std: float | None = None
    precision: float | None = None
    recall: float | None = None
    label_accuracy: float | None = None  # share of images that show the label that was asked for

    def to_dict(self) -> dict[str, object]:
        """What is not None, by name."""
        return {name: value for name, value in vars(self).items() if value is not None}

    @classmethod
    def from_dict(cls, found: Mapping[str, Any]) -> Scores:  # Any: values of several types, from JSON
        """Inverse of `to_dict`."""
        interval = found.get("fid_interval")
        return cls(**{**found, "fid_interval": interval and tuple(interval)})

    def numbers(self) -> dict[str, float]:
        """The scores that are one number, by name."""
        return {name: value for name, value in vars(self).items() if isinstance(value, float)}


@dataclass(frozen=True)
class Results:
    """Scores and costs of an evaluation."""

    settings: Mapping[str, object]  # what the images depend on
    num_images: int
    measures: Sequence[Mapping[str, object]]  # what was measured, as `MetricSpec.to_dict` says it
    intervals: bool  # whether Fréchet distances have one
    nfe: int
    images_per_second: float | None  # generation and decoding, over all ranks; None if too few were timed
    seconds_per_image: float | None
    timed_images: int
    fractions: Mapping[str, float]  # part of the work -> share of the time
    metrics: tuple[Scores, ...]
    device: str
    batch_size: int  # images at a time per rank
    ranks: int
    versions: Mapping[str, str]
    # dtype -> images made again in it, for NaN or infinity in a lower one
    retried: Mapping[str, int] = field(default_factory=dict)

    @property
    def machine(self) -> str:
        """What times depend on, in words: those of other machines do not compare."""
        return describe_machine(self.device, self.ranks, self.batch_size)

    def scores(self, extractor: str) -> Scores | None:
        """The scores in a feature space, if they were measured."""
        return next((scores for scores in self.metrics if scores.extractor == extractor), None)

    def summary(self) -> str:
        """Write the results in a few lines."""
        speed = "too few images to time"
        if self.seconds_per_image:
            speed = f"{self.seconds_per_image:.4g} seconds per image"
            speed += f" ({self.images_per_second:.4g} images/s, first batch excluded)"
        lines = [f"{self.num_images} images, NFE {self.nfe}, {speed} on {self.device}"]
        lines += [f"{images} images were made again in {dtype}" for dtype, images in self.retried.items()]
        if self.fractions:
            lines.append("time: " + ", ".join(f"{part} {100 * share:.1f} %" for part, share in self.fractions.items()))
        for scores in self.metrics:
            numbers = ", ".join(f"{name} {value:.4f}" for name, value in scores.numbers().items())
            lines.append(f"{scores.extractor}: {numbers}")
        return "\n".join(lines)

    def write(self, path: Path) -> None:
        """Write `path`, a JSON file."""
        write_json(path, {**vars(self), "metrics": [scores.to_dict() for scores in self.metrics]})

    @classmethod
    def read(cls, path: Path) -> Results | None:
        """Read what `write` wrote; None if it is not there, is damaged, or is another file."""
        try:
            found = json.loads(path.read_text())
            if "head_evaluations" in found:  # written before NFE was called so
                found["nfe"] = found["head_evaluations"]
                found["device"] = found["device"].replace(" a rank)", " per rank)")
            found.setdefault("retried", {})  # written before there were retries
            found["metrics"] = tuple(map(Scores.from_dict, found["metrics"]))
            return cls(**{one.name: found[one.name] for one in fields(cls)})
        except (OSError, ValueError, TypeError, LookupError, AttributeError):
            return None


def describe_machine(device: str, ranks: int, batch_size: int) -> str:
    """What times depend on, in words."""
    return f"{device}, {ranks} rank{'s' * (ranks > 1)}, batches of {batch_size}"
