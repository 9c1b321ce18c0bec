"""What Harmon is trained on: batches of text to image, and of image to text."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset, TensorDataset
from torchvision.transforms.functional import pil_to_tensor

from .. import distributed
from ..checkpoints import BUNDLED_WEIGHTS, load_into, load_model, load_tokenizer, open_checkpoint
from ..configs import read_config
from ..flags import DTYPES
from ..models import MODELS, build_model
from ..models.harmon import IGNORED
from ..models.tokenizer import AutoencoderKL, Tokenizer
from ..text import DRAW, DRAW_ANYTHING, TextTokenizer
from ..transforms import open_image, pad_and_resize
from .captions import draw_captions, draw_questions
from .checkpoint import find_checkpoint
from .data import crop_to_tensor, fashion_mnist, to_signed
from .loop import TrainingSettings, train


@dataclass(frozen=True)
class TextData:
    """What the training loop reads.

    Attributes:
        dataset: items, the same whenever asked for.
        prepare: the parts of a batch of items, tensors on the model's device -> the arguments of `Harmon.forward`.
    """

    dataset: Any
    prepare: Callable[..., tuple[dict[str, Any] | None, dict[str, Any] | None]]


def drawing_batch(text: TextTokenizer, latents: Tensor, captions: Sequence[str], drop: float) -> dict[str, Any]:
    """Latents [B, C, H, W] and their captions, a share `drop` of them replaced by the unconditional prompt: `drawing_loss`'s arguments."""
    dropped = (torch.rand(len(captions)) < drop).tolist()
    prompts = [DRAW_ANYTHING if unsaid else DRAW.format(caption) for caption, unsaid in zip(captions, dropped, strict=True)]
    ids, mask = text.pad([text.turn(prompt) for prompt in prompts])
    return {"latents": latents, "input_ids": ids.to(latents.device), "attention_mask": mask.to(latents.device)}


def answering_batch(text: TextTokenizer, latents: Tensor, pairs: Sequence[tuple[str, str]], buffer_size: int) -> dict[str, Any]:
    """Latents [B, C, H, W] and a question and its answer on each: `answering_loss`'s arguments."""
    image_tokens = latents.shape[2] * latents.shape[3] + buffer_size
    questions = [text.question(question, image_tokens) for question, _ in pairs]
    answers = [[*text.ids(answer), text.end_token] for _, answer in pairs]
    ids, mask = text.pad([question + answer for question, answer in zip(questions, answers, strict=True)])
    labels, _ = text.pad([[IGNORED] * len(q) + a for q, a in zip(questions, answers, strict=True)], IGNORED)
    device = latents.device
    return {
        **{"latents": latents, "input_ids": ids.to(device), "attention_mask": mask.to(device), "labels": labels.to(device)},
        "image_token": text.image_token,
    }


def fashion_text(
    text: TextTokenizer, tokenizer: Tokenizer, buffer_size: int, root: str | Path | None = None, drop: float = 0.1
) -> TextData:
    """Fashion-MNIST with captions from the grammar: every image is drawn, and a quarter of a batch is asked about."""
    images, labels = fashion_mnist(True, root)

    def prepare(images: Tensor, labels: Tensor) -> tuple[dict[str, Any], dict[str, Any]]:
        latents, asked = tokenizer.encode(to_signed(images)[:, None]), -(-len(images) // 4)
        answering = answering_batch(text, latents[:asked], draw_questions(images[:asked], labels[:asked]), buffer_size)
        return drawing_batch(text, latents, draw_captions(images, labels), drop), answering

    return TextData(TensorDataset(images, labels), prepare)


class ImageTexts(Dataset[tuple[Any, ...]]):
    """Images with captions, to be drawn, beside images with questions, to be asked about; the shorter list starts over.

    Both are lists in the released layout: `data_info.json` holds objects, whose "image" lies in `local_folder`. A caption is the
    "caption" of the object, or of the JSON file in `cap_folder` that its "annotation" names. A question and its answer are the
    first two "value"s of its "conversations".

    Args:
        drawing, answering: dicts of `data_path`, `local_folder`, and for captions `cap_folder` and `cap_source` (the caption's key
            in its file); `answering` may be missing.
        image_size: pixels a side; images are cropped to their central square.

    Raises:
        ValueError: a list or an entry is not of this layout.
        FileNotFoundError: a list is not there.
    """

    def __init__(self, drawing: dict[str, Any], answering: dict[str, Any] | None, image_size: int) -> None:
        self.drawing, self.answering, self.image_size = drawing, answering, image_size
        self.drawn = _read_list(drawing["data_path"])
        self.asked = _read_list(answering["data_path"]) if answering else []

    def __len__(self) -> int:
        return max(len(self.drawn), len(self.asked))

    def __getitem__(self, index: int) -> tuple[Any, ...]:
        if index >= len(self):
            raise IndexError(index)
        entry = self.drawn[index % len(self.drawn)]
        item: tuple[Any, ...] = (crop_to_tensor(_open(self.drawing, entry), self.image_size), self._caption(entry))
        if self.answering:
            entry = self.asked[index % len(self.asked)]
            try:
                question, answer = (turn["value"] for turn in entry["conversations"][:2])
            except (KeyError, TypeError, ValueError) as error:
                raise ValueError(f"{self.answering['data_path']} has an entry without a question and an answer: {entry}") from error
            # Seen whole, as it will be when it is asked about: the answer may be at its edge.
            item += (pil_to_tensor(pad_and_resize(_open(self.answering, entry), self.image_size, self.image_size)), question, answer)
        return item

    def _caption(self, entry: dict[str, Any]) -> str:
        if "caption" in entry:
            return entry["caption"]
        if "annotation" not in entry:
            raise ValueError(f"{self.drawing['data_path']} has an entry without a caption or an annotation: {entry}")
        path, key = Path(self.drawing.get("cap_folder", "")) / entry["annotation"], self.drawing.get("cap_source", "caption")
        try:
            return json.loads(path.read_text())[key]
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path} has no caption under {key!r}; name the right key in cap_source") from error


def _open(source: dict[str, Any], entry: dict[str, Any]) -> Image.Image:
    path = Path(source.get("local_folder", "")) / entry["image"]
    try:
        return open_image(path)
    except ValueError as error:
        raise ValueError(f"{error}; remove it from {source['data_path']}, or mend it") from error


def _read_list(path: str | Path) -> list[dict[str, Any]]:
    try:
        entries = json.loads(Path(path).read_text())
    except ValueError as error:
        raise ValueError(f"{path} is no JSON ({error})") from error
    if not isinstance(entries, list) or not entries or not all(isinstance(entry, dict) and "image" in entry for entry in entries):
        raise ValueError(f'{path} is no list of objects with an "image"; see Harmon_DiSA/README.md for the layout')
    return entries


def folder_text(
    text: TextTokenizer,
    tokenizer: AutoencoderKL,
    buffer_size: int,
    *,
    drawing: dict[str, Any],
    answering: dict[str, Any] | None = None,
    image_size: int = 512,
    drop: float = 0.1,
) -> TextData:
    """Image folders in the released layout, see `ImageTexts`."""

    def encode(pixels: Tensor) -> Tensor:
        with torch.no_grad():
            images = to_signed(pixels)
            return tokenizer.encode(images, noise=torch.randn(tokenizer.latent_shape(images), device=images.device))

    def prepare(drawn: Tensor, captions: Sequence[str], *asked: Any) -> tuple[dict[str, Any], dict[str, Any] | None]:
        batch = drawing_batch(text, encode(drawn), captions, drop)
        if not asked:
            return batch, None
        images, questions, answers = asked
        return batch, answering_batch(text, encode(images), list(zip(questions, answers, strict=True)), buffer_size)

    return TextData(ImageTexts(drawing, answering, image_size), prepare)


# What a config leaves out.
TRAINING = {
    **{"batch_size": 16, "epochs": 1, "warmup_epochs": 0.0, "lr": None, "blr": 1e-4, "min_lr": 0.0, "lr_schedule": "constant"},
    **{"weight_decay": 0.02, "grad_clip": 1.0, "ema_rate": 0.9999, "seed": 1, "dtype": "float32", "save_epochs": 1, "num_workers": 0},
}


def load_training_config(path: str, options: dict[str, Any] | None = None, seed: int | None = None) -> dict[str, Any]:
    """A training config as a plain dict, `options` and `seed` replacing what it says.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it says something that training does not know, or not what it needs.
    """
    content = read_config(path, ("model", "data"), options).to_dict()
    known = {"model", "mar", "llm", "mar_weights", "checkpoint", "vae_path", "text_tokenizer", "freeze_llm", "data", "training"}
    if unknown := sorted({key for key in content if not key.startswith("_")} - known):
        raise ValueError(f"{path} has {', '.join(unknown)}; allowed are {', '.join(sorted(known))}")
    content["training"] = {**TRAINING, **content.get("training", {}), **({} if seed is None else {"seed": seed})}
    if unknown := sorted(content["training"].keys() - TRAINING.keys()):
        raise ValueError(f"{path}: training has {', '.join(unknown)}; allowed are {', '.join(sorted(TRAINING))}")
    if content["training"]["dtype"] not in DTYPES:
        raise ValueError(f"{path}: training.dtype is {content['training']['dtype']!r}; allowed are {', '.join(DTYPES)}")
    return content


def starting_model(config: dict[str, Any]) -> Any:
    """The model of a config with the weights that training begins with: a checkpoint's, or new ones, MAR's perhaps from elsewhere.

    Raises:
        ValueError: nothing says where the image tokenizer's weights come from; or a file does not fit.
        FileNotFoundError: a file is not there.
    """
    parts = {"mar": config.get("mar", {}), "llm": config.get("llm", {})}
    if config.get("checkpoint"):
        return load_model(config["model"], config["checkpoint"], vae=config.get("vae_path"), **parts)
    model = build_model(config["model"], **parts)
    if config.get("mar_weights") in MODELS:
        model.mar.load_state_dict(load_model(config["mar_weights"]).state_dict())
    elif config.get("mar_weights"):
        load_into(model.mar, open_checkpoint(config["mar_weights"]), config["mar_weights"])
    if config.get("vae_path"):
        model.vae = load_tokenizer(config["vae_path"])
    elif isinstance(model.vae, AutoencoderKL):
        raise ValueError("the config has neither a checkpoint nor a vae_path, so the image tokenizer would be random; give one")
    return model


def run_training(config: dict[str, Any], output: Path, *, resume: str | None = None, device: str = "auto") -> None:
    """Train what a config says, from where an earlier run in `output` stopped."""
    place = distributed.resolve_device(device)
    distributed.setup(place)
    settings = {**config["training"], "dtype": DTYPES[config["training"]["dtype"]], "eval_epochs": 1}
    torch.manual_seed(settings["seed"])
    resume_from = find_checkpoint(resume) if resume else None
    model = starting_model(config)
    # Training needs the image tokenizer and does not change it: it is no part of what is wrapped, averaged and saved.
    tokenizer, model.vae = model.vae.requires_grad_(False).to(place), torch.nn.Identity()
    model.llm.requires_grad_(not config.get("freeze_llm", False))
    bundled = BUNDLED_WEIGHTS / f"{config['model']}_tokenizer.json"
    if not (config.get("text_tokenizer") or bundled.is_file()):
        raise ValueError(f"the config has no text_tokenizer, and none comes with the package for {config['model']}")
    text = TextTokenizer.load(config.get("text_tokenizer") or bundled)
    kinds: dict[str, Callable[..., TextData]] = {"fashion": fashion_text, "folders": folder_text}
    options = dict(config["data"])
    kind = options.pop("type", None)
    if kind not in kinds or MODELS[config["model"]].bundled != (kind == "fashion"):
        raise ValueError(
            f"data.type is {kind!r}; {config['model']} is trained on {'fashion' if MODELS[config['model']].bundled else 'folders'}"
        )
    try:
        data = kinds[kind](text, tokenizer, model.mar.buffer_size, **options)
    except (KeyError, TypeError) as error:
        raise ValueError(f"the config's data does not fit ({error}); see configs/examples/") from error
    if distributed.is_main():
        trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
        print(f"{trained:,} parameters to train, {len(data.dataset):,} items, {distributed.world_size()} ranks on {place.type}", flush=True)
    train(
        model,
        data.dataset,
        data.prepare,
        TrainingSettings(**settings),
        device=place,
        output=output,
        log=output,
        args=argparse.Namespace(**{key: config[key] for key in ("model", "data", "training")}),
        resume=resume_from,
        shard=os.environ.get("ACCELERATE_USE_FSDP") == "true",  # `accelerate launch --use_fsdp` says it so
    )
    distributed.shutdown()
