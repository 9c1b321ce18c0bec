"""How image ids become images: of a label, or of a prompt."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .generation import image_seed
from .guidance import Guidance
from .models.checks import check_finite, check_temperature
from .models.tokenizer import Tokenizer
from .noise import ImageNoise
from .schedule import StepSchedule
from .text import DRAW_ANYTHING
from .timing import Stopwatch
from .trace import StepTrace


@dataclass(frozen=True)
class Sampling:
    """The settings of a generation; the models' `generate` says what each means, `seed` is combined with an image's id.

    `num_iter` is None for models whose scales or cells are their AR steps.
    """

    num_iter: int | None
    schedule: StepSchedule
    sampler: str = "DiSA"
    guidance: Guidance = Guidance()
    temperature: float = 1.0
    seed: int = 1

    @property
    def steps(self) -> dict[str, Any]:
        """What the number of evaluations depends on, as arguments of a model's `evaluations` and `generate`."""
        return {"schedule": self.schedule, "sampler": self.sampler, **({} if self.num_iter is None else {"num_iter": self.num_iter})}

    def describe(self) -> dict[str, Any]:
        """The settings under the names of the commands' flags."""
        kind = "flow" if self.num_iter is None else "diff"
        return {
            **({} if self.num_iter is None else {"num_iter": self.num_iter}),
            f"{kind}_sampler": self.sampler,
            f"{kind}_upper_steps": self.schedule.upper,
            f"{kind}_lower_steps": self.schedule.lower,
            f"{kind}_annealing_strategy": str(self.schedule.strategy),
            "cfg": self.guidance.scale,
            "cfg_schedule": self.guidance.schedule,
            **({"guidance": self.guidance.max_time} if self.num_iter is None else {}),
            "temperature": self.temperature,
            "seed": self.seed,
        }

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any]) -> Sampling:
        """What `describe` describes.

        Raises:
            ValueError: a setting is missing, unknown or impossible.
        """
        flow = any(name.startswith("flow_") for name in settings)
        known = cls(None if flow else 1, StepSchedule()).describe()
        for name, value in settings.items():
            if name not in known:
                raise ValueError(f"there is no setting {name} here; there are {', '.join(known)}")
            kind = type(known[name])
            if isinstance(value, bool) or not isinstance(value, (int, float) if kind is float else kind):
                raise ValueError(f"{name} is {value!r}; a value like {known[name]!r} is needed")
        if lacking := [name for name in known if name not in settings]:
            raise ValueError(f"nothing says what {', '.join(lacking)} shall be")
        values = {name.removeprefix("diff_").removeprefix("flow_"): value for name, value in settings.items()}
        return cls(
            values.get("num_iter"),
            StepSchedule(values["upper_steps"], values["lower_steps"], values["annealing_strategy"]),
            values["sampler"],
            Guidance(values["cfg"], values["cfg_schedule"], values.get("guidance", 1.0)),
            values["temperature"],
            values["seed"],
        )

    def name(self) -> str:
        """A folder's name for these settings."""
        schedule = self.schedule
        steps = f"{schedule.upper}" if self.sampler == "default" else f"{schedule.strategy}-{schedule.upper}to{schedule.lower}"
        guidance = f"cfg{self.guidance.scale:g}{self.guidance.schedule}"
        if self.guidance.max_time != 1:
            guidance += f"-guidance{self.guidance.max_time:g}"
        ar_steps = "" if self.num_iter is None else f"ar{self.num_iter}-"
        return f"{ar_steps}{self.sampler}-{steps}-{guidance}-temperature{self.temperature:g}-seed{self.seed}"


class Sampler:
    """Image ids -> images, for `generation.generate_images` and `evaluation.evaluate`.

    Args:
        model: in eval mode, on `device`.
        tokenizer: that decodes its latents, on `device` and of the model's dtype.

    Attributes:
        clock: how long "generation" and "decoding" took.
    """

    def __init__(self, model: Any, tokenizer: Tokenizer, sampling: Sampling, device: torch.device) -> None:
        self.model, self.tokenizer, self.sampling, self.device = model, tokenizer, sampling, device
        self.clock = Stopwatch(device)

    @property
    def step_counts(self) -> list[int]:
        """Evaluations of the head at each AR step."""
        return self.model.evaluations(**self.sampling.steps)

    @property
    def head_evaluations(self) -> int:
        """Evaluations of the head for one image."""
        return sum(self.step_counts)

    def describe(self) -> dict[str, Any]:
        """What an image depends on besides its id and the weights."""
        return self.sampling.describe()

    def labels(self, ids: Iterable[int]) -> Tensor | None:
        """The class that each image is to show, int64 [B], if there are classes."""
        raise NotImplementedError

    def latents(self, ids: Sequence[int]) -> Tensor:
        """Latents [B, C, H, W] of ids."""
        raise NotImplementedError

    @torch.no_grad()
    def __call__(self, ids: Sequence[int]) -> Tensor:
        """Images [B, C, H, W] in [-1, 1]."""
        with self.clock("generation"):
            latents = self.latents(ids).to(next(self.model.parameters()).dtype)
        with self.clock("decoding"):
            images = self.tokenizer.decode(latents)
        check_finite(images, "pixels")
        return images

    def noise(self, ids: Sequence[int]) -> ImageNoise:
        """The randomness of each image."""
        return ImageNoise([image_seed(self.sampling.seed, image_id) for image_id in ids], self.device)


class LabelSampler(Sampler):
    """Images of class labels; the model is of a class-conditional family."""

    def labels(self, ids: Iterable[int]) -> Tensor:
        """Ids run through the classes, so that any first N of them hold each class equally often, give or take one."""
        return torch.tensor([image_id % self.model.num_classes for image_id in ids])

    def latents(self, ids: Sequence[int]) -> Tensor:
        return self.model.generate(
            self.labels(ids).to(self.device),
            **self.sampling.steps,
            guidance=self.sampling.guidance,
            temperature=self.sampling.temperature,
            noise=self.noise(ids),
        )


class PromptSampler(Sampler):
    """Images of prompts: image `id` is one of prompt `id // images_per_prompt`.

    Args:
        model: Harmon in eval mode, on `device`, with a text tokenizer.
        prompts: what to draw.
        image_shape: rows and columns of tokens.
        classes: the class that each prompt asks for, if the prompts ask for classes.
        cfg_prompt: the unconditional prompt of guidance.
        on_step: as for `Harmon.generate`.

    Raises:
        ValueError: a prompt or a setting is impossible; nothing of it comes up later.
    """

    def __init__(
        self,
        model: Any,
        prompts: Sequence[str],
        sampling: Sampling,
        device: torch.device,
        *,
        image_shape: tuple[int, int],
        images_per_prompt: int = 1,
        cfg_prompt: str = DRAW_ANYTHING,
        classes: Sequence[int] | None = None,
        on_step: Callable[[StepTrace], None] | None = None,
    ) -> None:
        super().__init__(model, model.vae, sampling, device)
        self.prompts, self.classes, self.images_per_prompt = list(prompts), classes, images_per_prompt
        self.image_shape, self.cfg_prompt, self.on_step = image_shape, cfg_prompt, on_step
        check_temperature(sampling.temperature)
        image_seed(sampling.seed, 0)
        tokens = image_shape[0] * image_shape[1]
        if not 1 <= len(self.step_counts) <= tokens:
            raise ValueError(f"num_iter is {sampling.num_iter}; an image of {tokens} tokens takes 1 to {tokens} AR steps")
        room = model.llm.config.max_position_embeddings - model.mar.buffer_size - tokens
        for prompt in self.prompts:
            ids, _ = model.text.drawing_prompts([prompt], guided=True, cfg_prompt=cfg_prompt)
            if ids.shape[1] > room:
                shown = f"{prompt[:40]!r}{'…' * (len(prompt) > 40)}"
                raise ValueError(
                    f"the prompt {shown} takes {ids.shape[1]} tokens, and beside an image of {tokens} tokens the language model has room "
                    f"for {max(room, 0)}; shorten the prompt, or take a smaller image"
                )

    def describe(self) -> dict[str, Any]:
        return {
            **super().describe(),
            "image_shape": self.image_shape,
            "images_per_prompt": self.images_per_prompt,
            "prompts": hashlib.sha256("\n".join([self.cfg_prompt, *self.prompts]).encode()).hexdigest()[:12],
        }

    def labels(self, ids: Iterable[int]) -> Tensor | None:
        if self.classes is None:
            return None
        return torch.tensor([self.classes[image_id // self.images_per_prompt] for image_id in ids])

    def latents(self, ids: Sequence[int]) -> Tensor:
        prompts = [self.prompts[image_id // self.images_per_prompt] for image_id in ids]
        input_ids, mask = self.model.text.drawing_prompts(prompts, guided=self.sampling.guidance.active, cfg_prompt=self.cfg_prompt)
        return self.model.generate(
            input_ids=input_ids,
            attention_mask=mask,
            image_shape=self.image_shape,
            **self.sampling.steps,
            guidance=self.sampling.guidance,
            temperature=self.sampling.temperature,
            noise=self.noise(ids),
            on_step=self.on_step,
        )
