"""Captured solves, with a stand-in for CUDA graphs: the same latents, as many graphs as there are AR steps, checked."""

from functools import partial

import pytest
import torch

from disa import Guidance, ImageNoise, StepSchedule
from disa.acceleration import CapturedSolve
from disa.acceleration.capture import EagerGraph, tensors_of, with_tensors
from disa.diffusion import SOLVERS
from tests.conftest import small_flowar, small_mar, small_xar

MODELS = {
    "mar": (small_mar, {"num_iter": 3, "schedule": StepSchedule(4, 2)}),
    "flowar": (small_flowar, {"schedule": StepSchedule(4, 2)}),
    "xar": (small_xar, {"schedule": StepSchedule(3, 2)}),
}


def generate(model, seeds, settings):
    labels = torch.tensor(seeds) % model.num_classes
    return model.generate(labels, guidance=Guidance(2.0), noise=ImageNoise(seeds), **settings)


@pytest.mark.parametrize("name", MODELS)
def test_replays_give_the_latents_of_eager_runs(name):
    """Of other seeds and labels, too: what changes is copied in."""
    make, settings = MODELS[name]
    model = make()
    expected = [generate(model, seeds, settings) for seeds in ([1, 2], [3, 4])]
    model.solve = captured = CapturedSolve(EagerGraph)
    generate(model, [5, 6], settings)  # captures
    graphs = len(captured.graphs)
    assert graphs == len(
        model.nfe(settings["schedule"], "DiSA" if name == "mar" else "euler", settings.get("num_iter"))
    )
    for seeds, latents in zip(([1, 2], [3, 4]), expected, strict=True):
        torch.testing.assert_close(generate(model, seeds, settings), latents, rtol=1e-6, atol=1e-6)
    assert len(captured.graphs) == graphs


def test_other_shapes_and_settings_have_graphs_of_their_own():
    make, settings = MODELS["mar"]
    model = make()
    model.solve = captured = CapturedSolve(EagerGraph)
    generate(model, [1], settings)
    for seeds, changed in (([1, 2], {}), ([1], {"temperature": 0.5}), ([1], {"sampler": "DDIM"})):
        before = len(captured.graphs)
        generate(model, seeds, {**settings, **changed})
        assert len(captured.graphs) == before + 3


class WrongGraph(EagerGraph):
    """A capture that does not compute what was captured."""

    def replay(self):
        super().replay()
        self.result += 1


def test_a_wrong_capture_is_noticed_and_switched_off():
    make, settings = MODELS["mar"]
    model = make()
    expected = generate(model, [1, 2], settings)
    model.solve = captured = CapturedSolve(WrongGraph)
    with pytest.warns(UserWarning, match="captured graphs differ from eager by .*; they are switched off"):
        assert torch.equal(generate(model, [1, 2], settings), expected)
    assert not captured.on
    assert torch.equal(generate(model, [1, 2], settings), expected)


def test_a_network_that_does_not_say_what_it_depends_on_runs_eagerly():
    solve, noise = CapturedSolve(EagerGraph), torch.randn(4, 2, 3, 5)

    def network(x, _):
        return x / 2, torch.zeros_like(x)

    times = SOLVERS["DiSA"].times(3)
    expected = SOLVERS["DiSA"].solve(network, noise, times)
    assert torch.equal(solve(SOLVERS["DiSA"], network, noise, times, 1.0), expected)
    assert not solve.graphs


def test_tensors_are_found_and_replaced_in_nested_arguments():
    class Cache:
        def __init__(self):
            self.keys, self.length = torch.zeros(1), 3

    tree = partial(max, [torch.zeros(2), (1, torch.zeros(3))], {"a": 1}, Cache(), partial(min, torch.zeros(4)))
    assert [len(tensor) for tensor in tensors_of(tree)] == [2, 3, 1, 4]
    replaced = with_tensors(tree, (tensor + 1 for tensor in list(tensors_of(tree))))
    assert [tensor.sum().item() for tensor in tensors_of(replaced)] == [2, 3, 1, 4]
    assert [tensor.sum().item() for tensor in tensors_of(tree)] == [0] * 4
    assert replaced.args[2].length == 3
