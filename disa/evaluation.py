"""One evaluation: images for a set of settings, their measures, and the record of both."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import platform
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from . import distributed
from .files import atomic_write, write_json
from .generation import generate_images, image_path

GRID_IMAGES = 64


def fingerprint(model: nn.Module) -> str:
    """Twelve hexadecimal digits that tell two sets of weights apart: a hash over the beginning of every tensor."""
    digest = hashlib.sha256()
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
    sample: Callable[[Sequence[int]], Tensor],
    folder: Path,
    *,
    settings: Mapping[str, Any],
    num_images: int,
    batch_size: int,
    head_evaluations: int,
    measure: Callable[[Sequence[Path]], list[dict[str, Any]]],
    measures: Mapping[str, Any],
    device: torch.device,
    keep_images: bool,
    log: Path | None = None,
    step: int = 0,
) -> dict[str, Any]:
    """Generate what is missing, measure it, and write `results.json`, `samples.png` and TensorBoard scalars; every rank calls this.

    Args:
        sample: ids -> images [B, 1 or 3, H, W] in [-1, 1].
        folder: the place of this evaluation; the images go to its folder `images`.
        settings: everything that an image depends on besides its id.
        head_evaluations: evaluations of the head for one image.
        measure: paths of all images -> for each feature space a dictionary of scores.
        measures: what `measure` measures, in words; another one makes an old result stale.
        log: folder of the TensorBoard log.

    Returns:
        What `results.json` holds.
    """
    record = folder / "results.json"
    asked = json.loads(json.dumps({"settings": settings, "num_images": num_images, "measures": measures}))
    done = distributed.broadcast(_read_record(record, asked) if distributed.is_main() else None)
    if done is not None:
        return done
    images = folder / "images"
    timing = generate_images(sample, images, num_images=num_images, batch_size=batch_size, settings=settings, device=device)
    timings = distributed.gather(timing)
    scores = measure([image_path(images, image_id) for image_id in range(num_images)])
    rate = sum(rank.images / rank.seconds for rank in timings if rank.images)
    results = {
        **asked,
        "head_evaluations": head_evaluations,
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
        save_grid([image_path(images, image_id) for image_id in range(min(num_images, GRID_IMAGES))], folder / "samples.png")
        if log is not None:
            _log_scores(log, results, step)
        write_json(record, results)
        if not keep_images:
            # Settings go last: while an image is left, the folder still says how it was made.
            for path in [*sorted(images.glob("*.png")), images / "settings.json"]:
                path.unlink(missing_ok=True)
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
    return results if all(results.get(key) == value for key, value in asked.items()) else None


def save_grid(paths: Sequence[Path], path: Path, columns: int = 8) -> None:
    """A picture of pictures."""
    from .report import image_grid

    tensors = [torch.from_numpy(np.array(Image.open(one).convert("RGB"))).permute(2, 0, 1) for one in paths]
    grid = image_grid(torch.stack(tensors), columns=columns, scale=max(1, 96 // tensors[0].shape[-1]))
    with atomic_write(path) as beside:
        grid.save(beside)


def _log_scores(log: Path, results: Mapping[str, Any], step: int) -> None:
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(log)) as writer:
        for scores in results["metrics"]:
            for name, value in scores.items():
                if isinstance(value, float):
                    writer.add_scalar(f"{scores['extractor']}/{name}", value, step)
        if results["seconds_per_image"]:
            writer.add_scalar("seconds_per_image", results["seconds_per_image"], step)
