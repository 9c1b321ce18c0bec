"""One stream per image: independence of batch, order and count, and the right distribution."""

import numpy as np
import pytest
import torch

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
