"""Layers that two families share, and how all begin."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ..acceleration.caching import Slots
from ..solver import Times


class TimestepEmbedding(nn.Module):
    """256 sinusoids of the timestep, cosines first, through an MLP."""

    FREQUENCIES = 128

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(2 * self.FREQUENCIES, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, t: Tensor) -> Tensor:
        """Timesteps [N] -> [N, width]."""
        exponents = torch.arange(self.FREQUENCIES, dtype=torch.float32, device=t.device) / self.FREQUENCIES
        angles = t.float()[:, None] * torch.exp(-math.log(10000) * exponents)
        return self.mlp(torch.cat([angles.cos(), angles.sin()], dim=-1).to(next(self.mlp.parameters()).dtype))


def embed_times(embed: Callable[[Tensor], Tensor], times: Sequence[Times], device: torch.device) -> list[Tensor]:
    """Embed the times of all AR steps of a generation at once, before its loop: [len(times[step]), W] for each step."""
    flat = [t for step in times for t in step]
    return list(embed(upload(flat, device)).split([len(step) for step in times]))


def upload(values: Sequence[float], device: torch.device) -> Tensor:
    """Copy numbers to `device` without waiting for it: float32 [N]."""
    tensor = torch.tensor(values, dtype=torch.float32, device="cpu")
    if device.type == "cuda" and torch.cuda.is_available():
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


class AdaLinear(nn.Linear):
    """The linear layer of an adaLN, whose bias holds the 1 of every `1 + scale`: a modulation is then one `addcmul`.

    Args:
        width: of input and of each part of the output.
        parts: gates, scales and shifts.
        scales: which parts are scales.
    """

    def __init__(self, width: int, parts: int, scales: Sequence[int]) -> None:
        super().__init__(width, parts * width)
        self.parts, self.scales = parts, tuple(scales)
        self._cached: tuple[int, Tensor] | None = None  # the bias's version, and the bias with ones

    def bias_with_ones(self) -> Tensor:
        """The bias with 1 added to the scales, kept until the bias changes."""
        keep = not torch.is_grad_enabled() and not torch.compiler.is_compiling()  # a version would break its graph
        if keep and self._cached is not None and self._cached[0] == self.bias._version:
            return self._cached[1]
        bias = torch.cat([part + (i in self.scales) for i, part in enumerate(self.bias.chunk(self.parts))])
        if keep:
            self._cached = (self.bias._version, bias)
        return bias

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> AdaLinear:
        self._cached = None  # moved or converted, a parameter keeps its version
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self

    def forward(self, y: Tensor) -> tuple[Tensor, ...]:  # type: ignore[override]
        """y [..., W] -> gates, scales with 1 added, and shifts, [..., W] each."""
        return F.linear(y, self.weight, self.bias_with_ones()).chunk(self.parts, dim=-1)


class Attention(nn.Module):
    """Multi-head self-attention."""

    def __init__(self, width: int, num_heads: int, attn_dropout: float = 0.0, proj_dropout: float = 0.0) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.attn_dropout = attn_dropout
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.proj_drop = nn.Dropout(proj_dropout)

    def forward(self, x: Tensor, queries: Tensor | None = None, slots: Slots | None = None) -> Tensor:
        """x [B, L, W] attends to itself, and to what `slots` hold; with `queries` [B, Q, W] only those are computed."""
        if queries is None:
            q, k, v = self._heads(self.qkv(x), 3)
        else:
            width = x.shape[-1]
            (q,) = self._heads(F.linear(queries, self.qkv.weight[:width], self.qkv.bias[:width]), 1)
            k, v = self._heads(F.linear(x, self.qkv.weight[width:], self.qkv.bias[width:]), 2)
        if slots is not None:
            k, v = slots.update(k, v)
        out = F.scaled_dot_product_attention(q, k, v, dropout_p=self.attn_dropout if self.training else 0.0)
        return self.proj_drop(self.proj(rearrange(out, "b h l d -> b l (h d)")))

    def _heads(self, x: Tensor, parts: int) -> tuple[Tensor, ...]:
        """[B, L, parts · W] -> `parts` of [B, heads, L, W / heads]."""
        return rearrange(x, "b l (n h d) -> n b h l d", n=parts, h=self.num_heads).unbind(0)


class Mlp(nn.Module):
    """Linear, exact GELU, Linear."""

    def __init__(self, width: int, ratio: float = 4.0, dropout: float = 0.0) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, int(width * ratio))
        self.fc2 = nn.Linear(int(width * ratio), width)
        self.drop = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        return self.drop(self.fc2(self.drop(F.gelu(self.fc1(x)))))


class Block(nn.Module):
    """Pre-norm ViT block."""

    def __init__(self, width: int, num_heads: int, attn_dropout: float = 0.0, proj_dropout: float = 0.0) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attn = Attention(width, num_heads, attn_dropout, proj_dropout)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = Mlp(width, dropout=proj_dropout)

    def forward(self, x: Tensor, rows: Tensor | None = None, slots: Slots | None = None) -> Tensor:
        """x [B, L, W] -> [B, L, W]; with `rows` [B, Q] only those rows of the result, [B, Q, W].

        With `slots`, x may be only some of the rows: the others are those that these hold.
        """
        h, queries = self.norm1(x), None
        if rows is not None:
            x, queries = take_rows(x, rows), take_rows(h, rows)
        x = x + self.attn(h, queries, slots)
        return x + self.mlp(self.norm2(x))


def take_rows(x: Tensor, rows: Tensor) -> Tensor:
    """Rows `rows` [B, Q] of each of x [B, L, W], as [B, Q, W]."""
    return x.gather(1, rows[..., None].expand(-1, -1, x.shape[-1]))


def put_rows(x: Tensor, rows: Tensor, values: Tensor) -> Tensor:
    """x [B, L, W] with its rows `rows` [B, Q] replaced by `values` [B, Q, W]."""
    return x.scatter(1, rows[..., None].expand(-1, -1, x.shape[-1]), values)


def initialize(model: nn.Module) -> None:
    """Initialize linear layers (Xavier, no bias) and embeddings (deviation 0.02)."""
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=0.02)
