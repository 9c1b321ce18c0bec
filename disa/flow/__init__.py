"""Flow matching: the path between data and noise, and solvers along it."""

from .process import interpolate, velocity_loss
from .solvers import SOLVERS, linspace

__all__ = ["SOLVERS", "interpolate", "linspace", "velocity_loss"]
