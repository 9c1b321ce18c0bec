"""How a class-conditional model turns image ids into images."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .generation import image_seed
from .guidance import Guidance
from .models.checks import check_finite
from .models.tokenizer import Tokenizer
from .noise import ImageNoise
from .schedule import StepSchedule


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

    def name(self) -> str:
        """A folder's name for these settings."""
        schedule = self.schedule
        steps = f"{schedule.upper}" if self.sampler == "default" else f"{schedule.strategy}-{schedule.upper}to{schedule.lower}"
        guidance = f"cfg{self.guidance.scale:g}{self.guidance.schedule}"
        if self.guidance.max_time != 1:
            guidance += f"-guidance{self.guidance.max_time:g}"
        ar_steps = "" if self.num_iter is None else f"ar{self.num_iter}-"
        return f"{ar_steps}{self.sampler}-{steps}-{guidance}-temperature{self.temperature:g}-seed{self.seed}"


class LabelSampler:
    """Image ids -> images, for `generation.generate_images`.

    Args:
        model: of a class-conditional family, in eval mode, on `device`.
        tokenizer: that decodes its latents, on `device` and of the model's dtype.
    """

    def __init__(self, model: Any, tokenizer: Tokenizer, sampling: Sampling, device: torch.device) -> None:
        self.model, self.tokenizer, self.sampling, self.device = model, tokenizer, sampling, device

    @property
    def step_counts(self) -> list[int]:
        """Evaluations of the head at each AR step."""
        return self.model.evaluations(**self.sampling.steps)

    @property
    def head_evaluations(self) -> int:
        """Evaluations of the head for one image."""
        return sum(self.step_counts)

    def labels(self, ids: Iterable[int]) -> Tensor:
        """Ids run through the classes, so that any first N of them hold each class equally often, give or take one."""
        return torch.tensor([image_id % self.model.num_classes for image_id in ids])

    @torch.no_grad()
    def __call__(self, ids: Sequence[int]) -> Tensor:
        """Images [B, C, H, W] in [-1, 1]."""
        latents = self.model.generate(
            self.labels(ids).to(self.device),
            **self.sampling.steps,
            guidance=self.sampling.guidance,
            temperature=self.sampling.temperature,
            noise=ImageNoise([image_seed(self.sampling.seed, image_id) for image_id in ids], self.device),
        )
        images = self.tokenizer.decode(latents.to(next(self.model.parameters()).dtype))
        check_finite(images, "pixels")
        return images
