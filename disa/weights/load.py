"""Open checkpoints of every layout, and load them into models."""

from __future__ import annotations

import argparse
import json
import re
import warnings
import zipfile
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ..annealing import AnnealedModel
from ..data.text import TextTokenizer
from ..models import MODELS, build_model
from ..models.harmon import Harmon
from ..models.vae import VAE, AutoencoderKL, build_vae
from ..runtime.files import BUNDLED, atomic_write
from ..runtime.shared import places
from .fetch import LAST

PathLike = str | Path
Shapes = dict[str, list[int]]
_INDEX = "model.safetensors.index.json"  # names the files that hold the weights together
# Tables that released files of FlowAR and xAR hold and our models compute: attention masks, rotary angles.
_REBUILT = re.compile(r"(^mask|\.rope\.freqs(_cos|_sin)?)$")


def read_checkpoint(path: Path) -> dict[str, Any]:  # Any: whatever was saved
    """Read what a file holds, with nothing in it executed; raise ValueError if it is damaged, or no dictionary."""
    if path.suffix == ".safetensors":
        try:
            return dict(load_file(path))
        except (SafetensorError, OSError) as error:
            raise ValueError(
                f"{path} cannot be read as safetensors ({error}); it may be truncated: remove it and fetch it again"
            ) from error
    try:
        # Only torch's newer format, a zip archive, can be mapped, which saves reading a training's optimiser state.
        with torch.serialization.safe_globals([argparse.Namespace]):
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except (MemoryError, PermissionError):
        raise
    except Exception as error:  # a damaged archive or pickle can fail in any way
        known = _begins_as_checkpoint(path)
        advice = "may be truncated: remove it and fetch it again" if known else "is none: give a checkpoint"
        reason = f"cannot be read as a checkpoint; it {advice}"
        if code := re.search(r"GLOBAL ([\w.]+)", str(error)):
            reason = f"holds {code[1]}, which is code and not weights; it was not executed. Give a plain state dict"
        raise ValueError(f"{path} {reason}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}, not a dictionary of weights")
    return content


def _begins_as_checkpoint(path: Path) -> bool:
    """Whether a file begins as torch's do, with a zip archive or, the old ones, a pickle; an empty one may have."""
    with open(path, "rb") as file:
        head = file.read(2)
    return head == b"PK" or head[:1] in (b"\x80", b"")


def _read_shards(index: Path) -> dict[str, Tensor]:
    """Read the weights in the files that `index` names."""
    try:
        names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{index} cannot be read as an index of safetensors ({error}); fetch it again") from error
    paths = [index.with_name(Path(name).name) for name in names]
    if lacking := [path.name for path in paths if not path.is_file()]:
        raise FileNotFoundError(f"{index.parent} lacks {', '.join(lacking)}; fetch the whole repository")
    return {name: value for path in paths for name, value in read_checkpoint(path).items()}


def find_weights(path: PathLike) -> Path:
    """Return the file that `open_checkpoint` reads of `path`, in one of its `places`; FileNotFoundError if none is."""
    path, names = Path(path), (LAST, _INDEX, "model.safetensors")
    for place in places(path):
        for file in (place, *(place / name for name in names)):
            if file.is_file():
                return file
    missing = path / LAST if path.is_dir() else path
    raise FileNotFoundError(f"there is no checkpoint {missing}; `disa checkpoints list` names what can be fetched")


def find_model(name: str, path: PathLike | None) -> Path:
    """Return the file of the weights of `load_model`; raise FileNotFoundError if there is none, also in the package."""
    if path is not None:
        return find_weights(path)
    path = BUNDLED / f"{name}.safetensors"
    if not path.is_file():
        bundled = sorted(file.stem for file in BUNDLED.glob("*.safetensors") if file.stem in MODELS)
        raise FileNotFoundError(
            f"no weights of {name} come with the package (only of {', '.join(bundled)}); "
            "give a checkpoint, see `disa checkpoints list`"
        )
    return path


def open_checkpoint(path: PathLike, weights: str = "ema") -> dict[str, Tensor]:
    """Return the weights in a file, by parameter name; raise FileNotFoundError, or ValueError if it holds none.

    `path` is safetensors, a plain state dict, a released checkpoint (keys `model`, `model_ema`, …), or a folder with
    `checkpoint-last.pth` or, as Hugging Face's repositories have them, safetensors. `weights` is "ema" (`model_ema`
    where there is one; a training checkpoint without it gives a warning) or "model".
    """
    if weights not in ("ema", "model"):
        raise ValueError(f"weights is {weights!r}; allowed are ema and model")
    path = find_weights(path)
    content: dict[str, Any] = _read_shards(path) if path.name == _INDEX else read_checkpoint(path)  # Any: as saved
    if weights == "ema" and "optimizer" in content and not content.get("model_ema"):
        warnings.warn(f"{path} holds no moving average (model_ema); the last step's weights are used", stacklevel=2)
    keys = ("model_ema", "model", "state_dict") if weights == "ema" else ("model", "state_dict")
    nested = (content[key] for key in keys if isinstance(content.get(key), dict) and content[key])
    content = next(nested, content)
    state = {str(name).removeprefix("module."): value for name, value in content.items() if isinstance(value, Tensor)}
    if not state:
        raise ValueError(f"{path} holds no weights; its keys are {', '.join(map(str, list(content)[:5])) or 'none'}")
    return state


def export(path: PathLike, out: PathLike, weights: str = "ema", dtype: torch.dtype = torch.float32) -> None:
    """Write the weights that `open_checkpoint` returns as safetensors: small, and safe to pass on."""
    # Cloned, because safetensors refuses two names of one memory.
    held = open_checkpoint(path, weights)
    state = {name: value.to(dtype).clone(memory_format=torch.contiguous_format) for name, value in held.items()}
    save_weights(state, out)


def save_weights(state: dict[str, Tensor], out: PathLike) -> None:
    """Write weights as safetensors, whole or not at all; raise OSError if that fails."""
    with atomic_write(out) as beside:
        beside.touch()
        mode = beside.stat().st_mode  # as the umask has it; safetensors writes files that only their owner can read
        try:
            save_file(state, beside)
            beside.chmod(mode)
        except SafetensorError as error:
            raise OSError(f"{out} cannot be written ({error})") from error


def differences(state: Mapping[str, Tensor], shapes: Shapes, optional: Collection[str] = ()) -> dict[str, list[str]]:
    """Compare `state` with `shapes`: kind of difference -> the tensors it concerns; empty if there is none."""
    found = {
        "missing": [name for name in shapes if name not in state and name not in optional],
        "unexpected": [name for name in state if name not in shapes],
        "of another shape": [
            f"{name} {list(state[name].shape)} instead of {shape}"
            for name, shape in shapes.items()
            if name in state and list(state[name].shape) != shape
        ],
        "with NaN or infinity": [  # a released attention mask may hold infinities
            name
            for name, value in state.items()
            if value.is_floating_point() and not _REBUILT.search(name) and not value.isfinite().all()
        ],
    }
    return {kind: names for kind, names in found.items() if names}


def load_into(model: nn.Module, state: Mapping[str, Tensor], source: PathLike) -> None:
    """Load `state`, read from `source`, into `model`, strictly; raise ValueError if there are `differences`."""
    state = {name: value for name, value in state.items() if not _REBUILT.search(name)}
    shapes = {name: list(value.shape) for name, value in model.state_dict().items()}
    tied = shapes.keys() - dict(model.named_parameters()).keys() - dict(model.named_buffers()).keys()
    if found := differences(state, shapes, optional=tied):
        listed = [f"{len(n)} {kind}: {', '.join(n[:3])}{', …' if len(n) > 3 else ''}" for kind, n in found.items()]
        raise ValueError(f"{source} does not fit this model: {'; '.join(listed)}")
    model.load_state_dict(state)


class _SkipInit(TorchFunctionMode):
    """Leave new parameters uninitialised: random numbers for billions of them take longer than reading the file."""

    # Any: of whatever function is called.
    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if function.__name__ in ("normal_", "uniform_", "kaiming_uniform_"):
            return args[0] if args else kwargs["tensor"]
        return function(*args, **kwargs)


def load_model(
    name: str, path: PathLike | None = None, weights: str = "ema", *, vae: PathLike | None = None, **overrides: object
) -> AnnealedModel:
    """Build a model, as `build_model` does, with the weights in `path`, in eval mode.

    Args:
        path, weights: as for `open_checkpoint`; by default the weights that come with the package.
        vae: KL-16's file, for a checkpoint of Harmon that lacks its VAE, as ours of its training do.

    Raises FileNotFoundError if there is no file, also in the package; ValueError if it does not fit, or lacks the VAE.
    """
    if name in MODELS:
        path = find_model(name, path)
    with _SkipInit():
        model = build_model(name, **overrides)
    assert path is not None  # `build_model` refused the name
    state = open_checkpoint(path, weights)
    given: nn.Module | None = None
    if vae is not None:
        given = load_vae(vae)
    elif isinstance(model, Harmon) and MODELS[name].bundled:
        given = load_bundled_vae(name)
    if given is not None:
        state = {**state, **{f"vae.{key}": value for key, value in given.state_dict().items()}}
    lacking = {key.partition(".")[0] for key in model.state_dict()} - {key.partition(".")[0] for key in state}
    if lacking == {"vae"}:
        raise ValueError(f"{path} holds no VAE, as checkpoints of our training do not; give KL-16's file (--vae_path)")
    load_into(model, state, path)
    text = BUNDLED / f"{name}_tokenizer.json"
    if isinstance(model, Harmon):
        model.vae.requires_grad_(False)  # what it decodes keeps no gradients
        if text.is_file():
            model.text = TextTokenizer.load(text)
    return model.eval()


def find_vae(path: PathLike) -> Path:
    """Return KL-16's file `path`, in one of its `places`; raise FileNotFoundError if there is none."""
    for place in places(path):
        if place.is_file():
            return place
    raise FileNotFoundError(f"there is no VAE {path}; `disa checkpoints fetch kl16` fetches it, or give --vae_path")


def load_bundled_vae(name: str) -> VAE:
    """Build the VAE of the bundled model `name` with the weights that come with the package, in eval mode, frozen."""
    kind = MODELS[name].vae
    vae, path = build_vae(kind), BUNDLED / f"{kind}_vae.safetensors"
    if vae.state_dict():
        load_into(vae, open_checkpoint(path), path)
    return vae.eval().requires_grad_(False)


def load_vae(path: PathLike, latent_channels: int = 16) -> AutoencoderKL:
    """Build KL-16 with the weights in `path`, in eval mode, frozen: what it decodes keeps no gradients.

    Raises FileNotFoundError if there is no file, ValueError if it is not KL-16's.
    """
    path = find_vae(path)
    model = AutoencoderKL(latent_channels)
    state = {name: value for name, value in open_checkpoint(path).items() if not name.startswith("loss.")}
    load_into(model, state, path)
    return model.eval().requires_grad_(False)
