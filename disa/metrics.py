"""Images to FID, Inception score, precision, recall and label accuracy, from torch-fidelity's building blocks.

Images are either paths or a uint8 tensor [N, H, W] or [N, 1 or 3, H, W]; every rank works on its share of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
from torch_fidelity.metric_isc import isc_features_to_metric
from torch_fidelity.metric_prc import prc_features_to_metric
from tqdm import tqdm

from . import distributed
from .features import feature_extractor
from .files import atomic_write

# name -> the fewest images it is defined for: a covariance needs two, a third nearest neighbour four
METRICS = {"fid": 2, "isc": 1, "prc": 4, "accuracy": 1}
Images = Sequence[Path] | Tensor


@dataclass(frozen=True)
class Features:
    """Features [N, D] and logits [N, K] of images, float32 on the CPU, and the extractor they come from."""

    features: Tensor
    logits: Tensor
    extractor: str


@dataclass(frozen=True)
class Statistics:
    """Mean [D] and covariance [D, D] of features; `features` [N, D] where precision and recall are wanted.

    `extractor` is None for a file that does not name one, such as ImageNet's released statistics.
    """

    mu: np.ndarray
    sigma: np.ndarray
    extractor: str | None = None
    features: Tensor | None = None

    @classmethod
    def of(cls, features: Features) -> Statistics:
        """Of extracted features."""
        found = fid_features_to_statistics(features.features)
        return cls(found["mu"], found["sigma"], features.extractor, features.features)

    @classmethod
    def load(cls, path: str | Path) -> Statistics:
        """From an `.npz` file with `mu` and `sigma`, and perhaps `features` and `extractor`.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it holds something else.
        """
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(
                f"there is no statistics file {path}; ImageNet's is fetched by `disa checkpoints fetch adm_in256_stats`"
            )
        try:
            with np.load(path) as arrays:
                mu, sigma = arrays["mu"], arrays["sigma"]
                features = torch.from_numpy(arrays["features"]) if "features" in arrays else None
                extractor = str(arrays["extractor"]) if "extractor" in arrays else None
        except Exception as error:  # a damaged archive can fail in any way
            raise ValueError(f"{path} is not a statistics file with mu and sigma ({error})") from error
        if mu.ndim != 1 or sigma.shape != (len(mu), len(mu)):
            raise ValueError(f"{path} holds mu {mu.shape} and sigma {sigma.shape}; [D] and [D, D] are needed")
        return cls(mu, sigma, extractor, features)

    def save(self, path: str | Path, features: bool = False) -> None:
        """To an `.npz` file, in float32, whole or not at all; with `features` if precision and recall are wanted."""
        arrays: dict[str, Any] = {"mu": self.mu.astype(np.float32), "sigma": self.sigma.astype(np.float32)}
        if self.extractor is not None:
            arrays["extractor"] = np.array(self.extractor)
        if features and self.features is not None:
            arrays["features"] = self.features.numpy()
        with atomic_write(path) as beside:
            np.savez_compressed(beside, **arrays)


def frechet_distance(a: Statistics, b: Statistics) -> float:
    """Fréchet distance between two Gaussians (Heusel et al. 2017); "FID" where the features are Inception's.

    Raises:
        ValueError: they are of different extractors.
    """
    if a.extractor and b.extractor and a.extractor != b.extractor:
        raise ValueError(f"statistics of {a.extractor} cannot be compared with statistics of {b.extractor}")
    if a.mu.shape != b.mu.shape:
        raise ValueError(
            f"statistics of {len(a.mu)} features cannot be compared with statistics of {len(b.mu)}; they are of different extractors"
        )
    one, other = ({"mu": s.mu.astype(np.float64), "sigma": s.sigma.astype(np.float64)} for s in (a, b))
    return float(fid_statistics_to_metric(one, other, verbose=False)["frechet_inception_distance"])


def label_accuracy(logits: Tensor, labels: Tensor) -> float:
    """Share of rows of logits [N, K] whose largest is that of labels [N]."""
    return (logits.argmax(1) == labels).float().mean().item()


def _read(path: Path) -> Tensor:
    try:
        return torch.from_numpy(np.array(Image.open(path).convert("RGB"))).permute(2, 0, 1)
    except (OSError, SyntaxError, ValueError) as error:  # Pillow raises any of them on a damaged file
        raise ValueError(f"{path} cannot be read as an image ({error})") from error


def _batch(images: Images, rows: Sequence[int], readers: ThreadPoolExecutor) -> Tensor:
    """uint8 [B, 3, H, W]."""
    if isinstance(images, Tensor):
        batch = images[list(rows)]
        batch = batch[:, None] if batch.ndim == 3 else batch
        return batch.expand(-1, 3, -1, -1)
    read = list(readers.map(_read, [images[row] for row in rows]))
    for row, image in zip(rows, read, strict=True):
        if image.shape != read[0].shape:
            sizes = [f"{height}×{width}" for _, height, width in (image.shape, read[0].shape)]
            raise ValueError(f"{images[row]} is {sizes[0]}, others are {sizes[1]}; all images must be of one size")
    return torch.stack(read)


@torch.no_grad()
def extract_features(
    images: Images, extractor: str, *, batch_size: int = 64, device: torch.device | str = "cpu", progress: bool = True
) -> Features:
    """Features of all images, in their order, on every rank; each rank extracts those of its share.

    Raises:
        ValueError: an image cannot be read, or there is none.
    """
    if len(images) == 0:
        raise ValueError("there are no images to extract features from")
    if isinstance(images, Tensor) and (images.ndim not in (3, 4) or images.ndim == 4 and images.shape[1] not in (1, 3)):
        raise ValueError(f"images are {list(images.shape)}; [N, H, W] or [N, 1 or 3, H, W] is needed")
    net = feature_extractor(extractor, device)
    bounds = [len(images) * rank // distributed.world_size() for rank in range(distributed.world_size() + 1)]
    mine = range(bounds[distributed.rank()], bounds[distributed.rank() + 1])
    found: list[tuple[Tensor, Tensor]] = []
    with (
        tqdm(total=len(images), unit="img", desc=extractor, disable=not (progress and distributed.is_main())) as bar,
        ThreadPoolExecutor(4) as readers,
    ):
        for start in range(mine.start, mine.stop, batch_size):
            rows = range(start, min(start + batch_size, mine.stop))
            features, logits = net(_batch(images, rows, readers).to(device))
            found.append((features.float().cpu(), logits.float().cpu()))
            bar.update(min(len(rows) * distributed.world_size(), len(images) - bar.n))
    parts = [part for rank in distributed.gather(found) for part in rank]
    return Features(torch.cat([features for features, _ in parts]), torch.cat([logits for _, logits in parts]), extractor)


def check_metrics(metrics: Sequence[str], count: int) -> None:
    """Whether `metrics` can be measured on `count` images.

    Raises:
        ValueError: a metric is unknown, or there are too few images for it.
    """
    for name in metrics:
        if name not in METRICS:
            raise ValueError(f"metrics has {name!r}; allowed are {', '.join(METRICS)}")
        if count < METRICS[name]:
            raise ValueError(f"{name} needs at least {METRICS[name]} images; there are {count}")


def measure(
    features: Features, metrics: Sequence[str], *, reference: Statistics | None = None, labels: Tensor | None = None
) -> dict[str, Any]:
    """The scores of images with these features.

    Args:
        metrics: of `METRICS`.
        reference: what "fid" and "prc" compare with; "prc" needs its features.
        labels: what each image was asked to show [N], for "accuracy".

    Returns:
        `extractor` and `images`, and for each metric its values by name.

    Raises:
        ValueError: a metric is unknown or lacks what it needs.
    """
    check_metrics(metrics, len(features.features))
    scores: dict[str, Any] = {"extractor": features.extractor, "images": len(features.features)}
    if "fid" in metrics:
        if reference is None:
            raise ValueError("fid needs a reference: a statistics file or images")
        scores["fid"] = frechet_distance(Statistics.of(features), reference)
    if "isc" in metrics:
        found = isc_features_to_metric(features.logits, splits=min(10, len(features.logits)))
        scores["inception_score_mean"], scores["inception_score_std"] = found["inception_score_mean"], found["inception_score_std"]
    if "prc" in metrics:
        if reference is None or reference.features is None:
            raise ValueError("prc needs the reference's features; a file with mu and sigma alone has none, give images")
        found = prc_features_to_metric(features.features, reference.features, verbose=False, save_cpu_ram=True)
        scores["precision"], scores["recall"] = found["precision"], found["recall"]
    if "accuracy" in metrics:
        if labels is None:
            raise ValueError("accuracy needs the labels that were asked for")
        scores["label_accuracy"] = label_accuracy(features.logits, labels)
    return scores
