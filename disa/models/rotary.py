"""Layers of FlowAR and xAR: RMS norms, rotary attention with a KV cache, gated MLPs, blocks with six-way adaLN."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import Tensor, nn

from .layers import AdaLinear

# Both families scale the positions of every grid to this many, whatever its size.
POSITIONS = 16
Modulation = tuple[Tensor, ...]


class KVCache:
    """Keys and values of one attention layer, allocated once for a whole generation.

    Args:
        batch, num_heads, length, head_dim: shape of what later calls read.
        like: a tensor of its dtype and device.
    """

    def __init__(self, batch: int, num_heads: int, length: int, head_dim: int, like: Tensor) -> None:
        self.keys = like.new_empty(batch, num_heads, length, head_dim)
        self.values = torch.empty_like(self.keys)
        self.length = 0

    def update(self, keys: Tensor, values: Tensor, keep: bool) -> tuple[Tensor, Tensor]:
        """Append keys and values [B, heads, T, D] and return all so far; later calls see them only if `keep`."""
        start, end, rows = self.length, self.length + keys.shape[2], len(keys)
        if not keep and start == 0:
            return keys, values
        # With guidance the conditional rows come first, and may come alone.
        all_keys, all_values = self.keys[:rows], self.values[:rows]
        if end > all_keys.shape[2]:  # nobody reads them later: they have no place
            return torch.cat([all_keys[:, :, :start], keys], 2), torch.cat([all_values[:, :, :start], values], 2)
        all_keys[:, :, start:end], all_values[:, :, start:end] = keys, values
        if keep:
            self.length = end
        return all_keys[:, :, :end], all_values[:, :, :end]


class RMSNorm(nn.Module):
    """RMS norm (Zhang and Sennrich 2019), accumulated in float32, with a weight if `affine`."""

    def __init__(self, width: int, affine: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width)) if affine else None

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, x.shape[-1:], self.weight, eps=1e-6)


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


def grid_rope(grid: int, head_dim: int, device: torch.device | None = None) -> Tensor:
    """2-D rotary embeddings (Su et al. 2021) of a grid in row-major order: cosines and sines [grid², head_dim / 2, 2].

    Half of the channel pairs rotate with the row, half with the column; positions run from 0 to 16 whatever the grid.
    """
    frequencies = 10000 ** -(torch.arange(0, head_dim // 2, 2, device=device).float() / (head_dim // 2))
    position = torch.arange(grid, device=device).float() / grid * POSITIONS
    angles = torch.outer(position, frequencies)  # [grid, head_dim / 4]
    by_row, by_column = (repeat(angles, "i d -> (i j) d", j=grid), repeat(angles, "j d -> (i j) d", i=grid))
    angles = torch.cat([by_row, by_column], dim=-1)
    return torch.stack([angles.cos(), angles.sin()], dim=-1)


def apply_rotary_emb(x: Tensor, rope: Tensor) -> Tensor:
    """Rotate each adjacent pair of channels of x [B, L, heads, D] by its angle, `rope` [L, D / 2, 2]."""
    pairs, rope = x.float().unflatten(-1, (-1, 2)), rope[:, None]
    if torch.compiler.is_compiling():  # which generates no code for complex numbers
        (first, second), (cos, sin) = pairs.unbind(-1), rope.unbind(-1)
        rotated = torch.stack([first * cos - second * sin, first * sin + second * cos], dim=-1)
    else:
        rotated = torch.view_as_real(torch.view_as_complex(pairs) * torch.view_as_complex(rope))
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
        self, x: Tensor, rope: Tensor, mask: Tensor | None = None, cache: KVCache | None = None, keep: bool = True
    ) -> Tensor:
        """x [B, L, W] attends to itself where `mask` [L, L] allows, and to the `cache`, which it joins if `keep`."""
        qkv = rearrange(self.qkv(x), "b l (n d) -> b l n d", n=3 * self.num_heads)
        qk, v = qkv.split([2 * self.num_heads, self.num_heads], dim=2)
        q, k = rearrange(apply_rotary_emb(qk, rope), "b l (n h) d -> n b h l d", n=2)
        v = v.transpose(1, 2)
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
        self.ada_lin = nn.Sequential(nn.SiLU(), AdaLinear(width, 6, scales=(2, 3)))

    def modulation(self, condition: Tensor) -> Modulation:
        """Condition [..., 1 or L, W] -> two gates, two scales (1 added), two shifts."""
        return self.ada_lin(condition)

    def forward(
        self,
        x: Tensor,
        modulation: Modulation,
        rope: Tensor,
        mask: Tensor | None = None,
        cache: KVCache | None = None,
        keep: bool = True,
    ) -> Tensor:
        """x [B, L, W] -> [B, L, W]; what follows `rope` is for `RotaryAttention`."""
        gate1, gate2, scale1, scale2, shift1, shift2 = modulation
        x = torch.addcmul(x, gate1, self.attn(torch.addcmul(shift1, self.norm1(x), scale1), rope, mask, cache, keep))
        return torch.addcmul(x, gate2, self.mlp(torch.addcmul(shift2, self.norm2(x), scale2)))
