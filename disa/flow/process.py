"""Flow matching on the linear path (Lipman et al., "Flow Matching for Generative Modeling", 2023; Liu et al. 2023)."""

from __future__ import annotations

from torch import Tensor


def interpolate(x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
    """The path x_t = (1 - t) · x0 + t · noise: data at time 0, noise at time 1.

    Args:
        x0, noise: [B, ...].
        t: flow times, [B] or what broadcasts from the left.
    """
    t = t.view(*t.shape, *[1] * (x0.ndim - t.ndim))
    return (1 - t) * x0 + t * noise


def velocity_loss(velocity: Tensor, x0: Tensor, noise: Tensor) -> Tensor:
    """Mean squared error of `velocity` [B, ...] against the path's, noise - x0: a scalar."""
    return (velocity - (noise - x0)).square().mean()
