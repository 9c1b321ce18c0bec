"""FID, Inception score, KID, precision, recall and label accuracy of images, as torch-fidelity computes them.

All but KID, precision and recall follow from sums over images, which can be taken in any order and by many ranks.
Images are either paths or a uint8 tensor [N, H, W] or [N, 1 or 3, H, W]; every rank works on its share of them.
"""

from __future__ import annotations

import struct
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from ..data.transforms import center_crop, open_image
from ..runtime import distributed
from ..runtime.extras import extra
from ..runtime.files import atomic_write, image_files
from .extractors import EXTRACTORS, feature_extractor
from .results import Scores

with extra("eval"):
    from torch_fidelity.metric_kid import kid_features_to_metric
    from torch_fidelity.metric_prc import prc_features_to_metric

Device = torch.device | str
Images = Sequence[Path] | Tensor
Sums = dict[str, Tensor]  # name -> a sum over images of any shape, float64

# name -> the fewest images it is defined for: a covariance needs two, a third nearest neighbour four
METRICS = {"fid": 2, "isc": 1, "kid": 2, "prc": 4, "accuracy": 1}
FROM_FEATURES = ("kid", "prc")  # they need every image's features, and the reference's; the rest follows from sums

# torch-fidelity's constants: the Inception score is a mean over shuffled splits of the images, KID one over subsets.
SPLITS, SHUFFLE_SEED, SUBSET = 10, 2020, 1000
REPLICATES = 50  # of a bootstrap: its deviation is right to a tenth


def add(total: Sums, part: Mapping[str, Tensor]) -> None:
    """Add every sum of `part` to that of `total`, in place."""
    for name, value in part.items():
        if name in total:
            total[name] += value.to(total[name].device)
        else:
            total[name] = value.clone()


@dataclass(frozen=True)
class Statistics:
    """Mean [D] and covariance [D, D] of features; a file need not hold more, as ImageNet's released one does not."""

    mu: np.ndarray
    sigma: np.ndarray
    count: int | None = None
    extractor: str | None = None
    resize: str | None = None  # how the `count` images were brought to the size that the extractor looks at
    features: Tensor | None = None  # [N, D], where precision and recall are wanted

    @classmethod
    def of_sums(cls, sums: Mapping[str, Tensor], extractor: str, features: Tensor | None = None) -> Statistics:
        """Compute them from sums of `feature_sums`."""
        count, first, second = (sums[name].cpu() for name in ("count", "features", "products"))
        mu = first / count
        sigma = (second - count * mu.outer(mu)) / (count - 1)
        resize = EXTRACTORS[extractor].resize if extractor in EXTRACTORS else None
        return cls(mu.numpy(), sigma.numpy(), int(count), extractor, resize, features)

    @classmethod
    def load(cls, path: str | Path) -> Statistics:
        """Read an `.npz` file with `mu` and `sigma`, and perhaps the rest; another file raises a ValueError."""
        if not Path(path).is_file():
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
        """Write an `.npz` file, whole or not at all."""
        # Directions in which few images do not vary have variance 0. Rounding would give them some, and roots add up.
        dtype = np.float32 if self.count is not None and self.count > 4 * len(self.mu) else np.float64
        arrays = {"mu": self.mu.astype(dtype), "sigma": self.sigma.astype(dtype)}
        for name in ("count", "extractor", "resize", "features"):
            if getattr(self, name) is not None:
                arrays[name] = np.asarray(getattr(self, name))
        with atomic_write(path) as beside:
            np.savez_compressed(beside, **arrays)  # type: ignore[arg-type]  # any name may be that of its own argument


def _double(tensor: Tensor) -> Tensor:
    """Return `tensor` in float64 on its device, or on the CPU if that is an Apple GPU, which has no float64."""
    return (tensor.cpu() if tensor.device.type == "mps" else tensor).double()


def feature_sums(features: Tensor) -> Sums:
    """Sums of features [B, D] for mean and covariance: `count`, `features` [D], `products` [D, D], float64."""
    rows = _double(features)
    return {"count": rows.new_full((), len(rows)), "features": rows.sum(0), "products": rows.T @ rows}


def logit_sums(logits: Tensor, ids: Sequence[int], num_images: int) -> Sums:
    """Sums of logits [B, K] for the Inception score, in each of its S splits of `num_images` images.

    These are `images` [S], `probabilities` [S, K], and `negentropies` [S], of sum_k p log p, all float64.
    """
    place = np.empty(num_images, dtype=np.int64)
    place[np.random.RandomState(SHUFFLE_SEED).permutation(num_images)] = np.arange(num_images)
    splits = min(SPLITS, num_images)
    ends = torch.tensor([(i + 1) * num_images // splits for i in range(splits)])
    log_p = _double(logits).log_softmax(1)
    split = torch.searchsorted(ends, torch.from_numpy(place[list(ids)]), right=True)
    split = split.to(log_p.device, non_blocking=True)
    p = log_p.exp()
    return {
        "images": p.new_zeros(splits).index_add_(0, split, p.new_ones(len(p))),
        "probabilities": p.new_zeros(splits, p.shape[1]).index_add_(0, split, p),
        "negentropies": p.new_zeros(splits).index_add_(0, split, torch.special.xlogy(p, p).sum(1)),
    }


def inception_score(sums: Mapping[str, Tensor]) -> tuple[float, float]:
    """Mean and deviation over splits of exp E[KL(p(y|x) || p(y))] (Salimans et al. 2016), from sums of `logit_sums`."""
    images = sums["images"]
    p = sums["probabilities"] / images[:, None]
    scores = (sums["negentropies"] / images - torch.special.xlogy(p, p).sum(1)).exp()
    return scores.mean().item(), scores.std(correction=0).item()


def _root(sigma: np.ndarray) -> Tensor:
    """Square root of a covariance [D, D]."""
    values, vectors = torch.linalg.eigh(torch.from_numpy(sigma.astype(np.float64)))
    return torch.matmul(vectors * values.clamp(min=0).sqrt(), vectors.T)


def _trace_of_root(product: Tensor) -> float:
    """Trace of the square root of a positive semidefinite matrix; roots of rounding errors would be large."""
    values = torch.linalg.eigvalsh(product)
    return float(values[values > len(values) * torch.finfo(values.dtype).eps * values[-1]].sqrt().sum())


def frechet_distance(a: Statistics, b: Statistics) -> float:
    """Fréchet distance of two Gaussians, |mu_a - mu_b|² + tr(A + B - 2 (B^½ A B^½)^½); "FID" in Inception's features.

    Heusel et al., "GANs Trained by a Two Time-Scale Update Rule Converge to a Local Nash Equilibrium", 2017, eq. 6.
    Statistics of different extractors raise a ValueError.
    """
    if a.extractor and b.extractor and a.extractor != b.extractor:
        raise ValueError(f"statistics of {a.extractor} cannot be compared with statistics of {b.extractor}")
    if a.mu.shape != b.mu.shape:
        raise ValueError(
            f"statistics of {len(a.mu)} features cannot be compared with statistics of {len(b.mu)}; "
            "they are of different extractors"
        )
    difference, root = a.mu.astype(np.float64) - b.mu, _root(b.sigma)
    covariances = _trace_of_root(root @ torch.from_numpy(a.sigma.astype(np.float64)) @ root)
    return float(difference @ difference + np.trace(a.sigma) + np.trace(b.sigma) - 2 * covariances)


def frechet_interval(features: Tensor, reference: Statistics, distance: float) -> tuple[float, float]:
    """Bootstrap the interval in which the Fréchet distance of as many other images lies in 95 of 100 cases.

    A replicate is a random half of the images, whose distance varies as that of all of them does (Shao and Wu, "A
    General Theory for Jackknife Variance Estimation", 1989). With replacement, as is usual, images that come twice
    would lower the covariance's rank: with few more images than features, intervals would be up to four times too wide.
    All halves lie further away than the whole, because they are smaller; the interval is put around `distance`, that
    of all `features` [N, D], whose device does the work. Fewer than 4 images raise a ValueError.
    """
    count, half = len(features), len(features) // 2
    if half < 2:
        raise ValueError(f"an interval needs at least 4 images; there are {count}")
    root = _root(reference.sigma).to(features.device)
    mu = torch.from_numpy(reference.mu.astype(np.float64)).to(features.device)
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


def read_images(paths: Sequence[Path], crop: int | None = None) -> Tensor:
    """Read image files as uint8 [B, 3, H, W], or of each the central square of `crop` pixels per side.

    Files that cannot be read, or without `crop` are of several sizes, raise a ValueError.
    """

    def read(path: Path) -> Tensor:
        image = open_image(path)
        return torch.from_numpy(np.array(center_crop(image, crop) if crop else image)).permute(2, 0, 1)

    with ThreadPoolExecutor(4) as readers:
        images = list(readers.map(read, paths))
    for path, image in zip(paths, images, strict=True):
        if image.shape != images[0].shape:
            sizes = [f"{height}×{width}" for _, height, width in (image.shape, images[0].shape)]
            raise ValueError(f"{path} is {sizes[0]}, others are {sizes[1]}; all images must be of one size")
    return torch.stack(images)


def find_images(place: str | Path) -> Images | None:
    """Find the images in a folder, or in an `.npz` file as ADM's scripts write it (`arr_0`, uint8 [N, H, W, 1 or 3]).

    None for any other file. Images in a file that is not compressed are read when they are looked at.

    Raises:
        FileNotFoundError: a folder holds none.
        ValueError: `arr_0` holds something else.
    """
    if not Path(place).is_file():
        return image_files(place)
    try:
        with zipfile.ZipFile(place) as archive:
            array = _read_array(archive, archive.getinfo("arr_0.npy"))
    except (zipfile.BadZipFile, KeyError):
        return None
    except (OSError, ValueError, EOFError, zlib.error) as error:
        raise ValueError(f"{place} cannot be read ({error})") from error
    if array.dtype != np.uint8 or array.ndim != 4 or array.shape[3] not in (1, 3):
        raise ValueError(f"arr_0 in {place} is {array.dtype} {list(array.shape)}; uint8 [N, H, W, 1 or 3] is needed")
    return torch.from_numpy(array).permute(0, 3, 1, 2)


def _read_array(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> np.ndarray:
    """Read a member of an `.npz` file, or map it to memory where it is not compressed."""
    with archive.open(member) as stream:
        if member.compress_type != zipfile.ZIP_STORED:
            return np.lib.format.read_array(stream)
        version = np.lib.format.read_magic(stream)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = read(stream)
        header = stream.tell()
    with open(str(archive.filename), "rb") as file:  # before a member are 30 bytes, its name, and more
        file.seek(member.header_offset + 26)
        name, more = struct.unpack("<HH", file.read(4))
    start, order = member.header_offset + 30 + name + more + header, "F" if fortran else "C"
    # Copied on a write, which torch wants to be possible.
    return np.memmap(str(archive.filename), dtype, "c", start, shape, order)  # type: ignore[call-overload]


def feature_batches(
    images: Images, extractor: str, batch_size: int, device: Device, crop: int | None = None
) -> Iterator[tuple[Tensor, Tensor]]:
    """Features [B, D] and logits [B, K] of this rank's share of images, on `device`, a batch at a time."""
    count, ranks, rank = len(images), distributed.world_size(), distributed.rank()
    if count == 0:
        raise ValueError("there are no images to extract features from")
    if isinstance(images, Tensor):
        images = images[:, None] if images.ndim == 3 else images
        if images.ndim != 4 or images.shape[1] not in (1, 3):
            raise ValueError(f"images are {list(images.shape)}; [N, H, W] or [N, 1 or 3, H, W] is needed")
        images = images.expand(-1, 3, -1, -1)
    net = feature_extractor(extractor, device)
    start, stop = count * rank // ranks, count * (rank + 1) // ranks
    with tqdm(total=count, unit="img", desc=extractor, disable=not distributed.is_main()) as bar:
        for first in range(start, stop, batch_size):
            batch = images[first : min(first + batch_size, stop)]
            pixels = batch if isinstance(batch, Tensor) else read_images(batch, crop)
            with torch.no_grad():
                features, logits = net(pixels.to(device))
            yield features.float(), logits.float()
            bar.update(min(len(batch) * ranks, count - bar.n))


def gather_sums(sums: Sums, kept: Sequence[Tensor]) -> tuple[Sums, list[Tensor]]:
    """Add the sums of all ranks, and collect the features that they kept, on rank 0; elsewhere nothing."""
    total, rows = Sums(), list[Tensor]()
    for sums_of_rank, kept_of_rank in distributed.gather_to_main(({name: sums[name].cpu() for name in sums}, kept)):
        add(total, sums_of_rank)
        rows += kept_of_rank
    return total, rows


def image_statistics(
    images: Images, extractor: str, *, keep_features: bool, batch_size: int, device: Device, crop: int | None = None
) -> Statistics | None:
    """Compute statistics of all images, or of their central squares of `crop` pixels per side, on rank 0 alone.

    Each rank works on its share. Precision and recall need `keep_features`; there may be too many to hold.
    """
    if len(images) < 2:
        raise ValueError(f"statistics need at least 2 images; there are {len(images)}")
    sums, kept = Sums(), list[Tensor]()

    def extract() -> None:
        for features, _ in feature_batches(images, extractor, batch_size, device, crop):
            add(sums, feature_sums(features))
            if keep_features:
                kept.append(features.cpu())

    distributed.on_all(extract)
    total, rows = gather_sums(sums, kept)
    if not distributed.is_main():
        return None
    found = Statistics.of_sums(total, extractor, torch.cat(rows) if keep_features else None)
    return replace(found, resize=f"central square of {crop}, {found.resize}") if crop else found


def check_metrics(metrics: Sequence[str], count: int) -> None:
    """Refuse metrics that are unknown, or not defined for `count` images, with a ValueError."""
    for name in metrics:
        if name not in METRICS:
            raise ValueError(f"metrics has {name!r}; allowed are {', '.join(METRICS)}")
        if count < METRICS[name]:
            raise ValueError(f"{name} needs at least {METRICS[name]} images; there are {count}")


def metric_sums(
    features: Tensor, logits: Tensor, metrics: Sequence[str], ids: Sequence[int], count: int, labels: Tensor | None
) -> Sums:
    """What the images `ids` of `count`, with features [B, D] and logits [B, K], add to the sums for `metrics`.

    `labels` [B] are what each image was asked to show; "accuracy" raises a ValueError without them. The sums are on the
    device of features and logits (of an Apple GPU's: on the CPU); nothing waits for it.
    """
    sums = Sums()
    if "fid" in metrics:
        sums |= feature_sums(features)
    if "isc" in metrics:
        sums |= logit_sums(logits, ids, count)
    if "accuracy" in metrics:
        if labels is None:
            raise ValueError("accuracy needs the labels that were asked for")
        sums["right"] = _double((logits.argmax(1) == labels.to(logits.device, non_blocking=True)).sum())
    return sums


def scores(
    sums: Mapping[str, Tensor],
    metrics: Sequence[str],
    extractor: str,
    num_images: int,
    *,
    reference: Statistics | None = None,
    features: Tensor | None = None,
) -> Scores:
    """Compute the scores of images from their `metric_sums`; a metric that lacks what it needs raises a ValueError.

    "fid", "kid" and "prc" compare with `reference`; the last two need its features, and those of every image [N, D].
    """
    check_metrics(metrics, num_images)
    found: dict[str, object] = {"extractor": extractor, "images": num_images}
    if "fid" in metrics:
        if reference is None:
            raise ValueError("fid needs a reference: a statistics file or images")
        found["fid"] = frechet_distance(Statistics.of_sums(sums, extractor), reference)
    if "isc" in metrics:
        found["inception_score_mean"], found["inception_score_std"] = inception_score(sums)
    if from_features := [name for name in FROM_FEATURES if name in metrics]:
        if features is None or reference is None or reference.features is None:
            raise ValueError(
                f"{' and '.join(from_features)}: the reference has no features; "
                "a file with mu and sigma alone has none, give images"
            )
        both = features, reference.features
    if "kid" in metrics:
        kid = kid_features_to_metric(*both, kid_subset_size=min(SUBSET, *map(len, both)), verbose=False)
        found |= {f"kid_{part}": kid[f"kernel_inception_distance_{part}"] for part in ("mean", "std")}
    if "prc" in metrics:
        prc = prc_features_to_metric(*both, verbose=False, save_cpu_ram=True)
        found |= {part: prc[part] for part in ("precision", "recall")}
    if "accuracy" in metrics:
        found["label_accuracy"] = (sums["right"] / num_images).item()
    return Scores.from_dict(found)
