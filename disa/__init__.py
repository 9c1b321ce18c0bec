"""DiSA: the fast sampler for image generators that are autoregressive outside and diffusion inside."""

from .checkpoints import load_model
from .guidance import Guidance
from .models import build_model
from .noise import ImageNoise
from .schedule import StepSchedule
from .trace import StepTrace

__version__ = "0.1.0"
__all__ = ["Guidance", "ImageNoise", "StepSchedule", "StepTrace", "build_model", "load_model"]
