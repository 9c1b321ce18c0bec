"""A model, its VAE and its settings behind one call: labels or prompts -> images."""

from __future__ import annotations

import dataclasses
import fnmatch
import json
import math
import time
from argparse import Namespace
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms.functional import pil_to_tensor

from .acceleration.caching import Caching
from .acceleration.feature_cache import Extrapolation
from .annealing import AnnealedModel
from .data.fashion import FASHION_CLASSES
from .data.text import UNCONDITIONAL_PROMPT, TextTokenizer
from .data.transforms import pad_and_resize, to_signed, to_uint8
from .generation.generators import (
    Generator,
    LabelGenerator,
    LabelModel,
    PromptGenerator,
    SampledModel,
    Sampling,
    choose_attention,
    image_shape,
)
from .grouping import Grouping
from .guidance import Guidance
from .models import MODELS
from .models.checks import Arguments
from .models.harmon import Harmon
from .models.mar import Known
from .models.vae import VAE, AutoencoderKL, SpaceToDepth
from .noise import ImageNoise, NoiseSource
from .runtime.devices import DTYPES, resolve_device, resolve_dtype, synchronize
from .runtime.files import atomic_write, write_json
from .runtime.names import did_you_mean
from .schedule import StepSchedule
from .tables.recipes import Recipe, disa_recipe
from .trace import StepTrace
from .weights.fetch import CATALOGUE, LAST, find_published
from .weights.load import PathLike, load_into, load_model, load_vae, open_checkpoint, read_checkpoint, save_weights

CONFIG, WEIGHTS, VAE_WEIGHTS, TEXT = "config.json", "model.safetensors", "vae.safetensors", "text_tokenizer"
HUB = {"wusize/Harmon-0_5B": "harmon_0.5b", "wusize/Harmon-1_5B": "harmon_1.5b"}  # repositories that others wrote
PATTERNS = ["*.json", "*.safetensors", "*.txt", f"{TEXT}/*"]  # of the files that are fetched
OUTPUT_TYPES = ("pil", "tensor", "latent")
Labels = Sequence[int | str]


@dataclass(frozen=True)
class Output:
    """What a call of a `Pipeline` returns.

    Attributes:
        images: PIL images; as "tensor" float [N, 1 or 3, H, W] in [-1, 1]; as "latent" [N, C, h, w].
        seeds: one per image; with the same one and the same settings the image comes again.
        nfe: evaluations of the head per image (network function evaluations).
        seconds: for all images, decoding included.
    """

    images: list[Image.Image] | Tensor
    seeds: list[int]
    nfe: int
    seconds: float


@dataclass(frozen=True)
class Step(StepTrace):
    """An AR step of a pipeline: of all images with these `seeds`.

    Attributes:
        seeds: of the images that are made together.
        decode: the VAE's.
    """

    seeds: Sequence[int] = ()
    decode: Callable[[Tensor], list[Image.Image]] | None = dataclasses.field(default=None, compare=False, repr=False)

    def preview(self) -> list[Image.Image]:
        """Decode the images so far, grey where nothing is; call it before the next AR step. Not calling it is free."""
        assert self.latents is not None
        assert self.decode is not None
        return self.decode(self.latents())


class _Stop(Exception):
    """The callback wants no more AR steps."""


class _LatentsOnly(nn.Module):
    """Stands where a VAE does, and leaves latents as they are."""

    def decode(self, latents: Tensor) -> Tensor:
        return latents


class _Seeded(Generator):
    """A generator whose image `id` has the seed `seeds[id]`, and which `callback` may stop.

    Attributes:
        known: of images that are edited.
        evaluations: of the head, per image, in the block that is made.
    """

    seeds: Sequence[int] = ()
    callback: Callable[[Step], object] | None = None
    known: Known | None = None
    decoded: Callable[[Tensor], list[Image.Image]]
    evaluations, stopped = 0, False

    def noise(self, ids: Sequence[int]) -> NoiseSource:
        return ImageNoise([self.seeds[image_id] for image_id in ids], self.device)

    def latents(self, ids: Sequence[int], model: SampledModel) -> Tensor:
        seeds, so_far = [self.seeds[image_id] for image_id in ids], torch.empty(0)

        def on_step(trace: StepTrace) -> None:
            nonlocal so_far
            self.evaluations = trace.evaluations + (self.evaluations if trace.step else 0)
            # A block that was halved has other halves: they end at their first AR step.
            self.stopped = self.stopped or (
                self.callback is not None
                and self.callback(Step(**vars(trace), seeds=seeds, decode=self.decoded)) is False
            )
            if self.stopped:
                assert trace.latents is not None
                so_far = trace.latents()
                raise _Stop

        self.on_step = on_step
        try:
            return super().latents(ids, model)
        except _Stop:
            return so_far

    def arguments(self, ids: Sequence[int]) -> dict[str, object]:
        own = super().arguments(ids)
        if self.known is None:
            return own
        return {**own, "known": self.known._replace(latents=self.known.latents.expand(len(ids), -1, -1, -1))}


class _Labels(_Seeded, LabelGenerator):
    classes: Sequence[int] = ()

    def labels(self, ids: Iterable[int]) -> Tensor:
        return torch.tensor([self.classes[image_id] for image_id in ids])


class _Prompts(_Seeded, PromptGenerator):
    pass


@dataclass
class Pipeline:
    """A model with what turns it into images: its VAE, text tokenizer, class names, size and good settings.

    Build one with `from_pretrained`.

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

    # ------------------------------------------------------------------------------------------------- files

    @classmethod
    def from_pretrained(
        cls,
        source: PathLike,
        *,
        checkpoint: PathLike | None = None,
        vae: PathLike | None = None,
        text_tokenizer: PathLike | None = None,
        device: str | torch.device = "auto",
        dtype: str | torch.dtype = "auto",
        **arguments: object,
    ) -> Pipeline:
        """Load a pipeline.

        Args:
            source: a name of `disa.list_models()`; a folder that `save_pretrained` or a training wrote; or a repository
                on the Hugging Face hub, such as `wusize/Harmon-1_5B` or what `push_to_hub` wrote.
            checkpoint, vae: of a name whose weights do not come with the package: its file or folder and KL-16's file;
                by default those that `disa checkpoints fetch` put into `pretrained_models`.
            text_tokenizer: of Harmon, a folder or a repository; by default the released one.
            device: "auto" takes what is there.
            dtype: "auto" takes on CUDA the half-precision type that suits the model, else float32.
            arguments: of `build_model`, for a checkpoint of another shape than the name's.

        Raises:
            ValueError: the name is unknown, an argument is impossible, or a file does not fit.
            OSError: a file is missing, or the repository cannot be reached.
        """
        place = resolve_device(str(device))
        name = str(source)
        if name not in MODELS:
            given = {"checkpoint": checkpoint, **arguments}
            if lost := [key for key, value in given.items() if value is not None]:
                raise ValueError(
                    f"{', '.join(lost)} go with a model's name; {name!r} is none{did_you_mean(name, MODELS)}"
                )
            folder = Path(source) if Path(source).is_dir() else _download(name)
            if name in HUB:
                name, checkpoint, text_tokenizer = HUB[name], folder, text_tokenizer or folder
            elif (folder / LAST).is_file():
                checkpoint, (name, arguments) = folder, _trained(folder / LAST)
            else:
                if vae or text_tokenizer:
                    raise ValueError(f"{name} holds its own VAE and text tokenizer; give none")
                return cls._load(folder, place, dtype)
        recipe = disa_recipe(name)
        if not MODELS[name].bundled and checkpoint is None:
            checkpoint = _published(recipe, name)
        harmon = MODELS[name].build is Harmon
        vae_path = None if harmon else _vae_path(name, vae)
        model = load_model(name, checkpoint, "ema", vae=vae if harmon else None, **arguments)
        if isinstance(model, Harmon) and (text_tokenizer or recipe.text_tokenizer):
            model.text = TextTokenizer.load(text_tokenizer or str(recipe.text_tokenizer))
        tokens = _tokens(model)
        sampling, size = recipe.sampling, recipe.image_size
        if recipe.model != name:  # the recipe is of another size
            num_iter, size = sampling.num_iter, None
            sampling = replace(sampling, num_iter=None if num_iter is None else min(num_iter, tokens))
        found = model.vae if isinstance(model, Harmon) else _load_vae(vae_path)
        classes = _class_names(model, MODELS[name].bundled)
        size = size or math.isqrt(tokens) * getattr(model, "patch_size", 1) * found.stride
        return cls(model, found, name, sampling, arguments, classes, size)._to(place, dtype)

    @classmethod
    def _load(cls, folder: Path, device: torch.device, dtype: str | torch.dtype) -> Pipeline:
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
        return cls(model, vae.eval(), name, sampling, arguments, classes, size)._to(device, dtype)

    def _to(self, device: torch.device, dtype: str | torch.dtype) -> Pipeline:
        """Move the networks."""
        kind = resolve_dtype(str(dtype).removeprefix("torch."), device, MODELS[self.name].half)
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

    # ------------------------------------------------------------------------------------------------- images

    def __call__(
        self,
        *,
        labels: Labels | Tensor | None = None,
        prompts: Sequence[str] | None = None,
        seeds: Sequence[int] | Tensor | None = None,
        num_images: int | None = None,
        negative_prompt: str = UNCONDITIONAL_PROMPT,
        image_size: int | str | None = None,
        output_type: Literal["pil", "tensor", "latent"] = "pil",
        batch_size: int = 64,
        callback_on_step_end: Callable[[Step], object] | None = None,
        known: Known | None = None,
        **settings: Any,  # Any: of several types, see `_settings`
    ) -> Output:
        """Generate images.

        Args:
            labels: classes, by number or name, of a class-conditional model; or
            prompts: what to draw, of Harmon.
            seeds: one per image; a single label or prompt may have several.
            num_images: instead of seeds, which are then drawn with torch's random numbers; by default one per label.
            negative_prompt: of Harmon, what guidance leads away from.
            image_size: of Harmon, pixels per side, or "height x width".
            output_type: "pil", "tensor" or "latent", see `Output`.
            batch_size: images at a time; halved where memory does not hold them.
            callback_on_step_end: called with a `Step` after each AR step; if it returns False, what is there is decoded
                and returned.
            known: of MAR and Harmon, the latents of tokens to keep, [1, C, h, w]; see `edit`.
            settings: what the call does otherwise than `sampling`: num_iter (AR steps), schedule (a `StepSchedule`, or
                the file of a calibrated one), sampler, guidance (a scale, or a `Guidance`), temperature, grouping,
                caching, and extrapolation.

        Raises:
            ValueError: an argument is impossible.
            FloatingPointError: an image came out with NaN or infinity.
        """
        sampling = self._settings(settings)
        if known is not None:
            if sampling.num_iter is None:
                raise ValueError(f"{self.name} draws in an order of its own; only MAR and Harmon can edit")
            sampling = replace(sampling, num_iter=min(sampling.num_iter, int((~known.where).sum())))
        if output_type not in OUTPUT_TYPES:
            raise ValueError(f"output_type is {output_type!r}; allowed are {', '.join(OUTPUT_TYPES)}")
        if type(batch_size) is not int or batch_size < 1:
            raise ValueError(f"batch_size is {batch_size!r}; it must be a whole number of at least 1")
        asked = self._asked(labels, prompts)
        drawn = _seeds(seeds, num_images, len(asked))
        generator = self._generator(
            asked * (len(drawn) // len(asked)), sampling, self._shape(image_size), negative_prompt
        )
        generator.seeds, generator.callback, generator.known = drawn, callback_on_step_end, known
        generator.decoded = self._decode
        if output_type == "latent":
            generator.vae = _LatentsOnly()
        start, blocks = time.perf_counter(), list[Tensor]()
        for first in range(0, len(drawn), batch_size):
            blocks.append(generator(range(first, min(first + batch_size, len(drawn)))))
            if generator.stopped:
                break
        images = torch.cat(blocks)
        pictures = _pictures(images) if output_type == "pil" else images
        synchronize(self.device)
        return Output(pictures, drawn[: len(images)], generator.evaluations, time.perf_counter() - start)

    def edit(self, image: Image.Image, mask: Image.Image, **call: Any) -> Output:  # Any: as for a call
        """Draw parts of an image anew, with MAR or Harmon: inpainting, outpainting, another class for a part.

        The other parts come back as the VAE gives them.

        Args:
            image: of the model's size; of Harmon of any size that the VAE's stride divides.
            mask: of the same size; a token (a square of pixels) is drawn anew if any pixel in it is not black.
            call: as for a call. There are at most as many AR steps as tokens to draw.

        Raises:
            ValueError: an argument is impossible.
        """
        for name, one in (("image", image), ("mask", mask)):
            if not isinstance(one, Image.Image):
                raise ValueError(f"{name} is {type(one).__name__}; a PIL image is needed")
        if image.size != mask.size:
            raise ValueError(f"the image is {image.size} and the mask {mask.size} pixels; they must be of one size")
        size = f"{image.height}x{image.width}"
        self._shape(size)
        side = self.vae.stride * getattr(self.model, "patch_size", 1)
        anew = F.max_pool2d(pil_to_tensor(mask.convert("L"))[None].float(), side)[0, 0] > 0
        if not anew.any():
            raise ValueError("the mask is black everywhere; paint white what is to be drawn anew")
        pixels = to_signed(pil_to_tensor(image.convert("L" if self._grey else "RGB")))[None]
        with torch.no_grad():
            latents = self.vae.encode(pixels.to(self.device, self._dtype))
        return self(**call, image_size=size, known=Known(latents, ~anew))

    def describe(
        self,
        image: Image.Image,
        question: str = "Describe the image in detail.",
        *,
        image_size: int | str | None = None,
        max_new_tokens: int = 512,
        on_text: Callable[[str], None] | None = None,
    ) -> str:
        """Answer a question on an image, with Harmon.

        Args:
            image_size: that the image is fitted to, as for a call.
            max_new_tokens: the longest answer.
            on_text: called with each piece of the answer as it comes.

        Raises:
            ValueError: an argument is impossible, or the model is not Harmon.
        """
        if not isinstance(self.model, Harmon) or self.model.text is None:
            raise ValueError(f"{self.name} answers no questions; load one of {', '.join(list_models('harmon*'))}")
        if max_new_tokens < 1:
            raise ValueError(f"max_new_tokens is {max_new_tokens}; it must be at least 1")
        shape, text = self._shape(image_size), self.model.text
        streamer = on_text and _streamer(text, on_text)
        return answer_question(self.model, image.convert("RGB"), shape, question, max_new_tokens, streamer)

    def _generator(
        self, asked: list[int] | list[str], sampling: Sampling, shape: tuple[int, int], negative_prompt: str
    ) -> _Labels | _Prompts:
        if isinstance(self.model, Harmon):
            prompts = cast(list[str], asked)
            return _Prompts(self.model, prompts, sampling, self.device, image_shape=shape, cfg_prompt=negative_prompt)
        generator = _Labels(cast(LabelModel, self.model), self.vae, sampling, self.device)
        generator.classes = cast(list[int], asked)
        return generator

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self.model.parameters()).device

    @property
    def _dtype(self) -> torch.dtype:
        return next(self.model.parameters()).dtype

    @torch.no_grad()
    def _decode(self, latents: Tensor) -> list[Image.Image]:
        return _pictures(self.vae.decode(latents.to(self._dtype)))

    @property
    def _grey(self) -> bool:
        return isinstance(self.vae, SpaceToDepth) or self.vae.encoder.conv_in.in_channels == 1

    def _shape(self, image_size: int | str | None) -> tuple[int, int]:
        """Rows and columns of latents in an image."""
        shape = image_shape(self.image_size if image_size is None else image_size, self.vae.stride)
        if not isinstance(self.model, Harmon) and shape != image_shape(self.image_size, self.vae.stride):
            raise ValueError(
                f"image_size is {image_size}; {self.name} makes images of {self.image_size} pixels per side"
            )
        return shape

    def _asked(self, labels: Labels | Tensor | None, prompts: Sequence[str] | None) -> list[int] | list[str]:
        """What to show: numbers of classes, or prompts."""
        name, given, other = (
            ("prompts", prompts, labels) if isinstance(self.model, Harmon) else ("labels", labels, prompts)
        )
        if given is None or other is not None:
            raise ValueError(f"{self.name} takes {name}, and nothing else says what to show; give {name}=[…]")
        if isinstance(given, (str, int)):
            raise ValueError(f"{name} is {given!r}; give a list, {name}=[{given!r}]")
        values: list[int | str] = given.tolist() if isinstance(given, Tensor) else list(given)
        if not values:
            raise ValueError(f"{name} is empty; say what to show")
        if name == "labels":
            return [self._class(label) for label in values]
        texts = [prompt for prompt in values if isinstance(prompt, str)]
        if len(texts) < len(values):
            raise ValueError(f"prompts are {values!r}; texts are needed")
        return texts

    def _class(self, label: object) -> int:
        """The number of a class, from that or its name."""
        count = cast(LabelModel, self.model).num_classes
        if isinstance(label, str):
            names = [name.lower() for name in self.classes or ()]
            if label.lower() in names:
                return names.index(label.lower())
            numbers = f"its classes are 0 to {count - 1}{did_you_mean(label, self.classes or ())}"
            raise ValueError(f"{self.name} has no class {label!r}; {numbers}")
        if type(label) is not int or not 0 <= label < count:
            raise ValueError(f"a label is {label!r}; {self.name} knows 0 to {count - 1}")
        return label

    def _settings(self, given: Mapping[str, Any]) -> Sampling:  # Any: of several types, checked here
        """The pipeline's settings with those of a call; None is the pipeline's own."""
        flow = self.sampling.kind == "flow"
        kinds: dict[str, tuple[type, ...]] = {
            **({"extrapolation": (Extrapolation,)} if flow else {"num_iter": (int,), "grouping": (Grouping,)}),
            **({} if flow else {"caching": (Caching,)}),
            "schedule": (StepSchedule, str, Path),
            "sampler": (str,),
            "guidance": (Guidance, int, float),
            "temperature": (int, float),
        }
        values = {name: value for name, value in given.items() if value is not None}
        for name, value in values.items():
            if name not in kinds:
                raise ValueError(
                    f"{self.name} has no setting {name}; there are {', '.join(kinds)}{did_you_mean(name, kinds)}"
                )
            if isinstance(value, bool) or not isinstance(value, kinds[name]):
                raise ValueError(f"{name} is {value!r}; needed is {' or '.join(kind.__name__ for kind in kinds[name])}")
        if isinstance(values.get("schedule"), (str, Path)):
            values["schedule"] = StepSchedule.load(str(values["schedule"]))
        if isinstance(values.get("guidance"), (int, float)):
            values["guidance"] = replace(self.sampling.guidance, scale=float(values["guidance"]))
        sampling = replace(self.sampling, **values)
        self.model.nfe(sampling.schedule, sampling.sampler, sampling.num_iter)  # refuses an unknown sampler
        tokens = _tokens(self.model)
        if not isinstance(self.model, Harmon) and sampling.num_iter is not None and sampling.num_iter > tokens:
            raise ValueError(f"num_iter is {sampling.num_iter}; an image has {tokens} tokens")
        return sampling


def list_models(pattern: str = "*") -> list[str]:
    """Names that `Pipeline.from_pretrained` takes, whose weights come with the package or are published.

    `pattern` selects some, like "*_fashion".
    """
    names = [name for name, spec in MODELS.items() if spec.bundled or name in CATALOGUE]
    return fnmatch.filter(names, pattern)


@torch.no_grad()
def answer_question(
    model: Harmon,
    image: Image.Image,
    shape: tuple[int, int],
    question: str,
    max_new_tokens: int,
    streamer: object = None,
    called: str = "question",
) -> str:
    """Answer a question on an image that is fitted to `shape` (rows, columns) of tokens.

    `model` has a text tokenizer. `streamer` is one of transformers'; `called` is what an error calls the question.

    Raises:
        ValueError: question and image are too long.
    """
    assert model.text is not None
    text, stride, room_in_all = model.text, model.vae.stride, model.llm.config.max_position_embeddings
    asked, least = (len(text.question(one, model.image_tokens(shape))) for one in (question, "a"))
    room = room_in_all - asked
    if room < 1:
        taken = f"the {called} and the image take {asked} tokens, {1 - room} too many"
        raise ValueError(f"{taken}; {f'shorten the {called}, or ' * (least < room_in_all)}take a smaller image")
    pixels = fit_image(image, shape[0] * stride, shape[1] * stride, model.vae)
    device = model.mar.mask_token.device
    answer = model.answer(
        model.vae.encode(pixels.to(device, model.llm.dtype)),
        torch.tensor([text.question(question, model.image_tokens(shape))], device=device),
        text.image_token,
        max_new_tokens=min(max_new_tokens, room),
        do_sample=False,
        eos_token_id=text.end_token,
        pad_token_id=text.end_token,
        streamer=streamer,
    )
    return text.decode(answer[0])


def fit_image(image: Image.Image, height: int, width: int, vae: VAE) -> Tensor:
    """Fit an RGB image for `vae` as the model saw images in training: [1, 1 or 3, H, W] in [-1, 1].

    It is padded with grey to the shape of height × width, then resized. The small grey models saw images of 28×28 with
    black around: theirs are shrunk where they are too large, never enlarged, and put in the middle of black.
    """
    if isinstance(vae, SpaceToDepth):
        small, fitted = image.convert("L"), Image.new("L", (width, height))
        small.thumbnail((width, height), Image.Resampling.BICUBIC)
        fitted.paste(small, ((width - small.width) // 2, (height - small.height) // 2))
    else:
        fitted = pad_and_resize(image, height, width)
    return to_signed(pil_to_tensor(fitted))[None]


def _streamer(text: TextTokenizer, on_text: Callable[[str], None]) -> Any:  # Any: transformers' classes are not typed
    """Hand on the pieces of an answer as transformers makes them."""
    from transformers import TextStreamer

    class Streamer(TextStreamer):
        def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
            if text or stream_end:
                on_text(text)

    return Streamer(text.tokenizer, skip_prompt=True, skip_special_tokens=True)


def _pictures(images: Tensor) -> list[Image.Image]:
    """Images [B, 1 or 3, H, W] in [-1, 1] -> PIL images, grey or in colour."""
    pixels = to_uint8(images).permute(0, 2, 3, 1).cpu().numpy()
    return [Image.fromarray(one[..., 0] if one.shape[-1] == 1 else one) for one in pixels]


def _seeds(seeds: Sequence[int] | Tensor | None, num_images: int | None, asked: int) -> list[int]:
    """Return a seed per image, for `asked` labels or prompts."""
    if seeds is not None and num_images is not None:
        raise ValueError("both seeds and num_images are given; the seeds say how many images there are")
    if isinstance(seeds, (str, int)):
        raise ValueError(f"seeds is {seeds!r}; give a list, seeds=[{seeds!r}]")
    if seeds is None:
        if num_images is not None and (type(num_images) is not int or num_images < 1):
            raise ValueError(f"num_images is {num_images!r}; it must be a whole number of at least 1")
        found = torch.randint(2**32, (num_images or asked,)).tolist()
    else:
        found = seeds.tolist() if isinstance(seeds, Tensor) else list(seeds)
    if wrong := [seed for seed in found if type(seed) is not int or not 0 <= seed < 2**64]:
        raise ValueError(f"a seed is {wrong[0]!r}; seeds are whole numbers in [0, 2^64)")
    if not found or (asked > 1 and len(found) != asked):
        what = "num_images is" if seeds is None else "the number of seeds is"
        raise ValueError(
            f"{what} {len(found)}, and {asked} labels or prompts are given; each takes one, and a single one any number"
        )
    return found


def _tokens(model: AnnealedModel) -> int:
    """Tokens of an image of the size that the model was trained on."""
    return int((model.mar if isinstance(model, Harmon) else model).grid ** 2)  # type: ignore[operator]  # a module's attribute


def _class_names(model: AnnealedModel, bundled: bool) -> Sequence[str] | None:
    """Names of the model's labels: those of Fashion-MNIST, or where there are a thousand, of ImageNet."""
    if bundled:
        return None if isinstance(model, Harmon) else FASHION_CLASSES
    if getattr(model, "num_classes", 0) != 1000:
        return None
    from torchvision.models import ResNet50_Weights

    return list(ResNet50_Weights.IMAGENET1K_V1.meta["categories"])


def _published(recipe: Recipe, name: str) -> Path:
    """Find the published weights of a model."""
    if recipe.model != name or recipe.checkpoint is None:
        raise ValueError(f"{name} is the name of a shape, without weights; give a checkpoint")
    try:
        return find_published(recipe.checkpoint)
    except FileNotFoundError:
        if (place := CATALOGUE[recipe.checkpoint].hub) is None:
            raise
    return Path(_from_hub("hf_hub_download", *place))


def _trained(path: Path) -> tuple[str, dict[str, Any]]:  # Any: as `Arguments`
    """Read from a checkpoint of our training the model's name, and its arguments."""
    args = vars(read_checkpoint(path).get("args") or Namespace())
    if "arguments" not in args:
        raise ValueError(f"{path} does not say which model it is of; give its name, and checkpoint={str(path)!r}")
    return args["model"], args["arguments"]


def _vae_path(name: str, vae: PathLike | None) -> PathLike | None:
    """Choose KL-16's file; None for the bundled models, which have another VAE."""
    if not MODELS[name].bundled:
        return vae or find_published("kl16")
    if vae is not None:
        raise ValueError(f"vae is {vae}; {name} has a VAE of its own, which comes with the package")
    return None


def _load_vae(path: PathLike | None) -> VAE:
    """Load KL-16, or build that of the bundled models."""
    return SpaceToDepth() if path is None else load_vae(path)


def _vae_config(vae: VAE) -> dict[str, object]:
    """Arguments of the class of `vae`."""
    if isinstance(vae, SpaceToDepth):
        return {"stride": vae.stride, "mean": vae.mean, "std": vae.std}
    blocks = sum(name.endswith("norm1.weight") for name in vae.encoder.down[0].state_dict())
    shape = {"blocks": blocks, "image_channels": vae.encoder.conv_in.in_channels}
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
    return Path(_from_hub("snapshot_download", repository, allow_patterns=PATTERNS))


def _from_hub(function: str, repository: str, *args: object, **kwargs: object) -> str:
    """Call a function of `huggingface_hub`; raise OSError if it fails."""
    import huggingface_hub

    try:
        return str(getattr(huggingface_hub, function)(repository, *args, **kwargs))
    except (OSError, ValueError) as error:
        raise OSError(f"{repository} could not be fetched from the hub ({str(error).splitlines()[0]})") from error
