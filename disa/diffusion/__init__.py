"""Gaussian diffusion: the process and its solvers."""

from .process import GaussianProcess
from .solvers import SOLVERS

__all__ = ["SOLVERS", "GaussianProcess"]
