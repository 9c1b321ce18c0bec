"""FlowAR: autoregression over scales, each scale sampled by a flow-matching transformer.

Ren et al., "FlowAR: Scale-wise Autoregressive Image Generation Meets Flow Matching", 2024. Parameter names
are as released.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..annealing import AnnealedModel, check_finite
from ..flow import SOLVERS, interpolate, linspace, velocity_loss
from ..guidance import Guidance, guided_velocity
from ..noise import NoiseSource
from ..schedule import StepSchedule
from ..trace import StepTrace
from .checks import check_arguments, check_labels
from .layers import TimestepEmbedding, initialize
from .rotary import GEGLU, KVCache, ModulatedBlock, RMSNorm, RoPE, RotaryAttention, apply_rotary_emb, grid_rope

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

    def keys_values(self, z: Tensor, rope: RoPE) -> tuple[Tensor, Tensor]:
        """Conditions z [B, L, W] -> keys and values [B, heads, L, D]."""
        k, v = rearrange(self.kv(z), "b l (n h d) -> n b h l d", n=2, h=self.num_heads)
        return apply_rotary_emb(k, rope), v

    def forward(self, x: Tensor, keys: Tensor, values: Tensor, rope: RoPE) -> Tensor:
        q = apply_rotary_emb(rearrange(self.q(x), "b l (h d) -> b h l d", h=self.num_heads), rope)
        out = F.scaled_dot_product_attention(q, keys, values)
        return self.proj(rearrange(out, "b h l d -> b l (h d)"))


class SelfBlock(nn.Module):
    """Block of the flow head: attention among the tokens of a scale, with six-way adaLN from time and condition."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1 = RMSNorm(width, affine=False)
        self.attn = RotaryAttention(width, width // HEAD_DIM, bias=False)
        self.norm2 = RMSNorm(width, affine=False)
        self.mlp = GEGLU(width)
        self.ada_lin = nn.Linear(width, 6 * width)

    def prepare(self, _z: Tensor, _rope: RoPE) -> tuple[Tensor, ...]:
        """Return what depends on the conditions alone: here nothing."""
        return ()

    def forward(self, x: Tensor, _t: Tensor, y: Tensor, rope: RoPE) -> Tensor:
        """x, and y, time and condition together, [B, L, W] -> [B, L, W]."""
        gate1, gate2, scale1, scale2, shift1, shift2 = self.ada_lin(y).chunk(6, dim=-1)
        x = x + gate1 * self.attn(self.norm1(x) * (1 + scale1) + shift1, rope)
        return x + gate2 * self.mlp(self.norm2(x) * (1 + scale2) + shift2)


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
        self.ada_lin_attn = nn.Linear(width, 3 * width)
        self.ada_lin_mlp = nn.Linear(width, 3 * width)

    def prepare(self, z: Tensor, rope: RoPE) -> tuple[Tensor, ...]:
        """Return keys and values of the conditions z [B, L, W]."""
        return self.crossattn.keys_values(self.norm2_2(z), rope)

    def forward(self, x: Tensor, t: Tensor, y: Tensor, rope: RoPE, keys: Tensor, values: Tensor) -> Tensor:
        """x, and y, time and condition together, [B, L, W], and the time alone [B, 1, W] -> [B, L, W]."""
        gate, scale, shift = self.ada_lin_attn(t).chunk(3, dim=-1)
        x = x + gate * self.attn(self.norm1(x) * (1 + scale) + shift, rope)
        x = x + self.crossattn(self.norm2_1(x), keys, values, rope)
        gate, scale, shift = self.ada_lin_mlp(y).chunk(3, dim=-1)
        return x + gate * self.mlp(self.norm3(x) * (1 + scale) + shift)


class FinalLayer(nn.Module):
    """The flow head's output layer."""

    def __init__(self, width: int, channels: int) -> None:
        super().__init__()
        self.norm_final = RMSNorm(width, affine=False)
        self.linear = nn.Linear(width, channels)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        shift, scale = self.adaLN_modulation(y).chunk(2, dim=-1)
        return self.linear(self.norm_final(x) * (1 + scale) + shift)


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

    def prepare(self, z: Tensor, rope: RoPE) -> tuple[Tensor, list[tuple[Tensor, ...]]]:
        """Compute once what depends on the conditions z [B, L, W] of a scale and not on time."""
        return self.cond_embed(z), [block.prepare(z, rope) for block in self.res_blocks]  # type: ignore[operator]

    def velocity(self, z: Tensor, rope: RoPE) -> Callable[[Tensor, float], Tensor]:
        """The field (x [b, L, C], t) -> v for conditions z [B, L, W], of which x has the first b."""
        c, of_blocks = self.prepare(z, rope)

        def velocity(x: Tensor, t: float) -> Tensor:
            prepared = (c[: len(x)], [tuple(part[: len(x)] for part in own) for own in of_blocks])
            return self(x, torch.tensor([t], device=x.device), prepared, rope)

        return velocity

    def forward(self, x: Tensor, t: Tensor, prepared: tuple[Tensor, list[tuple[Tensor, ...]]], rope: RoPE) -> Tensor:
        """Noisy tokens x [B, L, C] at flow times t [B or 1] -> velocity [B, L, C]."""
        c, of_blocks = prepared
        h, embedded = self.input_proj(x), self.time_embed((1000 * t).long())[:, None]
        y = embedded + c
        once, together = F.silu(embedded), F.silu(y)
        for block, own in zip(self.res_blocks, of_blocks, strict=True):
            h = block(h, once, together, rope, *own)
        return self.final_layer(h, y)


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
        self.label_drop_prob, self.grad_checkpointing = label_drop_prob, grad_checkpointing
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

    def _ropes(self, device: torch.device, head_dim: int) -> list[RoPE]:
        return [grid_rope(side, head_dim, device) for side in self.scales]

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
        rope: RoPE,
        modulations: list[tuple[Tensor, ...]],
        mask: Tensor | None = None,
        caches: list[KVCache] | None = None,
    ) -> Tensor:
        """Embedded tokens x [B, L, W] that lie at `where` in the sequence -> conditions for the head [B, L, W]."""
        x = self.z_proj_ln(x + self.encoder_pos_embed_learned[:, where])
        for i, block in enumerate(self._blocks):
            if i == len(self.encoder_blocks):
                x = self.decoder_embed(self.encoder_norm(x)) + self.decoder_pos_embed_learned[:, where]
            if self.grad_checkpointing and self.training:
                x = checkpoint(block, x, modulations[i], rope, mask=mask, use_reentrant=False)
            else:
                x = block(x, modulations[i], rope, mask=mask, cache=caches[i] if caches else None)
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
        ropes = self._ropes(device, self.head_dim)
        rope = (torch.cat([cos for cos, _ in ropes]), torch.cat([sin for _, sin in ropes]))
        scale_of = torch.cat([torch.full((side**2,), i, device=device) for i, side in enumerate(self.scales)])
        mask = scale_of[:, None] >= scale_of[None]  # a token sees its own scale and the coarser ones
        x = torch.cat([condition[:, None], *inputs], dim=1)
        z = self.backbone(x, slice(None), rope, self.modulations(condition), mask)
        loss, head_ropes = z.new_zeros(()), self._ropes(device, HEAD_DIM)
        for i, (side, where, rope) in enumerate(zip(self.scales, self._slices, head_ropes, strict=True)):
            x0 = rearrange(targets[i], "b c h w -> b (h w) c")
            t = torch.rand(batch, device=device) if times is None else times[i]
            eps = torch.randn_like(x0) if noise is None else noise[i]
            velocity = self.flownet(interpolate(x0, eps, t), t, self.flownet.prepare(z[:, where], rope), rope)
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
        noise: NoiseSource,
        on_step: Callable[[StepTrace], None] | None = None,
    ) -> Tensor:
        """Sample latents float32 [B, C, H, W] for class labels [B], one AR step per scale.

        `sampler` is a name in `disa.flow.SOLVERS`; guidance applies at flow times up to `max_time` where its scale
        exceeds 1; `temperature` is a factor on the noise that steps add. All else as for `MAR.generate`.
        """
        check_labels(labels, self.num_classes)
        anneal = self.annealing(schedule, sampler, noise, temperature, on_step)
        batch, last = len(labels), len(self.scales) - 1
        guided = guidance.scale > 1
        condition = self.class_emb(labels)
        if guided:
            condition = torch.cat([condition, self.class_emb(torch.full_like(labels, self.num_classes))])
        modulations = self.modulations(condition)
        length, heads = sum(side**2 for side in self.scales), condition.shape[-1] // self.head_dim
        caches = [KVCache(len(condition), heads, length, self.head_dim, condition) for _ in self._blocks]
        ropes = zip(self._ropes(labels.device, self.head_dim), self._ropes(labels.device, HEAD_DIM), strict=True)
        sample = condition.new_zeros(0)
        for step, (side, where, (rope, head_rope)) in enumerate(zip(self.scales, self._slices, ropes, strict=True)):
            x = condition[:, None]
            if step > 0:
                x = self.z_proj(self._next_input(sample, side)).repeat(1 + guided, 1, 1)
            z = self.backbone(x, where, rope, modulations, caches=caches)
            scale = max(guidance.at(step / last if last else 1.0), 1.0)
            velocity = self.flownet.velocity(z if scale > 1 else z[:batch], head_rope)
            network = guided_velocity(velocity, scale, guidance.max_time, condition.dtype)
            tokens = anneal(step, network, side**2, self.z_proj.in_features)
            sample = rearrange(tokens.float(), "b (h w) c -> b c h w", h=side).to(condition.dtype)
        check_finite(sample)
        return sample.float()
