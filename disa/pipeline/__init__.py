"""A model, its VAE and its settings behind one call: labels or prompts -> images."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torchvision.transforms.functional import pil_to_tensor

from ..data.captions import unlearned
from ..data.text import UNCONDITIONAL_PROMPT
from ..data.transforms import to_signed
from ..generation.generators import LabelModel, Sampling
from ..models import MODELS
from ..models.harmon import Harmon
from ..models.mar import Known
from ..models.vae import AutoencoderKL
from ..runtime.devices import synchronize
from .arguments import Labels, check_asked, check_seeds, check_settings, check_shape
from .files import Pretrained, list_models
from .images import LatentsOnly, Output, SeededLabels, SeededPrompts, Step, pictures
from .questions import answer_question, fit_image, make_streamer

__all__ = ["Known", "Output", "Pipeline", "Step", "answer_question", "fit_image", "list_models"]
OUTPUT_TYPES = ("pil", "tensor", "latent")


class Pipeline(Pretrained):
    """A model with what turns it into images; build one with `from_pretrained`, see `Pretrained` for its attributes."""

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
        **settings: Any,  # Any: of several types, see `check_settings`
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
        sampling = check_settings(self, settings)
        if known is not None:
            if sampling.num_iter is None:
                raise ValueError(f"{self.name} draws in an order of its own; only MAR and Harmon can edit")
            # Read on the host: the number of AR steps is decided there. `edit` makes the mask there, so nothing waits.
            sampling = replace(sampling, num_iter=min(sampling.num_iter, int((~known.where).sum())))
        if output_type not in OUTPUT_TYPES:
            raise ValueError(f"output_type is {output_type!r}; allowed are {', '.join(OUTPUT_TYPES)}")
        if type(batch_size) is not int or batch_size < 1:
            raise ValueError(f"batch_size is {batch_size!r}; it must be a whole number of at least 1")
        asked = check_asked(self, labels, prompts)
        drawn = check_seeds(seeds, num_images, len(asked))
        shape = check_shape(self, image_size)
        generator = self._generator(asked * (len(drawn) // len(asked)), sampling, shape, negative_prompt)
        generator.seeds, generator.callback, generator.known = drawn, callback_on_step_end, known
        generator.decoded = self._decode
        if output_type == "latent":
            generator.vae = LatentsOnly()
        start, blocks = time.perf_counter(), list[Tensor]()
        for first in range(0, len(drawn), batch_size):
            blocks.append(generator(range(first, min(first + batch_size, len(drawn)))))
            if generator.stopped:
                break
        images = torch.cat(blocks)
        shown = pictures(images) if output_type == "pil" else images
        synchronize(self.device)
        return Output(shown, drawn[: len(images)], generator.evaluations, time.perf_counter() - start)

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
        check_shape(self, size)
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
        shape, text = check_shape(self, image_size), self.model.text
        streamer = on_text and make_streamer(text, on_text)
        return answer_question(self.model, image.convert("RGB"), shape, question, max_new_tokens, streamer)

    def enable_tiling(self, side: int | None = 512) -> None:
        """Let the VAE work on overlapping tiles of `side` pixels, blended linearly: large images in little memory.

        Off by default, and with None. The images change a little, for the VAE sees a tile, not the whole image. A VAE
        that works pixel by pixel needs no tiles.

        Raises:
            ValueError: a tile holds less than two latents along a side.
        """
        if not isinstance(self.vae, AutoencoderKL):
            return
        if side is not None and (type(side) is not int or side < 2 * self.vae.stride):
            raise ValueError(f"side is {side!r}; a tile has at least {2 * self.vae.stride} pixels along a side")
        self.vae.tile = side

    def _generator(
        self, asked: list[int] | list[str], sampling: Sampling, shape: tuple[int, int], negative_prompt: str
    ) -> SeededLabels | SeededPrompts:
        if isinstance(self.model, Harmon):
            prompts, settings = cast(list[str], asked), (sampling, self.device)
            if MODELS[self.name].bundled and (said := unlearned(prompts)):
                warnings.warn(f"{self.name}: {said}", stacklevel=3)  # of who calls the pipeline
            return SeededPrompts(self.model, prompts, *settings, image_shape=shape, cfg_prompt=negative_prompt)
        generator = SeededLabels(cast(LabelModel, self.model), self.vae, sampling, self.device)
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
        return pictures(self.vae.decode(latents.to(self._dtype)))

    @property
    def _grey(self) -> bool:
        return self.vae.image_channels == 1
