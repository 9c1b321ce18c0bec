"""DiSA: the fast sampler for image generators that are autoregressive outside and diffusion inside."""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .annealing import Annealing
    from .guidance import Guidance
    from .models import build_model
    from .noise import ImageNoise
    from .pipeline import Pipeline, list_models
    from .schedule import StepSchedule
    from .trace import StepTrace
    from .weights.load import load_model

# Where each name lives. It is imported when it is first asked for, so that `disa --help` need not wait for torch.
_HOME = {
    "Annealing": "annealing",
    "Guidance": "guidance",
    "ImageNoise": "noise",
    "Pipeline": "pipeline",
    "StepSchedule": "schedule",
    "StepTrace": "trace",
    "build_model": "models",
    "list_models": "pipeline",
    "load_model": "weights.load",
}
__version__ = version("disa")
__all__ = [
    "Annealing",
    "Guidance",
    "ImageNoise",
    "Pipeline",
    "StepSchedule",
    "StepTrace",
    "build_model",
    "list_models",
    "load_model",
]


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module 'disa' has no attribute {name!r}")
    return getattr(import_module(f".{_HOME[name]}", __name__), name)


def __dir__() -> list[str]:
    return [*globals(), *_HOME]
