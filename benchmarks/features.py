"""Features of images, all in memory, and scores and statistics of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from disa.evaluation.metrics import (
    Device,
    Images,
    Statistics,
    check_metrics,
    feature_batches,
    feature_sums,
    metric_sums,
    scores,
)
from disa.evaluation.results import Scores
from disa.runtime import distributed


@dataclass(frozen=True)
class Features:
    """Features [N, D] and logits [N, K] of images, float32 on the CPU, and the extractor they come from."""

    features: Tensor
    logits: Tensor
    extractor: str


def extract_features(images: Images, extractor: str, *, batch_size: int = 64, device: Device = "cpu") -> Features:
    """Extract features of all images, in their order, on every rank; each rank extracts those of its share."""
    batches = feature_batches(images, extractor, batch_size, device)
    share = [(features.cpu(), logits.cpu()) for features, logits in batches]
    parts = [part for of_rank in distributed.gather(share) for part in of_rank]
    features, logits = (torch.cat(column) for column in zip(*parts, strict=True))
    return Features(features, logits, extractor)


def statistics_of(features: Features) -> Statistics:
    """Compute mean and covariance of features, which go with them."""
    return Statistics.of_sums(feature_sums(features.features), features.extractor, features.features)


def measure(
    features: Features, metrics: Sequence[str], *, reference: Statistics | None = None, labels: Tensor | None = None
) -> Scores:
    """Compute the scores of images from their features; arguments and errors as of `metric_sums` and `scores`."""
    count = len(features.features)
    check_metrics(metrics, count)
    sums = metric_sums(features.features, features.logits, metrics, range(count), count, labels)
    return scores(sums, metrics, features.extractor, count, reference=reference, features=features.features)
