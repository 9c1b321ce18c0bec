"""MAR: masked autoregression over continuous tokens with a diffusion head.

Li et al., "Autoregressive Image Generation without Vector Quantization", 2024. Parameter names are the released ones.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..acceleration.caching import Backbone, BackboneCache, Caching, Slots
from ..annealing import AnnealedModel, Annealing, Network, check_latents, run
from ..diffusion import SOLVERS, GaussianProcess
from ..diffusion.process import TRAINING_STEPS
from ..grouping import Grouping
from ..guidance import Guidance, combine
from ..noise import NoiseSource
from ..schedule import StepSchedule
from ..solver import Times
from ..trace import StepTrace
from .checks import check_arguments, check_labels, check_noise
from .layers import AdaLinear, Block, TimestepEmbedding, embed_times, initialize, put_rows, take_rows

Modulation = tuple[Tensor, ...]  # shift, 1 + scale, gate


class ResidualBlock(nn.Module):
    """MLP block of the head, modulated by the condition."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.in_ln = nn.LayerNorm(width, eps=1e-6)
        self.mlp = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), AdaLinear(width, 3, scales=(1,)))

    def forward(self, x: Tensor, y: Tensor | Modulation) -> Tensor:
        """x, and y, SiLU of time and condition [N, W], or the shift, 1 + scale and gate that it gives -> [N, W]."""
        shift, scale, gate = self.adaLN_modulation[1](y) if isinstance(y, Tensor) else y
        return torch.addcmul(x, gate, self.mlp(torch.addcmul(shift, self.in_ln(x), scale)))


class FinalLayer(nn.Module):
    """The head's output layer."""

    def __init__(self, width: int, out_channels: int) -> None:
        super().__init__()
        self.norm_final = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
        self.linear = nn.Linear(width, out_channels)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), AdaLinear(width, 2, scales=(1,)))

    def forward(self, x: Tensor, y: Tensor | Modulation) -> Tensor:
        """x, and y as in `ResidualBlock`, [N, W] -> [N, C]."""
        shift, scale = self.adaLN_modulation[1](y) if isinstance(y, Tensor) else y
        return self.linear(torch.addcmul(shift, self.norm_final(x), scale))


class HeadNetwork(nn.Module):
    """The network that denoises one token, given the backbone's condition for it."""

    def __init__(self, channels: int, condition_width: int, width: int, depth: int) -> None:
        super().__init__()
        self.time_embed = TimestepEmbedding(width)
        self.cond_embed = nn.Linear(condition_width, width)
        self.input_proj = nn.Linear(channels, width)
        self.res_blocks = nn.ModuleList(ResidualBlock(width) for _ in range(depth))
        self.final_layer = FinalLayer(width, 2 * channels)
        self._joined: tuple[list[tuple[int, int]], Tensor, Tensor] | None = None

    def forward(self, x: Tensor, t: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        """Noisy tokens x [N, C] at timesteps t [N], with conditions z [N, W] -> epsilon [N, C], v [N, C]."""
        y = F.silu(self.time_embed(t) + self.cond_embed(z))
        return self.predict(self.input_proj(x), [y] * (1 + len(self.res_blocks)))

    def predict(self, h: Tensor, y: Sequence[Tensor | Modulation]) -> tuple[Tensor, Tensor]:
        """The same from embedded tokens h [N, head width] and what each block and the final layer take as y."""
        for block, own in zip(self.res_blocks, y[:-1], strict=True):
            h = block(h, own)
        epsilon, v = self.final_layer(h, y[-1]).float().chunk(2, dim=-1)
        return epsilon, v

    def modulations(self, y: Tensor) -> list[Modulation]:
        """SiLU of time and condition y [..., W] -> what `predict` needs, by one matrix product; `join` comes first."""
        assert self._joined is not None
        _, weight, bias = self._joined
        parts = iter(F.linear(y, weight, bias).chunk(weight.shape[0] // weight.shape[1], dim=-1))
        return [tuple(itertools.islice(parts, layer.parts)) for layer in self._ada_layers]

    def join(self) -> None:
        """Join the adaLN projections of all blocks in one matrix, kept until one of them changes."""
        layers = list(self._ada_layers)
        versions = [(layer.weight._version, layer.bias._version) for layer in layers]
        if self._joined is None or self._joined[0] != versions:
            biases = [layer.bias_with_ones() for layer in layers]
            self._joined = (versions, torch.cat([layer.weight for layer in layers]), torch.cat(biases))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> HeadNetwork:
        self._joined = None  # moved or converted, a parameter keeps its version
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self

    @property
    def _ada_layers(self) -> Iterator[AdaLinear]:
        for block in (*self.res_blocks, self.final_layer):
            yield block.adaLN_modulation[1]


class DiffusionHead(nn.Module):
    """The per-token diffusion model: its loss for training, its network for generation."""

    def __init__(self, channels: int, condition_width: int, width: int, depth: int) -> None:
        super().__init__()
        self.channels = channels
        self.process = GaussianProcess()
        self.net = HeadNetwork(channels, condition_width, width, depth)

    def forward(self, x0: Tensor, z: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """Mean training loss over tokens x0 [N, C], with conditions z [N, W], timesteps t [N] and noise [N, C]."""
        xt = self.process.add_noise(x0, t, noise)
        epsilon, v = self.net(xt.to(z.dtype), t, z)
        return self.process.loss(epsilon, v, x0, xt, t, noise).mean()

    def guided(
        self, z: Tensor, times: Times, embedded: Tensor, scale: float, interval: tuple[float, float] = (0.0, 1.0)
    ) -> Network:
        """Bind the conditions of one AR step: the network (x [B, T, C], t) -> (epsilon, v).

        Args:
            z: [B, T, W]; with a guidance `scale` other than 1 [2B, T, W], conditional rows first.
            times, embedded: the times to come, and their embeddings [N, head width].
            interval: the times, in thousandths of the timesteps, at which guidance applies.
        """
        place = {t: (i, scale != 1 and interval[0] <= t / TRAINING_STEPS <= interval[1]) for i, t in enumerate(times)}
        return partial(self._evaluate, self.net.cond_embed(z), embedded, place, scale)

    def _evaluate(
        self, rows: Tensor, embedded: Tensor, place: dict[float, tuple[int, bool]], scale: float, x: Tensor, t: float
    ) -> tuple[Tensor, Tensor]:
        net, (i, guided) = self.net, place[t]
        rows = rows if guided else rows[: len(x)]
        h, y = net.input_proj(x.to(rows.dtype)), F.silu(rows + embedded[i])
        epsilon, v = net.predict(torch.cat([h, h]) if guided else h, net.modulations(y))
        if not guided:
            return epsilon, v
        # Guidance acts on epsilon alone; the variance stays the conditional branch's.
        conditional, unconditional = epsilon.chunk(2)
        return combine(conditional, unconditional, scale), v.chunk(2)[0]


class Known(NamedTuple):
    """What is known of images before they are sampled.

    Attributes:
        latents: [B, C, H, W]; those of unknown tokens do not matter.
        where: which tokens are known, bool [rows, columns], the same of every image.
    """

    latents: Tensor
    where: Tensor


def autoregress(
    backbone: Backbone,
    head: DiffusionHead,
    anneal: Annealing,
    *,
    shape: tuple[int, int],
    guidance: Guidance,
    grouping: Grouping,
    cache: BackboneCache,
    unpatchify: Callable[[Tensor], Tensor],
    known_tokens: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """Sample the latents [B, C, H, W] of whole images of `shape` (rows, columns), a group of tokens at each AR step.

    Args:
        unpatchify: tokens [B, L, C] -> latents.
        known_tokens: tokens [B, L, C], and which of them are known already, bool [L].

    Raises:
        ValueError: a setting is impossible.
        FloatingPointError: a token came out as NaN or infinite.
    """
    num_iter, length = len(anneal.times), math.prod(shape)
    orders = grouping.arrange(anneal.noise.orders(length), shape)
    tokens, masked = torch.zeros(len(orders), length, head.channels, device=orders.device), length
    if known_tokens is not None:  # they come first in the order, whose end that is
        masked -= int(known_tokens[1].sum())  # before it is moved: of a mask on the CPU, nothing waits for a GPU
        given, is_known = (one.to(orders.device) for one in known_tokens)
        orders = orders.gather(1, is_known[orders].long().argsort(dim=1, stable=True))
        tokens = torch.where(is_known[:, None], given.float(), tokens)
    if num_iter > masked:
        raise ValueError(f"num_iter is {num_iter}; there must be 1 to {masked} AR steps, for there are {masked} tokens")
    embedded = embed_times(head.net.time_embed, anneal.times, orders.device)
    head.net.join()
    for step, left in enumerate(grouping.left(shape, num_iter, masked)):
        # As released, the last step is guided as if it left one token of several.
        scale = guidance.at((length - max(left, min(masked - 1, 1))) / length)
        wanted = orders[:, left:masked].sort().values
        known = orders[:, masked:].sort().values
        z = cache.conditions(backbone, step, tokens, known, wanted, orders[:, :left], scale != 1)
        network = head.guided(z, anneal.times[step], embedded[step], scale, guidance.interval)
        so_far = partial(_so_far, unpatchify, tokens, wanted)
        tokens = put_rows(tokens, wanted, anneal(step, network, masked - left, head.channels, wanted, so_far))
        masked = left
    check_latents(tokens)
    return unpatchify(tokens)


def _so_far(unpatchify: Callable[[Tensor], Tensor], tokens: Tensor, wanted: Tensor, new: Tensor) -> Tensor:
    """Latents [B, C, H, W] of tokens [B, L, C] with the new ones [B, T, C] at `wanted` [B, T]."""
    return unpatchify(put_rows(tokens, wanted, new))


class Positions(NamedTuple):
    """Position embeddings of one grid: of encoder and decoder [buffer + L, W], of the conditions [L, W]."""

    encoder: Tensor
    decoder: Tensor
    conditions: Tensor


class MAR(AnnealedModel):
    """Masked autoregressive encoder and decoder with a diffusion head.

    Args:
        image_size, latent_stride: pixels per side, and pixels per latent.
        latent_channels, patch_size: channels of the latents, and latents per side of a token.
        num_classes: labels 0..num_classes-1.
        width, depth, num_heads: of the encoder, and again of the decoder.
        buffer_size: slots that hold the class embedding in front of the tokens.
        head_depth, head_width: of the diffusion head.
        attn_dropout and the rest: for training alone.

    Raises:
        ValueError: the sizes do not fit together.
    """

    solvers = SOLVERS

    def __init__(
        self,
        *,
        image_size: int = 256,
        latent_stride: int = 16,
        latent_channels: int = 16,
        patch_size: int = 1,
        num_classes: int = 1000,
        width: int = 1024,
        depth: int = 16,
        num_heads: int = 16,
        buffer_size: int = 64,
        head_depth: int = 3,
        head_width: int = 1024,
        attn_dropout: float = 0.1,
        proj_dropout: float = 0.1,
        label_drop_prob: float = 0.1,
        mask_ratio_min: float = 0.7,
        diffusion_batch_mul: int = 4,
        grad_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        check_arguments(locals())
        if image_size % (latent_stride * patch_size):
            raise ValueError(
                f"image_size is {image_size}; "
                f"it must be a multiple of latent_stride · patch_size = {latent_stride * patch_size}"
            )
        if width % num_heads:
            raise ValueError(f"width is {width}; it must be a multiple of num_heads = {num_heads}")
        self.grid = image_size // latent_stride // patch_size
        self.patch_size, self.num_classes, self.buffer_size = (patch_size, num_classes, buffer_size)
        self.label_drop_prob, self.mask_ratio_min = label_drop_prob, mask_ratio_min
        self.diffusion_batch_mul, self.grad_checkpointing = (diffusion_batch_mul, grad_checkpointing)
        channels = latent_channels * patch_size**2

        def blocks() -> nn.ModuleList:
            return nn.ModuleList(Block(width, num_heads, attn_dropout, proj_dropout) for _ in range(depth))

        self.class_emb = nn.Embedding(num_classes, width)
        self.fake_latent = nn.Parameter(torch.zeros(1, width))
        self.z_proj = nn.Linear(channels, width)
        self.z_proj_ln = nn.LayerNorm(width, eps=1e-6)
        self.encoder_pos_embed_learned = nn.Parameter(torch.zeros(1, buffer_size + self.length, width))
        self.encoder_blocks = blocks()
        self.encoder_norm = nn.LayerNorm(width, eps=1e-6)
        self.decoder_embed = nn.Linear(width, width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        self.decoder_pos_embed_learned = nn.Parameter(torch.zeros(1, buffer_size + self.length, width))
        self.decoder_blocks = blocks()
        self.decoder_norm = nn.LayerNorm(width, eps=1e-6)
        self.diffusion_pos_embed_learned = nn.Parameter(torch.zeros(1, self.length, width))
        self.diffloss = DiffusionHead(channels, width, head_width, head_depth)
        self._initialize()

    @property
    def length(self) -> int:
        """Tokens per image."""
        return self.grid**2

    def _initialize(self) -> None:
        initialize(self)
        for embedding in (self.fake_latent, self.mask_token, *self.positions()):
            nn.init.normal_(embedding, std=0.02)
        for name, parameter in self.diffloss.net.named_parameters():
            if name.startswith("time_embed") and name.endswith("weight"):
                nn.init.normal_(parameter, std=0.02)
            # The head begins as the zero function: every residual block is shut, and so is the output.
            if "adaLN_modulation" in name or name.startswith("final_layer"):
                nn.init.zeros_(parameter)

    def patchify(self, latents: Tensor) -> Tensor:
        """Latents [B, C, H, W] -> tokens [B, L, C · patch_size²]."""
        p = self.patch_size
        return rearrange(latents, "b c (h p) (w q) -> b (h w) (c p q)", p=p, q=p)

    def unpatchify(self, tokens: Tensor, shape: tuple[int, int] | None = None) -> Tensor:
        """Inverse of `patchify`, for a grid of `shape` (rows, columns) of tokens."""
        (rows, columns), p = shape or (self.grid, self.grid), self.patch_size
        return rearrange(tokens, "b (h w) (c p q) -> b c (h p) (w q)", h=rows, w=columns, p=p, q=p)

    def known_tokens(self, known: Known, shape: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Return the tokens [B, L, C] of `known`, and which are known, bool [L]; raise ValueError if not of `shape`."""
        tokens = self.patchify(known.latents)
        if tuple(known.where.shape) != shape or tokens.shape[1] != math.prod(shape):
            raise ValueError(f"known tokens are {tuple(known.where.shape)}; the image has {shape} (rows, columns)")
        if known.where.all():
            raise ValueError("all tokens are known; at least one must be sampled")
        return tokens, known.where.flatten()

    def positions(self, shape: tuple[int, int] | None = None) -> Positions:
        """Position embeddings of a grid of `shape` (rows, columns), resized where it is not the model's own."""
        embeddings = (self.encoder_pos_embed_learned, self.decoder_pos_embed_learned, self.diffusion_pos_embed_learned)
        learned = [embedding[0] for embedding in embeddings]
        if shape is None or shape == (self.grid, self.grid):
            return Positions(*learned)

        def resized(embedding: Tensor) -> Tensor:
            buffer, image = embedding.split((len(embedding) - self.length, self.length))
            image = F.interpolate(image.T.unflatten(1, (self.grid, self.grid))[None], shape, mode="bilinear")
            return torch.cat([buffer, image[0].flatten(1).T])

        return Positions(*map(resized, learned))

    def encode(
        self,
        tokens: Tensor,
        known: Tensor,
        of_class: Tensor,
        positions: Positions | None = None,
        cache: BackboneCache | None = None,
    ) -> Tensor:
        """Run the encoder over the buffer, class embeddings [B, W], and the tokens [B, L, C] at `known` [B, K].

        With a `cache`, they attend to what earlier passes kept in it, too.

        Returns:
            [B, buffer + K, W].
        """
        position = (positions or self.positions()).encoder
        buffer = of_class[:, None] + position[: self.buffer_size]
        x = self.z_proj(take_rows(tokens, known).to(buffer.dtype)) + position[self.buffer_size :][known]
        x = self.z_proj_ln(torch.cat([buffer, x], dim=1))
        slots = None if cache is None else cache.slots(self.encoder_blocks)
        for i, block in enumerate(self.encoder_blocks):
            x = self._run_block(block, x, None, slots and slots[i])
        return self.encoder_norm(x)

    def decode(
        self,
        encoded: Tensor,
        known: Tensor,
        wanted: Tensor,
        positions: Positions | None = None,
        cache: BackboneCache | None = None,
    ) -> Tensor:
        """Run the decoder over all positions, its last block over the wanted ones only.

        Args:
            encoded: the encoder's output [B, buffer + K, W].
            known, wanted: positions [B, K] and [B, T].
            cache: where a pass is not full, the decoder runs over the buffer and these positions alone, which attend to
                what earlier passes kept of the others.

        Returns:
            Conditions for the head [B, T, W].
        """
        positions = positions or self.positions()
        x = self.decoder_embed(encoded)
        places = torch.cat(
            [torch.arange(self.buffer_size, device=known.device).expand(len(known), -1), self.buffer_size + known],
            dim=1,
        )
        rows, masked = self.buffer_size + wanted, self.mask_token.to(x.dtype)
        if cache is None or cache.full:
            x = put_rows(masked.expand(len(x), len(positions.decoder), -1), places, x) + positions.decoder
        else:
            places = torch.cat([places, rows], dim=1)
            x = torch.cat([x, masked.expand(*rows.shape, -1)], dim=1) + positions.decoder[places]
            rows = torch.arange(x.shape[1] - rows.shape[1], x.shape[1], device=x.device).expand(len(x), -1)
        slots = None if cache is None else cache.slots(self.decoder_blocks, places)
        # A captured graph does not write where the next pass reads.
        runs = self.run if slots is None else run
        return runs(self._decoder, x, rows, slots) + positions.conditions[wanted]

    def _decoder(self, x: Tensor, rows: Tensor, slots: list[Slots] | None) -> Tensor:
        """Embedded positions x [B, Q, W] -> what the decoder makes of the `rows` [B, T] of them."""
        for i, block in enumerate(self.decoder_blocks[:-1]):
            x = self._run_block(block, x, None, slots and slots[i])
        return self.decoder_norm(self._run_block(self.decoder_blocks[-1], x, rows, slots and slots[-1]))

    def _run_block(self, block: nn.Module, *inputs: object) -> Tensor:
        if self.grad_checkpointing and self.training:
            return checkpoint(block, *inputs, use_reentrant=False)
        return block(*inputs)

    def forward(
        self,
        latents: Tensor,
        labels: Tensor,
        mask: Tensor | None = None,
        timesteps: Tensor | None = None,
        noise: Tensor | None = None,
    ) -> Tensor:
        """Compute the training loss of a batch.

        Args:
            latents: [B, C, H, W], unit variance.
            labels: int64 [B].
            mask: 1 where a token is to be predicted [B, L], as many in every image; drawn if not given.
            timesteps, noise: of `diffusion_batch_mul` · B · L copies of the tokens, [N] and [N, C]; drawn if not given.

        Returns:
            The head's mean loss over masked tokens, a scalar.
        """
        tokens = self.patchify(latents)  # [B, L, C]
        known, wanted = self.split(tokens, mask)
        dropped = torch.rand(len(tokens), 1, device=tokens.device) < self.label_drop_prob
        class_embedding = torch.where(dropped, self.fake_latent, self.class_emb(labels))
        z = self.decode(self.encode(tokens, known, class_embedding), known, wanted)
        return self.head_loss(tokens, wanted, z, timesteps, noise)

    def split(self, tokens: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Positions to show [B, K] and to predict [B, T], ascending; random without a `mask` [B, L]."""
        if mask is None:
            order, masked = (
                torch.rand(tokens.shape[:2], device=tokens.device).argsort(1),
                self._masked_count(tokens.shape[1]),
            )
        else:
            order, masked = (mask.argsort(dim=1, descending=True, stable=True), int(mask[0].sum()))
        return order[:, masked:].sort().values, order[:, :masked].sort().values

    def head_loss(
        self, tokens: Tensor, wanted: Tensor, z: Tensor, timesteps: Tensor | None = None, noise: Tensor | None = None
    ) -> Tensor:
        """Mean loss of the head over the `wanted` [B, T] of tokens [B, L, C], with conditions z [B, T, W]."""
        copies = self.diffusion_batch_mul
        target = take_rows(tokens, wanted)

        def of_wanted(per_copy: Tensor) -> Tensor:  # [copies · B · L, ...] -> [copies · B · T, ...]
            per_copy = per_copy.view(copies, *tokens.shape[:2], -1)
            rows = wanted[None, ..., None].expand(copies, -1, -1, per_copy.shape[-1])
            return per_copy.gather(2, rows).flatten(0, 2)

        rows = copies * wanted.numel()
        t = (
            torch.randint(len(self.diffloss.process.timesteps), (rows,), device=z.device)
            if timesteps is None
            else of_wanted(timesteps)[:, 0]
        )
        drawn = torch.randn(rows, target.shape[-1], device=z.device) if noise is None else of_wanted(noise)
        return self.diffloss(target.flatten(0, 1).repeat(copies, 1), z.flatten(0, 1).repeat(copies, 1), t, drawn)

    def _masked_count(self, length: int) -> int:
        """Number of tokens to mask: a ratio from a normal (1, 0.25) truncated to [mask_ratio_min, 1]."""
        ratio = torch.empty(1)
        nn.init.trunc_normal_(ratio, mean=1.0, std=0.25, a=self.mask_ratio_min, b=1.0)
        return math.ceil(length * ratio.item())

    @torch.no_grad()
    def generate(
        self,
        labels: Tensor,
        *,
        num_iter: int = 64,
        schedule: StepSchedule = StepSchedule(50, 5),
        sampler: str = "DiSA",
        guidance: Guidance = Guidance(),
        temperature: float = 1.0,
        grouping: Grouping = Grouping(),
        caching: Caching = Caching(),
        noise: NoiseSource,
        on_step: Callable[[StepTrace], None] | None = None,
        known: Known | None = None,
    ) -> Tensor:
        """Sample latents for class labels.

        Args:
            labels: int64 [B].
            num_iter: AR steps, 1 to the number of tokens.
            schedule: diffusion steps at each AR step.
            sampler: a name in `disa.diffusion.SOLVERS`.
            guidance: scale 1 is none.
            temperature: factor on the noise within the diffusion steps.
            grouping: which tokens each AR step samples.
            caching: how much of the backbone each AR step computes.
            noise: where the randomness comes from, such as `disa.ImageNoise`.
            on_step: called after each AR step.
            known: tokens to keep; the AR steps sample the others.

        Returns:
            float32 [B, C, H, W], unit variance.

        Raises:
            ValueError: a setting or a label is impossible.
            FloatingPointError: a latent came out as NaN or infinite.
        """
        check_labels(labels, self.num_classes)
        check_noise(noise, len(labels))
        labels = labels.to(self.mask_token.device, non_blocking=True)
        anneal = self.annealing(schedule, sampler, noise, temperature, on_step, num_iter)
        embedding = self.class_emb(labels)
        if guidance.active:
            embedding = torch.cat([embedding, self.fake_latent.expand_as(embedding)])

        def backbone(tokens: Tensor, known: Tensor, wanted: Tensor, both: bool, cache: BackboneCache) -> Tensor:
            tokens, known, wanted = (torch.cat([one, one]) if both else one for one in (tokens, known, wanted))
            encoded = self.encode(tokens, known, embedding[: len(tokens)], None, cache)
            return self.decode(encoded, known, wanted, None, cache)

        return autoregress(
            backbone,
            self.diffloss,
            anneal,
            shape=(self.grid, self.grid),
            guidance=guidance,
            grouping=grouping,
            cache=BackboneCache(caching, self.buffer_size),
            unpatchify=self.unpatchify,
            known_tokens=known and self.known_tokens(known, (self.grid, self.grid)),
        )
