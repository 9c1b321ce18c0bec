"""How a class-conditional model turns image ids into images."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .diffusion import step_timesteps
from .generation import image_seed
from .guidance import Guidance
from .models.mar import MAR
from .models.tokenizer import Tokenizer
from .noise import ImageNoise
from .schedule import StepSchedule


@dataclass(frozen=True)
class Sampling:
    """The settings of a generation; `MAR.generate` says what each means, `seed` is combined with an image's id."""

    num_iter: int
    schedule: StepSchedule
    sampler: str = "DiSA"
    guidance: Guidance = Guidance()
    temperature: float = 1.0
    seed: int = 1

    @property
    def step_counts(self) -> list[int]:
        """Evaluations of the head at each AR step."""
        return [len(timesteps) for timesteps in step_timesteps(self.sampler, self.schedule, self.num_iter)]

    @property
    def head_evaluations(self) -> int:
        """Evaluations of the head for one image."""
        return sum(self.step_counts)

    def describe(self) -> dict[str, Any]:
        """The settings under the names of the commands' flags."""
        return {
            "num_iter": self.num_iter,
            "diff_sampler": self.sampler,
            "diff_upper_steps": self.schedule.upper,
            "diff_lower_steps": self.schedule.lower,
            "diff_annealing_strategy": str(self.schedule.strategy),
            "cfg": self.guidance.scale,
            "cfg_schedule": self.guidance.schedule,
            "temperature": self.temperature,
            "seed": self.seed,
        }

    def name(self) -> str:
        """A folder's name for these settings."""
        schedule = self.schedule
        steps = f"{schedule.upper}" if self.sampler == "default" else f"{schedule.strategy}-{schedule.upper}to{schedule.lower}"
        guidance = f"cfg{self.guidance.scale:g}{self.guidance.schedule}"
        return f"ar{self.num_iter}-{self.sampler}-{steps}-{guidance}-temperature{self.temperature:g}-seed{self.seed}"


class LabelSampler:
    """Image ids -> images, for `generation.generate_images`.

    Args:
        model: in eval mode, on `device`.
        tokenizer: that decodes its latents, on `device` and of the model's dtype.
    """

    def __init__(self, model: MAR, tokenizer: Tokenizer, sampling: Sampling, device: torch.device) -> None:
        self.model, self.tokenizer, self.sampling, self.device = model, tokenizer, sampling, device

    def labels(self, ids: Iterable[int]) -> Tensor:
        """Ids run through the classes, so that any first N of them hold each class equally often, give or take one."""
        return torch.tensor([image_id % self.model.num_classes for image_id in ids])

    @torch.no_grad()
    def __call__(self, ids: Sequence[int]) -> Tensor:
        """Images [B, C, H, W] in [-1, 1]."""
        latents = self.model.generate(
            self.labels(ids).to(self.device),
            num_iter=self.sampling.num_iter,
            schedule=self.sampling.schedule,
            sampler=self.sampling.sampler,
            guidance=self.sampling.guidance,
            temperature=self.sampling.temperature,
            noise=ImageNoise([image_seed(self.sampling.seed, image_id) for image_id in ids], self.device),
        )
        return self.tokenizer.decode(latents.to(next(self.model.parameters()).dtype))
