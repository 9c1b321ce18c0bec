"""One stream per image: independence of batch, order and count, and the right distribution."""

import threading

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from disa import ImageNoise


def test_an_image_gets_the_same_whatever_its_batch():
    together = ImageNoise([3, 5, 7])
    alone = ImageNoise([5])
    assert torch.equal(together.normal(4, 6, 2, 16)[:, 1:2], alone.normal(4, 6, 2, 16))
    assert torch.equal(together.orders(64)[1:2], alone.orders(64))


def test_draws_do_not_depend_on_earlier_ones():
    fresh, used = ImageNoise([1]), ImageNoise([1])
    used.orders(64)
    used.normal(0, 3, 4, 16)
    assert torch.equal(fresh.normal(2, 5, 3, 16), used.normal(2, 5, 3, 16))


def test_more_draws_begin_with_the_same_values():
    noise = ImageNoise([1, 2])
    assert torch.equal(noise.normal(0, 50, 4, 16)[:6], noise.normal(0, 6, 4, 16))


def test_orders_and_ar_steps_have_streams_of_their_own():
    """Orders come from stream 0 of a seed, the noise of AR step s from stream 1 + s."""

    def stream(number):
        return np.random.Generator(np.random.Philox(key=np.array([7, number], np.uint64)))

    noise = ImageNoise([7])
    assert noise.orders(16)[0].tolist() == stream(0).permutation(16).tolist()
    for step in range(3):
        expected = stream(1 + step).standard_normal((2, 3, 4), dtype=np.float32)
        assert np.array_equal(noise.normal(step, 2, 3, 4)[:, 0].numpy(), expected)


def test_shapes_and_distribution():
    noise = ImageNoise(range(64))
    values = noise.normal(0, 20, 8, 16)
    assert values.shape == (20, 64, 8, 16)
    assert values.dtype == torch.float32
    assert abs(values.mean().item()) < 0.01
    assert abs(values.std().item() - 1) < 0.01
    # neighbouring seeds and AR steps are as good as unrelated
    flat = values.transpose(0, 1).flatten(1)
    assert torch.corrcoef(flat).fill_diagonal_(0).abs().max() < 0.12
    assert (
        abs(torch.corrcoef(torch.stack([flat[0], noise.normal(1, 20, 8, 16).transpose(0, 1)[0].flatten()]))[0, 1]) < 0.1
    )
    orders = noise.orders(64)
    assert torch.equal(orders.sort(dim=1).values, torch.arange(64).expand(64, -1))
    assert abs(orders[:, 0].float().mean().item() - 31.5) < 8


@pytest.mark.parametrize("seed", [-1, 2**64])
def test_impossible_seeds_are_refused(seed):
    with pytest.raises(ValueError, match=str(seed)):
        ImageNoise([seed])


def test_the_outermost_seeds_are_allowed():
    noise = ImageNoise([0, 1, 2**64 - 1])
    assert noise.seeds == [0, 1, 2**64 - 1]
    assert len(noise.normal(0, 1, 1, 1).unique()) == 3


def test_noise_is_made_for_its_device():
    noise = ImageNoise([1], "meta")
    assert noise.normal(0, 2, 3, 4).device == noise.orders(4).device == torch.device("meta")
    assert ImageNoise([1]).normal(0, 2, 3, 4).device == torch.device("cpu")


# Of AR steps: with fewer draws, with groups that grow, with as many numbers otherwise arranged, with gaps, from behind.
SHAPES = {
    "fewer draws": [(0, 9, 4, 8), (1, 7, 4, 8), (2, 3, 4, 8)],
    "larger groups": [(0, 9, 1, 8), (1, 8, 2, 8), (2, 7, 4, 8), (3, 1, 4, 8)],
    "rearranged": [(0, 4, 2, 8), (1, 2, 4, 8), (2, 1, 2, 16)],
    "with gaps": [(0, 4, 2, 8), (2, 4, 2, 8), (1, 4, 2, 8), (1, 4, 2, 8)],
}


def ahead(seeds):
    """Noise that is drawn ahead, as for a GPU."""
    noise = ImageNoise(seeds)
    noise.ahead = True
    return noise


@pytest.mark.parametrize("shapes", SHAPES.values(), ids=SHAPES)
def test_noise_drawn_ahead_is_the_same(shapes, monkeypatch):
    monkeypatch.setattr("disa.noise.AHEAD", 1)
    noise, expected = ahead([1, 2, 3]), ImageNoise([1, 2, 3])
    for shape in shapes:
        assert torch.equal(noise.normal(*shape), expected.normal(*shape))


def test_the_next_ar_step_is_drawn_by_a_thread_while_the_caller_goes_on(monkeypatch):
    monkeypatch.setattr("disa.noise.AHEAD", 64)
    drawn = []
    fill = ImageNoise._fill
    monkeypatch.setattr(
        ImageNoise,
        "_fill",
        lambda self, out, rows, step: (
            drawn.append((step, threading.current_thread() is threading.main_thread())) or fill(self, out, rows, step)
        ),
    )
    noise = ahead([1, 2])
    noise.normal(0, 4, 2, 8)
    noise._next[1].result()
    assert drawn == [(0, True), (1, False)]
    noise.normal(1, 3, 2, 8)  # drawn; and is too few to draw ahead but for what came with it
    noise._next[1].result()
    assert drawn == [(0, True), (1, False), (2, False)]
    noise.normal(5, 1, 1, 8)
    assert drawn[3:] == [(5, True)]
    assert noise._next is None


def test_a_cpu_draws_nothing_ahead_and_a_gpu_small_noise_neither():
    noise = ImageNoise([1])
    assert not noise.ahead
    noise.normal(0, 64, 64, 16)
    assert noise._next is None
    noise = ahead([1])
    noise.normal(0, 1, 1, 16)
    assert noise._next is None
    assert ImageNoise([1], "cuda").ahead


def test_no_thread_is_left_of_a_generation_that_ends_early(monkeypatch):
    monkeypatch.setattr("disa.noise.AHEAD", 1)
    before = set(threading.enumerate())

    def generate():
        ahead([1]).normal(0, 9, 9, 9)
        raise FloatingPointError

    with pytest.raises(FloatingPointError):
        generate()
    for thread in set(threading.enumerate()) - before:
        thread.join(10)
        assert not thread.is_alive()


def test_noise_of_a_fake_gpu():
    """No memory is pinned where there is no GPU."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        noise = ImageNoise([1, 2], "cuda")
        for step in (0, 1):
            drawn = noise.normal(step, 64, 64, 16)
            assert (drawn.shape, drawn.device.type) == ((64, 2, 64, 16), "cuda")
        assert noise.orders(8).device.type == "cuda"
