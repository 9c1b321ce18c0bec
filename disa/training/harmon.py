"""Harmon's training from a config: batches of text to image, and of image to text."""

from __future__ import annotations

import argparse
import contextlib
import inspect
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, TypeAlias

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset, TensorDataset
from torchvision.transforms.functional import pil_to_tensor

from ..data.captions import sample_captions, sample_questions
from ..data.fashion import fashion_mnist
from ..data.text import TEXT_TO_IMAGE, UNCONDITIONAL_PROMPT, TextTokenizer
from ..data.transforms import crop_to_tensor, open_image, pad_and_resize, to_signed
from ..models import MODELS, build_model
from ..models.harmon import IGNORED, Harmon
from ..models.vae import VAE, AutoencoderKL
from ..runtime import distributed
from ..runtime.configs import read_config
from ..runtime.devices import DTYPES
from ..runtime.files import BUNDLED
from ..runtime.start import start
from ..weights.load import (
    find_vae,
    find_weights,
    load_bundled_vae,
    load_into,
    load_model,
    load_vae,
    open_checkpoint,
)
from .checkpoint import find_checkpoint
from .data import latents_by_index, sample_latents
from .loop import train
from .optimization import TrainingSettings

Batch = dict[str, Tensor | int]  # arguments of one of Harmon's losses
# A data set, and a function from a batch of its items to the arguments of `Harmon.forward`.
TextData: TypeAlias = "tuple[TensorDataset | ImageTexts, Callable[..., tuple[Batch, Batch | None]]]"


def text_to_image_batch(text: TextTokenizer, latents: Tensor, captions: Sequence[str], drop: float) -> Batch:
    """Build the arguments of `text_to_image_loss`; the unconditional prompt replaces a share `drop` of the captions."""
    pairs = zip(captions, (torch.rand(len(captions)) < drop).tolist(), strict=True)
    prompts = [UNCONDITIONAL_PROMPT if dropped else TEXT_TO_IMAGE.format(caption) for caption, dropped in pairs]
    ids, mask = text.pad([text.chat(prompt) for prompt in prompts])
    return {"latents": latents, "input_ids": ids.to(latents.device), "attention_mask": mask.to(latents.device)}


def image_to_text_batch(
    text: TextTokenizer, latents: Tensor, pairs: Sequence[tuple[str, str]], buffer_size: int
) -> Batch:
    """Build the arguments of `image_to_text_loss` from pairs of a question and its answer."""
    image_tokens = latents.shape[2] * latents.shape[3] + buffer_size
    rows = [(text.question(asked, image_tokens), [*text.ids(answer), text.end_token]) for asked, answer in pairs]
    ids, mask = text.pad([question + answer for question, answer in rows])
    labels, _ = text.pad([[IGNORED] * len(question) + answer for question, answer in rows], IGNORED)
    batch = {"latents": latents, "input_ids": ids, "attention_mask": mask, "labels": labels}
    return {**{name: value.to(latents.device) for name, value in batch.items()}, "image_token": text.image_token}


def fashion_text(
    text: TextTokenizer, vae: VAE, buffer_size: int, root: str | Path | None = None, drop: float = 0.1
) -> TextData:
    """Read Fashion-MNIST, with captions from the grammar, and questions on a quarter of each batch."""
    images, labels = fashion_mnist(True, root)
    to_latents = latents_by_index(vae, images)

    def prepare(images: Tensor, labels: Tensor, indices: Tensor) -> tuple[Batch, Batch]:
        latents, asked = to_latents(indices), -(-len(images) // 4)
        pairs = sample_questions(images[:asked], labels[:asked])
        image_to_text = image_to_text_batch(text, latents[:asked], pairs, buffer_size)
        return text_to_image_batch(text, latents, sample_captions(images, labels), drop), image_to_text

    return TensorDataset(images, labels, torch.arange(len(images))), prepare


def folder_text(
    text: TextTokenizer,
    vae: AutoencoderKL,
    buffer_size: int,
    *,
    text_to_image: Mapping[str, str],
    image_to_text: Mapping[str, str] | None = None,
    image_size: int = 512,
    drop: float = 0.1,
) -> TextData:
    """Read image folders in the released layout, see `ImageTexts`."""

    def prepare(
        pixels: Tensor, captions: Sequence[str], asked: Tensor | None = None, *pairs: Sequence[str]
    ) -> tuple[Batch, Batch | None]:
        batch = text_to_image_batch(text, sample_latents(vae, to_signed(pixels)), captions, drop)
        if asked is None:
            return batch, None
        latents = sample_latents(vae, to_signed(asked))
        return batch, image_to_text_batch(text, latents, list(zip(*pairs, strict=True)), buffer_size)

    return ImageTexts(text_to_image, image_to_text, image_size), prepare


class ImageList:
    """A list of images in the released layout; raises ValueError for another one, FileNotFoundError for no list.

    `data_path` is a JSON list of objects whose "image" lies in `local_folder`. A caption is a "caption", or stands
    under `cap_source` in the JSON file in `cap_folder` that an "annotation" names; a question and its answer are the
    first two "value"s of "conversations".
    """

    def __init__(
        self, data_path: str, local_folder: str = "", cap_folder: str = "", cap_source: str = "caption"
    ) -> None:
        self.data_path, self.cap_folder, self.cap_source = data_path, Path(cap_folder), cap_source
        with _explain(f"{data_path} is no JSON"):
            self.entries: list[dict[str, Any]] = json.loads(Path(data_path).read_text())  # Any: of JSON
        with _explain(f'{data_path} is no list of objects with an "image"; see Harmon_DiSA/README.md for the layout'):
            self.images = [Path(local_folder, entry["image"]) for entry in self.entries]
            if not self.images:
                raise ValueError("it is empty")

    def image(self, index: int) -> Image.Image:
        try:
            return open_image(self.images[index])
        except ValueError as error:
            raise ValueError(f"{error}; remove it from {self.data_path}, or mend it") from error

    def caption(self, index: int) -> str:
        entry = self.entries[index]
        if "caption" in entry:
            return str(entry["caption"])
        if "annotation" not in entry:
            raise ValueError(f"{self.data_path} has an entry without a caption or an annotation: {entry}")
        path = self.cap_folder / entry["annotation"]
        with _explain(f"{path} has no caption under {self.cap_source!r}; name the right key in cap_source"):
            return str(json.loads(path.read_text())[self.cap_source])

    def question(self, index: int) -> tuple[str, str]:
        entry = self.entries[index]
        with _explain(f"{self.data_path} has an entry without a question and an answer: {entry}"):
            question, answer = (turn["value"] for turn in entry["conversations"][:2])
            return question, answer


@contextlib.contextmanager
def _explain(sentence: str) -> Iterator[None]:
    """Raise a ValueError with `sentence` where a file is not of its layout."""
    try:
        yield
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{sentence} ({error})") from error


class ImageTexts(Dataset[tuple[Tensor | str, ...]]):
    """Images with captions, and with questions if there are any, of two `ImageList`s; the shorter starts over."""

    def __init__(
        self, text_to_image: Mapping[str, str], image_to_text: Mapping[str, str] | None, image_size: int
    ) -> None:
        self.described, self.image_size = ImageList(**text_to_image), image_size
        self.asked = ImageList(**image_to_text) if image_to_text else None

    def __len__(self) -> int:
        return max(len(images.entries) for images in (self.described, self.asked) if images)

    def __getitem__(self, index: int) -> tuple[Tensor | str, ...]:
        if index >= len(self):
            raise IndexError(index)
        place, size = index % len(self.described.entries), self.image_size
        item = (crop_to_tensor(self.described.image(place), size), self.described.caption(place))
        if self.asked is None:
            return item
        place = index % len(self.asked.entries)
        # The whole image: the answer may be at its edge.
        pixels = pil_to_tensor(pad_and_resize(self.asked.image(place), size, size))
        return *item, pixels, *self.asked.question(place)


@dataclass(frozen=True)
class TrainingConfig:
    """A training config."""

    model: str
    data: Mapping[str, object]  # `type` (fashion or folders), and the arguments of `fashion_text` or `folder_text`
    training: TrainingSettings = field(default_factory=TrainingSettings)
    mar: Mapping[str, object] = field(default_factory=dict)
    llm: Mapping[str, object] = field(default_factory=dict)
    checkpoint: str | None = None  # weights to begin with; without it new ones, and
    mar_weights: str | None = None  # MAR's: a file, or a bundled model's name
    vae_path: str | None = None  # KL-16's, where `checkpoint` lacks them
    text_tokenizer: str | None = None  # see `TextTokenizer.load`; by default the one that comes with the package
    freeze_llm: bool = False


def load_training_config(
    path: str, options: Mapping[str, object] | None = None, seed: int | None = None
) -> TrainingConfig:
    """Read a training config; `options` and `seed` replace what it says.

    Raises FileNotFoundError if there is no such file, ValueError for what training does not know, or lacks.
    """
    content = {key: value for key, value in read_config(path, ("model", "data"), options).items() if key[:1] != "_"}
    words = {str: "a text is", bool: "True or False is", Mapping: "names and values are"}
    kinds = {"model": str, "freeze_llm": bool, **dict.fromkeys(("data", "training", "mar", "llm"), Mapping)}
    for name, needed in kinds.items():
        if name in content and not isinstance(value := content[name], needed):
            raise ValueError(f"{path}: {name} is {value!r}; {words[needed]} needed")
    training = {"dtype": "float32", **content.pop("training", {}), **({} if seed is None else {"seed": seed})}
    for what, said, kind in (("", content, TrainingConfig), (": training", training, TrainingSettings)):
        allowed = sorted(one.name for one in fields(kind))
        if unknown := sorted(said.keys() - set(allowed)):
            raise ValueError(
                f"{path}{what} has {', '.join(unknown) or 'an empty name'}; allowed are {', '.join(allowed)}"
            )
    for old, new in (("drawing", "text_to_image"), ("answering", "image_to_text")):
        if old in content["data"]:
            raise ValueError(f"{path}: data.{old} is called data.{new} now; rename it")
    if training["dtype"] not in DTYPES:
        raise ValueError(f"{path}: training.dtype is {training['dtype']!r}; allowed are {', '.join(DTYPES)}")
    return TrainingConfig(**content, training=TrainingSettings(**{**training, "dtype": DTYPES[training["dtype"]]}))


def starting_model(config: TrainingConfig) -> Harmon:
    """Build the model with the weights to begin with; raise ValueError if a file does not fit or the VAE has none."""
    try:
        if config.checkpoint:
            model = load_model(config.model, config.checkpoint, vae=config.vae_path, mar=config.mar, llm=config.llm)
        else:
            model = build_model(config.model, mar=config.mar, llm=config.llm)
    except (TypeError, AttributeError, ArithmeticError, RuntimeError) as error:  # sizes are whatever the config says
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ValueError(f"the config's mar or llm does not fit ({reason})") from error
    assert isinstance(model, Harmon)  # others have no `llm`
    if config.checkpoint:
        return model
    if config.mar_weights in MODELS:
        load_into(model.mar, load_model(config.mar_weights).state_dict(), config.mar_weights)
    elif config.mar_weights:
        load_into(model.mar, open_checkpoint(config.mar_weights), config.mar_weights)
    if config.vae_path:
        model.vae = load_vae(config.vae_path)
    elif MODELS[config.model].bundled:
        model.vae = load_bundled_vae(config.model)
    else:
        raise ValueError("the config has neither a checkpoint nor a vae_path, so the VAE would be random; give one")
    return model


def _check_kind(config: TrainingConfig) -> str:
    """Return the kind of data; raise ValueError if it, or the model, is not what can be trained."""
    if not issubclass(getattr(MODELS.get(config.model), "build", object), Harmon):
        raise ValueError(
            f"model is {config.model!r}; allowed are {', '.join(name for name in MODELS if 'harmon' in name)}"
        )
    wanted = "fashion" if MODELS[config.model].bundled else "folders"
    if (kind := config.data.get("type")) != wanted:
        raise ValueError(f"data.type is {kind!r}; {config.model} is trained on {wanted}")
    return wanted


def _check_data(config: TrainingConfig) -> None:
    """Refuse, before weights are loaded, data that is not there or not described as needed."""
    kind, options = _check_kind(config), {key: value for key, value in config.data.items() if key != "type"}
    with _explain("the config's data does not fit; see configs/examples/"):
        inspect.signature(fashion_text if kind == "fashion" else folder_text).bind(None, None, 0, **options)
    if not (isinstance(drop := options.get("drop", 0.1), (int, float)) and 0 <= drop <= 1):
        raise ValueError(f"data.drop is {drop!r}; a share in [0, 1] is needed")
    for name in ("text_to_image", "image_to_text"):
        if (said := options.get(name)) is None:
            continue
        if not (isinstance(said, Mapping) and isinstance(said.get("data_path"), str)):
            raise ValueError(f"data.{name} is {said!r}; names and values are needed, with the list's data_path")
        if not Path(said["data_path"]).is_file():
            raise FileNotFoundError(f"there is no data.{name}.data_path {said['data_path']}")
    for path in (config.checkpoint, config.mar_weights):
        if path and path not in MODELS:
            find_weights(path)
    if config.vae_path:
        find_vae(config.vae_path)


def _load_text(config: TrainingConfig) -> TextTokenizer:
    bundled = BUNDLED / f"{config.model}_tokenizer.json"
    if not (config.text_tokenizer or bundled.is_file()):
        raise ValueError(f"the config has no text_tokenizer, and none comes with the package for {config.model}")
    return TextTokenizer.load(config.text_tokenizer or bundled)


def _open_data(config: TrainingConfig, text: TextTokenizer, vae: VAE, buffer_size: int) -> TextData:
    """Open the data."""
    options, kind = dict(config.data), config.data["type"]
    options.pop("type")
    open_data: Callable[..., TextData] = fashion_text if kind == "fashion" else folder_text
    try:
        return open_data(text, vae, buffer_size, **options)
    except (KeyError, TypeError) as error:
        raise ValueError(f"the config's data does not fit ({error}); see configs/examples/") from error


def run_training(config: TrainingConfig, output: Path, *, resume: str | None = None, device: str = "auto") -> None:
    """Train as a config says, from where an earlier run in `output` stopped."""
    _check_data(config)
    place, settings = start(device), config.training
    torch.manual_seed(settings.seed)
    checkpoint = find_checkpoint(resume) if resume else None
    text = _load_text(config)
    model = starting_model(config)
    # Training needs the VAE and does not change it: it is no part of what is wrapped, averaged and saved.
    vae = model.vae.requires_grad_(False).to(place)
    del model.vae
    model.llm.requires_grad_(not config.freeze_llm)
    dataset, prepare = _open_data(config, text, vae, model.mar.buffer_size)
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    distributed.print_main(f"{trained:,} parameters to train, {len(dataset):,} items")
    train(
        model,
        dataset,
        prepare,
        settings,
        device=place,
        output=output,
        log=output,
        # `arguments` of the model are for `Pipeline.from_pretrained`.
        args=argparse.Namespace(**asdict(config), arguments={"mar": dict(config.mar), "llm": dict(config.llm)}),
        resume=checkpoint,
        shard=os.environ.get("ACCELERATE_USE_FSDP") == "true",  # set by `accelerate launch --use_fsdp`
    )
    distributed.shutdown()
