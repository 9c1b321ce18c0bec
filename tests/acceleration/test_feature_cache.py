"""The feature cache: exact where nothing is foretold, and where what is foretold is a polynomial; and cheaper."""

import copy
from functools import partial

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from disa import Guidance, ImageNoise, StepSchedule, build_model
from disa.acceleration import Captured, compile_blocks
from disa.acceleration.capture import EagerGraph
from disa.acceleration.compile import lacking
from disa.acceleration.feature_cache import Extrapolation
from disa.flow import SOLVERS
from tests.conftest import small_flowar, small_xar
from tests.models.test_synchronization import FakeNoise

TINY = {"image_size": 64, "num_classes": 10}
MODELS = {"flowar": lambda: small_flowar(scales=(1, 2, 4), **TINY), "xar": lambda: small_xar(**TINY)}
HALF = Guidance(2.0, "constant", 0.7, 0.2)  # with an interval, so that one branch is left out before and after it


def generate(model, seeds=(1, 2), **settings):
    settings = {"schedule": StepSchedule(9, 6), "guidance": HALF, "noise": ImageNoise(seeds), **settings}
    return model.generate(torch.arange(len(seeds)) % 10, **settings)


def count_passes(model):
    """Return a list that grows by the rows of each pass through the blocks which the solver evaluates."""
    rows = []
    block = model.flownet.res_blocks[0] if hasattr(model, "flownet") else model.encoder_blocks[0]
    block.register_forward_hook(lambda _, __, output: rows.append(len(output)))
    return rows


@pytest.mark.parametrize(("every", "order", "full"), [(1, 0, range(9)), (3, 0, (0, 3, 6)), (4, 1, (0, 1, 5))])
def test_full_passes_are_every_nth_after_the_first(every, order, full):
    times, passes = [1 - i / 9 for i in range(10)], []
    cache = Extrapolation(every, order).cache(times)
    for i, t in enumerate(times[:-1]):
        cache(t, iter([lambda x, i=i: passes.append(i) or x]), torch.ones(1))
    assert passes == list(full)
    assert not cache.kept  # nothing outlives the last evaluation


@pytest.mark.parametrize("order", [0, 1, 2, 3])
def test_a_polynomial_change_is_foretold_exactly(order):
    """At uneven times; and one degree more is not."""
    times = [1.0, 0.97, 0.85, 0.8, 0.6, 0.5, 0.3, 0.27, 0.2, 0.1, 0.0]
    coefficients = torch.randn(order + 2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))

    def run(degree):
        def blocks(x, t):
            passes.append(t)
            return x + sum(c * t**i for i, c in enumerate(coefficients[: degree + 1])).float()

        cache, passes, errors = Extrapolation(4, order).cache(times), [], []
        for i, t in enumerate(times[:-1]):
            x = torch.full((3,), float(i))
            errors.append((cache(t, iter([partial(blocks, t=t)]), x) - blocks(x, t)).abs().max().item())
        return max(errors)

    assert run(order) < 1e-4
    assert run(order + 1) > 1e-2


def test_a_solver_that_evaluates_twice_at_a_time_is_foretold_the_same():
    cache = Extrapolation(3, 1).cache([1.0, 0.8, 0.6, 0.4, 0.0])
    seen = [cache(t, iter([lambda x, t=t: x + t]), torch.zeros(1)).item() for t in (1.0, 0.8, 0.8, 0.6, 0.6, 0.4)]
    assert seen == pytest.approx([1.0, 0.8, 0.8, 0.6, 0.6, 0.4])


def test_rows_that_come_later_begin_with_full_passes():
    cache, passes = Extrapolation(9, 1).cache([1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.0]), []

    def blocks(x, t):
        passes.append(t)
        return 2 * x

    rows = {1.0: 1, 0.9: 1, 0.8: 1, 0.7: 2, 0.6: 2, 0.5: 2, 0.4: 1}
    found = [cache(t, iter([partial(blocks, t=t)]), torch.arange(1.0, n + 1)[:, None]) for t, n in rows.items()]
    assert passes == [1.0, 0.9, 0.7, 0.6]
    assert [one.flatten().tolist() for one in found[-2:]] == [[2.0, 4.0], [2.0]]


def test_fresh_layers_always_run_and_the_others_are_foretold():
    cache, runs = Extrapolation(9, 0, fresh=1).cache([1.0, 0.5, 0.0]), []

    def layers(t):
        for i, factor in enumerate((1 + t, 2, 3)):
            runs.append((t, i))
            yield lambda x, factor=factor: factor * x

    first, second = (cache(t, layers(t), torch.ones(1)).item() for t in (1.0, 0.5))
    assert runs == [(1.0, 0), (1.0, 1), (1.0, 2), (0.5, 0)]
    assert (first, second) == (12.0, 1.5 + (12 - 2))


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("sampler", SOLVERS)
def test_every_evaluation_in_full_is_exact(name, sampler):
    model = MODELS[name]()
    exact = generate(model, sampler=sampler)
    assert torch.equal(generate(model, sampler=sampler, extrapolation=Extrapolation(1, 2, 1)), exact)
    # With more order than there are evaluations, every pass is full, and goes through the cache.
    torch.testing.assert_close(generate(model, sampler=sampler, extrapolation=Extrapolation(2, 99)), exact)
    # With more fresh blocks than there are, nothing is left to foretell.
    torch.testing.assert_close(generate(model, sampler=sampler, extrapolation=Extrapolation(2, 0, 99)), exact)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("sampler", SOLVERS)
@pytest.mark.parametrize("order", [0, 1])
def test_images_are_close_cheaper_and_their_own(name, sampler, order):
    model, settings = MODELS[name](), {"sampler": sampler, "schedule": StepSchedule(24, 20)}
    rows = count_passes(model)
    exact, full = generate(model, **settings), sum(rows)
    rows.clear()
    extrapolation = Extrapolation(2, order)
    near = generate(model, extrapolation=extrapolation, **settings)
    assert sum(rows) < 0.75 * full
    assert 1e-4 < (near - exact).norm() / exact.norm() < 0.15
    assert torch.equal(generate(model, extrapolation=extrapolation, **settings), near)  # nothing is left behind
    alone = model.generate(
        torch.tensor([1]), guidance=HALF, noise=ImageNoise([2]), extrapolation=extrapolation, **settings
    )
    torch.testing.assert_close(alone[0], near[1], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", MODELS)
def test_captured_graphs_take_the_same_decisions(name):
    model, settings = MODELS[name](), {"extrapolation": Extrapolation(2, 1)}
    expected = [generate(model, seeds, **settings) for seeds in ((1, 2), (3, 4))]
    plain = generate(model)
    model.run = captured = Captured(EagerGraph)
    for _ in range(2):
        generate(model, (5, 6), **settings)  # captures, then replays
    graphs = len(captured.captures)
    assert graphs == model.ar_steps
    for seeds, latents in zip(((1, 2), (3, 4)), expected, strict=True):
        torch.testing.assert_close(generate(model, seeds, **settings), latents, rtol=1e-6, atol=1e-6)
    assert len(captured.captures) == graphs
    assert captured.on
    torch.testing.assert_close(generate(model), plain, rtol=1e-6, atol=1e-6)  # has graphs of its own
    assert len(captured.captures) == 2 * graphs


@pytest.mark.slow
@pytest.mark.skipif(lacking(torch.device("cpu")) is not None, reason="no compiler")
def test_compiled_blocks_give_the_same():
    model, settings = MODELS["xar"](), {"extrapolation": Extrapolation(2, 1)}
    expected = generate(model, **settings)
    assert compile_blocks(model)
    torch.testing.assert_close(generate(model, **settings), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_stays_close(name, dtype):
    model, settings = MODELS[name](), {"extrapolation": Extrapolation(3, 1)}
    exact = generate(model, **settings)
    half = generate(copy.deepcopy(model).to(dtype), **settings)
    assert half.isfinite().all()
    assert (half - exact).norm() < 0.1 * exact.norm()
    assert torch.equal(generate(model, **settings), exact)


@pytest.mark.parametrize(("name", "share"), [("flowar_fashion", 0.6), ("xar_fashion", 0.6)])
def test_flops_fall_on_a_gpu(name, share):
    """Counted on fake tensors: eight steps take four passes, besides what is computed once."""

    with torch.device("meta"):
        build_model(name).nfe(StepSchedule(8, 8), "euler")  # keeps times

    def flops(every):
        with FakeTensorMode(allow_non_fake_inputs=True), FlopCounterMode(display=False) as counter:
            with torch.device("cuda"):
                model = build_model(name).eval()
            model.generate(
                torch.zeros(2, dtype=torch.long).cuda(),
                sampler="euler",
                schedule=StepSchedule(8, 8),
                noise=FakeNoise(2),
                extrapolation=Extrapolation(every, 0),
            )
            return counter.get_total_flops()

    assert 0.5 < flops(2) / flops(1) < share


@pytest.mark.parametrize(
    ("numbers", "named"),
    [
        ((0,), "every is 0; it must be at least 1"),
        ((2, -1), "order is -1; it must be at least 0"),
        ((2, 0, -1), "fresh is -1; it must be at least 0"),
    ],
)
def test_impossible_numbers_are_refused(numbers, named):
    with pytest.raises(ValueError, match=named):
        Extrapolation(*numbers)
