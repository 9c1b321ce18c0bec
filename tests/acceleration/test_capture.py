"""Captured functions, with a stand-in for CUDA graphs: the same latents, a graph for each AR step, each one checked."""

import copy
from functools import partial

import pytest
import torch

from disa import Guidance, ImageNoise, StepSchedule
from disa.acceleration import Captured
from disa.acceleration.capture import EagerGraph, tensors_of, with_tensors
from disa.diffusion import SOLVERS
from tests.conftest import small_flowar, small_mar, small_xar

# How to make a model, how to sample it, and graphs per generation: solves, and of MAR the decoder with as many wanted.
MODELS = {
    "mar": (small_mar, {"num_iter": 3, "schedule": StepSchedule(4, 2)}, 3 + 3),
    "flowar": (small_flowar, {"schedule": StepSchedule(4, 2)}, 5),
    "xar": (small_xar, {"schedule": StepSchedule(3, 2)}, 4),
}


def generate(model, seeds, settings):
    labels = torch.tensor(seeds) % model.num_classes
    return model.generate(labels, guidance=Guidance(2.0), noise=ImageNoise(seeds), **settings)


@pytest.mark.parametrize("name", MODELS)
def test_replays_give_the_latents_of_eager_runs(name):
    """Of other seeds and labels, too: what changes is copied in."""
    make, settings, graphs = MODELS[name]
    model = make()
    expected = [generate(model, seeds, settings) for seeds in ([1, 2], [3, 4])]
    model.run = captured = Captured(EagerGraph)
    generate(model, [5, 6], settings)  # captures
    assert len(captured.captures) == graphs
    for seeds, latents in zip(([1, 2], [3, 4]), expected, strict=True):
        torch.testing.assert_close(generate(model, seeds, settings), latents, rtol=1e-6, atol=1e-6)
    assert len(captured.captures) == graphs


def test_other_shapes_and_settings_have_graphs_of_their_own():
    make, settings, _ = MODELS["mar"]
    model = make()
    model.run = captured = Captured(EagerGraph)
    generate(model, [1], settings)
    for seeds, changed, more in (
        ([1, 2], {}, 6),
        ([1], {"temperature": 0.5}, 3),
        ([1], {"sampler": "DDIM"}, 3),
        ([1], {}, 0),
    ):
        before = len(captured.captures)
        generate(model, seeds, {**settings, **changed})
        assert len(captured.captures) == before + more


def test_graphs_share_the_addresses_of_their_inputs():
    run = Captured(EagerGraph)
    run(torch.add, torch.ones(3), torch.ones(3))
    assert len(run.fixed) == 2
    run(torch.mul, torch.ones(3), torch.ones(3))
    run(torch.mul, torch.ones(3), torch.ones(1))
    assert (len(run.captures), len(run.fixed)) == (3, 3)
    assert run(torch.add, torch.ones(3), 2 * torch.ones(3)).tolist() == [3.0] * 3


def test_a_result_is_the_callers_own():
    run = Captured(EagerGraph)
    run(torch.exp, torch.ones(3))
    first = run(torch.exp, torch.zeros(3))
    run(torch.exp, torch.ones(3))
    assert first.tolist() == [1.0] * 3


class OnceGraph(EagerGraph):
    """Shows which replays compute: as a CUDA graph, each reads the weights at the addresses of the capture."""

    captures = 0

    def capture(self, function):
        OnceGraph.captures += 1
        return super().capture(function)


def test_weights_that_change_are_captured_again():
    """MAR's head keeps a matrix made of its weights; a graph holds its address."""
    make, settings, graphs = MODELS["mar"]
    model = make()
    OnceGraph.captures = 0
    model.run = Captured(OnceGraph)
    generate(model, [1, 2], settings)
    generate(model, [1, 2], settings)
    assert OnceGraph.captures == graphs
    model.load_state_dict({name: 1.1 * value for name, value in model.state_dict().items()})
    replayed = [generate(model, [1, 2], settings) for _ in range(2)]
    assert OnceGraph.captures == 2 * graphs
    del model.run
    assert torch.equal(generate(model, [1, 2], settings), replayed[0])
    torch.testing.assert_close(replayed[1], replayed[0], rtol=1e-6, atol=1e-6)


def test_a_capture_keeps_alive_what_it_reads_and_no_longer_belongs_to_the_module():
    make, settings, _ = MODELS["mar"]
    model = make()
    model.run = captured = Captured(EagerGraph)
    generate(model, [1], settings)
    joined = model.diffloss.net._joined[1]
    model.to("cpu")  # forgets it
    assert model.diffloss.net._joined is None
    held = {tensor.data_ptr() for capture in captured.captures.values() for tensor in capture.weights}
    assert joined.data_ptr() in held
    assert model.mask_token.data_ptr() in held


def test_no_more_graphs_than_allowed(monkeypatch):
    monkeypatch.setattr("disa.acceleration.capture.GRAPHS", 2)
    run = Captured(EagerGraph)
    for length in (1, 2, 3, 4):
        assert run(torch.exp, torch.zeros(length)).tolist() == [1.0] * length
    assert len(run.captures) == 2


class WrongGraph(EagerGraph):
    """A capture that does not compute what was captured."""

    def replay(self):
        super().replay()
        self.result += 1


class NoGraph(EagerGraph):
    """A capture that the device refuses."""

    def capture(self, _):
        raise RuntimeError("operation not permitted when stream is capturing\nand more lines")


@pytest.mark.parametrize(
    ("graph", "reason"),
    [
        (WrongGraph, "captured graphs are switched off: one differs from the eager result by .*"),
        (NoGraph, r"captured graphs are switched off: a capture failed \(.* when stream is capturing\)$"),
    ],
)
def test_a_bad_capture_is_noticed_and_switched_off(graph, reason):
    make, settings, _ = MODELS["mar"]
    model = make()
    expected = generate(model, [1, 2], settings)
    model.run = captured = Captured(graph)
    with pytest.warns(UserWarning, match=reason) as warned:
        assert torch.equal(generate(model, [1, 2], settings), expected)
    assert len(warned) == 1
    assert not captured.on
    assert not captured.captures
    assert not captured.fixed
    assert torch.equal(generate(model, [1, 2], settings), expected)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_result_that_nothing_can_be_compared_with_is_not_captured(value):
    run = Captured(EagerGraph)
    assert not run(torch.mul, torch.ones(2), torch.tensor(value)).isfinite().any()
    assert run.on
    assert not run.captures
    assert run(torch.mul, torch.ones(2), torch.tensor(0.0)).tolist() == [0.0, 0.0]
    assert len(run.captures) == 1


def test_a_network_with_a_closure_runs_eagerly():
    """It does not say what it depends on."""
    run, noise, factor = Captured(EagerGraph), torch.randn(4, 2, 3, 5), 2

    def network(x, _):
        return x / factor, torch.zeros_like(x)

    solver, times = SOLVERS["DiSA"], SOLVERS["DiSA"].times(3)
    for one in (network, partial(lambda _, x, t: network(x, t), None)):
        assert torch.equal(run(solver.solve, one, noise, times, 1.0), solver.solve(network, noise, times))
    assert not run.captures


def test_half_precision_anywhere_widens_the_tolerance():
    class Slightly(EagerGraph):
        def replay(self):
            super().replay()
            self.result *= 1.001

    for dtype, on in ((torch.float32, False), (torch.float16, True), (torch.bfloat16, True)):
        run = Captured(Slightly)
        if on:
            run(torch.add, torch.ones(3), torch.ones(3, dtype=dtype))
        else:
            with pytest.warns(UserWarning, match="differs from the eager result by 1.0e-03"):
                run(torch.add, torch.ones(3), torch.ones(3, dtype=dtype))
        assert run.on == on


def test_tensors_are_found_and_replaced_in_nested_arguments():
    class Cache:
        def __init__(self):
            self.keys, self.length = torch.zeros(1), 3

    tree = partial(
        max, [torch.zeros(2), (1, torch.zeros(3))], {"a": 1, "b": torch.zeros(5)}, Cache(), partial(min, torch.zeros(4))
    )
    assert [len(tensor) for tensor in tensors_of(tree)] == [2, 3, 5, 1, 4]
    replaced = with_tensors(tree, (tensor + 1 for tensor in list(tensors_of(tree))))
    assert [tensor.sum().item() for tensor in tensors_of(replaced)] == [2, 3, 5, 1, 4]
    assert [tensor.sum().item() for tensor in tensors_of(tree)] == [0] * 5
    assert replaced.args[2].length == 3


def test_a_copy_of_a_model_captures_its_own():
    captured = Captured(EagerGraph)
    captured(torch.add, torch.ones(2), torch.ones(2))
    copied = copy.deepcopy(captured)
    assert (copied.make, copied.captures) == (EagerGraph, {})
