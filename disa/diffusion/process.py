"""Gaussian diffusion with a learned-range variance (Nichol and Dhariwal, "Improved DDPM", 2021)."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

TRAINING_STEPS = 1000


def cosine_betas(steps: int = TRAINING_STEPS, cap: float = 0.999) -> np.ndarray:
    """Betas of the cosine schedule, float64 [steps] (Improved DDPM, eq. 17), each at most `cap`."""

    def alpha_bar(u: float) -> float:
        return math.cos((u + 0.008) / 1.008 * math.pi / 2) ** 2

    return np.array([min(1 - alpha_bar((i + 1) / steps) / alpha_bar(i / steps), cap) for i in range(steps)])


class GaussianProcess:
    """Noising process over a subset of the training timesteps, and its posterior.

    Attributes: float64 tables over the `K` kept timesteps, ascending.
        timesteps: the kept training timesteps, which the network is told.
        alpha_bar: share of signal variance left at each.
        log_beta, posterior_log_variance: the two ends between which the network's `v` interpolates.
        x0_weight, x_weight: the posterior mean is `x0_weight · x0 + x_weight · x`.
    """

    def __init__(self, timesteps: Sequence[int] = tuple(range(TRAINING_STEPS))) -> None:
        self.timesteps = tuple(timesteps)
        self.alpha_bar = np.cumprod(1 - cosine_betas())[list(self.timesteps)]
        previous = np.append(1.0, self.alpha_bar[:-1])
        beta = 1 - self.alpha_bar / previous
        variance = beta * (1 - previous) / (1 - self.alpha_bar)
        # The posterior of the first timestep is a point; its logarithm borrows the next one's.
        variance[0] = variance[1] if len(variance) > 1 else beta[0]
        self.log_beta = np.log(beta)
        self.posterior_log_variance = np.log(variance)
        self.x0_weight = beta * np.sqrt(previous) / (1 - self.alpha_bar)
        self.x_weight = (1 - previous) * np.sqrt(1 - beta) / (1 - self.alpha_bar)
        self._tables: dict[torch.device, Tensor] = {}

    @staticmethod
    @functools.lru_cache(maxsize=1024)
    def over(timesteps: tuple[int, ...]) -> GaussianProcess:
        """Return the process over `timesteps`, cached: an annealed generation uses the same few again and again."""
        return GaussianProcess(timesteps)

    def tables(self, device: torch.device) -> Tensor:
        """Return the per-timestep coefficients of the training loss, float32 [6, K], copied to `device` once."""
        if device not in self._tables:
            rows = [self.alpha_bar**0.5, (1 - self.alpha_bar) ** 0.5, self.x0_weight, self.x_weight]
            table = np.stack([*rows, self.log_beta, self.posterior_log_variance])
            self._tables[device] = torch.from_numpy(table).float().to(device)
        return self._tables[device]

    def loss(self, epsilon: Tensor, v: Tensor, x0: Tensor, xt: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """Compute the training loss of each row: the squared error of epsilon plus the variational bound in bits.

        The bound trains `v` alone.

        Args:
            epsilon, v: prediction [N, C]; `v` in [-1, 1] goes from the posterior's log variance to beta's.
            x0, xt, noise: data, noised data, and the noise in it [N, C].
            t: timesteps, int64 [N].

        Returns:
            float32 [N], a mean over channels.
        """
        table = self.tables(t.device)[:, t, None]
        root_alpha_bar, sigma, x0_weight, x_weight, log_beta, posterior_log_variance = table
        predicted_x0 = (xt - sigma * epsilon.detach()) / root_alpha_bar
        mean = x0_weight * predicted_x0 + x_weight * xt
        log_variance = torch.lerp(posterior_log_variance, log_beta, (v + 1) / 2)
        true_mean = x0_weight * x0 + x_weight * xt
        divergence = gaussian_kl(true_mean, posterior_log_variance, mean, log_variance)
        bound = torch.where(t[:, None] == 0, -discretized_log_likelihood(x0, mean, 0.5 * log_variance), divergence)
        return (epsilon - noise).square().mean(-1) + bound.mean(-1) / math.log(2)

    def add_noise(self, x0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """Noise `x0` [N, C] to timesteps `t` [N]."""
        root_alpha_bar, sigma = self.tables(t.device)[:2, t, None]
        return root_alpha_bar * x0 + sigma * noise


def gaussian_kl(mean1: Tensor, log_variance1: Tensor, mean2: Tensor, log_variance2: Tensor) -> Tensor:
    """KL divergence of N(mean1, variance1) from N(mean2, variance2), elementwise, in nats."""
    ratio = torch.exp(log_variance1 - log_variance2)
    return 0.5 * (log_variance2 - log_variance1 + ratio - 1 + (mean1 - mean2).square() * torch.exp(-log_variance2))


def discretized_log_likelihood(x: Tensor, mean: Tensor, log_scale: Tensor) -> Tensor:
    """Log probability, elementwise in nats, of the 1/255 bin around x in [-1, 1] under N(mean, exp(log_scale)²)."""

    def cdf(z: Tensor) -> Tensor:  # the tanh approximation that the published weights were trained with
        return 0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (z + 0.044715 * z**3)))

    scale = torch.exp(-log_scale)
    upper = cdf((x - mean + 1 / 255) * scale)
    lower = cdf((x - mean - 1 / 255) * scale)
    # The outermost bins reach to infinity.
    upper = torch.where(x > 0.999, torch.ones_like(upper), upper)
    lower = torch.where(x < -0.999, torch.zeros_like(lower), lower)
    return (upper - lower).clamp_min(1e-12).log()
