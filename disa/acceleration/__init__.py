"""What makes a generation cheaper and knows no model by name.

Captured graphs and compiled blocks, which change no result; caches of backbones and flow heads; calibrated schedules.
"""

from .capture import Captured
from .choice import MODES, Acceleration
from .compile import compile_blocks, compile_report

__all__ = ["MODES", "Acceleration", "Captured", "compile_blocks", "compile_report"]
