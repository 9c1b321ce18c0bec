"""Images of given seeds, whose AR steps are shown and may be stopped."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor, nn

from ..data.transforms import to_uint8
from ..generation.generators import Generator, LabelGenerator, PromptGenerator, SampledModel
from ..models.mar import Known
from ..noise import ImageNoise, NoiseSource
from ..trace import StepTrace


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


class LatentsOnly(nn.Module):
    """Stands where a VAE does, and leaves latents as they are."""

    def decode(self, latents: Tensor) -> Tensor:
        return latents


class SeededGenerator(Generator):
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


class SeededLabels(SeededGenerator, LabelGenerator):
    classes: Sequence[int] = ()

    def labels(self, ids: Iterable[int]) -> Tensor:
        return torch.tensor([self.classes[image_id] for image_id in ids])


class SeededPrompts(SeededGenerator, PromptGenerator):
    pass


def pictures(images: Tensor) -> list[Image.Image]:
    """Images [B, 1 or 3, H, W] in [-1, 1] -> PIL images, grey or in colour."""
    pixels = to_uint8(images).permute(0, 2, 3, 1).cpu().numpy()
    return [Image.fromarray(one[..., 0] if one.shape[-1] == 1 else one) for one in pixels]
