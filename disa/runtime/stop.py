"""Requests to stop, from Ctrl-C or a cluster: work ends where its state can be saved."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType


@contextlib.contextmanager
def stop_requests() -> Iterator[list[int]]:
    """Yield a list that a request to stop (SIGTERM, SIGINT) adds to; a second request stops the process at once.

    Signals reach the main thread alone: in another one, the list stays empty.
    """
    asked: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield asked
        return

    def ask(number: int, _: FrameType | None) -> None:
        if asked:
            raise KeyboardInterrupt("stopped at once; what was saved last is whole")
        asked.append(number)

    before = {number: signal.signal(number, ask) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
