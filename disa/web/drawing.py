"""Pictures and answers as they come, one piece of work at a time."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch
from PIL import Image

from ..models.harmon import Harmon
from ..pipeline import Pipeline, Step
from ..runtime.devices import synchronize
from ..schedule import StepSchedule

T = TypeVar("T")
PREVIEWS = 0.2  # share of a generation's time that decoding previews may take


class _Stopped(Exception):
    """Nobody waits for the work any more."""


class Worker(Generic[T]):
    """One thread, which does one piece of work at a time, in the order in which they are asked for."""

    def __init__(self) -> None:
        # A new thread would begin with as many threads for its tensors as there are cores.
        self._thread = ThreadPoolExecutor(1, initializer=torch.set_num_threads, initargs=(torch.get_num_threads(),))
        self._closed = threading.Event()

    def stream(self, work: Callable[[Callable[[T], None]], object]) -> Iterator[T]:
        """Do `work`, and yield what it hands to its argument; what comes faster than it is taken is left out.

        When the iterator is closed, the work ends at the next thing that it hands on. What it raises, this raises.
        """
        newest: list[T] = []  # one thing, or nothing new
        changed, stopped = threading.Condition(), threading.Event()

        def emit(thing: T) -> None:
            if stopped.is_set() or self._closed.is_set():
                raise _Stopped
            with changed:
                newest[:] = [thing]
                changed.notify()

        def run() -> None:
            with contextlib.suppress(_Stopped):
                work(emit)

        def ended(_: object) -> None:
            with changed:
                changed.notify()

        job = self._thread.submit(run)
        job.add_done_callback(ended)
        try:
            while True:
                with changed:
                    changed.wait_for(lambda: newest or job.done())
                    if not newest:
                        break
                    thing = newest.pop()
                yield thing
            job.result()
        finally:
            stopped.set()
            job.cancel()

    def close(self) -> None:
        """End the work that goes on at the next thing that it hands on, and do no other."""
        self._closed.set()
        self._thread.shutdown(wait=False, cancel_futures=True)


@dataclass(frozen=True)
class Panel:
    """What is shown of one call of a pipeline.

    Attributes:
        title: with or without DiSA.
        steps: AR steps in all.
        step: AR steps that are done.
        images: so far.
        nfe, seconds: as in `pipeline.Output`, without the time that previews took; None until the images are done.
    """

    title: str
    steps: int
    step: int = 0
    images: Sequence[Image.Image] = ()
    nfe: int | None = None
    seconds: float | None = None


def draw(
    pipe: Pipeline,
    calls: Mapping[str, Mapping[str, Any]],
    emit: Callable[[list[Panel]], None],
    edited: tuple[Image.Image, Image.Image] | None = None,
) -> None:
    """Generate with each of `calls` (title -> arguments of `pipe`) in turn, and hand panels to `emit` as they change.

    Args:
        edited: a picture and its mask; `pipe` then draws anew what is white in the mask.

    Raises:
        ValueError, FloatingPointError: as of `pipe`.
    """
    panels = {title: Panel(title, _ar_steps(pipe, call)) for title, call in calls.items()}
    for title, call in calls.items():
        start, spent = time.perf_counter(), 0.0  # seconds on previews

        def on_step(step: Step, title: str = title, start: float = start) -> None:
            nonlocal spent
            panel = dataclasses.replace(panels[title], step=step.step + 1)
            if step.step == 0 or spent <= PREVIEWS * (time.perf_counter() - start):
                synchronize(pipe.device)
                begun = time.perf_counter()
                panel = dataclasses.replace(panel, images=step.preview())
                spent += time.perf_counter() - begun
            panels[title] = panel
            emit(list(panels.values()))

        generate = pipe if edited is None else functools.partial(pipe.edit, *edited)
        out = generate(**call, callback_on_step_end=on_step)
        steps = panels[title].step
        panels[title] = Panel(title, steps, steps, list(out.images), out.nfe, out.seconds - spent)
        emit(list(panels.values()))


def _ar_steps(pipe: Pipeline, call: Mapping[str, Any]) -> int:
    return len(pipe.model.nfe(call["schedule"], pipe.sampling.sampler, call.get("num_iter")))


def describe(pipe: Pipeline, image: Image.Image, question: str, emit: Callable[[str], None]) -> None:
    """Answer a question on an image, and hand the answer so far to `emit` as it grows."""
    if not question.strip():
        raise ValueError("nothing is asked; write a question")
    so_far = ""

    def on_text(piece: str) -> None:
        nonlocal so_far
        so_far += piece
        emit(so_far)

    emit(pipe.describe(image, question.strip(), on_text=on_text))


def warm_up(pipe: Pipeline) -> None:
    """Generate an image with few steps: what comes first on a device is slow."""
    call: dict[str, Any] = {"seeds": [0], "schedule": StepSchedule(2, 1)}
    call |= {"prompts": ["a bag"]} if isinstance(pipe.model, Harmon) else {"labels": [0]}
    call |= {} if pipe.sampling.num_iter is None else {"num_iter": 2}
    pipe(**call)
