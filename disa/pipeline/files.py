"""Pipelines as files: of models by name, folders, trainings, and repositories on the Hugging Face hub."""

from __future__ import annotations

import fnmatch
import json
import math
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from ..annealing import AnnealedModel
from ..data.fashion import FASHION_CLASSES
from ..data.text import TextTokenizer
from ..generation.generators import Sampling, choose_attention
from ..models import MODELS
from ..models.checks import Arguments
from ..models.harmon import Harmon
from ..models.vae import VAE, AutoencoderKL, SpaceToDepth
from ..runtime.devices import DTYPES, resolve_device, resolve_dtype
from ..runtime.files import atomic_write, write_json
from ..runtime.names import did_you_mean
from ..tables.recipes import disa_recipe
from ..weights.fetch import CATALOGUE, LAST, find_published
from ..weights.hub import hub_file, hub_folder
from ..weights.load import (
    PathLike,
    find_vae,
    load_bundled_vae,
    load_into,
    load_model,
    load_vae,
    open_checkpoint,
    read_checkpoint,
    save_weights,
)

CONFIG, WEIGHTS, VAE_WEIGHTS, TEXT = "config.json", "model.safetensors", "vae.safetensors", "text_tokenizer"
HUB = {"wusize/Harmon-0_5B": "harmon_0.5b", "wusize/Harmon-1_5B": "harmon_1.5b"}  # repositories that others wrote
PATTERNS = ("*.json", "*.safetensors", "*.txt", f"{TEXT}/*")  # of the files that are fetched
Self = TypeVar("Self", bound="Pretrained")


@dataclass
class Pretrained:
    """A model with what turns it into images: its VAE, text tokenizer, class names, size and good settings.

    Attributes:
        model: in eval mode.
        vae: decodes its latents.
        name: a key of `MODELS`.
        sampling: the settings of a call that gives none: the model's recipe with DiSA.
        arguments: of `build_model`, besides the name.
        classes: names of the labels, if they have any.
        image_size: pixels per side that a call without one gives; other sizes are Harmon's alone.
    """

    model: AnnealedModel
    vae: VAE
    name: str
    sampling: Sampling
    arguments: Arguments
    classes: Sequence[str] | None
    image_size: int

    @classmethod
    def from_pretrained(
        cls: type[Self],
        source: PathLike,
        *,
        checkpoint: PathLike | None = None,
        vae: PathLike | None = None,
        text_tokenizer: PathLike | None = None,
        device: str | torch.device = "auto",
        dtype: str | torch.dtype = "auto",
        **arguments: object,
    ) -> Self:
        """Load a pipeline.

        Args:
            source: a name of `disa.list_models()`; a folder that `save_pretrained` or a training wrote; or a repository
                on the Hugging Face hub, such as `wusize/Harmon-1_5B` or what `push_to_hub` wrote.
            checkpoint, vae: of a name whose weights do not come with the package: its file or folder and KL-16's file;
                by default what `disa checkpoints fetch` put into the shared folder, or the hub has of the former.
            text_tokenizer: of Harmon, a folder or a repository; by default the released one.
            device: "auto" takes what is there.
            dtype: "auto" takes on CUDA the half-precision type that suits the model, else float32.
            arguments: of `build_model`, for a checkpoint of another shape than the name's.

        Raises:
            ValueError: the name is unknown, an argument is impossible, or a file does not fit.
            OSError: a file is missing, or the repository cannot be reached.
        """
        place, name = resolve_device(str(device)), str(source)
        _resolve_dtype(dtype, place)  # refuses an unknown one before anything is fetched or read
        if name in MODELS:
            return cls._named(name, checkpoint, vae, text_tokenizer, arguments)._to(place, dtype)
        given = {"checkpoint": checkpoint, **arguments}
        if lost := [key for key, value in given.items() if value is not None]:
            raise ValueError(f"{', '.join(lost)} go with a model's name; {name!r} is none{did_you_mean(name, MODELS)}")
        folder = Path(source) if Path(source).is_dir() else _download(name)
        if name in HUB:
            pipe = cls._named(HUB[name], folder, vae, text_tokenizer or folder, {})
        elif (folder / LAST).is_file():
            args = _training(folder / LAST)
            name, text_tokenizer = args["model"], text_tokenizer or args.get("text_tokenizer")
            if MODELS[name].build is Harmon and not MODELS[name].bundled:  # our training leaves its VAE out
                vae = vae or find_published("kl16")
            pipe = cls._named(name, folder, vae, text_tokenizer, args["arguments"])
        elif vae or text_tokenizer:
            raise ValueError(f"{name} holds its own VAE and text tokenizer; give none")
        else:
            pipe = cls._saved(folder)
        return pipe._to(place, dtype)

    @classmethod
    def _named(
        cls: type[Self],
        name: str,
        checkpoint: PathLike | None,
        vae: PathLike | None,
        text_tokenizer: PathLike | None,
        arguments: Arguments,
    ) -> Self:
        """Load the weights of a model by its name."""
        recipe, harmon = disa_recipe(name), MODELS[name].build is Harmon
        if text_tokenizer is not None and not harmon:
            raise ValueError(f"text_tokenizer is {text_tokenizer}; {name} takes class labels")
        fetched = checkpoint is None and not MODELS[name].bundled
        if fetched and recipe.model != name:
            raise ValueError(f"{name} is the name of a shape, without weights; give a checkpoint")
        vae_path = _vae_path(name, vae)  # before anything is fetched
        if fetched:
            checkpoint = _published(str(recipe.checkpoint))
        model = load_model(name, checkpoint, "ema", vae=vae_path if harmon else None, **arguments)
        if isinstance(model, Harmon) and (text_tokenizer or recipe.text_tokenizer):
            model.text = TextTokenizer.load(text_tokenizer or str(recipe.text_tokenizer))
        length = tokens(model)
        sampling, size = recipe.sampling, recipe.image_size
        if recipe.model != name:  # the recipe is of another size
            num_iter, size = sampling.num_iter, None
            sampling = replace(sampling, num_iter=None if num_iter is None else min(num_iter, length))
        found = model.vae if isinstance(model, Harmon) else _load_vae(name, vae_path)
        classes = class_names(model, MODELS[name].bundled)
        size = size or math.isqrt(length) * getattr(model, "patch_size", 1) * found.stride
        return cls(model, found, name, sampling, arguments, classes, size)

    @classmethod
    def _saved(cls: type[Self], folder: Path) -> Self:
        """Load what `save_pretrained` wrote."""
        path = folder / CONFIG
        if not path.is_file():
            raise FileNotFoundError(
                f"{folder} has no {CONFIG}; give a folder that save_pretrained wrote, or a model's name"
            )
        try:
            config = json.loads(path.read_text(encoding="utf-8"))
            name, arguments, kind = config["model"], config["arguments"], config["vae"]
            sampling = Sampling.from_dict(config["sampling"])
            classes, size = config["classes"], config["image_size"]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{path} is not a pipeline's ({error}); save_pretrained writes one") from error
        model = load_model(name, folder / WEIGHTS, **arguments)
        if isinstance(model, Harmon):
            model.text, vae = TextTokenizer.load(folder / TEXT), model.vae
        else:
            vae = AutoencoderKL(**kind) if "widths" in kind else SpaceToDepth(**kind)
            if (folder / VAE_WEIGHTS).is_file():
                load_into(vae, open_checkpoint(folder / VAE_WEIGHTS), folder / VAE_WEIGHTS)
        return cls(model, vae.eval().requires_grad_(False), name, sampling, arguments, classes, size)

    def _to(self: Self, device: torch.device, dtype: str | torch.dtype) -> Self:
        """Move the networks."""
        kind = _resolve_dtype(dtype, device, MODELS[self.name].half)
        self.model.to(device, DTYPES[kind])
        self.vae.to(device, DTYPES[kind])
        if isinstance(self.model, Harmon):
            choose_attention(self.model.llm, device)
        return self

    def save_pretrained(self, folder: PathLike) -> Path:
        """Write a folder that `from_pretrained` loads: settings, weights as safetensors, tokenizers, a model card.

        With the same number type on the same machine, its images are the same bit for bit.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        _save_weights(self.model, folder / WEIGHTS)
        kind: dict[str, object] | None = None
        if isinstance(self.model, Harmon):
            assert self.model.text is not None
            self.model.text.tokenizer.save_pretrained(folder / TEXT)
        else:
            kind = _vae_config(self.vae)
            if self.vae.state_dict():
                _save_weights(self.vae, folder / VAE_WEIGHTS)
        config = {
            "model": self.name,
            "arguments": dict(self.arguments),
            "sampling": self.sampling.to_dict(),
            "vae": kind,
            "classes": self.classes,
            "image_size": self.image_size,
            "library_name": "disa",
        }
        with atomic_write(folder / "README.md") as beside:
            beside.write_text(self._card(), encoding="utf-8")
        write_json(folder / CONFIG, config)  # last: a folder without it is not whole
        return folder

    def push_to_hub(self, repository: str, *, private: bool = False, token: str | None = None) -> str:
        """Write `repository` ("owner/name") on the Hugging Face hub as `save_pretrained` does; return its address."""
        from tempfile import TemporaryDirectory

        from huggingface_hub import HfApi

        api = HfApi(token=token)
        with TemporaryDirectory() as folder:
            self.save_pretrained(folder)
            address = api.create_repo(repository, private=private, exist_ok=True)
            api.upload_folder(repo_id=repository, folder_path=folder, commit_message="Write a pipeline of disa")
        return str(address)

    def _card(self) -> str:
        """Write a model card with front matter."""
        task = "text-to-image" if isinstance(self.model, Harmon) else "unconditional-image-generation"
        call = 'prompts=["a bag"]' if isinstance(self.model, Harmon) else "labels=[0]"
        licence = "license: mit\n" if MODELS[self.name].bundled else ""
        rows = "\n".join(f"| {key} | {value} |" for key, value in self.sampling.to_dict().items())
        return (
            f"---\nlibrary_name: disa\npipeline_tag: {task}\n{licence}tags:\n- disa\n- {self.name}\n---\n\n"
            f"# {self.name}\n\nAn image generator for [DiSA](https://arxiv.org/abs/2505.20297), diffusion step "
            "annealing.\n\n"
            '```python\nimport disa\n\npipe = disa.Pipeline.from_pretrained("REPOSITORY")\n'
            f'pipe({call}, seeds=[1]).images[0].save("image.png")\n```\n\n'
            f"| setting | default |\n|---|---|\n{rows}\n"
        )


def list_models(pattern: str = "*") -> list[str]:
    """Names that `Pipeline.from_pretrained` takes, whose weights come with the package or are published.

    `pattern` selects some, like "*_fashion".
    """
    names = [name for name, spec in MODELS.items() if spec.bundled or name in CATALOGUE]
    return fnmatch.filter(names, pattern)


def tokens(model: AnnealedModel) -> int:
    """Tokens of an image of the size that the model was trained on."""
    return int((model.mar if isinstance(model, Harmon) else model).grid ** 2)  # type: ignore[operator]  # a module's attribute


def class_names(model: AnnealedModel, bundled: bool) -> Sequence[str] | None:
    """Names of the model's labels: those of Fashion-MNIST, or where there are a thousand, of ImageNet."""
    if bundled:
        return None if isinstance(model, Harmon) else FASHION_CLASSES
    if getattr(model, "num_classes", 0) != 1000:
        return None
    from torchvision.models import ResNet50_Weights

    return list(ResNet50_Weights.IMAGENET1K_V1.meta["categories"])


def _resolve_dtype(dtype: str | torch.dtype, device: torch.device, half: str = "float16") -> str:
    return resolve_dtype(str(dtype).removeprefix("torch."), device, half)


def _published(name: str) -> Path:
    """Find a published file, or fetch it from the hub into its cache."""
    try:
        return find_published(name)
    except FileNotFoundError:
        if (place := CATALOGUE[name].hub) is None:
            raise
    return hub_file(*place)


def _training(path: Path) -> dict[str, Any]:  # Any: of several types
    """Read from a checkpoint of our training which `model` it is of, and its `arguments`."""
    args = vars(read_checkpoint(path).get("args") or Namespace())
    if "arguments" not in args:
        raise ValueError(f"{path} does not say which model it is of; give its name, and checkpoint={str(path)!r}")
    return args


def _vae_path(name: str, vae: PathLike | None) -> Path | None:
    """Choose KL-16's file; None for the bundled models, which have another VAE, and Harmon, whose files hold it."""
    if MODELS[name].bundled and vae is not None:
        raise ValueError(f"vae is {vae}; {name} has a VAE of its own, which comes with the package")
    if vae is None:
        return None if MODELS[name].bundled or MODELS[name].build is Harmon else find_published("kl16")
    return find_vae(vae)


def _load_vae(name: str, path: Path | None) -> VAE:
    """Load KL-16, or the VAE of a bundled model."""
    return load_bundled_vae(name) if path is None else load_vae(path)


def _vae_config(vae: VAE) -> dict[str, object]:
    """Arguments of the class of `vae`."""
    if isinstance(vae, SpaceToDepth):
        return {"stride": vae.stride, "mean": vae.mean, "std": vae.std}
    blocks = sum(name.endswith("norm1.weight") for name in vae.encoder.down[0].state_dict())
    shape = {"blocks": blocks, "image_channels": vae.image_channels}
    return {"latent_channels": vae.latent_channels, "widths": vae.widths, **shape, "scale": vae.scale}


def _save_weights(model: nn.Module, path: Path) -> None:
    """Write the weights of `model`, each once, as safetensors."""
    own = {name for name, _ in (*model.named_parameters(), *model.named_buffers())}  # no second names of one tensor
    state = {name: value.contiguous() for name, value in model.state_dict().items() if name in own}
    save_weights(state, path)


def _download(repository: str) -> Path:
    """Fetch a repository of the Hugging Face hub, once, into the cache that all its users share."""
    if repository.count("/") != 1 or repository.startswith((".", "/", "~")):
        raise ValueError(
            f"there is no model or folder {repository!r}{did_you_mean(repository, MODELS)}; "
            "disa.list_models() names the models, and a repository on the hub is owner/name"
        )
    return hub_folder(repository, PATTERNS)
