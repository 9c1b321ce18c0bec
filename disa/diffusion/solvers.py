"""Solvers of Gaussian diffusion: which timesteps they visit, and how they step from one to the next.

Every solver has one signature: `solver(network, noise, timesteps, temperature)`. `network(x, t)` predicts the pair
(epsilon, v), both like x [..., C], at timestep t. Guidance is part of `network`, so that it works with every solver.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from ..multistep import multistep
from ..solver import Solver
from .process import TRAINING_STEPS, GaussianProcess, cosine_betas

Network = Callable[[Tensor, float], tuple[Tensor, Tensor]]


# DiSA starts here: further on almost no signal is left, and the network's errors are multiplied.
LAST_TIMESTEP = 950
LAST_DDIM_TIMESTEP = 980


def even_timesteps(count: int) -> tuple[int, ...]:
    """`count` timesteps evenly spread over 0..999, ascending (Improved DDPM's respacing)."""
    if not 1 <= count <= TRAINING_STEPS:
        raise ValueError(f"{count} diffusion steps cannot be taken; there are 1 to {TRAINING_STEPS} timesteps")
    stride = (TRAINING_STEPS - 1) / max(count - 1, 1)
    # Summed, not multiplied: half-way between two timesteps the published results depend on how the sum is rounded.
    return tuple(round(t) for t in itertools.accumulate([0.0] + [stride] * (count - 1)))


def annealed_timesteps(count: int) -> tuple[int, ...]:
    """`even_timesteps` cut off at 950, without duplicates."""
    return tuple(sorted({min(t, LAST_TIMESTEP) for t in even_timesteps(count)}))


def ddim_timesteps(count: int) -> tuple[int, ...]:
    """The longest range from 0 within 1000 that one stride divides into `count` timesteps, cut off at 980."""
    for end, stride in itertools.product(range(TRAINING_STEPS, 0, -1), range(1, TRAINING_STEPS + 1)):
        if len(range(0, end, stride)) == count:
            return tuple(sorted({min(t, LAST_DDIM_TIMESTEP) for t in range(0, end, stride)}))
    raise ValueError(f"DDIM cannot take {count} diffusion steps; there are {TRAINING_STEPS} timesteps")


def ancestral(network: Network, noise: Tensor, timesteps: Sequence[int], temperature: float = 1.0) -> Tensor:
    """Ancestral sampling with the learned variance (Improved DDPM, eq. 15).

    Args:
        network: (x, t) -> (epsilon, v).
        noise: standard normal [1 + K, ..., C]: the start, then one draw a step; the last is not used.
        timesteps: the K timesteps to visit, ascending.
        temperature: factor on the noise of each step.

    Returns:
        Samples [..., C].
    """
    process = GaussianProcess.over(tuple(timesteps))
    x = noise[0]
    for i in reversed(range(len(timesteps))):
        epsilon, v = network(x, timesteps[i])
        # mean = x0_weight · x0 + x_weight · x with x0 = (x - sqrt(1 - alpha_bar) · epsilon) / sqrt(alpha_bar)
        scale = process.x0_weight[i] / math.sqrt(process.alpha_bar[i])
        mean = torch.sub((scale + process.x_weight[i]) * x, epsilon, alpha=scale * math.sqrt(1 - process.alpha_bar[i]))
        if i == 0:
            return mean
        low, high = process.posterior_log_variance[i], process.log_beta[i]
        deviation = torch.exp(torch.add(torch.tensor((high + low) / 4, device="cpu"), v, alpha=(high - low) / 4))
        x = torch.addcmul(mean, deviation, noise[len(timesteps) - i], value=temperature)
    return x


def ddim(network: Network, noise: Tensor, timesteps: Sequence[int], temperature: float = 1.0) -> Tensor:
    """DDIM with eta 0 (Song et al. 2021, eq. 12); of `noise` [1 + K, ..., C] it uses the start alone.

    Arguments and result are those of `ancestral`.
    """
    process = GaussianProcess.over(tuple(timesteps))
    x = noise[0]
    for i in reversed(range(len(timesteps))):
        epsilon, _ = network(x, timesteps[i])
        before = process.alpha_bar[i - 1] if i else 1.0
        ratio = math.sqrt(before / process.alpha_bar[i])
        x = ratio * x + (math.sqrt(1 - before) - ratio * math.sqrt(1 - process.alpha_bar[i])) * epsilon
    return x


# DPM-Solver's discrete schedule: the 951 timesteps up to 950 share the time from 0 to 0.95 evenly; it ends at 1/951.
_KNOTS = LAST_TIMESTEP + 1


_FIRST_TIME, _LAST_TIME = 0.95, 1 / _KNOTS


@functools.cache
def dpm_timesteps(count: int) -> tuple[float, ...]:
    """`count` times, uniform from 0.95 to 1/951 (not visited), in thousandths, in the order visited."""
    # float32, as published: the network sees these very numbers.
    return tuple((torch.linspace(_FIRST_TIME, _LAST_TIME, count + 1, device="cpu")[:count] * TRAINING_STEPS).tolist())


def _half_log_snr(time: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """alpha, sigma and log(alpha / sigma) at continuous times, log alpha being piecewise linear between the knots."""
    knots = _FIRST_TIME * np.arange(1, _KNOTS + 1) / _KNOTS
    log_alpha = np.interp(time, knots, 0.5 * np.log1p(-cosine_betas()[:_KNOTS]).cumsum())
    log_sigma = 0.5 * np.log1p(-np.exp(2 * log_alpha))
    return np.exp(log_alpha), np.exp(log_sigma), log_alpha - log_sigma


def dpm_solver(network: Network, noise: Tensor, timesteps: Sequence[float], temperature: float = 1.0) -> Tensor:
    """First-order DPM-Solver (Lu et al. 2022, eq. 3.7): exponential integrator in epsilon. `noise` is [1, ..., C]."""
    alpha, sigma, half_log_snr = _half_log_snr(np.append(np.array(timesteps) / TRAINING_STEPS, _LAST_TIME))
    x = noise[0]
    for i, t in enumerate(timesteps):
        epsilon, _ = network(x, t)
        step = half_log_snr[i + 1] - half_log_snr[i]
        x = (alpha[i + 1] / alpha[i]) * x - (sigma[i + 1] * np.expm1(step)) * epsilon
    return x


def dpm_solver_pp(
    network: Network,
    noise: Tensor,
    timesteps: Sequence[float],
    temperature: float = 1.0,
    order: int = 1,
    stochastic: bool = False,
) -> Tensor:
    """DPM-Solver++ multistep (Lu et al. 2022b, algorithm 2): exponential integrator in x0. `noise` is [1, ..., C].

    `order` 2 extrapolates x0 from the step before. The first step has none. The last step is of order 1 too: it is
    the longest in log-SNR by far, and extrapolation overshoots.

    `stochastic` integrates the reverse SDE in place of the ODE (SDE-DPM-Solver++): x0 counts exp(-2h), not exp(-h), and
    each step but the last adds its draw of `noise` [K, ..., C] times `temperature`.
    """
    rate = 2 if stochastic else 1
    alpha, sigma, half_log_snr = _half_log_snr(np.append(np.array(timesteps) / TRAINING_STEPS, _LAST_TIME))
    steps = np.diff(half_log_snr)
    x = noise[0]
    x0_before = x
    for i, t in enumerate(timesteps):
        epsilon, _ = network(x, t)
        x0 = (x - sigma[i] * epsilon) / alpha[i]
        target = x0
        if order == 2 and 0 < i < len(timesteps) - 1:
            target = x0 + steps[i] / (2 * steps[i - 1]) * (x0 - x0_before)
        decay = math.exp((1 - rate) * steps[i])
        x = (decay * sigma[i + 1] / sigma[i]) * x - (alpha[i + 1] * np.expm1(-rate * steps[i])) * target
        if stochastic and i < len(timesteps) - 1:
            x = torch.add(x, noise[i + 1], alpha=temperature * sigma[i + 1] * math.sqrt(1 - decay**2))
        x0_before = x0
    return x


def dpm_solver_pp_2m(network: Network, noise: Tensor, timesteps: Sequence[float], temperature: float = 1.0) -> Tensor:
    """`dpm_solver_pp` of order 2."""
    return dpm_solver_pp(network, noise, timesteps, temperature, order=2)


def sde_dpm_solver_pp_2m(
    network: Network, noise: Tensor, timesteps: Sequence[float], temperature: float = 1.0
) -> Tensor:
    """`dpm_solver_pp` of order 2, stochastic."""
    return dpm_solver_pp(network, noise, timesteps, temperature, order=2, stochastic=True)


def deis2(network: Network, noise: Tensor, timesteps: Sequence[float], temperature: float = 1.0) -> Tensor:
    """rhoAB-DEIS (Zhang and Chen 2022, proposition 3): Adams–Bashforth 2 on d(x / alpha) = epsilon d(sigma / alpha).

    `noise` is [1, ..., C].
    """
    alpha, sigma, _ = _half_log_snr(np.append(np.array(timesteps) / TRAINING_STEPS, _LAST_TIME))

    def epsilon(x: Tensor, i: int) -> Tensor:
        return network(x, timesteps[i])[0]

    return multistep(epsilon, noise[0], (sigma / alpha).tolist(), alpha.tolist(), order=2)


def unipc(network: Network, noise: Tensor, timesteps: Sequence[float], order: int) -> Tensor:
    """UniPC in x0 (Zhao et al. 2023, theorem 3.1 and corollary 3.2): UniP-p, then UniC-p, with p = `order`.

    The conditions on their coefficients are solved exactly, so that the paper's B(h) cancels. `noise` is [1, ..., C].
    """
    alpha, sigma, half_log_snr = _half_log_snr(np.append(np.array(timesteps) / TRAINING_STEPS, _LAST_TIME))

    def x0(x: Tensor, i: int) -> Tensor:
        return (x - sigma[i] * network(x, timesteps[i])[0]) / alpha[i]

    return multistep(x0, noise[0], half_log_snr.tolist(), sigma.tolist(), order=order, rate=1.0, correct=True)


def unipc2(network: Network, noise: Tensor, timesteps: Sequence[float], temperature: float = 1.0) -> Tensor:
    """`unipc` of order 2."""
    return unipc(network, noise, timesteps, order=2)


def unipc3(network: Network, noise: Tensor, timesteps: Sequence[float], temperature: float = 1.0) -> Tensor:
    """`unipc` of order 3."""
    return unipc(network, noise, timesteps, order=3)


SOLVERS: dict[str, Solver] = {
    "DiSA": Solver(ancestral, "ancestral, t ≤ 950", len, lambda times: 1 + len(times), annealed_timesteps),
    "default": Solver(ancestral, "ancestral", len, lambda times: 1 + len(times), even_timesteps, annealed=False),
    "DDIM": Solver(ddim, "DDIM", len, lambda times: 1 + len(times), ddim_timesteps),
    "DPM_Solver": Solver(dpm_solver, "DPM-Solver", len, lambda _: 1, dpm_timesteps),
    "DPM_Solver++": Solver(dpm_solver_pp, "DPM-Solver++", len, lambda _: 1, dpm_timesteps),
    "DPM_Solver++2M": Solver(dpm_solver_pp_2m, "DPM-Solver++(2M)", len, lambda _: 1, dpm_timesteps),
    "DPM_Solver++2M_SDE": Solver(sde_dpm_solver_pp_2m, "SDE-DPM-Solver++(2M)", len, len, dpm_timesteps),
    "DEIS2": Solver(deis2, "DEIS-2", len, lambda _: 1, dpm_timesteps),
    "UniPC2": Solver(unipc2, "UniPC-2", len, lambda _: 1, dpm_timesteps),
    "UniPC3": Solver(unipc3, "UniPC-3", len, lambda _: 1, dpm_timesteps),
}
