"""Gaussian diffusion: the process and its samplers."""

from .process import GaussianProcess
from .samplers import SAMPLERS, get_sampler, step_timesteps

__all__ = ["SAMPLERS", "GaussianProcess", "get_sampler", "step_timesteps"]
