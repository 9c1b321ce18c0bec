"""Published weights: the catalogue; fetching, opening, loading and verifying them."""

from __future__ import annotations

import argparse
import functools
import hashlib
import http.client
import json
import re
import time
import urllib.error
import urllib.request
import warnings
import zipfile
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from tqdm import tqdm

from .files import atomic_write, write_json
from .models import MODELS, build_model
from .models.tokenizer import AutoencoderKL
from .text import TextTokenizer

PACKAGE = Path(__file__).parent
BUNDLED_WEIGHTS = PACKAGE / "bundled"
MANIFESTS = PACKAGE / "manifests"

# Waited before the second try of a download; twice as long before each later one.
RETRY_SECONDS = 1.0


@dataclass(frozen=True)
class Published:
    """One published file.

    Attributes:
        name: what we call it.
        url: where it lies.
        path: where our commands look for it, below `pretrained_models`.
        megabytes: its size, roughly; 0 where it was not published.
        licence: of the weights.
    """

    name: str
    url: str
    path: str
    megabytes: int
    licence: str

    @property
    def origin(self) -> str:
        """The address without its query."""
        return self.url.partition("?")[0]


def _dropbox(name: str, key: str, query: str, path: str, megabytes: int) -> Published:
    return Published(name, f"https://www.dropbox.com/scl/fi/{key}?rlkey={query}&dl=1", path, megabytes, "MIT")


def _hugging_face(name: str, repository: str, file: str, licence: str) -> Published:
    folder = repository.rpartition("/")[2].lower()
    return Published(name, f"https://huggingface.co/{repository}/resolve/main/{file}", f"{folder}/{file}", 0, licence)


_SEE = "see the authors' page"
_NTU = "NTU S-Lab 1.0 (non-commercial)"
_LAST = "checkpoint-last.pth"
_INDEX = "model.safetensors.index.json"  # names the files that hold the weights together
_STATISTICS = "fid_stats/adm_in256_stats.npz"

_FILES = [
    _dropbox("kl16", "hhmuvaiacrarfg28qxhwz/kl16.ckpt", "l44xipsezc8atcffdp4q7mwmh", "vae/kl16.ckpt", 254),
    _dropbox("mar_base", f"f6dpuyjb7fudzxcyhvrhk/{_LAST}", "a6i4bo71vhfo4anp33n9ukujb", f"mar/mar_base/{_LAST}", 1587),
    _dropbox("mar_large", f"pxacc5b2mrt3ifw4cah6k/{_LAST}", "m48ovo6g7ivcbosrbdaz0ehqt", f"mar/mar_large/{_LAST}", 3650),
    _dropbox("mar_huge", f"1qmfx6fpy3k7j9vcjjs3s/{_LAST}", "4lae281yzxb406atp32vzc83o", f"mar/mar_huge/{_LAST}", 7191),
    *(_hugging_face(f"flowar_{size}", "OliverRen/FlowAR", f"FlowAR-{size[0].upper()}.pth", _SEE) for size in ("small", "large", "huge")),
    *(_hugging_face(f"xar_{size}", "OliverRen/xAR", f"xAR-{size[0].upper()}.pth", _SEE) for size in ("base", "large", "huge")),
    *(_hugging_face(f"harmon_{size}", "wusize/harmon", f"harmon_{size}.pth", _NTU) for size in ("0.5b", "1.5b", "1.5b-o")),
    Published("adm_in256_stats", f"https://raw.githubusercontent.com/LTH14/mar/main/{_STATISTICS}", _STATISTICS, 0, "MIT"),
]
CATALOGUE = {entry.name: entry for entry in _FILES}


# ---------------------------------------------------------------------------------------------------------------- fetch


def fetch(name: str, folder: str | Path = "pretrained_models", attempts: int = 5) -> Path:
    """Download a published file below `folder`, going on where an earlier try stopped.

    Its size and SHA-256 are kept beside it, in `<file>.sha256.json`: the first time records them, and later ones must find
    the same. A file that is there is checked, not downloaded again.

    Returns:
        The file.

    Raises:
        ValueError: the name is unknown, or the file is not the one that was recorded.
        OSError: the download failed `attempts` times.
    """
    if name not in CATALOGUE:
        raise ValueError(f"there is no published file {name!r}; allowed are {', '.join(CATALOGUE)}")
    path = Path(folder) / CATALOGUE[name].path
    download(CATALOGUE[name].url, path, attempts)
    return path


def download(url: str, path: Path, attempts: int = 5) -> None:
    """`fetch` for any address and place."""
    record, part = path.with_name(path.name + ".sha256.json"), path.with_name(path.name + ".part")
    if path.is_file():
        # Without a record it was put there by hand: it is kept, and nobody vouches for it.
        if record.is_file() and not _check_record(path, record, url):
            raise ValueError(
                f"{path} is not the file that {record} describes; move it away to fetch it again, or remove the record to keep it"
            )
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    for attempt in range(1, attempts + 1):
        try:
            _continue_download(url, part)
            break
        except (OSError, EOFError, http.client.HTTPException) as error:
            refused = isinstance(error, urllib.error.HTTPError) and error.code < 500 and error.code not in (408, 429)  # timeout, too many
            if attempt == attempts or refused:
                raise OSError(f"downloading {url} failed ({error}); start again to go on from {part}") from error
            time.sleep(RETRY_SECONDS * 2 ** (attempt - 1))
    if not _check_record(part, record, url):
        part.unlink()
        raise ValueError(f"{url} gave another file than {record} describes; if the publisher changed it, remove the record")
    part.replace(path)


def _check_record(path: Path, record: Path, url: str) -> bool:
    """Whether `path` is the file that `record` describes; without a record, make it."""
    found = {"size": path.stat().st_size, "sha256": sha256(path), "url": url}
    if not record.is_file():
        write_json(record, found)
        return True
    known = json.loads(record.read_text())
    return (known["size"], known["sha256"]) == (found["size"], found["sha256"])


def _continue_download(url: str, part: Path) -> None:
    """Append to `part` what it lacks of `url`."""
    have = part.stat().st_size if part.is_file() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-", "User-Agent": "disa"} if have else {"User-Agent": "disa"})
    try:
        response = urllib.request.urlopen(request, timeout=60)
    except urllib.error.HTTPError as error:
        if error.code != 416 or not have:
            raise
        if error.headers.get("Content-Range", "").rpartition("/")[2] == str(have):  # nothing lies beyond what is there
            return
        part.unlink()
        raise EOFError("the part that was there is longer than the file") from error
    with response:
        if response.headers.get_content_type() == "text/html":
            raise ValueError(f"{url} gave a web page, not a file; its publisher may have moved it, or limits downloads for a while")
        if have and response.status != 206:  # the server starts over, so must we
            have = 0
        length = response.headers.get("Content-Length")
        total = have + int(length) if length else None
        with (
            open(part, "ab" if have else "wb") as file,
            tqdm(total=total, initial=have, unit="B", unit_scale=True, desc=part.name.removesuffix(".part")) as bar,
        ):
            while chunk := response.read(1 << 20):
                file.write(chunk)
                bar.update(len(chunk))
    if total is not None and part.stat().st_size != total:
        raise EOFError(f"the connection ended at {part.stat().st_size} of {total} bytes")


def sha256(path: str | Path) -> str:
    """SHA-256 of a file, in hexadecimal digits."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


# ----------------------------------------------------------------------------------------------------------------- open


def open_checkpoint(path: str | Path, weights: str = "ema") -> dict[str, Tensor]:
    """The weights in a file, by parameter name.

    Args:
        path: a safetensors file, a plain state dict, a released checkpoint (keys `model`, `model_ema`, …), or a folder with
            `checkpoint-last.pth` or, as Hugging Face's repositories have them, safetensors.
        weights: "ema" takes `model_ema` where there is one (a training checkpoint without it gives a warning), "model"
            takes `model`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it cannot be read, or holds no weights.
    """
    if weights not in ("ema", "model"):
        raise ValueError(f"weights is {weights!r}; allowed are ema and model")
    path = Path(path)
    if path.is_dir():
        path = next((path / name for name in (_LAST, _INDEX, "model.safetensors") if (path / name).is_file()), path / _LAST)
    if not path.is_file():
        raise FileNotFoundError(f"there is no checkpoint {path}; `disa checkpoints list` names what can be fetched")
    content: dict[str, Any] = _read_shards(path) if path.name == _INDEX else read_checkpoint(path)
    if weights == "ema" and "optimizer" in content and not content.get("model_ema"):
        warnings.warn(f"{path} holds no moving average (model_ema); the weights of its last step are used", stacklevel=2)
    for key in ("model_ema", "model", "state_dict") if weights == "ema" else ("model", "state_dict"):
        if isinstance(content.get(key), dict) and content[key]:
            content = content[key]
            break
    state = {str(name).removeprefix("module."): value for name, value in content.items() if isinstance(value, Tensor)}
    if not state:
        raise ValueError(f"{path} holds no weights; its keys are {', '.join(map(str, list(content)[:5])) or 'none'}")
    return state


def _read_shards(index: Path) -> dict[str, Tensor]:
    """The weights in the files that `index` names."""
    try:
        names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{index} cannot be read as an index of safetensors ({error}); fetch it again") from error
    paths = [index.with_name(Path(name).name) for name in names]
    if lacking := [path.name for path in paths if not path.is_file()]:
        raise FileNotFoundError(f"{index.parent} lacks {', '.join(lacking)}; fetch the whole repository")
    return {name: value for path in paths for name, value in read_checkpoint(path).items()}


def export(path: str | Path, out: str | Path, weights: str = "ema", dtype: torch.dtype = torch.float32) -> None:
    """Write the weights in a checkpoint as safetensors: small, and safe to pass on.

    Raises:
        FileNotFoundError, ValueError: as `open_checkpoint`.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    # Cloned, for safetensors takes no two names of one memory.
    state = {name: value.to(dtype).clone(memory_format=torch.contiguous_format) for name, value in open_checkpoint(path, weights).items()}
    with atomic_write(out) as beside:
        try:
            save_file(state, beside)
        except SafetensorError as error:
            raise OSError(f"{out} cannot be written ({error})") from error


def read_checkpoint(path: Path) -> dict[str, Any]:
    """What a file holds, with nothing in it executed.

    Raises:
        ValueError: it cannot be read, or holds something else than a dictionary.
    """
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return load_file(path)
        except (SafetensorError, OSError) as error:
            raise ValueError(
                f"{path} cannot be read as safetensors ({error}); it may be truncated: remove it and fetch it again"
            ) from error
    try:
        # Only torch's newer format, a zip archive, can be mapped; that saves reading the optimizer of a training checkpoint.
        with torch.serialization.safe_globals([argparse.Namespace]):
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except (MemoryError, PermissionError):
        raise
    except Exception as error:  # a damaged archive or pickle can fail in any way
        code = re.search(r"GLOBAL ([\w.]+)", str(error))
        if code:
            message = f"{path} holds {code[1]}, which is code and not weights; it was not executed. Give a file with a state dict alone"
        else:
            message = f"{path} cannot be read as a checkpoint; it may be truncated, or something else: remove it and fetch it again"
        raise ValueError(message) from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}, not a dictionary of weights")
    return content


# Released files of FlowAR and xAR also hold tables that our models compute: attention masks, angles of rotary embeddings.
REBUILT = re.compile(r"(^mask|\.rope\.freqs(_cos|_sin)?)$")


def load_into(model: nn.Module, state: dict[str, Tensor], source: str | Path) -> None:
    """Fill `model` with `state`, strictly.

    Raises:
        ValueError: names or shapes differ, or a value is not finite; `source` and the differences are named.
    """
    state = {name: value for name, value in state.items() if not REBUILT.search(name)}
    shapes = {name: list(value.shape) for name, value in model.state_dict().items()}
    tied = shapes.keys() - dict(model.named_parameters()).keys() - dict(model.named_buffers()).keys()
    found = differences(state, shapes, optional=tied)
    if found:
        summary = "; ".join(
            f"{len(names)} {kind}: {', '.join(names[:3])}{', …' if len(names) > 3 else ''}" for kind, names in found.items()
        )
        raise ValueError(f"{source} does not fit this model: {summary}")
    model.load_state_dict(state)


class _Undrawn(TorchFunctionMode):
    """Leaves new parameters as they are: drawing the billions that a file replaces at once takes longer than reading it."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if function.__name__ in ("normal_", "uniform_", "kaiming_uniform_"):
            return args[0] if args else kwargs["tensor"]
        return function(*args, **kwargs)


def load_model(
    name: str, path: str | Path | None = None, weights: str = "ema", *, vae: str | Path | None = None, **overrides: Any
) -> Any:  # the name says which class
    """The model called `name` with the weights in `path`, in eval mode.

    Args:
        name: a key of `disa.models.MODELS`.
        path: what `open_checkpoint` opens; by default the weights that come with the package.
        weights: "ema" or "model".
        vae: KL-16's file, for a checkpoint of Harmon that lacks its tokenizer, as ours of its training do.
        overrides: as for `build_model`.

    Raises:
        FileNotFoundError: there is no such file, or no weights come with the package for this name.
        ValueError: the file does not fit the model, or lacks the tokenizer.
    """
    if path is None:
        path = BUNDLED_WEIGHTS / f"{name}.safetensors"
        if name in MODELS and not path.is_file():
            bundled = sorted(file.stem for file in BUNDLED_WEIGHTS.glob("*.safetensors") if file.stem in MODELS)
            raise FileNotFoundError(
                f"no weights of {name} come with the package (only of {', '.join(bundled)}); give a checkpoint, see `disa checkpoints list`"
            )
    with _Undrawn():
        model = build_model(name, **overrides)
    state = open_checkpoint(path, weights)
    if vae is not None:
        state = {**state, **{f"vae.{key}": value for key, value in load_tokenizer(vae).state_dict().items()}}
    lacking = {key.partition(".")[0] for key in model.state_dict()} - {key.partition(".")[0] for key in state}
    if lacking == {"vae"}:
        raise ValueError(f"{path} holds no image tokenizer, as checkpoints of our training do not; give KL-16's file too (--vae_path)")
    load_into(model, state, path)
    text = BUNDLED_WEIGHTS / f"{name}_tokenizer.json"
    if text.is_file():
        model.text = TextTokenizer.load(text)
    return model.eval()


def load_tokenizer(path: str | Path, latent_channels: int = 16) -> AutoencoderKL:
    """KL-16 with the weights in `path`, in eval mode.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not KL-16.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"there is no tokenizer {path}; fetch it with `disa checkpoints fetch kl16`, or give --vae_path")
    model = AutoencoderKL(latent_channels)
    state = {name: value for name, value in open_checkpoint(path).items() if not name.startswith("loss.")}
    load_into(model, state, path)
    return model.eval()


# --------------------------------------------------------------------------------------------------------------- verify


def manifests() -> list[str]:
    """Names of the published models whose parameters are known."""
    return sorted(path.stem for path in MANIFESTS.glob("*.json"))


@functools.cache
def manifest(name: str) -> dict[str, Any]:
    """Every parameter and buffer of a published model: `parameters` and `buffers` (name -> shape), and `parameter_count`.

    Raises:
        ValueError: there is none of that name.
    """
    if name not in manifests():
        raise ValueError(f"there is no manifest {name!r}; allowed are {', '.join(manifests())}")
    return json.loads((MANIFESTS / f"{name}.json").read_text())


def differences(state: dict[str, Tensor], shapes: dict[str, list[int]], optional: Collection[str] = ()) -> dict[str, list[str]]:
    """How `state` differs from `shapes`: kind of difference -> the tensors it concerns; empty if it does not differ."""
    found = {
        "missing": [name for name in shapes if name not in state and name not in optional],
        "unexpected": [name for name in state if name not in shapes],
        "of another shape": [
            f"{name} {list(state[name].shape)} instead of {shape}"
            for name, shape in shapes.items()
            if name in state and list(state[name].shape) != shape
        ],
        "with NaN or infinity": [  # a released attention mask may hold infinities
            name for name, value in state.items() if value.is_floating_point() and not REBUILT.search(name) and not value.isfinite().all()
        ],
    }
    return {kind: names for kind, names in found.items() if names}


def verify(path: str | Path, name: str | None = None, weights: str = "ema") -> tuple[str, list[str]]:
    """Compare a file with a published model's names and shapes, and look for values that are not finite.

    Returns:
        The manifest's name (the closest one, if not given) and every difference, none if it matches.
    """
    state = {key: value for key, value in open_checkpoint(path, weights).items() if not key.startswith("loss.")}
    if name is None:

        def agreement(candidate: str) -> int:
            shapes = manifest(candidate)["parameters"]
            return sum(shapes.get(key) == list(value.shape) for key, value in state.items()) - len(shapes.keys() - state.keys())

        name = max(manifests(), key=agreement)
    known = manifest(name)
    found = differences(state, {**known["parameters"], **known["buffers"]}, optional=known["buffers"])
    return name, [f"{kind}: {one}" for kind, names in found.items() for one in names]
