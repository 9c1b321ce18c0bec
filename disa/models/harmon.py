"""Harmon: a language model between MAR's encoder and decoder, for text to image and image to text.

Wu et al., "Harmonizing Visual Representations for Unified Multimodal Understanding and Generation", 2025. Parameter
names are as released.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ..acceleration.caching import BackboneCache, Caching
from ..annealing import AnnealedModel, check_finite
from ..grouping import Grouping
from ..guidance import Guidance
from ..noise import NoiseSource
from ..runtime.extras import extra
from ..schedule import StepSchedule
from ..trace import StepTrace
from .checks import Arguments, check_noise
from .mar import MAR, Known, Positions, autoregress
from .vae import build_vae

if TYPE_CHECKING:
    from transformers import DynamicCache

    from ..data.text import TextTokenizer

IGNORED = -100  # a label without a loss, as in transformers
VISUAL_GRADIENT = 0.1  # of the text loss into the visual features (Harmon, section 3.3)


@dataclass
class PromptCache:
    """The language model's KV cache of prompts, padded on the right, and of what follows them.

    Attributes:
        cache: keys and values of every layer, of T tokens.
        mask: which of them are no padding, bool [N, T].
    """

    cache: DynamicCache
    mask: Tensor

    def fork(self, rows: int) -> PromptCache:
        """Return a cache of the first `rows` prompts that grows apart from this one."""
        cache = copy.copy(self.cache)
        cache.layers = [copy.copy(layer) for layer in cache.layers]
        for layer in cache.layers:
            for name in ("keys", "values"):
                setattr(layer, name, getattr(layer, name)[:rows])
        return PromptCache(cache, self.mask[:rows])


def _tie_word_embeddings(model: Harmon, state: dict[str, Tensor], prefix: str, *_: object) -> None:
    """Fill the language model's output layer from its embedding: they are one, and only some files hold a copy."""
    if model.llm.config.tie_word_embeddings and f"{prefix}llm.model.embed_tokens.weight" in state:
        state[f"{prefix}llm.lm_head.weight"] = state[f"{prefix}llm.model.embed_tokens.weight"]


class Harmon(AnnealedModel):
    """A Qwen2 language model, MAR, and the VAE of its images.

    Args:
        mar: arguments of `MAR`; its `grad_checkpointing` is for the language model too.
        llm: arguments of transformers' `Qwen2Config`.
        vae: a key of `VAES`; the released files hold the weights of their "kl16" too.

    Raises:
        ValueError: the sizes do not fit together.
    """

    solvers = MAR.solvers

    def __init__(
        self,
        *,
        mar: Arguments | None = None,
        llm: Arguments | None = None,
        vae: str = "kl16",
    ) -> None:
        super().__init__()
        with extra("harmon"):
            from transformers import Qwen2Config, Qwen2ForCausalLM

        self.mar = MAR(**(mar or {}))
        if self.mar.patch_size != 1:
            raise ValueError(f"mar.patch_size is {self.mar.patch_size}; Harmon's tokens are single latents")
        channels = self.mar.diffloss.channels
        self.vae = build_vae(vae)
        if self.vae.latent_channels != channels:
            raise ValueError(
                f"mar.latent_channels is {channels}; the latents of its VAE, {vae}, have {self.vae.latent_channels}"
            )
        # Any: transformers' classes are not typed.
        self.llm: Any = Qwen2ForCausalLM(Qwen2Config(**{"tie_word_embeddings": True, **(llm or {})}))
        if self.mar.grad_checkpointing:
            # Renamed within transformers 5.
            enable = (
                getattr(self.llm, "activation_checkpointing_enable", None) or self.llm.gradient_checkpointing_enable
            )
            enable({"use_reentrant": False})
        width, text_width = self.mar.mask_token.shape[-1], self.llm.config.hidden_size
        self.proj_in = nn.Sequential(nn.Linear(width, text_width), nn.SiLU(), nn.Linear(text_width, text_width))
        self.proj_out = nn.Sequential(nn.Linear(text_width, text_width), nn.SiLU(), nn.Linear(text_width, width))
        self.mar.class_emb.requires_grad_(False)  # text takes its place
        self.register_load_state_dict_pre_hook(_tie_word_embeddings)  # type: ignore[no-untyped-call]
        # Turns `prompts` into token ids. It comes from files, so whoever loads a model attaches it.
        self.text: TextTokenizer | None = None

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Harmon:
        # The rotary angles stay float32: in half precision they are off by radians beyond a thousand positions.
        rotary = self.llm.model.rotary_emb
        angles = dict(rotary.named_buffers())
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, buffer in rotary.named_buffers():
            rotary.register_buffer(name, angles[name].to(buffer.device), persistent=False)
        return self

    def image_tokens(self, shape: tuple[int, int]) -> int:
        """Count the positions that an image of `shape` (rows, columns) takes in the language model."""
        return shape[0] * shape[1] + self.mar.buffer_size

    def _encode(
        self, tokens: Tensor, known: Tensor, positions: Positions, cache: BackboneCache | None = None
    ) -> Tensor:
        """Run MAR's encoder over known tokens, without a class: [N, buffer + K, W]."""
        return self.mar.encode(tokens, known, self.mar.fake_latent.expand(len(tokens), -1), positions, cache)

    def _to_text(self, encoded: Tensor) -> Tensor:
        """Project MAR's encoder output [N, buffer + K, W] for the language model: the image first, then the buffer."""
        return self.proj_in(encoded).roll(-self.mar.buffer_size, dims=1)

    def _from_text(self, encoded: Tensor, hidden: Tensor) -> Tensor:
        """Add the language model's output `hidden` to MAR's encoder output: [N, buffer + K, W]."""
        return encoded + self.proj_out(hidden.roll(self.mar.buffer_size, dims=1))

    def prefill(self, input_ids: Tensor, attention_mask: Tensor) -> PromptCache:
        """Run prompts [N, T], padded on the right where `attention_mask` is 0, through the language model."""
        # No token of a prompt sees the padding behind it, so that no mask is needed. Later tokens must not look at it.
        return PromptCache(self.llm.model(input_ids=input_ids, use_cache=True).past_key_values, attention_mask.bool())

    def attend(self, encoded: Tensor, prompt: PromptCache, keep: bool = False) -> Tensor:
        """Add to MAR's encoder output [N, buffer + K, W] what the language model makes of it after the prompts.

        If `keep`, the K tokens of the image join the prompts, which is where later ones will look for them.
        """
        embedded = self._to_text(encoded)
        length = embedded.shape[1]
        hidden = self.llm.model(
            inputs_embeds=embedded,
            attention_mask=self._mask(prompt.mask, length, embedded.dtype),
            position_ids=prompt.mask.sum(1, keepdim=True) + torch.arange(length, device=embedded.device),
            past_key_values=prompt.cache,
            use_cache=True,
        ).last_hidden_state
        kept = length - self.mar.buffer_size if keep else 0
        prompt.cache.crop(kept - length)
        prompt.mask = F.pad(prompt.mask, (0, kept), value=True)
        return self._from_text(encoded, hidden)

    def _mask(self, prompt: Tensor, length: int, dtype: torch.dtype) -> Tensor:
        """Mask of `length` positions after prompts that are no padding where `prompt` [N, T] is true.

        Returns:
            For flash-attn bool [N, T + length]. Else what is added to logits [N, 1, length, T + length]: made here,
            for all layers at once, as their kernel takes it.
        """
        if self.llm.config._attn_implementation == "flash_attention_2":
            return F.pad(prompt, (0, length), value=True)
        total = prompt.shape[1] + length
        aligned = -(-total // 16) * 16  # the kernel would copy rows of other strides
        later = torch.full((length, aligned), -torch.inf, dtype=dtype, device=prompt.device).triu(prompt.shape[1] + 1)
        padding = torch.zeros_like(prompt, dtype=dtype).masked_fill(~prompt, -torch.inf)
        return (later + F.pad(padding, (0, aligned - prompt.shape[1]))[:, None, None])[..., :total]

    def visual_features(self, latents: Tensor) -> Tensor:
        """Embed whole images, latents [B, C, H, W], for the language model: [B, H · W + buffer, text width]."""
        tokens, shape = rearrange(latents, "b c h w -> b (h w) c"), (latents.shape[2], latents.shape[3])
        everything = torch.arange(tokens.shape[1], device=tokens.device).expand(len(tokens), -1)
        return self._to_text(self._encode(tokens, everything, self.mar.positions(shape)))

    def _embed(self, latents: Tensor, input_ids: Tensor, image_token: int) -> Tensor:
        """Embed token ids [B, T], with the visual features of an image in each row at its image tokens."""
        place, features = input_ids == image_token, self.visual_features(latents)
        if not bool((place.sum(1) == features.shape[1]).all()):
            raise ValueError(f"a row has {place.sum(1).tolist()} image tokens; an image takes {features.shape[1]}")
        if self.training:
            features = VISUAL_GRADIENT * features + (1 - VISUAL_GRADIENT) * features.detach()
        # The image token may lie beyond the vocabulary: it stands for no word.
        embedded = self.llm.get_input_embeddings()(input_ids.masked_fill(place, 0))
        return embedded.masked_scatter(place[..., None], features.to(embedded.dtype))

    def forward(
        self,
        text_to_image: Arguments | None = None,
        image_to_text: Arguments | None = None,
    ) -> Tensor:
        """Sum `text_to_image_loss` and `image_to_text_loss` of the arguments given; distributed training wraps this."""
        loss = self.mar.mask_token.new_zeros(())
        if text_to_image is not None:
            loss = loss + self.text_to_image_loss(**text_to_image)
        if image_to_text is not None:
            loss = loss + self.image_to_text_loss(**image_to_text)
        return loss

    def text_to_image_loss(
        self,
        latents: Tensor,
        input_ids: Tensor,
        attention_mask: Tensor,
        mask: Tensor | None = None,
        timesteps: Tensor | None = None,
        noise: Tensor | None = None,
    ) -> Tensor:
        """Compute MAR's loss over the masked tokens of latents [B, C, H, W], given prompts [B, T] padded on the right.

        `mask`, `timesteps` and `noise` are those of `MAR.forward`.
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

    def image_to_text_loss(
        self, latents: Tensor, input_ids: Tensor, attention_mask: Tensor, labels: Tensor, image_token: int
    ) -> Tensor:
        """Compute the mean cross-entropy of the answers' tokens about images, latents [B, C, H, W].

        `input_ids` are questions and answers [B, T], padded on the right; `labels` the same where there is a loss, else
        IGNORED; `image_token` stands for a visual feature.
        """
        embedded = self._embed(latents, input_ids, image_token)
        output = self.llm.model(inputs_embeds=embedded, attention_mask=attention_mask, use_cache=False)
        hidden = output.last_hidden_state
        answered = labels[:, 1:] != IGNORED  # a position says the next token
        return F.cross_entropy(self.llm.lm_head(hidden[:, :-1][answered]).float(), labels[:, 1:][answered])

    @torch.no_grad()
    def generate(
        self,
        prompts: Sequence[str] | None = None,
        *,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        image_shape: tuple[int, int] | None = None,
        num_iter: int = 64,
        schedule: StepSchedule = StepSchedule(50, 5),
        sampler: str = "DiSA",
        guidance: Guidance = Guidance(3.0, "constant"),
        temperature: float = 1.0,
        grouping: Grouping = Grouping(),
        caching: Caching = Caching(),
        noise: NoiseSource,
        on_step: Callable[[StepTrace], None] | None = None,
        known: Known | None = None,
    ) -> Tensor:
        """Sample latents for prompts.

        Args:
            prompts: B descriptions of images; or instead
            input_ids, attention_mask: the prompts' token ids and which of them are no padding, [B, T], padded on the
                right; with guidance [2B, T], the B conditional rows first.
            image_shape: rows and columns of tokens; by default those that the model was trained on.
            num_iter, schedule, sampler, guidance, temperature, grouping, noise, on_step, known: as for `MAR.generate`.
            caching: the same; in the language model, new tokens follow those that it has read since the last full pass.

        Returns:
            float32 [B, C, rows, columns], unit variance.

        Raises:
            ValueError: a setting or a prompt is impossible.
            FloatingPointError: a latent came out as NaN or infinite.
        """
        if prompts is not None:
            if input_ids is not None:
                raise ValueError("either prompts or input_ids must be given, and not both")
            if self.text is None:
                raise ValueError(
                    "this model has no text tokenizer, so it takes no prompts; "
                    "give input_ids, or attach one (model.text)"
                )
            input_ids, attention_mask = self.text.text_to_image_prompts(prompts, guided=guidance.active)
        if input_ids is None:
            raise ValueError("either prompts or input_ids must be given, and not both")
        attention_mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        device = self.mar.mask_token.device
        input_ids, attention_mask = (given.to(device, non_blocking=True) for given in (input_ids, attention_mask))
        branches = 2 if guidance.active else 1
        if len(input_ids) % branches:
            raise ValueError(
                f"input_ids has {len(input_ids)} rows; "
                "with guidance the unconditional prompts follow the conditional ones"
            )
        check_noise(noise, len(input_ids) // branches)
        shape = image_shape or (self.mar.grid, self.mar.grid)
        if min(shape) < 1:
            raise ValueError(f"image_shape is {shape}; rows and columns must be at least 1")
        room, needed = self.llm.config.max_position_embeddings, input_ids.shape[1] + self.image_tokens(shape)
        if needed > room:
            raise ValueError(
                f"prompt and image take {needed} positions, and the language model has {room}; "
                "shorten the prompt or the image"
            )
        anneal = self.annealing(schedule, sampler, noise, temperature, on_step, num_iter)
        positions = self.mar.positions(shape)
        # Of both branches, and where some AR steps are not guided, of the conditional one.
        prompt_of = functools.cache(lambda rows: self.prefill(input_ids[:rows], attention_mask[:rows]))

        read: PromptCache  # the prompts, and where passes are kept, what follows them

        def backbone(tokens: Tensor, known: Tensor, wanted: Tensor, both: bool, cache: BackboneCache) -> Tensor:
            nonlocal read
            tokens, known, wanted = (torch.cat([one, one]) if both else one for one in (tokens, known, wanted))
            encoded = self._encode(tokens, known, positions, cache)
            read = (prompt_of(len(tokens)) if cache.full else read).fork(len(tokens))
            return self.mar.decode(self.attend(encoded, read, cache.keeps), known, wanted, positions, cache)

        return autoregress(
            backbone,
            self.mar.diffloss,
            anneal,
            shape=shape,
            guidance=guidance,
            grouping=grouping,
            cache=BackboneCache(caching, self.mar.buffer_size),
            unpatchify=functools.partial(self.mar.unpatchify, shape=shape),
            known_tokens=known and self.mar.known_tokens(known, shape),
        )

    @torch.no_grad()
    def answer(self, latents: Tensor, input_ids: Tensor, image_token: int, **generation: object) -> Tensor:
        """Generate answers, token ids [B, new tokens], to prompts about images, latents [B, C, H, W].

        `input_ids` [B, T] have `image_token` where each visual feature belongs; `generation` goes to transformers'
        `generate`, such as max_new_tokens, do_sample or streamer.
        """
        embedded = self._embed(latents, input_ids, image_token)
        check_finite(embedded, "visual features")
        return self.llm.generate(inputs_embeds=embedded, attention_mask=torch.ones_like(input_ids), **generation)
