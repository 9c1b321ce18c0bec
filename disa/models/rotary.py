"""Layers of FlowAR and xAR: RMS norms, rotary attention with a KV cache, gated MLPs, blocks with six-way adaLN."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import Tensor, nn

# Both families scale the positions of every grid to this many, whatever its size.
POSITIONS = 16
RoPE = tuple[Tensor, Tensor]


class KVCache:
    """Keys and values of one attention layer, allocated once for a whole generation.

    Args:
        batch, num_heads, length, head_dim: shape of the full cache.
        like: a tensor of its dtype and device.
    """

    def __init__(self, batch: int, num_heads: int, length: int, head_dim: int, like: Tensor) -> None:
        self.keys = like.new_empty(batch, num_heads, length, head_dim)
        self.values = torch.empty_like(self.keys)
        self.length = 0

    def update(self, keys: Tensor, values: Tensor, keep: bool) -> tuple[Tensor, Tensor]:
        """Append keys and values [B, heads, T, D] and return all so far; later calls see them only if `keep`."""
        end = self.length + keys.shape[2]
        rows = len(keys)  # with guidance the conditional rows come first, and may come alone
        self.keys[:rows, :, self.length : end], self.values[:rows, :, self.length : end] = keys, values
        if keep:
            self.length = end
        return self.keys[:rows, :, :end], self.values[:rows, :, :end]


class RMSNorm(nn.Module):
    """RMS norm computed in float32 (Zhang and Sennrich 2019), with a weight if `affine`."""

    def __init__(self, width: int, affine: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width)) if affine else None

    def forward(self, x: Tensor) -> Tensor:
        normal = F.rms_norm(x.float(), x.shape[-1:], eps=1e-6).to(x.dtype)
        return normal if self.weight is None else normal * self.weight


class GEGLU(nn.Module):
    """Gated MLP, fc2(gelu(fc1_g(x)) · fc1_x(x)), of the size of a plain one with ratio 4 (Shazeer 2020)."""

    def __init__(self, width: int, dropout: float = 0.0) -> None:
        super().__init__()
        hidden = int(width * 4 * 2 / 3)
        self.fc1_g = nn.Linear(width, hidden)
        self.fc1_x = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)
        self.drop = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        return self.drop(self.fc2(self.drop(F.gelu(self.fc1_g(x)) * self.fc1_x(x))))


def grid_rope(grid: int, head_dim: int, device: torch.device | None = None) -> RoPE:
    """Cosines and sines [grid², head_dim / 2] of 2-D rotary embeddings (Su et al. 2021) of a grid in row-major order.

    Half of the channel pairs rotate with the row, half with the column; positions run from 0 to 16 whatever the grid.
    """
    frequencies = 10000 ** -(torch.arange(0, head_dim // 2, 2, device=device).float() / (head_dim // 2))
    position = torch.arange(grid, device=device).float() / grid * POSITIONS
    angles = torch.outer(position, frequencies)  # [grid, head_dim / 4]
    by_row, by_column = repeat(angles, "i d -> (i j) d", j=grid), repeat(angles, "j d -> (i j) d", i=grid)
    angles = torch.cat([by_row, by_column], dim=-1)
    return angles.cos(), angles.sin()


def apply_rotary_emb(x: Tensor, rope: RoPE) -> Tensor:
    """Rotate each adjacent pair of channels of x [B, heads, L, D] by its angle."""
    cos, sin = rope
    first, second = rearrange(x.float(), "... (d two) -> two ... d", two=2)
    rotated = torch.stack([first * cos - second * sin, first * sin + second * cos], dim=-1)
    return rotated.flatten(-2).to(x.dtype)


class RotaryAttention(nn.Module):
    """Multi-head self-attention with rotary positions."""

    def __init__(
        self, width: int, num_heads: int, bias: bool = True, attn_dropout: float = 0.0, proj_dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.num_heads, self.attn_dropout = num_heads, attn_dropout
        self.qkv = nn.Linear(width, 3 * width, bias=bias)
        self.proj = nn.Linear(width, width)
        self.proj_drop = nn.Dropout(proj_dropout)

    def forward(
        self, x: Tensor, rope: RoPE, mask: Tensor | None = None, cache: KVCache | None = None, keep: bool = True
    ) -> Tensor:
        """x [B, L, W] attends to itself where `mask` [L, L] allows, and to the `cache`, which it joins if `keep`."""
        q, k, v = rearrange(self.qkv(x), "b l (n h d) -> n b h l d", n=3, h=self.num_heads)
        q, k = apply_rotary_emb(q, rope), apply_rotary_emb(k, rope)
        if cache is not None:
            k, v = cache.update(k, v, keep)
        dropout = self.attn_dropout if self.training else 0.0
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout)
        return self.proj_drop(self.proj(rearrange(out, "b h l d -> b l (h d)")))


class ModulatedBlock(nn.Module):
    """Attention and gated MLP with six-way adaLN (gates, scales and shifts set by a condition)."""

    def __init__(self, width: int, num_heads: int, attn_dropout: float = 0.0, proj_dropout: float = 0.0) -> None:
        super().__init__()
        self.norm1 = RMSNorm(width, affine=False)
        self.attn = RotaryAttention(width, num_heads, attn_dropout=attn_dropout, proj_dropout=proj_dropout)
        self.norm2 = RMSNorm(width, affine=False)
        self.mlp = GEGLU(width, proj_dropout)
        self.ada_lin = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))

    def modulation(self, condition: Tensor) -> tuple[Tensor, ...]:
        """Condition [B, 1 or L, W] -> two gates, two scales, two shifts."""
        return self.ada_lin(condition).chunk(6, dim=-1)

    def forward(self, x: Tensor, modulation: tuple[Tensor, ...], rope: RoPE, **attention: object) -> Tensor:
        """x [B, L, W] -> [B, L, W]; `attention` goes to `RotaryAttention`."""
        gate1, gate2, scale1, scale2, shift1, shift2 = modulation
        x = x + gate1 * self.attn(self.norm1(x) * (1 + scale1) + shift1, rope, **attention)
        return x + gate2 * self.mlp(self.norm2(x) * (1 + scale2) + shift2)
