"""What makes a generation cheaper and knows no model by name: captured graphs, compiled blocks."""

from .capture import CapturedSolve
from .compile import compile_blocks

__all__ = ["CapturedSolve", "compile_blocks"]
