"""Flow matching: the path between data and noise, and samplers along it."""

from .process import interpolate, velocity_loss
from .samplers import FLOW_SAMPLERS, get_flow_sampler, linspace

__all__ = ["FLOW_SAMPLERS", "get_flow_sampler", "interpolate", "linspace", "velocity_loss"]
