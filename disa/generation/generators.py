"""Image ids to images: of a class label, or of a prompt."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import hashlib
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn

from ..acceleration.caching import Caching
from ..acceleration.feature_cache import Extrapolation
from ..annealing import check_finite, check_temperature
from ..data.text import UNCONDITIONAL_PROMPT, TextTokenizer
from ..grouping import Grouping
from ..guidance import Guidance
from ..noise import ImageNoise, NoiseSource
from ..runtime import distributed
from ..runtime.fingerprint import Weights, fingerprint
from ..runtime.packed import PackedLinear
from ..runtime.timing import Stopwatch
from ..schedule import StepSchedule
from ..trace import StepTrace

if TYPE_CHECKING:
    from transformers import PreTrainedModel
    from typing_extensions import Self  # typing's from Python 3.11 on


class SampledModel(Weights, Protocol):
    """A model that can be sampled."""

    @property
    def generate(self) -> Callable[..., Tensor]:
        """Sample latents [B, C, H, W]; each family takes its own arguments."""

    def nfe(self, schedule: StepSchedule, sampler: str, num_iter: int | None = None) -> list[int]: ...

    def parameters(self) -> Iterator[nn.Parameter]: ...

    def modules(self) -> Iterator[nn.Module]: ...

    def to(self, dtype: torch.dtype) -> Self: ...


class LabelModel(SampledModel, Protocol):
    """A model of a class-conditional family."""

    num_classes: int


class ImageDecoder(Weights, Protocol):
    """A VAE, as far as generation needs it."""

    def decode(self, latents: Tensor) -> Tensor: ...

    def modules(self) -> Iterator[nn.Module]: ...

    def to(self, dtype: torch.dtype) -> Self: ...


class PromptModel(SampledModel, Protocol):
    """Harmon: a language model beside MAR."""

    llm: PreTrainedModel
    text: TextTokenizer | None

    @property
    def vae(self) -> ImageDecoder: ...

    def image_tokens(self, shape: tuple[int, int]) -> int: ...


# Settings that are named only where they are not these: those of both kinds of models, of flow and of diffusion heads.
_GUIDANCE = {"guidance_min_time": 0.0, "skip_guidance_below": 1.0}
_FEATURES = {"feature_every": 1, "feature_order": 1, "feature_fresh": 0}
_SCHEDULE = {"step_schedule": ""}
_CACHE = {f"cache_{name}": value for name, value in vars(Caching()).items()}
OPTIONAL: dict[str, dict[str, object]] = {
    "flow": {**_GUIDANCE, **_FEATURES, **_SCHEDULE},
    "diff": {"guidance": 1.0, **_GUIDANCE, "token_order": "random", "tokens_per_step": "cosine", **_CACHE, **_SCHEDULE},
}


@dataclass(frozen=True)
class Sampling:
    """The settings of a generation, as of the models' `generate`; an impossible one raises a ValueError."""

    num_iter: int | None  # AR steps; None for models whose scales or cells are their AR steps
    schedule: StepSchedule
    sampler: str = "DiSA"
    guidance: Guidance = Guidance()
    temperature: float = 1.0
    seed: int = 1  # in [0, 2^32), combined with an image's id
    grouping: Grouping = Grouping()  # of models that take `num_iter`
    extrapolation: Extrapolation = Extrapolation()  # of the others
    caching: Caching = Caching()  # of models that take `num_iter`

    def __post_init__(self) -> None:
        if self.num_iter is not None and self.num_iter < 1:
            raise ValueError(f"num_iter is {self.num_iter}; at least 1 AR step is needed")
        check_temperature(self.temperature)
        _check_32_bits("seed", self.seed)
        self.schedule.check(**self.calibrated_for)
        if self.schedule.counts and self.num_iter is not None:
            self.schedule.steps(0, self.num_iter)  # refuses another number of AR steps

    @property
    def kind(self) -> str:
        """What the names of settings begin with: "flow", or "diff" of models with a diffusion head."""
        return "flow" if self.num_iter is None else "diff"

    @property
    def calibrated_for(self) -> dict[str, object]:
        """The settings that a step schedule of `disa calibrate` is good for."""
        names = ("cfg", "cfg_schedule", "guidance", *_GUIDANCE)
        guidance = dict(zip(names, dataclasses.astuple(self.guidance), strict=True))
        return {"sampler": self.sampler, **guidance, "temperature": self.temperature}

    @property
    def steps(self) -> dict[str, object]:
        """What the number of evaluations depends on, as arguments of a model's `generate`."""
        ar_steps = {} if self.num_iter is None else {"num_iter": self.num_iter}
        return {"schedule": self.schedule, "sampler": self.sampler, **ar_steps}

    def to_dict(self) -> dict[str, object]:
        """The settings under the names of the commands' flags, those in OPTIONAL where they differ from it."""
        kind, optional = self.kind, OPTIONAL[self.kind]
        found: dict[str, object] = {
            "num_iter": self.num_iter,
            f"{kind}_sampler": self.sampler,
            f"{kind}_upper_steps": self.schedule.upper,
            f"{kind}_lower_steps": self.schedule.lower,
            f"{kind}_annealing_strategy": str(self.schedule.strategy),
            "cfg": self.guidance.scale,
            "cfg_schedule": self.guidance.schedule,
            "guidance": self.guidance.max_time,
            "temperature": self.temperature,
            "seed": self.seed,
            "guidance_min_time": self.guidance.min_time,
            "skip_guidance_below": self.guidance.skip_below,
            "token_order": self.grouping.order,
            "tokens_per_step": self.grouping.tokens_per_step,
            "feature_every": self.extrapolation.every,
            "feature_order": self.extrapolation.order,
            "feature_fresh": self.extrapolation.fresh,
            **{name: getattr(self.caching, name.removeprefix("cache_")) for name in _CACHE},
            "step_schedule": self.schedule.file,
        }
        others = {"num_iter", *OPTIONAL["diff"]} if kind == "flow" else OPTIONAL["flow"].keys()
        for name in others - optional.keys() - {"guidance"}:
            del found[name]
        return {name: value for name, value in found.items() if name not in optional or value != optional[name]}

    @classmethod
    def from_dict(cls, settings: Mapping[str, object]) -> Sampling:
        """Inverse of `to_dict`; a setting that is missing, unknown or impossible raises a ValueError."""
        flow = any(name.startswith("flow_") for name in settings)
        optional = OPTIONAL["flow" if flow else "diff"]
        known = {**cls(None if flow else 1, StepSchedule()).to_dict(), **optional}
        # Any: of several types, checked here; settings of the other kind of model are the default.
        values: dict[str, Any] = {name: value for both in OPTIONAL.values() for name, value in both.items()}
        for name, value in settings.items():
            if name not in known:
                raise ValueError(f"there is no setting {name} here; there are {', '.join(known)}")
            kind = type(known[name])
            if isinstance(value, bool) or not isinstance(value, (int, float) if kind is float else kind):
                raise ValueError(f"{name} is {value!r}; a value like {known[name]!r} is needed")
            values[name.removeprefix("diff_").removeprefix("flow_")] = value
        needed = known.keys() - optional.keys() - settings.keys()
        if values["step_schedule"]:  # the file says what these do
            needed = {name for name in needed if not name.endswith(("_steps", "_strategy"))}
        if lacking := [name for name in known if name in needed]:
            raise ValueError(f"nothing says what {', '.join(lacking)} shall be")
        return cls(
            values.get("num_iter"),
            StepSchedule.load(values["step_schedule"])
            if values["step_schedule"]
            else StepSchedule(values["upper_steps"], values["lower_steps"], values["annealing_strategy"]),
            values["sampler"],
            Guidance(*(values[name] for name in ("cfg", "cfg_schedule", "guidance", *_GUIDANCE))),
            values["temperature"],
            values["seed"],
            Grouping(values["token_order"], values["tokens_per_step"]),
            Extrapolation(*(values[name] for name in _FEATURES)),
            Caching(*(values[name] for name in _CACHE)),
        )

    def name(self) -> str:
        """Name a folder after these settings."""
        schedule, guidance, features = self.schedule, self.guidance, self.extrapolation
        ar_steps = "" if self.num_iter is None else f"ar{self.num_iter}-"
        annealed = f"{schedule.strategy}-{schedule.upper}to{schedule.lower}"
        steps = str(schedule.upper) if self.sampler == "default" else annealed
        parts = (
            (f"-guidance{guidance.max_time:g}", guidance.max_time == 1),
            (f"-from{guidance.min_time:g}", guidance.min_time == 0),
            (f"-skip{guidance.skip_below:g}", guidance.skip_below == 1),
            (f"-{self.grouping.order}-{self.grouping.tokens_per_step}", self.grouping == Grouping()),
            (f"-features{features.every}order{features.order}fresh{features.fresh}", features == Extrapolation()),
            ("-cache" + "-".join(map(str, vars(self.caching).values())), self.caching == Caching()),
        )
        others = "".join(text for text, default in parts if not default)
        guided = f"cfg{guidance.scale:g}{guidance.schedule}{others}"
        return f"{ar_steps}{self.sampler}-{steps}-{guided}-temperature{self.temperature:g}-seed{self.seed}"


class Generator:
    """Image ids -> images, for `generate_images` and `evaluate`.

    `model`, in eval mode, and `vae`, which decodes its latents and has its dtype, are on `device`. A step schedule that
    was made for other weights is a ValueError.

    Attributes:
        clock: the seconds that "generation" and "decoding" take.
        retried: dtype -> images that were made in it because one of their block had NaN or infinity in a lower one.
        limit: the most images at a time; halved where memory does not hold them.
        on_step: called after each AR step, as by the models' `generate`.
        autocast: the number type that networks compute in where it is not that of their weights, as in training.
    """

    def __init__(
        self,
        model: SampledModel,
        vae: ImageDecoder,
        sampling: Sampling,
        device: torch.device,
        autocast: torch.dtype | None = None,
    ) -> None:
        self.model, self.vae, self.sampling, self.device = model, vae, sampling, device
        sampling.schedule.check(weights=fingerprint(model) if sampling.schedule.made_for else None)
        self.autocast, self.clock = autocast, Stopwatch(device)
        self.retried: Counter[str] = Counter()
        self.limit = sys.maxsize
        self.on_step: Callable[[StepTrace], None] | None = None
        # On a GPU the context would cost time at every kernel's launch, and change nothing.
        self._packed = PackedLinear() if device.type == "cpu" else contextlib.nullcontext()

    @property
    def nfe_per_step(self) -> list[int]:
        """Evaluations of the head at each AR step."""
        return self.model.nfe(self.sampling.schedule, self.sampling.sampler, self.sampling.num_iter)

    @property
    def nfe(self) -> int:
        """Evaluations of the head per image."""
        return sum(self.nfe_per_step)

    def to_dict(self) -> dict[str, object]:
        """What an image depends on besides its id and the weights."""
        return self.sampling.to_dict()

    def labels(self, ids: Iterable[int]) -> Tensor | None:
        """The class that each image is asked to show, int64 [B]; None if there are no classes."""
        raise NotImplementedError

    def arguments(self, ids: Sequence[int]) -> dict[str, object]:
        """Arguments of the model's `generate` that say what to show."""
        raise NotImplementedError

    def noise(self, ids: Sequence[int]) -> NoiseSource:
        """The randomness of each image."""
        return ImageNoise([image_seed(self.sampling.seed, image_id) for image_id in ids], self.device)

    @torch.no_grad()
    def __call__(self, ids: Sequence[int]) -> Tensor:
        """Generate images [B, C, H, W] in [-1, 1].

        Images that do not fit in memory together are made in halves. A block with NaN or infinity is made again in
        bfloat16, then in float32.

        Raises:
            FloatingPointError: there is NaN or infinity in float32, too.
            OutOfMemoryError: not even one image fits.
        """
        size = min(self.limit, len(ids))
        try:
            return torch.cat([self._finite(ids[start : start + size]) for start in range(0, len(ids), size)])
        except torch.OutOfMemoryError:
            if size == 1:
                raise
        # Outside of the except, which keeps the block's memory.
        self.limit = -(-size // 2)
        print(f"{size} images do not fit in memory; from now on {self.limit} at a time", file=sys.stderr)
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        return self(ids)

    def latents(self, ids: Sequence[int], model: SampledModel) -> Tensor:
        """Sample latents [B, C, H, W] with `model`, which is this generator's or a copy in another dtype."""
        flow = self.sampling.kind == "flow"
        own = ("extrapolation",) if flow else ("grouping", "caching")
        return model.generate(
            **self.arguments(ids),
            **self.sampling.steps,
            **{name: getattr(self.sampling, name) for name in own},
            guidance=self.sampling.guidance,
            temperature=self.sampling.temperature,
            noise=self.noise(ids),
            on_step=self.on_step,
        )

    def _finite(self, ids: Sequence[int]) -> Tensor:
        """Generate one block in the lowest precision, not below the model's, that keeps it finite."""
        own = self.autocast or next(self.model.parameters()).dtype
        try:
            return self._generate(ids, self.model, self.vae, self.autocast)
        except FloatingPointError:
            if own == torch.float32:
                raise
        if own == torch.float16:
            with contextlib.suppress(FloatingPointError):
                return self._again(ids, torch.bfloat16)
        return self._again(ids, torch.float32)

    def _again(self, ids: Sequence[int], dtype: torch.dtype) -> Tensor:
        """Generate a block in another dtype, with copies: converted back, the weights would not be what they were."""
        name = str(dtype).removeprefix("torch.")
        print(f"NaN or infinity in images {ids[0]} to {ids[-1]}; they are made again in {name}", file=sys.stderr)
        model, vae = copy.deepcopy(self.model).to(dtype), copy.deepcopy(self.vae).to(dtype)
        images = self._generate(ids, model, vae).to(next(self.model.parameters()).dtype)
        self.retried[name] += len(ids)
        return images

    def _generate(
        self, ids: Sequence[int], model: SampledModel, vae: ImageDecoder, autocast: torch.dtype | None = None
    ) -> Tensor:
        # Not around an evaluation: features of images are of float32.
        computing = torch.autocast(self.device.type, autocast, enabled=autocast is not None)
        # Weights of a copy are not to be kept.
        packed = self._packed if model is self.model else contextlib.nullcontext()
        with self.clock("generation"), packed, computing:
            latents = self.latents(ids, model).to(next(model.parameters()).dtype)
        with self.clock("decoding"), computing:
            images = vae.decode(latents)
        check_finite(images, "pixels")
        return images


class LabelGenerator(Generator):
    """Images of class labels."""

    model: LabelModel

    def labels(self, ids: Iterable[int]) -> Tensor:
        """Run through the classes, so that any first N ids hold each class equally often, give or take one."""
        return torch.tensor([image_id % self.model.num_classes for image_id in ids])

    def arguments(self, ids: Sequence[int]) -> dict[str, object]:
        return {"labels": self.labels(ids).to(self.device)}


class PromptGenerator(Generator):
    """Images of prompts: image `id` is one of prompt `id // images_per_prompt`.

    An impossible prompt or setting raises a ValueError; none is found so later.

    Args:
        model: with a text tokenizer.
        image_shape: rows and columns of tokens.
        cfg_prompt: the unconditional prompt of guidance.
        classes: the class that each prompt asks for, if the prompts ask for classes.
        on_step: as for `Harmon.generate`.
    """

    model: PromptModel

    def __init__(
        self,
        model: PromptModel,
        prompts: Sequence[str],
        sampling: Sampling,
        device: torch.device,
        *,
        image_shape: tuple[int, int],
        images_per_prompt: int = 1,
        cfg_prompt: str = UNCONDITIONAL_PROMPT,
        classes: Sequence[int] | None = None,
        on_step: Callable[[StepTrace], None] | None = None,
    ) -> None:
        super().__init__(model, model.vae, sampling, device)
        self.prompts, self.classes, self.images_per_prompt = list(prompts), classes, images_per_prompt
        self.image_shape, self.cfg_prompt, self.on_step = image_shape, cfg_prompt, on_step
        check_ar_steps(model, sampling, image_shape[0] * image_shape[1])
        check_prompts(model, self.prompts, image_shape, cfg_prompt)

    def to_dict(self) -> dict[str, object]:
        return {
            **super().to_dict(),
            "image_shape": self.image_shape,
            "images_per_prompt": self.images_per_prompt,
            "prompts": hashlib.sha256("\n".join([self.cfg_prompt, *self.prompts]).encode()).hexdigest()[:12],
        }

    def labels(self, ids: Iterable[int]) -> Tensor | None:
        if self.classes is None:
            return None
        return torch.tensor([self.classes[image_id // self.images_per_prompt] for image_id in ids])

    def arguments(self, ids: Sequence[int]) -> dict[str, object]:
        prompts = [self.prompts[image_id // self.images_per_prompt] for image_id in ids]
        guided = self.sampling.guidance.active
        assert self.model.text is not None  # `check_prompts` refused it
        encoded = self.model.text.text_to_image_prompts(prompts, guided=guided, cfg_prompt=self.cfg_prompt)
        return dict(zip(("input_ids", "attention_mask"), encoded, strict=True), image_shape=self.image_shape)


def check_ar_steps(model: SampledModel, sampling: Sampling, tokens: int) -> None:
    """Refuse, with a ValueError, what a model cannot do with an image of `tokens` tokens; it needs no weights."""
    if not 1 <= len(model.nfe(sampling.schedule, sampling.sampler, sampling.num_iter)) <= tokens:
        raise ValueError(f"num_iter is {sampling.num_iter}; an image of {tokens} tokens takes 1 to {tokens} AR steps")


def check_prompts(
    model: PromptModel, prompts: Sequence[str], shape: tuple[int, int], cfg_prompt: str = UNCONDITIONAL_PROMPT
) -> None:
    """Refuse, with a ValueError, what has no room beside an image of `shape` in tokens; it needs no weights."""
    if model.text is None:
        raise ValueError("the model has no text tokenizer; attach one (model.text)")
    room = model.llm.config.max_position_embeddings - model.image_tokens(shape)

    def taken(prompt: str) -> int:
        assert model.text is not None
        return model.text.text_to_image_prompts([prompt], guided=True, cfg_prompt=cfg_prompt)[0].shape[1]

    advice = "shorten the prompt, or take a smaller image" if taken("a") <= room else "take a smaller image"
    for prompt in prompts:
        if (count := taken(prompt)) > room:
            shown = f"{prompt[:40]!r}{'…' * (len(prompt) > 40)}"
            raise ValueError(
                f"the prompt {shown} takes {count} tokens, and beside an image of {shape[0] * shape[1]} tokens the "
                f"language model has room for {max(room, 0)}; {advice}"
            )


def question_room(model: PromptModel, question: str, shape: tuple[int, int], called: str = "question") -> int:
    """Return how many tokens an answer to a question on an image of `shape` in tokens may take; it needs no weights.

    None at all raises a ValueError that calls the question `called`.
    """
    if model.text is None:
        raise ValueError("the model has no text tokenizer; attach one (model.text)")
    most, image = model.llm.config.max_position_embeddings, model.image_tokens(shape)
    asked, least = (len(model.text.question(one, image)) for one in (question, "a"))
    if asked >= most:
        taken = f"the {called} and the image take {asked} tokens, {asked - most + 1} too many"
        raise ValueError(f"{taken}; {f'shorten the {called}, or ' * (least < most)}take a smaller image")
    return most - asked


def image_seed(seed: int, image_id: int) -> int:
    """Combine a seed and an image's id, both in [0, 2^32), into the seed of its noise; no two pairs share one."""
    return (_check_32_bits("seed", seed) << 32) + _check_32_bits("the image id", image_id)


def _check_32_bits(name: str, number: int) -> int:
    if not 0 <= number < 2**32:
        raise ValueError(f"{name} is {number}; it must be in [0, 2^32)")
    return number


def choose_attention(llm: PreTrainedModel, device: torch.device) -> None:
    """Choose flash-attn for the language model where it is installed and works, else torch's attention; print which."""
    from transformers.utils import is_flash_attn_2_available  # type: ignore[attr-defined]  # not marked as exported

    half = llm.dtype in (torch.float16, torch.bfloat16)
    flash = device.type == "cuda" and half and is_flash_attn_2_available()
    llm.set_attn_implementation("flash_attention_2" if flash else "sdpa")
    if distributed.is_main():
        print(f"the language model attends with {llm.config._attn_implementation}", file=sys.stderr)


def image_shape(size: int | str, stride: int) -> tuple[int, int]:
    """Rows and columns of tokens in an image of `size`, pixels per side or height x width, multiples of `stride`."""
    sides = str(size).lower().split("x")
    if len(sides) > 2 or not all(side.isdecimal() and int(side) and int(side) % stride == 0 for side in sides):
        example = f"{4 * stride}x{6 * stride}"
        raise ValueError(
            f"image_size is {size}; a multiple of {stride} is needed, or two of them, height x width, like {example}"
        )
    return int(sides[0]) // stride, int(sides[-1]) // stride
