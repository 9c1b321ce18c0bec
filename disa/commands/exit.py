"""How every command of the project ends."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable
from typing import NoReturn


def run(main: Callable[[], int | None]) -> NoReturn:
    """End the process with the exit code that `main` returns.

    What a user can mend ends in one sentence on stderr and exit code 2, an interruption in exit code 130. Anything else
    is a defect, and keeps its traceback. What several ranks say alike is printed once.
    """
    warnings.formatwarning = lambda message, *_, **__: f"note: {message}\n"
    try:
        sys.exit(main())
    except KeyboardInterrupt as stop:
        if os.environ.get("RANK", "0") == "0":
            print(f"\n{str(stop) or 'interrupted'}", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:  # whoever reads, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except Exception as error:
        from ..runtime.distributed import USER_ERRORS, first_to_say  # torch, which a command may not need

        if not isinstance(error, USER_ERRORS):
            raise
        if first_to_say(sentence := _sentence(error)):
            print(f"error: {sentence}", file=sys.stderr)
        sys.exit(2)


def _sentence(error: Exception) -> str:
    message = str(error)
    if type(error).__name__ == "OutOfMemoryError":
        advice = "take a smaller batch; PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True in the environment wastes less"
        return f"the GPU's memory is full; {advice} ({message.splitlines()[0]})"
    if "Original Traceback" in message:  # raised in a process that loads data: its last line is "Type: message"
        return message.strip().splitlines()[-1].partition(": ")[2]
    return message
