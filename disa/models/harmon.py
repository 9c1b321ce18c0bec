"""Harmon: a language model reads what MAR's encoder sees, so that MAR draws what a text says, and the text says what MAR sees.

Wu et al., "Harmonizing Visual Representations for Unified Multimodal Understanding and Generation", 2025. Parameter names are the
released ones.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..guidance import Guidance
from ..noise import NoiseSource
from ..schedule import StepSchedule
from ..trace import StepTrace
from .checks import check_finite
from .mar import MAR, Positions, autoregress
from .tokenizer import AutoencoderKL, SpaceToDepth, Tokenizer

if TYPE_CHECKING:
    from ..text import TextTokenizer

IGNORED = -100  # a label that the text loss passes over, as in transformers
VISUAL_GRADIENT = 0.1  # of the text loss into the visual features (Harmon, section 3.3)


@dataclass(frozen=True)
class Prompt:
    """What the language model remembers of prompts, padded on the right.

    Attributes:
        cache: keys and values of every layer (transformers' DynamicCache), of T tokens before and after each use.
        mask: which of them are no padding, bool [N, T].
    """

    cache: Any
    mask: Tensor


def _tie_word_embeddings(model: Harmon, state: dict[str, Tensor], prefix: str, *_: Any) -> None:
    """The output layer of the language model is its embedding: some files hold a copy of it, some do not, and none has its own."""
    if model.llm.config.tie_word_embeddings and f"{prefix}llm.model.embed_tokens.weight" in state:
        state[f"{prefix}llm.lm_head.weight"] = state[f"{prefix}llm.model.embed_tokens.weight"]


class Harmon(nn.Module):
    """A Qwen2 language model beside MAR, and the tokenizer of its images.

    Args:
        mar: arguments of `MAR`; its `grad_checkpointing` is for the language model too.
        llm: arguments of transformers' `Qwen2Config`.
        image_tokenizer: "kl16", whose weights the released files hold too, or "space_to_depth" for small grey images.

    Raises:
        ValueError: the sizes do not fit together.
    """

    def __init__(
        self, *, mar: Mapping[str, Any] | None = None, llm: Mapping[str, Any] | None = None, image_tokenizer: str = "kl16"
    ) -> None:
        super().__init__()
        from transformers import Qwen2Config, Qwen2ForCausalLM

        self.mar = MAR(**(mar or {}))
        if self.mar.patch_size != 1:
            raise ValueError(f"mar.patch_size is {self.mar.patch_size}; Harmon's tokens are single latents")
        channels = self.mar.diffloss.channels
        if image_tokenizer not in ("kl16", "space_to_depth"):
            raise ValueError(f"image_tokenizer is {image_tokenizer!r}; allowed are kl16 and space_to_depth")
        self.vae: Tokenizer = AutoencoderKL(channels) if image_tokenizer == "kl16" else SpaceToDepth(round(channels**0.5))
        self.llm: Any = Qwen2ForCausalLM(Qwen2Config(**{"tie_word_embeddings": True, **(llm or {})}))
        if self.mar.grad_checkpointing:
            # Renamed within transformers 5.
            enable = getattr(self.llm, "activation_checkpointing_enable", None) or self.llm.gradient_checkpointing_enable
            enable({"use_reentrant": False})
        width, text_width = self.mar.mask_token.shape[-1], self.llm.config.hidden_size
        self.proj_in = nn.Sequential(nn.Linear(width, text_width), nn.SiLU(), nn.Linear(text_width, text_width))
        self.proj_out = nn.Sequential(nn.Linear(text_width, text_width), nn.SiLU(), nn.Linear(text_width, width))
        self.mar.class_emb.requires_grad_(False)  # text takes its place
        self.register_load_state_dict_pre_hook(_tie_word_embeddings)
        # What turns `prompts` into token ids; whoever loads a model attaches it, for it comes from files.
        self.text: TextTokenizer | None = None

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Harmon:
        # In a half type, the language model's angles would be off by radians at positions beyond a thousand: they stay float32.
        rotary = self.llm.model.rotary_emb
        angles = dict(rotary.named_buffers())
        super()._apply(fn, recurse)
        for name, buffer in rotary.named_buffers():
            rotary.register_buffer(name, angles[name].to(buffer.device), persistent=False)
        return self

    # ------------------------------------------------------------------------------------------------- text and image meet

    def image_tokens(self, shape: tuple[int, int]) -> int:
        """Positions that an image of `shape` (rows, columns) takes in the language model."""
        return shape[0] * shape[1] + self.mar.buffer_size

    def _encode(self, tokens: Tensor, known: Tensor, positions: Positions) -> Tensor:
        """MAR's encoder over known tokens, [N, buffer + K, W]; the buffer holds no class, for text takes its place."""
        return self.mar.encode(tokens, known, self.mar.fake_latent.expand(len(tokens), -1), positions)

    def _to_text(self, encoded: Tensor) -> Tensor:
        """MAR's encoder output [N, buffer + K, W] as the language model reads it: the image first, then the buffer."""
        return self.proj_in(encoded).roll(-self.mar.buffer_size, dims=1)

    def _from_text(self, encoded: Tensor, hidden: Tensor) -> Tensor:
        """MAR's encoder output with what the language model, `hidden` in its order, adds to it: [N, buffer + K, W]."""
        return encoded + self.proj_out(hidden.roll(self.mar.buffer_size, dims=1))

    def remember(self, input_ids: Tensor, attention_mask: Tensor) -> Prompt:
        """Prompts [N, T], padded on the right where `attention_mask` is 0, run through the language model once."""
        mask = attention_mask.bool()
        position = (mask.long().cumsum(1) - 1).clamp(min=0)
        output = self.llm.model(input_ids=input_ids, attention_mask=mask.long(), position_ids=position, use_cache=True)
        return Prompt(output.past_key_values, mask)

    def read(self, encoded: Tensor, prompt: Prompt) -> Tensor:
        """MAR's encoder output [N, buffer + K, W] with what the language model adds to it after reading it behind the prompts."""
        seen = self._to_text(encoded)
        rows, length = seen.shape[:2]
        hidden = self.llm.model(
            inputs_embeds=seen,
            attention_mask=torch.cat([prompt.mask, prompt.mask.new_ones(rows, length)], dim=1).long(),
            position_ids=prompt.mask.sum(1, keepdim=True) + torch.arange(length, device=seen.device),
            past_key_values=prompt.cache,
            use_cache=True,
        ).last_hidden_state
        prompt.cache.crop(-length)
        return self._from_text(encoded, hidden)

    def see(self, latents: Tensor) -> Tensor:
        """Latents [B, C, H, W] -> what the language model reads of a whole image, [B, H · W + buffer, text width]."""
        tokens, shape = latents.flatten(2).transpose(1, 2), (latents.shape[2], latents.shape[3])
        everything = torch.arange(tokens.shape[1], device=tokens.device).expand(len(tokens), -1)
        return self._to_text(self._encode(tokens, everything, self.mar.positions(shape)))

    def _embed(self, latents: Tensor, input_ids: Tensor, image_token: int) -> Tensor:
        """Token ids [B, T] embedded, with the features of an image in each row at its image tokens."""
        place, seen = input_ids == image_token, self.see(latents)
        if not bool((place.sum(1) == seen.shape[1]).all()):
            raise ValueError(f"a row has {place.sum(1).tolist()} image tokens; an image takes {seen.shape[1]}")
        if self.training:
            seen = VISUAL_GRADIENT * seen + (1 - VISUAL_GRADIENT) * seen.detach()
        # The image token may lie beyond the vocabulary: it stands for no word.
        embedded = self.llm.get_input_embeddings()(input_ids.masked_fill(place, 0))
        return embedded.masked_scatter(place[..., None], seen.to(embedded.dtype))

    # ------------------------------------------------------------------------------------------------------------ training

    def forward(self, drawing: Mapping[str, Any] | None = None, answering: Mapping[str, Any] | None = None) -> Tensor:
        """Training loss: the sum of what is given, for distributed training wraps one method that must reach every parameter.

        Args:
            drawing: arguments of `drawing_loss`, a batch of text to image.
            answering: arguments of `answering_loss`, a batch of image to text.

        Returns:
            A scalar.
        """
        loss = self.mar.mask_token.new_zeros(())
        if drawing is not None:
            loss = loss + self.drawing_loss(**drawing)
        if answering is not None:
            loss = loss + self.answering_loss(**answering)
        return loss

    def drawing_loss(
        self,
        latents: Tensor,
        input_ids: Tensor,
        attention_mask: Tensor,
        mask: Tensor | None = None,
        timesteps: Tensor | None = None,
        noise: Tensor | None = None,
    ) -> Tensor:
        """MAR's loss over the masked tokens of images, where the language model has read prompts and the other tokens.

        Args:
            latents: [B, C, H, W], unit variance.
            input_ids, attention_mask: prompts [B, T], padded on the right.
            mask, timesteps, noise: as in `MAR.forward`; drawn if not given.
        """
        tokens, positions = latents.flatten(2).transpose(1, 2), self.mar.positions((latents.shape[2], latents.shape[3]))
        known, wanted = self.mar.split(tokens, mask)
        encoded = self._encode(tokens, known, positions)
        seen = self._to_text(encoded)
        text = self.llm.get_input_embeddings()(input_ids)
        valid = torch.cat([attention_mask.bool(), attention_mask.new_ones(seen.shape[:2], dtype=torch.bool)], dim=1)
        hidden = self.llm.model(
            inputs_embeds=torch.cat([text, seen.to(text.dtype)], dim=1),
            attention_mask=valid.long(),
            position_ids=(valid.long().cumsum(1) - 1).clamp(min=0),
            use_cache=False,
        ).last_hidden_state[:, -seen.shape[1] :]
        z = self.mar.decode(self._from_text(encoded, hidden), known, wanted, positions)
        return self.mar.head_loss(tokens, wanted, z, timesteps, noise)

    def answering_loss(self, latents: Tensor, input_ids: Tensor, attention_mask: Tensor, labels: Tensor, image_token: int) -> Tensor:
        """Mean cross-entropy of the answers' tokens.

        Args:
            latents: [B, C, H, W], unit variance.
            input_ids, attention_mask: questions and answers [B, T], padded on the right.
            labels: `input_ids` where there is a loss, IGNORED elsewhere [B, T].
            image_token: the id that stands for a visual feature.
        """
        embedded = self._embed(latents, input_ids, image_token)
        hidden = self.llm.model(inputs_embeds=embedded, attention_mask=attention_mask, use_cache=False).last_hidden_state
        answered = labels[:, 1:] != IGNORED  # a position says the next token
        return F.cross_entropy(self.llm.lm_head(hidden[:, :-1][answered]).float(), labels[:, 1:][answered])

    # ---------------------------------------------------------------------------------------------------------- generation

    def evaluations(self, schedule: StepSchedule, sampler: str, num_iter: int) -> list[int]:
        """Evaluations of the head at each AR step that `generate` would make with these settings."""
        return self.mar.evaluations(schedule, sampler, num_iter)

    @torch.no_grad()
    def generate(
        self,
        prompts: list[str] | None = None,
        num_iter: int = 64,
        schedule: StepSchedule | None = None,
        sampler: str = "DiSA",
        guidance: Guidance | None = None,
        temperature: float = 1.0,
        *,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        image_shape: tuple[int, int] | None = None,
        noise: NoiseSource,
        on_step: Callable[[StepTrace], None] | None = None,
    ) -> Tensor:
        """Latents for prompts.

        Args:
            prompts: B descriptions of images; or instead
            input_ids, attention_mask: the prompts' token ids and which of them are no padding, [B, T], padded on the right; with
                guidance [2B, T], the B conditional rows first.
            image_shape: rows and columns of tokens; by default those that the model was trained on.
            num_iter: AR steps, 1 to the number of tokens.
            schedule: diffusion steps at each AR step; by default 50 down to 5, linear.
            sampler: a name in `disa.diffusion.SAMPLERS`.
            guidance: by default 3, constant.
            temperature: factor on the noise within the diffusion steps.
            noise: where the randomness comes from, such as `disa.ImageNoise`.
            on_step: called after each AR step.

        Returns:
            float32 [B, C, rows, columns], unit variance.

        Raises:
            ValueError: a setting or a prompt is impossible.
            FloatingPointError: a latent came out as NaN or infinite.
        """
        guidance = guidance or Guidance(3.0, "constant")
        if (prompts is None) == (input_ids is None):
            raise ValueError("either prompts or input_ids must be given, and not both")
        if prompts is not None:
            if self.text is None:
                raise ValueError("this model has no text tokenizer, so it takes no prompts; give input_ids, or attach one (model.text)")
            input_ids, attention_mask = self.text.drawing_prompts(prompts, guided=guidance.active)
        assert input_ids is not None
        device = self.mar.mask_token.device
        input_ids = input_ids.to(device)
        attention_mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask.to(device)
        branches = 2 if guidance.active else 1
        if len(input_ids) % branches:
            raise ValueError(f"input_ids has {len(input_ids)} rows; with guidance the unconditional prompts follow the conditional ones")
        shape = image_shape or (self.mar.grid, self.mar.grid)
        if min(shape) < 1:
            raise ValueError(f"image_shape is {shape}; rows and columns must be at least 1")
        room, needed = self.llm.config.max_position_embeddings, input_ids.shape[1] + self.image_tokens(shape)
        if needed > room:
            raise ValueError(
                f"prompt and image take {needed} positions, and the language model has {room}; shorten the prompt or the image"
            )
        positions = self.mar.positions(shape)
        prompt = self.remember(input_ids, attention_mask)

        def backbone(tokens: Tensor, known: Tensor, wanted: Tensor) -> Tensor:
            known, wanted = known.repeat(branches, 1), wanted.repeat(branches, 1)
            encoded = self._encode(tokens.repeat(branches, 1, 1), known, positions)
            return self.mar.decode(self.read(encoded, prompt), known, wanted, positions)

        tokens = autoregress(
            backbone,
            self.mar.diffloss,
            noise,
            length=shape[0] * shape[1],
            num_iter=num_iter,
            schedule=schedule or StepSchedule(),
            sampler=sampler,
            guidance=guidance,
            temperature=temperature,
            on_step=on_step,
        )
        return self.mar.unpatchify(tokens, shape)

    @torch.no_grad()
    def answer(self, latents: Tensor, input_ids: Tensor, image_token: int, **generation: Any) -> Tensor:
        """Token ids of the answers to prompts with an image in each.

        Args:
            latents: [B, C, H, W], unit variance.
            input_ids: [B, T], with `image_token` where each visual feature belongs.
            generation: for transformers' `generate`, such as max_new_tokens, do_sample, streamer.

        Returns:
            int64 [B, new tokens].
        """
        embedded = self._embed(latents, input_ids, image_token)
        check_finite(embedded, "visual features")
        return self.llm.generate(inputs_embeds=embedded, attention_mask=torch.ones_like(input_ids), **generation)
