"""Pictures and answers as they come, one piece of work at a time."""

import functools
import itertools
import threading
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from disa import Pipeline, StepSchedule
from disa.web import drawing
from disa.web.drawing import Worker

FEW = {"labels": [8], "num_iter": 4}
CALLS = {
    "few": {**FEW, "seeds": [1], "schedule": StepSchedule(3, 1)},
    "many": {**FEW, "seeds": [1], "schedule": StepSchedule(3, 3)},
}


@functools.cache
def load(name):
    return Pipeline.from_pretrained(name, device="cpu")


def test_panels_fill_up_in_turn():
    seen = []
    drawing.draw(load("mar_fashion"), CALLS, lambda panels: seen.append(panels))
    assert [[panel.step for panel in panels] for panels in seen] == [
        *([step, 0] for step in (1, 2, 3, 4, 4)),
        *([4, step] for step in (1, 2, 3, 4, 4)),
    ]
    assert all(panel.steps == 4 for panels in seen for panel in panels)
    assert all(len(panel.images) == (panel.step > 0) for panels in seen for panel in panels)
    assert [panel.nfe for panel in seen[0]] == [None, None]
    for panel, call in zip(seen[-1], CALLS.values(), strict=True):
        out = load("mar_fashion")(**call)
        assert panel.nfe == out.nfe
        assert panel.images[0].tobytes() == out.images[0].tobytes()
        assert panel.seconds > 0


def test_the_seconds_are_without_those_of_previews(monkeypatch):
    # A preview takes 1000 seconds of this clock, as everything does between two looks at it; the pipeline has its own.
    clock = SimpleNamespace(perf_counter=itertools.count(0, 1000).__next__)
    monkeypatch.setattr(drawing, "time", clock)
    seen = []
    drawing.draw(load("mar_fashion"), {"few": CALLS["few"]}, seen.append)
    previews = sum(one[0].images is not other[0].images for one, other in itertools.pairwise(seen[:-1])) + 1
    assert -1000 * previews < seen[-1][0].seconds < -1000 * previews + 100
    assert previews < 4  # they may not take so large a share


def test_a_picture_is_drawn_anew_where_the_mask_is_white():
    pipe, seen = load("mar_fashion"), []
    image = pipe(labels=[0], seeds=[1], schedule=StepSchedule(3, 1), num_iter=4).images[0]
    mask = Image.new("L", (32, 32))
    mask.paste(255, (0, 0, 32, 16))
    drawing.draw(pipe, {"few": CALLS["few"]}, seen.append, (image, mask))
    (drawn,), (expected,) = seen[-1][0].images, pipe.edit(image, mask, **CALLS["few"]).images
    assert drawn.tobytes() == expected.tobytes()
    change = np.abs(np.asarray(drawn, int) - np.asarray(image))
    assert change[20:].mean() < change[:16].mean() / 4  # the VAE is not lossless


@pytest.mark.slow
def test_an_answer_grows():
    pipe, seen = load("harmon_fashion"), []
    image = pipe(prompts=["a bag"], seeds=[1], schedule=StepSchedule(8, 4), num_iter=8).images[0]
    drawing.describe(pipe, image, " What is this? ", seen.append)
    assert seen[-1] == pipe.describe(image, "What is this?")
    assert len(seen) > 2
    assert all(seen[-1].startswith(one.strip()) for one in seen)
    with pytest.raises(ValueError, match="nothing is asked; write a question"):
        drawing.describe(pipe, image, " ", seen.append)


@pytest.mark.parametrize("name", ["mar_fashion", "flowar_fashion", "xar_fashion"])
def test_every_model_warms_up(name):
    drawing.warm_up(load(name))


def test_what_comes_faster_than_it_is_taken_is_left_out():
    done = threading.Event()

    def work(emit):
        for i in range(100):
            emit(i)
        done.set()

    seen = []
    for thing in Worker().stream(work):
        seen.append(thing)
        assert done.wait(10)
    assert seen[-1] == 99
    assert len(seen) <= 2


def test_what_the_work_raises_is_raised_after_what_it_gave():
    def work(emit):
        emit(1)
        raise ValueError("no")

    stream = Worker().stream(work)
    with pytest.raises(ValueError, match="no"):
        assert [next(stream), next(stream)] == [1]


def test_a_closed_stream_stops_its_work_and_the_next_is_done():
    worker, steps, gone_on = Worker(), [], threading.Event()

    def work(emit):
        for i in range(10**6):
            steps.append(i)
            emit(i)
            if i:
                gone_on.wait(10)

    stream = worker.stream(work)
    next(stream)
    stream.close()
    gone_on.set()
    assert list(worker.stream(lambda emit: emit("next"))) == ["next"]
    assert len(steps) <= 3


def test_one_piece_of_work_at_a_time():
    worker, at_once, now = Worker(), [], threading.Semaphore(1)

    def work(emit):
        at_once.append(now.acquire(blocking=False))
        for i in range(5):
            emit(i)
        now.release()

    threads = [threading.Thread(target=lambda: list(worker.stream(work))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert at_once == [True] * 4


def test_a_closed_worker_ends_what_goes_on():
    worker, ended = Worker(), []

    def work(emit):
        try:
            while True:
                emit(0)
        finally:
            ended.append(True)

    stream = worker.stream(work)
    next(stream)
    worker.close()
    list(stream)
    assert ended == [True]
    with pytest.raises(RuntimeError):
        next(worker.stream(work))


def test_the_thread_has_as_many_threads_as_the_process():
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        assert list(Worker().stream(lambda emit: emit(torch.get_num_threads()))) == [3]
    finally:
        torch.set_num_threads(before)
