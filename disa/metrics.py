"""Images to FID, Inception score, KID, precision, recall and label accuracy, as torch-fidelity computes them.

All but KID, precision and recall follow from sums over images, which can be taken in any order and by many ranks. Images are either
paths or a uint8 tensor [N, H, W] or [N, 1 or 3, H, W]; every rank works on its share of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch_fidelity.metric_kid import kid_features_to_metric
from torch_fidelity.metric_prc import prc_features_to_metric
from tqdm import tqdm

from . import distributed
from .features import RESIZE, feature_extractor
from .files import atomic_write
from .progress import add
from .transforms import center_crop, open_image

# name -> the fewest images it is defined for: a covariance needs two, a third nearest neighbour four
METRICS = {"fid": 2, "isc": 1, "kid": 2, "prc": 4, "accuracy": 1}
FROM_FEATURES = ("kid", "prc")  # what needs every image's features, and the reference's; the rest follows from sums
# torch-fidelity's constants: the Inception score is a mean over splits of the images, shuffled with this seed; KID one over subsets.
SPLITS, SHUFFLE_SEED, SUBSET = 10, 2020, 1000
REPLICATES = 50  # of a bootstrap: its deviation is right to a tenth
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

    A file need not say more than the first two, as ImageNet's released statistics do not: then the rest is None.

    Attributes:
        count: images.
        extractor: whose features they are.
        resize: how the images were brought to the size that it looks at.
    """

    mu: np.ndarray
    sigma: np.ndarray
    count: int | None = None
    extractor: str | None = None
    resize: str | None = None
    features: Tensor | None = None

    @classmethod
    def of(cls, features: Features) -> Statistics:
        """Of extracted features."""
        return cls.of_sums(feature_sums(features.features), features.extractor, features.features)

    @classmethod
    def of_sums(cls, sums: Mapping[str, Tensor], extractor: str, features: Tensor | None = None) -> Statistics:
        """Of sums from `feature_sums`."""
        count, first, second = (sums[name].cpu() for name in ("count", "features", "products"))
        mu = first / count
        sigma = (second - count * mu.outer(mu)) / (count - 1)
        return cls(mu.numpy(), sigma.numpy(), int(count), extractor, RESIZE.get(extractor), features)

    @classmethod
    def load(cls, path: str | Path) -> Statistics:
        """From an `.npz` file with `mu` and `sigma`, and perhaps the rest.

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
                count = int(arrays["count"]) if "count" in arrays else None
                extractor, resize = (str(arrays[name]) if name in arrays else None for name in ("extractor", "resize"))
        except Exception as error:  # a damaged archive can fail in any way
            raise ValueError(f"{path} is not a statistics file with mu and sigma ({error})") from error
        if mu.ndim != 1 or sigma.shape != (len(mu), len(mu)):
            raise ValueError(f"{path} holds mu {mu.shape} and sigma {sigma.shape}; [D] and [D, D] are needed")
        return cls(mu, sigma, count, extractor, resize, features)

    def save(self, path: str | Path) -> None:
        """To an `.npz` file, whole or not at all."""
        # Directions in which few images do not vary have variance 0, and rounding would give them some, whose roots add up.
        dtype = np.float32 if self.count is not None and self.count > 4 * len(self.mu) else np.float64
        arrays: dict[str, Any] = {"mu": self.mu.astype(dtype), "sigma": self.sigma.astype(dtype)}
        arrays |= {name: np.array(getattr(self, name)) for name in ("count", "extractor", "resize") if getattr(self, name) is not None}
        if self.features is not None:
            arrays["features"] = self.features.numpy()
        with atomic_write(path) as beside:
            np.savez_compressed(beside, **arrays)


def feature_sums(features: Tensor) -> dict[str, Tensor]:
    """Sums over features [B, D] that mean and covariance follow from: `count`, `features` [D], `products` [D, D], float64."""
    rows = features.double()
    return {"count": rows.new_tensor(len(rows)), "features": rows.sum(0), "products": rows.T @ rows}


def logit_sums(logits: Tensor, ids: Sequence[int], num_images: int) -> dict[str, Tensor]:
    """Sums over logits [B, K] that the Inception score follows from, in each of its S splits of `num_images` images, float64.

    Returns:
        `images` [S], `probabilities` [S, K], and `negentropies` [S], of sum_k p log p.
    """
    place = np.empty(num_images, dtype=np.int64)
    place[np.random.RandomState(SHUFFLE_SEED).permutation(num_images)] = np.arange(num_images)
    splits = min(SPLITS, num_images)
    ends = torch.tensor([(i + 1) * num_images // splits for i in range(splits)])
    split = torch.searchsorted(ends, torch.from_numpy(place[list(ids)]), right=True).to(logits.device)
    log_p = logits.double().log_softmax(1)
    p = log_p.exp()
    return {
        "images": p.new_zeros(splits).index_add_(0, split, p.new_ones(len(p))),
        "probabilities": p.new_zeros(splits, p.shape[1]).index_add_(0, split, p),
        "negentropies": p.new_zeros(splits).index_add_(0, split, torch.special.xlogy(p, p).sum(1)),
    }


def inception_score(sums: Mapping[str, Tensor]) -> tuple[float, float]:
    """Mean and deviation, over the splits, of exp E[KL(p(y|x) || p(y))] (Salimans et al. 2016), from sums of `logit_sums`."""
    images = sums["images"]
    p = sums["probabilities"] / images[:, None]
    scores = (sums["negentropies"] / images - torch.special.xlogy(p, p).sum(1)).exp()
    return scores.mean().item(), scores.std(correction=0).item()


def _root(sigma: np.ndarray) -> Tensor:
    """The square root of a covariance [D, D]."""
    values, vectors = torch.linalg.eigh(torch.from_numpy(sigma.astype(np.float64)))
    return (vectors * values.clamp(min=0).sqrt()) @ vectors.T


def _trace_of_root(product: Tensor) -> float:
    """Trace of the square root of a positive semidefinite matrix, whose zero eigenvalues rounding must not make large roots of."""
    values = torch.linalg.eigvalsh(product)
    return values[values > len(values) * torch.finfo(values.dtype).eps * values[-1]].sqrt().sum().item()


def frechet_distance(a: Statistics, b: Statistics) -> float:
    """Fréchet distance between two Gaussians, |mu_a - mu_b|² + tr(A + B - 2 (B^½ A B^½)^½); "FID" in Inception's features.

    Heusel et al., "GANs Trained by a Two Time-Scale Update Rule Converge to a Local Nash Equilibrium", 2017, equation 6.

    Raises:
        ValueError: they are of different extractors.
    """
    if a.extractor and b.extractor and a.extractor != b.extractor:
        raise ValueError(f"statistics of {a.extractor} cannot be compared with statistics of {b.extractor}")
    if a.mu.shape != b.mu.shape:
        raise ValueError(
            f"statistics of {len(a.mu)} features cannot be compared with statistics of {len(b.mu)}; they are of different extractors"
        )
    difference, root = a.mu.astype(np.float64) - b.mu, _root(b.sigma)
    covariances = _trace_of_root(root @ torch.from_numpy(a.sigma.astype(np.float64)) @ root)
    return float(difference @ difference + np.trace(a.sigma) + np.trace(b.sigma) - 2 * covariances)


def frechet_interval(features: Tensor, reference: Statistics, distance: float) -> tuple[float, float]:
    """Where the Fréchet distance of as many other images would lie in 95 of 100 cases, by bootstrap.

    A replicate is a random half of the images, whose distance varies as that of all of them does (Shao and Wu, "A General Theory for
    Jackknife Variance Estimation", 1989). Drawn with replacement, as is usual, images that come twice would lower the covariance's rank,
    and where there are not many more images than features the interval would be up to four times too wide. That fewer images lie
    further away, all halves alike, is taken out: the interval lies around the distance.

    Args:
        features: [N, D], on whatever device is to do the work.
        distance: of all of them.

    Raises:
        ValueError: there are fewer than 4 images.
    """
    count, half = len(features), len(features) // 2
    if half < 2:
        raise ValueError(f"an interval needs at least 4 images; there are {count}")
    root, mu = _root(reference.sigma).to(features.device), torch.from_numpy(reference.mu.astype(np.float64)).to(features.device)
    generator = torch.Generator().manual_seed(0)
    distances = torch.empty(REPLICATES, dtype=torch.float64)
    for replicate in range(REPLICATES):
        rows = features[torch.randperm(count, generator=generator)[:half].to(features.device)].double()
        mean = rows.mean(0)
        rows -= mean
        # B^½ A B^½ = Y'Y, where Y's rows are an image's features, centred, times B^½; Y Y' has the same eigenvalues.
        y = rows @ root / (half - 1) ** 0.5
        covariances = _trace_of_root(y @ y.T if half < y.shape[1] else y.T @ y)
        distances[replicate] = (mean - mu).square().sum() + rows.square().sum() / (half - 1) - 2 * covariances
    reach = 1.96 * distances.std().item()
    return max(distance - reach, 0.0), distance + reach


def read_images(paths: Sequence[Path], readers: ThreadPoolExecutor, crop: int | None = None) -> Tensor:
    """Image files of one size as uint8 [B, 3, H, W].

    Args:
        crop: instead, files of any size, of each its central square, so many pixels a side.

    Raises:
        ValueError: one cannot be read, or has another size.
    """

    def read(path: Path) -> Tensor:
        image = open_image(path)
        return torch.from_numpy(np.array(center_crop(image, crop) if crop else image)).permute(2, 0, 1)

    images = list(readers.map(read, paths))
    for path, image in zip(paths, images, strict=True):
        if image.shape != images[0].shape:
            sizes = [f"{height}×{width}" for _, height, width in (image.shape, images[0].shape)]
            raise ValueError(f"{path} is {sizes[0]}, others are {sizes[1]}; all images must be of one size")
    return torch.stack(images)


def _feature_batches(
    images: Images, extractor: str, batch_size: int, device: torch.device | str, crop: int | None = None, progress: bool = True
) -> Iterator[tuple[Tensor, Tensor]]:
    """Features [B, D] and logits [B, K] of this rank's share of images, on `device`, a batch at a time."""
    if len(images) == 0:
        raise ValueError("there are no images to extract features from")
    if isinstance(images, Tensor) and (images.ndim not in (3, 4) or images.ndim == 4 and images.shape[1] not in (1, 3)):
        raise ValueError(f"images are {list(images.shape)}; [N, H, W] or [N, 1 or 3, H, W] is needed")
    net = feature_extractor(extractor, device)
    ranks, rank = distributed.world_size(), distributed.rank()
    start, stop = len(images) * rank // ranks, len(images) * (rank + 1) // ranks
    with (
        tqdm(total=len(images), unit="img", desc=extractor, disable=not (progress and distributed.is_main())) as bar,
        ThreadPoolExecutor(4) as readers,
    ):
        for first in range(start, stop, batch_size):
            rows = range(first, min(first + batch_size, stop))
            if isinstance(images, Tensor):
                batch = images[rows.start : rows.stop]
                batch = (batch[:, None] if batch.ndim == 3 else batch).expand(-1, 3, -1, -1)
            else:
                batch = read_images([images[row] for row in rows], readers, crop)
            with torch.no_grad():
                features, logits = net(batch.to(device))
            yield features.float(), logits.float()
            bar.update(min(len(rows) * ranks, len(images) - bar.n))


def extract_features(
    images: Images, extractor: str, *, batch_size: int = 64, device: torch.device | str = "cpu", progress: bool = True
) -> Features:
    """Features of all images, in their order, on every rank; each rank extracts those of its share.

    Raises:
        ValueError: an image cannot be read, or there is none.
    """
    batches = _feature_batches(images, extractor, batch_size, device, progress=progress)
    parts = [part for rank in distributed.gather([(features.cpu(), logits.cpu()) for features, logits in batches]) for part in rank]
    return Features(torch.cat([features for features, _ in parts]), torch.cat([logits for _, logits in parts]), extractor)


def image_statistics(
    images: Images,
    extractor: str,
    *,
    keep_features: bool,
    batch_size: int = 64,
    device: torch.device | str = "cpu",
    crop: int | None = None,
    progress: bool = True,
) -> Statistics | None:
    """Statistics of all images, on rank 0 alone; each rank sums over its share, and the images may be too many to keep their features.

    Args:
        crop: of files of any size, the central squares of so many pixels a side are meant.

    Raises:
        ValueError: an image cannot be read, or there are fewer than two.
    """
    if len(images) < 2:
        raise ValueError(f"statistics need at least 2 images; there are {len(images)}")
    sums: dict[str, Tensor] = {}
    kept: list[Tensor] = []

    def extract() -> None:
        for features, _ in _feature_batches(images, extractor, batch_size, device, crop, progress):
            add(sums, feature_sums(features.cpu()))
            if keep_features:
                kept.append(features.cpu())

    distributed.together(extract)
    sums_of_ranks, kept_of_ranks = distributed.gather_to_main(sums), distributed.gather_to_main(kept)
    if not distributed.is_main():
        return None
    total: dict[str, Tensor] = {}
    for part in sums_of_ranks:
        add(total, part)
    rows = torch.cat([part for rank in kept_of_ranks for part in rank]) if keep_features else None
    found = Statistics.of_sums(total, extractor, rows)
    return replace(found, resize=f"central square of {crop}, {found.resize}") if crop else found


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


def metric_sums(
    features: Tensor, logits: Tensor, metrics: Sequence[str], ids: Sequence[int], num_images: int, labels: Tensor | None = None
) -> dict[str, Tensor]:
    """What the images `ids` of `num_images` add to the sums that `metrics` follow from; to be added over all images.

    Args:
        features, logits: [B, D] and [B, K].
        labels: what each image was asked to show [B], for "accuracy".

    Raises:
        ValueError: a metric lacks what it needs.
    """
    sums: dict[str, Tensor] = {}
    if "fid" in metrics:
        sums |= feature_sums(features)
    if "isc" in metrics:
        sums |= logit_sums(logits, ids, num_images)
    if "accuracy" in metrics:
        if labels is None:
            raise ValueError("accuracy needs the labels that were asked for")
        sums["right"] = (logits.argmax(1) == labels.to(logits.device)).sum().double()
    return sums


def scores(
    sums: Mapping[str, Tensor],
    metrics: Sequence[str],
    extractor: str,
    num_images: int,
    *,
    reference: Statistics | None = None,
    features: Tensor | None = None,
) -> dict[str, Any]:
    """The scores of images with these sums over all of them.

    Args:
        sums: of `metric_sums`.
        metrics: of `METRICS`.
        reference: what "fid", "kid" and "prc" compare with; the last two need its features.
        features: of every image [N, D], for "kid" and "prc".

    Returns:
        `extractor` and `images`, and for each metric its values by name.

    Raises:
        ValueError: a metric is unknown or lacks what it needs.
    """
    check_metrics(metrics, num_images)
    found: dict[str, Any] = {"extractor": extractor, "images": num_images}
    if "fid" in metrics:
        if reference is None:
            raise ValueError("fid needs a reference: a statistics file or images")
        found["fid"] = frechet_distance(Statistics.of_sums(sums, extractor), reference)
    if "isc" in metrics:
        found["inception_score_mean"], found["inception_score_std"] = inception_score(sums)
    if any(name in metrics for name in FROM_FEATURES):
        found |= _scores_of_features(features, reference, metrics)
    if "accuracy" in metrics:
        found["label_accuracy"] = (sums["right"] / num_images).item()
    return found


def _scores_of_features(features: Tensor | None, reference: Statistics | None, metrics: Sequence[str]) -> dict[str, float]:
    """Those of `FROM_FEATURES`."""
    if features is None or reference is None or reference.features is None:
        named = " and ".join(name for name in FROM_FEATURES if name in metrics)
        raise ValueError(f"{named}: the reference has no features; a file with mu and sigma alone has none, give images")
    found: dict[str, float] = {}
    if "kid" in metrics:
        subset = min(SUBSET, len(features), len(reference.features))
        of = kid_features_to_metric(features, reference.features, kid_subset_size=subset, verbose=False)
        found |= {f"kid_{part}": of[f"kernel_inception_distance_{part}"] for part in ("mean", "std")}
    if "prc" in metrics:
        of = prc_features_to_metric(features, reference.features, verbose=False, save_cpu_ram=True)
        found |= {part: of[part] for part in ("precision", "recall")}
    return found


def measure(
    features: Features, metrics: Sequence[str], *, reference: Statistics | None = None, labels: Tensor | None = None
) -> dict[str, Any]:
    """The scores of images with these features; arguments and errors as of `metric_sums` and `scores`."""
    count = len(features.features)
    check_metrics(metrics, count)
    sums = metric_sums(features.features, features.logits, metrics, range(count), count, labels)
    return scores(sums, metrics, features.extractor, count, reference=reference, features=features.features)
