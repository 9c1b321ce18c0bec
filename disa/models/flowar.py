"""FlowAR: autoregression over scales, each scale sampled by a flow-matching transformer.

Ren et al., "FlowAR: Scale-wise Autoregressive Image Generation Meets Flow Matching", 2024. Parameter names
are as released.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..acceleration.feature_cache import Extrapolation, FeatureCache, Layer, run_layers
from ..annealing import AnnealedModel, check_latents
from ..flow import SOLVERS, interpolate, linspace, velocity_loss
from ..guidance import Guidance, guided_velocity
from ..noise import NoiseSource
from ..schedule import StepSchedule
from ..solver import Times
from ..trace import StepTrace
from .checks import check_arguments, check_labels, check_noise
from .layers import AdaLinear, TimestepEmbedding, embed_times, initialize
from .rotary import GEGLU, KVCache, ModulatedBlock, Modulation, RMSNorm, RotaryAttention, apply_rotary_emb, grid_rope

HEAD_DIM = 64  # of the flow head's attention


def flow_times(steps: int) -> tuple[float, ...]:
    """Flow times of `steps` nominal steps, from 1 to 0: sparser in the noisy part, except for the released 50."""
    if steps == 50 or steps == 1:
        return linspace(1, 0, steps + 1)
    return linspace(1, 0.3, steps // 2) + linspace(0.25, 0, steps // 2 + 1)


class CrossAttention(nn.Module):
    """Attention of tokens to their conditions, with rotary positions on both sides."""

    def __init__(self, width: int, condition_width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.q = nn.Linear(width, width, bias=False)
        self.kv = nn.Linear(condition_width, 2 * width, bias=False)
        self.proj = nn.Linear(width, width)

    def keys_values(self, z: Tensor, rope: Tensor) -> tuple[Tensor, Tensor]:
        """Conditions z [B, L, W] -> keys and values [B, heads, L, D]."""
        k, v = rearrange(self.kv(z), "b l (n h d) -> n b l h d", n=2, h=self.num_heads)
        return apply_rotary_emb(k, rope).transpose(1, 2), v.transpose(1, 2)

    def forward(self, x: Tensor, keys: Tensor, values: Tensor, rope: Tensor) -> Tensor:
        q = apply_rotary_emb(rearrange(self.q(x), "b l (h d) -> b l h d", h=self.num_heads), rope)
        out = F.scaled_dot_product_attention(q.transpose(1, 2), keys, values)
        return self.proj(rearrange(out, "b h l d -> b l (h d)"))


class SelfBlock(nn.Module):
    """Block of the flow head: attention among the tokens of a scale, with six-way adaLN from time and condition."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1 = RMSNorm(width, affine=False)
        self.attn = RotaryAttention(width, width // HEAD_DIM, bias=False)
        self.norm2 = RMSNorm(width, affine=False)
        self.mlp = GEGLU(width)
        self.ada_lin = AdaLinear(width, 6, scales=(2, 3))

    def modulation(self, _t: Tensor) -> Modulation:
        """Return what depends on time alone: here nothing."""
        return ()

    def prepare(self, _z: Tensor, _rope: Tensor) -> tuple[Tensor, ...]:
        """Return what depends on the conditions alone: here nothing."""
        return ()

    def forward(self, x: Tensor, y: Tensor, rope: Tensor) -> Tensor:
        """x, and y, SiLU of time and condition together, [B, L, W] -> [B, L, W]."""
        gate1, gate2, scale1, scale2, shift1, shift2 = self.ada_lin(y)
        x = torch.addcmul(x, gate1, self.attn(torch.addcmul(shift1, self.norm1(x), scale1), rope))
        return torch.addcmul(x, gate2, self.mlp(torch.addcmul(shift2, self.norm2(x), scale2)))


class CrossBlock(nn.Module):
    """Block of the larger heads: attention (adaLN from time), attention to the conditions, MLP (adaLN from both)."""

    def __init__(self, width: int, condition_width: int) -> None:
        super().__init__()
        self.norm1 = RMSNorm(width, affine=False)
        self.attn = RotaryAttention(width, width // HEAD_DIM, bias=False)
        self.crossattn = CrossAttention(width, condition_width, width // HEAD_DIM)
        self.norm2_1 = RMSNorm(width, affine=True)
        self.norm2_2 = RMSNorm(condition_width, affine=True)
        self.norm3 = RMSNorm(width, affine=False)
        self.mlp = GEGLU(width)
        self.ada_lin_attn = AdaLinear(width, 3, scales=(1,))
        self.ada_lin_mlp = AdaLinear(width, 3, scales=(1,))

    def modulation(self, t: Tensor) -> Modulation:
        """SiLU of embedded times [N, 1, W] -> gate, 1 + scale and shift of the attention, which time alone sets."""
        return self.ada_lin_attn(t)

    def prepare(self, z: Tensor, rope: Tensor) -> tuple[Tensor, ...]:
        """Return keys and values of the conditions z [B, L, W]."""
        return self.crossattn.keys_values(self.norm2_2(z), rope)

    def forward(
        self,
        x: Tensor,
        y: Tensor,
        rope: Tensor,
        gate: Tensor,
        scale: Tensor,
        shift: Tensor,
        keys: Tensor,
        values: Tensor,
    ) -> Tensor:
        """x, and y, SiLU of time and condition together, [B, L, W] -> [B, L, W]."""
        x = torch.addcmul(x, gate, self.attn(torch.addcmul(shift, self.norm1(x), scale), rope))
        x = x + self.crossattn(self.norm2_1(x), keys, values, rope)
        gate, scale, shift = self.ada_lin_mlp(y)
        return torch.addcmul(x, gate, self.mlp(torch.addcmul(shift, self.norm3(x), scale)))


class FinalLayer(nn.Module):
    """The flow head's output layer."""

    def __init__(self, width: int, channels: int) -> None:
        super().__init__()
        self.norm_final = RMSNorm(width, affine=False)
        self.linear = nn.Linear(width, channels)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), AdaLinear(width, 2, scales=(1,)))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """x, and y, SiLU of time and condition together, [B, L, W] -> velocity [B, L, C]."""
        shift, scale = self.adaLN_modulation[1](y)
        return self.linear(torch.addcmul(shift, self.norm_final(x), scale))


class FlowHead(nn.Module):
    """The velocity of a scale's noisy tokens, given the backbone's conditions for them."""

    def __init__(self, channels: int, condition_width: int, width: int, depth: int, cross_attention: bool) -> None:
        super().__init__()
        self.time_embed = TimestepEmbedding(width)
        self.cond_embed = nn.Linear(condition_width, width)
        self.input_proj = nn.Linear(channels, width)
        self.res_blocks = nn.ModuleList(
            CrossBlock(width, condition_width) if cross_attention else SelfBlock(width) for _ in range(depth)
        )
        self.final_layer = FinalLayer(width, channels)

    def embed_time(self, t: Tensor) -> Tensor:
        """Flow times [N] -> embeddings [N, W]."""
        return self.time_embed((1000 * t).long())

    def modulations(self, embedded: Tensor) -> list[Modulation]:
        """Embedded times [N, 1, W] -> of every block what time alone sets, [N, 1, W] each."""
        return [block.modulation(F.silu(embedded)) for block in self.res_blocks]  # type: ignore[operator]

    def prepare(self, z: Tensor, rope: Tensor) -> tuple[Tensor, list[tuple[Tensor, ...]]]:
        """Compute once what depends on the conditions z [B, L, W] of a scale and not on time."""
        return self.cond_embed(z), [block.prepare(z, rope) for block in self.res_blocks]  # type: ignore[operator]

    def velocity(
        self, z: Tensor, rope: Tensor, times: Times, embedded: Tensor, features: FeatureCache
    ) -> Callable[[Tensor, float], Tensor]:
        """Bind conditions z [B, L, W] and times, embedded [N, W]: the field (x [b, L, C], t) -> v of the first b."""
        embedded = embedded[:, None, None]
        place, (c, of_z) = {t: i for i, t in enumerate(times)}, self.prepare(z, rope)
        return partial(self._evaluate, place, embedded, c, self.modulations(embedded), of_z, rope, features)

    def _evaluate(
        self,
        place: dict[float, int],
        embedded: Tensor,
        c: Tensor,
        of_t: list[Modulation],
        of_z: list[tuple[Tensor, ...]],
        rope: Tensor,
        features: FeatureCache,
        x: Tensor,
        t: float,
    ) -> Tensor:
        i, rows = place[t], slice(len(x))
        pairs = zip(of_t, of_z, strict=True)
        fixed = [(*(part[i] for part in by_time), *(part[rows] for part in by_z)) for by_time, by_z in pairs]
        return self(x, embedded[i] + c[rows], fixed, rope, partial(features, t))

    def predict(self, x: Tensor, t: Tensor, z: Tensor, rope: Tensor) -> Tensor:
        """Noisy tokens x [B, L, C] at flow times t [B], with conditions z [B, L, W] -> velocity [B, L, C]."""
        embedded = self.embed_time(t)[:, None]
        (c, of_z), of_t = self.prepare(z, rope), self.modulations(embedded)
        return self(x, embedded + c, [(*a, *b) for a, b in zip(of_t, of_z, strict=True)], rope)

    def forward(
        self,
        x: Tensor,
        y: Tensor,
        fixed: Sequence[tuple[Tensor, ...]],
        rope: Tensor,
        stack: Callable[[Iterator[Layer], Tensor], Tensor] = run_layers,
    ) -> Tensor:
        """x [B, L, C], y, time and condition together [B, L, W], and what each block needs besides -> velocity.

        `stack` runs the blocks.
        """
        h, y, pairs = self.input_proj(x), F.silu(y), zip(self.res_blocks, fixed, strict=True)
        layers = (lambda h, block=block, own=own: block(h, y, rope, *own) for block, own in pairs)
        return self.final_layer(stack(layers, h), y)


class FlowAR(AnnealedModel):
    """Scale-wise autoregressive transformer with a flow head.

    Args:
        image_size, latent_stride: pixels per side, and pixels per latent.
        latent_channels: channels of the latents.
        scales: sides of the grids that are generated one after another, ascending; the last is the latents' own.
        num_classes: labels 0..num_classes-1.
        width, depth, num_heads: of the encoder, and again of the decoder.
        head_depth, head_width: of the flow head.
        cross_attention: whether the flow head attends to its conditions, as in the larger released models.
        attn_dropout and the rest: for training alone.

    Raises:
        ValueError: the sizes do not fit together.
    """

    solvers = SOLVERS
    flow_times = staticmethod(flow_times)

    def __init__(
        self,
        *,
        image_size: int = 256,
        latent_stride: int = 16,
        latent_channels: int = 16,
        scales: Sequence[int] = (1, 2, 4, 8, 16),
        num_classes: int = 1000,
        width: int = 1024,
        depth: int = 8,
        num_heads: int = 16,
        head_depth: int = 12,
        head_width: int = 1024,
        cross_attention: bool = True,
        attn_dropout: float = 0.1,
        proj_dropout: float = 0.1,
        label_drop_prob: float = 0.1,
        grad_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        check_arguments(locals())
        grid = image_size // latent_stride
        ascending = bool(scales) and scales[0] >= 1 and list(scales) == sorted(set(scales))
        if not ascending or scales[-1] * latent_stride != image_size:
            raise ValueError(
                f"scales are {tuple(scales)}; "
                f"they must ascend and end at image_size / latent_stride = {image_size / latent_stride:g}"
            )
        if width % (4 * num_heads):
            raise ValueError(
                f"width is {width}; it must be a multiple of 4 · num_heads = {4 * num_heads}, for 2-D rotary positions"
            )
        if head_width % HEAD_DIM:
            raise ValueError(f"head_width is {head_width}; it must be a multiple of {HEAD_DIM}")
        self.scales, self.grid, self.num_classes = tuple(scales), grid, num_classes
        self.ar_steps = len(self.scales)
        self.label_drop_prob, self.grad_checkpointing = (label_drop_prob, grad_checkpointing)
        length = sum(side**2 for side in scales)

        def blocks() -> nn.ModuleList:
            return nn.ModuleList(ModulatedBlock(width, num_heads, attn_dropout, proj_dropout) for _ in range(depth))

        self.class_emb = nn.Embedding(num_classes + 1, width)  # the last row is "no class"
        self.z_proj = nn.Linear(latent_channels, width)
        self.z_proj_ln = RMSNorm(width, affine=True)
        self.encoder_pos_embed_learned = nn.Parameter(torch.zeros(1, length, width))
        self.encoder_blocks = blocks()
        self.encoder_norm = RMSNorm(width, affine=True)
        self.decoder_embed = nn.Linear(width, width)
        self.decoder_pos_embed_learned = nn.Parameter(torch.zeros(1, length, width))
        self.decoder_blocks = blocks()
        self.decoder_norm = RMSNorm(width, affine=True)
        self.diffusion_pos_embed_learned = nn.Parameter(torch.zeros(1, length, width))
        self.flownet = FlowHead(latent_channels, width, head_width, head_depth, cross_attention)
        self.head_dim = width // num_heads
        self._initialize()

    def _initialize(self) -> None:
        initialize(self)
        for name, parameter in self.named_parameters():
            if "pos_embed" in name:
                nn.init.normal_(parameter, std=0.02)
            # The head begins as the zero function: its gates are shut, and so is its output.
            if name.startswith("flownet") and ("ada" in name or "final_layer" in name):
                nn.init.zeros_(parameter)

    @property
    def _slices(self) -> list[slice]:
        """Where each scale lies in the sequence."""
        ends = np.cumsum([0, *(side**2 for side in self.scales)]).tolist()
        return [slice(start, end) for start, end in itertools.pairwise(ends)]

    def _ropes(self, device: torch.device, head_dim: int) -> list[Tensor]:
        return [grid_rope(side, head_dim, device) for side in self.scales]

    @staticmethod
    def _from_tokens(tokens: Tensor) -> Tensor:
        """Tokens [B, side², C] -> float32 [B, C, side, side]."""
        return rearrange(tokens.float(), "b (h w) c -> b c h w", h=math.isqrt(tokens.shape[1]))

    def _at_full_size(self, tokens: Tensor) -> Tensor:
        """Enlarge a scale's tokens [B, side², C] to latents [B, C, H, W]."""
        return F.interpolate(self._from_tokens(tokens), (self.grid, self.grid))

    def _next_input(self, sample: Tensor, side: int) -> Tensor:
        """Resize a finished scale [B, C, g, g] to the next grid [B, side², C]."""
        finest = F.interpolate(sample, (self.grid, self.grid), mode="bicubic")
        return rearrange(F.interpolate(finest, (side, side), mode="area"), "b c h w -> b (h w) c")

    def modulations(self, condition: Tensor) -> list[tuple[Tensor, ...]]:
        """Class embeddings [B, W] -> the modulation of every block, which no AR step changes."""
        return [block.modulation(condition[:, None]) for block in self._blocks]

    @property
    def _blocks(self) -> Iterable[ModulatedBlock]:
        yield from self.encoder_blocks  # type: ignore[misc]
        yield from self.decoder_blocks  # type: ignore[misc]

    def backbone(
        self,
        x: Tensor,
        where: slice,
        rope: Tensor,
        modulations: list[tuple[Tensor, ...]],
        mask: Tensor | None = None,
        caches: list[KVCache] | None = None,
        keep: bool = True,
    ) -> Tensor:
        """Embedded tokens x [B, L, W] that lie at `where` in the sequence -> conditions for the head [B, L, W]."""
        x = self.z_proj_ln(x + self.encoder_pos_embed_learned[:, where])
        for i, block in enumerate(self._blocks):
            if i == len(self.encoder_blocks):
                x = self.decoder_embed(self.encoder_norm(x)) + self.decoder_pos_embed_learned[:, where]
            if self.grad_checkpointing and self.training:
                x = checkpoint(block, x, modulations[i], rope, mask, use_reentrant=False)
            else:
                x = block(x, modulations[i], rope, mask, caches[i] if caches else None, keep)
        return self.decoder_norm(x) + self.diffusion_pos_embed_learned[:, where]

    def forward(
        self, latents: Tensor, labels: Tensor, times: list[Tensor] | None = None, noise: list[Tensor] | None = None
    ) -> Tensor:
        """Compute the training loss of a batch: of all scales, weighted by their tokens over those of the finest.

        Args:
            latents: [B, C, H, W], unit variance.
            labels: int64 [B].
            times, noise: of each scale, [B] and [B, side², C]; drawn if not given.

        Returns:
            A scalar.
        """
        batch, device = len(latents), latents.device
        dropped = torch.rand(batch, device=device) < self.label_drop_prob
        condition = self.class_emb(torch.where(dropped, self.num_classes, labels))
        targets = [F.interpolate(latents, (side, side), mode="area") for side in self.scales]
        coarser = zip(targets[:-1], self.scales[1:], strict=True)
        inputs = [self.z_proj(self._next_input(sample, side)) for sample, side in coarser]
        rope = torch.cat(self._ropes(device, self.head_dim))
        scale_of = torch.cat([torch.full((side**2,), i, device=device) for i, side in enumerate(self.scales)])
        mask = scale_of[:, None] >= scale_of[None]  # a token sees its own scale and the coarser ones
        x = torch.cat([condition[:, None], *inputs], dim=1)
        z = self.backbone(x, slice(None), rope, self.modulations(condition), mask)
        loss, head_ropes = z.new_zeros(()), self._ropes(device, HEAD_DIM)
        for i, (side, where, rope) in enumerate(zip(self.scales, self._slices, head_ropes, strict=True)):
            x0 = rearrange(targets[i], "b c h w -> b (h w) c")
            t = torch.rand(batch, device=device) if times is None else times[i]
            eps = torch.randn_like(x0) if noise is None else noise[i]
            velocity = self.flownet.predict(interpolate(x0, eps, t), t, z[:, where], rope)
            loss = loss + velocity_loss(velocity.float(), x0, eps) * (side / self.grid) ** 2
        return loss

    @torch.no_grad()
    def generate(
        self,
        labels: Tensor,
        *,
        schedule: StepSchedule = StepSchedule(50, 15),
        sampler: str = "euler",
        guidance: Guidance = Guidance(),
        temperature: float = 1.0,
        extrapolation: Extrapolation = Extrapolation(),
        noise: NoiseSource,
        on_step: Callable[[StepTrace], None] | None = None,
    ) -> Tensor:
        """Sample latents float32 [B, C, H, W] for class labels [B], one AR step per scale.

        `sampler` is a name in `disa.flow.SOLVERS`; guidance applies at flow times in its interval where its scale
        exceeds 1; `temperature` is a factor on the noise that steps add; `extrapolation` is of the flow head's blocks
        within a scale. All else as for `MAR.generate`.
        """
        check_labels(labels, self.num_classes)
        check_noise(noise, len(labels))
        anneal = self.annealing(schedule, sampler, noise, temperature, on_step)
        device, batch, last = (self.z_proj.weight.device, len(labels), len(self.scales) - 1)
        labels = labels.to(device, non_blocking=True)
        embedded = embed_times(self.flownet.embed_time, anneal.times, device)
        guided = guidance.scale > 1
        condition = self.class_emb(labels)
        if guided:
            condition = torch.cat([condition, self.class_emb(torch.full_like(labels, self.num_classes))])
        modulations = self.modulations(condition)
        length, heads = (sum(side**2 for side in self.scales[:-1]), condition.shape[-1] // self.head_dim)
        caches = [KVCache(len(condition), heads, length, self.head_dim, condition) for _ in self._blocks]
        ropes = zip(self._ropes(device, self.head_dim), self._ropes(device, HEAD_DIM), strict=True)
        sample = condition.new_zeros(0)
        for step, (side, where, (rope, head_rope)) in enumerate(zip(self.scales, self._slices, ropes, strict=True)):
            x = condition[:, None]
            if step > 0:
                x = self.z_proj(self._next_input(sample, side)).repeat(1 + guided, 1, 1)
            z = self.backbone(x, where, rope, modulations, caches=caches, keep=step < last)
            scale = max(guidance.at(step / last if last else 1.0), 1.0)
            z = z if scale > 1 else z[:batch]
            features, times = extrapolation.cache(anneal.times[step]), anneal.times[step]
            velocity = self.flownet.velocity(z, head_rope, times, embedded[step], features)
            network = guided_velocity(velocity, scale, guidance.interval, condition.dtype)
            tokens = anneal(step, network, side**2, self.z_proj.in_features, latents=self._at_full_size)
            sample = self._from_tokens(tokens).to(condition.dtype)
        check_latents(sample)
        return sample.float()
