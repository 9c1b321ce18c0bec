"""FlowAR: autoregression over scales, each scale sampled by a flow-matching transformer.

Ren et al., "FlowAR: Scale-wise Autoregressive Image Generation Meets Flow Matching", 2024. Parameter names are the released ones.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..flow import get_flow_sampler, interpolate, linspace, velocity_loss
from ..guidance import Guidance, combine
from ..noise import NoiseSource
from ..schedule import StepSchedule
from ..trace import StepTrace
from .checks import check_finite, check_labels, check_shares, check_sizes, check_temperature
from .layers import TimestepEmbedding
from .rotary import GEGLU, KeyValues, ModulatedBlock, RMSNorm, RotaryAttention, Rotation, rotate, rotation

HEAD_CHANNELS = 64  # of one attention head in the flow head


def flow_times(steps: int) -> tuple[float, ...]:
    """The flow times that `steps` nominal steps visit, from 1 to 0: sparser in the noisy part, but for the 50 of the released setting."""
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

    def keys_values(self, z: Tensor, turn: Rotation) -> tuple[Tensor, Tensor]:
        """Conditions z [B, L, W] -> keys and values [B, heads, L, D]."""
        k, v = self.kv(z).unflatten(-1, (2, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        return rotate(k, turn), v

    def forward(self, x: Tensor, keys: Tensor, values: Tensor, turn: Rotation) -> Tensor:
        q = rotate(self.q(x).unflatten(-1, (self.num_heads, -1)).transpose(1, 2), turn)
        out = F.scaled_dot_product_attention(q, keys, values)
        return self.proj(out.transpose(1, 2).flatten(2))


class SelfBlock(nn.Module):
    """Block of the flow head: attention among the tokens of a scale, modulated six ways by time and condition together."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1 = RMSNorm(width, affine=False)
        self.attn = RotaryAttention(width, width // HEAD_CHANNELS, bias=False)
        self.norm2 = RMSNorm(width, affine=False)
        self.mlp = GEGLU(width)
        self.ada_lin = nn.Linear(width, 6 * width)

    def prepare(self, z: Tensor, turn: Rotation) -> tuple[Tensor, ...]:
        """What of the conditions does not depend on time: here nothing."""
        return ()

    def forward(self, x: Tensor, t: Tensor, y: Tensor, turn: Rotation) -> Tensor:
        """x, and y, time and condition together, [B, L, W] -> [B, L, W]."""
        gate1, gate2, scale1, scale2, shift1, shift2 = self.ada_lin(y).chunk(6, dim=-1)
        x = x + gate1 * self.attn(self.norm1(x) * (1 + scale1) + shift1, turn)
        return x + gate2 * self.mlp(self.norm2(x) * (1 + scale2) + shift2)


class CrossBlock(nn.Module):
    """Block of the larger flow heads: attention modulated by time, attention to the conditions, MLP modulated by both."""

    def __init__(self, width: int, condition_width: int) -> None:
        super().__init__()
        self.norm1 = RMSNorm(width, affine=False)
        self.attn = RotaryAttention(width, width // HEAD_CHANNELS, bias=False)
        self.crossattn = CrossAttention(width, condition_width, width // HEAD_CHANNELS)
        self.norm2_1 = RMSNorm(width, affine=True)
        self.norm2_2 = RMSNorm(condition_width, affine=True)
        self.norm3 = RMSNorm(width, affine=False)
        self.mlp = GEGLU(width)
        self.ada_lin_attn = nn.Linear(width, 3 * width)
        self.ada_lin_mlp = nn.Linear(width, 3 * width)

    def prepare(self, z: Tensor, turn: Rotation) -> tuple[Tensor, ...]:
        """Keys and values of the conditions z [B, L, W]."""
        return self.crossattn.keys_values(self.norm2_2(z), turn)

    def forward(self, x: Tensor, t: Tensor, y: Tensor, turn: Rotation, keys: Tensor, values: Tensor) -> Tensor:
        """x, and y, time and condition together, [B, L, W], and the time alone [B, 1, W] -> [B, L, W]."""
        gate, scale, shift = self.ada_lin_attn(t).chunk(3, dim=-1)
        x = x + gate * self.attn(self.norm1(x) * (1 + scale) + shift, turn)
        x = x + self.crossattn(self.norm2_1(x), keys, values, turn)
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
        self.res_blocks = nn.ModuleList(CrossBlock(width, condition_width) if cross_attention else SelfBlock(width) for _ in range(depth))
        self.final_layer = FinalLayer(width, channels)

    def prepare(self, z: Tensor, turn: Rotation) -> tuple[Tensor, list[tuple[Tensor, ...]]]:
        """What the conditions z [B, L, W] of a scale need computed once, for every time."""
        return self.cond_embed(z), [block.prepare(z, turn) for block in self.res_blocks]  # type: ignore[operator]

    def forward(self, x: Tensor, t: Tensor, prepared: tuple[Tensor, list[tuple[Tensor, ...]]], turn: Rotation) -> Tensor:
        """Noisy tokens x [B, L, C] at flow times t [B or 1] -> velocity [B, L, C]."""
        c, of_blocks = prepared
        h, embedded = self.input_proj(x), self.time_embed((1000 * t).long())[:, None]
        y = embedded + c
        once, together = F.silu(embedded), F.silu(y)
        for block, own in zip(self.res_blocks, of_blocks, strict=True):
            h = block(h, once, together, turn, *own)
        return self.final_layer(h, y)


class FlowAR(nn.Module):
    """Scale-wise autoregressive transformer with a flow head.

    Args:
        image_size, latent_stride: pixels a side, and pixels a latent.
        latent_channels: channels of the latents.
        scales: sides of the grids that are generated one after another, ascending; the last is the latents' own.
        num_classes: labels 0..num_classes-1.
        width, depth, num_heads: of the encoder, and again of the decoder.
        head_depth, head_width: of the flow head.
        cross_attention: whether the flow head attends to its conditions, as in the larger released models.
        attn_dropout, proj_dropout, label_drop_prob, grad_checkpointing: training alone.

    Raises:
        ValueError: the sizes do not fit together.
    """

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
        check_sizes(image_size=image_size, latent_stride=latent_stride, latent_channels=latent_channels, num_classes=num_classes)
        check_sizes(width=width, depth=depth, num_heads=num_heads, head_depth=head_depth, head_width=head_width)
        check_shares(attn_dropout=attn_dropout, proj_dropout=proj_dropout, label_drop_prob=label_drop_prob)
        grid = image_size // latent_stride
        if list(scales) != sorted(set(scales)) or not scales or scales[0] < 1 or scales[-1] * latent_stride != image_size:
            raise ValueError(
                f"scales are {tuple(scales)}; they must ascend and end at image_size / latent_stride = {image_size / latent_stride:g}"
            )
        if width % (4 * num_heads):
            raise ValueError(f"width is {width}; it must be a multiple of 4 · num_heads = {4 * num_heads}, for 2-D rotary positions")
        if head_width % HEAD_CHANNELS:
            raise ValueError(f"head_width is {head_width}; it must be a multiple of {HEAD_CHANNELS}")
        self.scales, self.grid, self.num_classes = tuple(scales), grid, num_classes
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
        self.head_width = width // num_heads
        self._initialize()

    def _initialize(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)
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
        return [slice(start, end) for start, end in zip(ends[:-1], ends[1:], strict=True)]

    def _rotations(self, device: torch.device, head_width: int) -> list[Rotation]:
        return [rotation(side, head_width, device) for side in self.scales]

    def _next_input(self, sample: Tensor, side: int) -> Tensor:
        """A finished scale [B, C, g, g], seen at the next grid [B, side², C]."""
        finest = F.interpolate(sample, (self.grid, self.grid), mode="bicubic")
        return F.interpolate(finest, (side, side), mode="area").flatten(2).transpose(1, 2)

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
        turn: Rotation,
        modulations: list[tuple[Tensor, ...]],
        mask: Tensor | None = None,
        caches: list[KeyValues] | None = None,
    ) -> Tensor:
        """Embedded tokens x [B, L, W] that lie at `where` in the sequence -> conditions for the head [B, L, W]."""
        x = self.z_proj_ln(x + self.encoder_pos_embed_learned[:, where])
        for i, block in enumerate(self._blocks):
            if i == len(self.encoder_blocks):
                x = self.decoder_embed(self.encoder_norm(x)) + self.decoder_pos_embed_learned[:, where]
            if self.grad_checkpointing and self.training:
                x = checkpoint(block, x, modulations[i], turn, mask=mask, use_reentrant=False)
            else:
                x = block(x, modulations[i], turn, mask=mask, cache=caches[i] if caches else None)
        return self.decoder_norm(x) + self.diffusion_pos_embed_learned[:, where]

    def forward(self, latents: Tensor, labels: Tensor, times: list[Tensor] | None = None, noise: list[Tensor] | None = None) -> Tensor:
        """Training loss of a batch: every scale's, weighted by its share of the finest grid's tokens.

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
        inputs = [self.z_proj(self._next_input(sample, side)) for sample, side in zip(targets[:-1], self.scales[1:], strict=True)]
        rotations = self._rotations(device, self.head_width)
        turn = (torch.cat([cos for cos, _ in rotations]), torch.cat([sin for _, sin in rotations]))
        scale_of = torch.cat([torch.full((side**2,), i, device=device) for i, side in enumerate(self.scales)])
        mask = scale_of[:, None] >= scale_of[None]  # a token sees its own scale and the coarser ones
        z = self.backbone(torch.cat([condition[:, None], *inputs], dim=1), slice(None), turn, self.modulations(condition), mask)
        loss = z.new_zeros(())
        for i, (side, where, turn) in enumerate(zip(self.scales, self._slices, self._rotations(device, HEAD_CHANNELS), strict=True)):
            x0 = targets[i].flatten(2).transpose(1, 2)
            t = torch.rand(batch, device=device) if times is None else times[i]
            eps = torch.randn_like(x0) if noise is None else noise[i]
            velocity = self.flownet(interpolate(x0, eps, t), t, self.flownet.prepare(z[:, where], turn), turn)
            loss = loss + velocity_loss(velocity.float(), x0, eps) * (side / self.grid) ** 2
        return loss

    def evaluations(self, schedule: StepSchedule, sampler: str) -> list[int]:
        """Evaluations of the velocity at each AR step that `generate` would make with these settings."""
        steps = (len(flow_times(schedule.steps(step, len(self.scales)))) - 1 for step in range(len(self.scales)))
        return [get_flow_sampler(sampler).evaluations(count) for count in steps]

    @torch.no_grad()
    def generate(
        self,
        labels: Tensor,
        schedule: StepSchedule | None = None,
        sampler: str = "euler",
        guidance: Guidance | None = None,
        temperature: float = 1.0,
        *,
        noise: NoiseSource,
        on_step: Callable[[StepTrace], None] | None = None,
    ) -> Tensor:
        """Latents for class labels, one AR step a scale.

        Args:
            labels: int64 [B].
            schedule: flow steps at each scale; by default 50 down to 15, linear.
            sampler: a name in `disa.flow.FLOW_SAMPLERS`.
            guidance: by default none. It applies at flow times up to `max_time`, where its scale exceeds 1.
            temperature: factor on the noise that steps add; Euler and Heun add none.
            noise: where the randomness comes from, such as `disa.ImageNoise`.
            on_step: called after each scale.

        Returns:
            float32 [B, C, H, W], unit variance.

        Raises:
            ValueError: a setting or a label is impossible.
            FloatingPointError: a latent came out as NaN or infinite.
        """
        schedule, guidance, solver = schedule or StepSchedule(50, 15), guidance or Guidance(), get_flow_sampler(sampler)
        check_labels(labels, self.num_classes)
        check_temperature(temperature)
        batch, last = len(labels), len(self.scales) - 1
        guided = guidance.scale > 1
        branches = 2 if guided else 1
        condition = self.class_emb(labels)
        if guided:
            condition = torch.cat([condition, self.class_emb(torch.full_like(labels, self.num_classes))])
        modulations = self.modulations(condition)
        length = sum(side**2 for side in self.scales)
        heads = condition.shape[-1] // self.head_width
        caches = [KeyValues(len(condition), heads, length, self.head_width, condition) for _ in self._blocks]
        sample = condition.new_zeros(0)
        turns = zip(self._rotations(labels.device, self.head_width), self._rotations(labels.device, HEAD_CHANNELS), strict=True)
        for step, (side, where, (turn, head_turn)) in enumerate(zip(self.scales, self._slices, turns, strict=True)):
            start = time.perf_counter()
            times = flow_times(schedule.steps(step, last + 1))
            embedded = condition[:, None] if step == 0 else self.z_proj(self._next_input(sample, side)).repeat(branches, 1, 1)
            z = self.backbone(embedded, where, turn, modulations, caches=caches)
            scale = guidance.at(step / last if last else 1.0)
            prepared = self.flownet.prepare(z if scale > 1 else z[:batch], head_turn)
            alone = (prepared[0][:batch], [tuple(part[:batch] for part in own) for own in prepared[1]])

            def velocity(x: Tensor, t: float, prepared=prepared, alone=alone, turn=head_turn, scale=scale) -> Tensor:
                when = torch.tensor([t], device=x.device)
                x = x.to(condition.dtype)
                if scale <= 1 or t > guidance.max_time:
                    return self.flownet(x, when, alone, turn)
                conditional, unconditional = self.flownet(torch.cat([x, x]), when, prepared, turn).float().chunk(2)
                return combine(conditional, unconditional, scale)

            draws = noise.normal(step, solver.draws(len(times) - 1), side**2, self.z_proj.in_features)
            tokens = solver.solve(velocity, draws, times, temperature)
            sample = tokens.float().transpose(1, 2).unflatten(2, (side, side)).to(condition.dtype)
            if on_step is not None:
                evaluations = solver.evaluations(len(times) - 1)
                on_step(StepTrace(step, side**2, schedule.steps(step, last + 1), evaluations, time.perf_counter() - start))
        check_finite(sample)
        return sample.float()
