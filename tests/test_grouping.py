"""Orders and groups of tokens: permutations that spread as they should, and counts that add up."""

import itertools
import math

import pytest
import torch

from disa import ImageNoise
from disa.grouping import ORDERS, TOKENS_PER_STEP, Grouping, halton_sequence

SHAPES = [(16, 16), (8, 8), (4, 6), (9, 7), (1, 5), (3, 1), (1, 1)]


def orders_of(name, shape, seeds):
    return Grouping(name).arrange(ImageNoise(seeds).orders(math.prod(shape)), shape)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", ORDERS)
def test_every_order_is_a_permutation_and_an_images_own(name, shape):
    orders = orders_of(name, shape, range(50))
    assert orders.dtype == torch.int64
    assert torch.equal(orders.sort(dim=1).values, torch.arange(math.prod(shape)).expand(50, -1))
    assert torch.equal(orders_of(name, shape, [7]), orders[7:8])  # whatever the batch
    if math.prod(shape) > 20:
        assert len(orders.unique(dim=0)) > 10
    if math.prod(shape) > 200:
        assert len(orders[:, 0].unique()) > 30


@pytest.mark.parametrize("tokens_per_step", TOKENS_PER_STEP)
@pytest.mark.parametrize("tokens", [1, 5, 32, 63])
def test_where_some_tokens_are_known_the_others_are_shared_out(tokens_per_step, tokens):
    for ar_steps in {1, min(4, tokens), tokens}:
        left = Grouping("random", tokens_per_step).left((8, 8), ar_steps, tokens)
        taken = [before - after for before, after in itertools.pairwise([tokens, *left])]
        assert len(left) == ar_steps
        assert left[-1] == 0
        assert min(taken) >= 1
    every = Grouping("random", tokens_per_step).left((8, 8), 16)
    assert Grouping("random", tokens_per_step).left((8, 8), 16, 64) == every


def test_the_random_order_is_the_noises_own():
    given = ImageNoise([1, 2]).orders(64)
    assert torch.equal(Grouping().arrange(given, (8, 8)), given)


@pytest.mark.parametrize("shape", SHAPES)
def test_gtr_takes_diagonals_in_stages_and_is_random_within(shape):
    orders = orders_of("gtr", shape, range(50))
    diagonals = orders // shape[1] + orders % shape[1]
    stage = torch.tensor([0, 2, 1, 2])[diagonals % 4]
    assert torch.equal(stage, stage.sort(dim=1).values)
    random = orders_of("random", shape, range(50))
    for number in range(3):  # the random order, thinned out
        for own, given in zip(orders[:5], random[:5], strict=True):
            kept = [p for p in given.tolist() if p in set(own[stage[0] == number].tolist())]
            assert own[stage[0] == number].tolist() == kept


def test_gtrs_stages_keep_their_distance():
    """No token of the first two stages has a neighbour among them; those of the first are two apart at least."""
    rows, columns = torch.arange(64) // 8, torch.arange(64) % 8
    distance = (rows[:, None] - rows).abs() + (columns[:, None] - columns).abs() + 64 * torch.eye(64, dtype=torch.long)
    order = orders_of("gtr", (8, 8), [3])[0]
    first, half = order[:16], order[:32]
    assert distance[first][:, first].min() == 2
    assert set((rows + columns)[first].tolist()) <= {0, 4, 8, 12}
    assert distance[half][:, half].min() == 2
    assert set(((rows + columns)[order[32:]] % 2).tolist()) == {1}


def test_haltons_sequence():
    """The first points are (1/2, 1/3), (1/4, 2/3), (3/4, 1/9), (1/8, 4/9)."""
    assert halton_sequence(8, 9)[:4].tolist() == [4 * 9 + 3, 2 * 9 + 6, 6 * 9 + 1, 1 * 9 + 4]
    assert halton_sequence(2, 2).tolist() == [2, 1, 0, 3]  # (1/8, 4/9) is the next in the first cell, (5/8, 7/9)


def test_halton_is_one_sequence_from_points_of_its_own():
    sequence = halton_sequence(8, 12).tolist()
    for order in orders_of("halton", (8, 12), range(8)).tolist():
        start = sequence.index(order[0])
        assert order == sequence[start:] + sequence[:start]


def test_halton_fills_a_grid_more_evenly_than_chance():
    """Of the first quarter of the tokens, each quarter of the grid has about as many."""

    def unevenness(name):
        orders = orders_of(name, (16, 16), range(100))[:, :64]
        quarter = orders // 16 // 8 * 2 + orders % 16 // 8
        return torch.stack([(quarter == i).sum(1) for i in range(4)], dim=1).float().std(1).mean()

    assert unevenness("halton") < unevenness("random") / 2


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("rule", TOKENS_PER_STEP)
def test_each_step_takes_a_token_at_least_and_all_take_all(rule, shape):
    length = math.prod(shape)
    for ar_steps in range(1, length + 1):
        left = [length, *Grouping("random", rule).left(shape, ar_steps)]
        assert len(left) == ar_steps + 1
        assert left[-1] == 0
        assert all(after < before for before, after in itertools.pairwise(left))


def test_stages_give_each_stage_its_steps():
    taken = [256, *Grouping("gtr", "stages").left((16, 16), 32)]
    taken = [before - after for before, after in itertools.pairwise(taken)]
    assert sum(taken[:24]) == 64
    assert set(taken[:24]) == {2, 3}
    assert sum(taken[24:30]) == 64
    assert set(taken[24:30]) == {10, 11}
    assert taken[30:] == [64, 64]
    cases = [((8, 8), 16, (12, 15)), ((8, 8), 8, (5, 7)), ((8, 8), 3, (1, 2)), ((8, 12), 32, (24, 30))]
    for shape, ar_steps, (first, second) in cases:
        left, quarter = Grouping("gtr", "stages").left(shape, ar_steps), math.prod(shape) // 4
        assert (left[first - 1], left[second - 1]) == (3 * quarter, 2 * quarter)
    assert Grouping("gtr", "stages").left((8, 8), 2) == [32, 0]
    assert Grouping("gtr", "stages").left((8, 8), 1) == [0]


@pytest.mark.parametrize(("arguments", "named"), [(("spiral",), "'spiral'"), (("gtr", "sine"), "'sine'")])
def test_unknown_names_are_refused(arguments, named):
    with pytest.raises(ValueError, match=named):
        Grouping(*arguments)
