"""The act at one AR step: count, times, noise, solve, trace; and what it costs."""

import time

import pytest
import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from disa import Annealing, ImageNoise, StepSchedule, StepTrace, build_model
from disa.annealing import AnnealedModel, check_finite, check_temperature
from disa.diffusion import SOLVERS as DIFFUSION
from disa.flow import SOLVERS as FLOW
from disa.flow import linspace
from disa.models.mar import Known
from disa.solver import Solver, get_solver


def halves(x, _):
    """A network without meaning: (epsilon, v)."""
    return x / 2, torch.zeros_like(x)


def test_each_ar_step_takes_its_count_its_noise_and_its_times():
    asked, traces = [], []

    def network(x, t):
        asked.append(t)
        return halves(x, t)

    noise = ImageNoise([1, 2])
    anneal = Annealing(StepSchedule(4, 2), DIFFUSION["DiSA"], 3, noise, on_step=traces.append)
    for step in range(3):
        asked.clear()
        solver, times = DIFFUSION["DiSA"], DIFFUSION["DiSA"].times(4 - step)
        sample = anneal(step, network, tokens=5, channels=6)
        assert sample.shape == (2, 5, 6)
        assert asked == list(reversed(times)) == list(reversed(anneal.times[step]))
        assert torch.equal(sample, solver.solve(halves, noise.normal(step, 1 + len(times), 5, 6), times))
    assert [(one.step, one.tokens, one.diffusion_steps, one.evaluations) for one in traces] == [
        (0, 5, 4, 4),
        (1, 5, 3, 3),
        (2, 5, 2, 2),
    ]
    assert all(isinstance(one, StepTrace) and one.seconds > 0 for one in traces)


def test_a_trace_times_the_whole_ar_step():
    """What a model does between two calls belongs to the later one."""
    traces = []
    anneal = Annealing(StepSchedule(1, 1), DIFFUSION["DiSA"], 2, ImageNoise([1]), on_step=traces.append)
    anneal(0, halves, 1, 1)
    time.sleep(0.05)
    anneal(1, halves, 1, 1)
    assert traces[0].seconds < 0.05 <= traces[1].seconds


def test_the_solver_is_run_as_asked():
    calls, noise = [], ImageNoise([1])

    def run(function, *args):
        calls.append(function)
        return function(*args) + 1

    plain, changed = (Annealing(StepSchedule(3, 3), DIFFUSION["DiSA"], 1, noise, **how) for how in ({}, {"run": run}))
    assert torch.equal(changed(0, halves, 2, 3), plain(0, halves, 2, 3) + 1)
    assert calls == [DIFFUSION["DiSA"].solve]


def test_temperature_scales_the_noise_of_steps():
    still, loud = (
        Annealing(StepSchedule(5, 5), DIFFUSION["default"], 1, ImageNoise(range(500)), temperature=temperature)
        for temperature in (0.0, 1.0)
    )
    assert still(0, halves, 1, 1).std() < loud(0, halves, 1, 1).std()


def test_flow_models_bring_their_times():
    anneal = Annealing(
        StepSchedule(2, 1), FLOW["euler"], 2, ImageNoise([1]), times=lambda count: (1.0,) * count + (0.0,)
    )
    assert anneal.times == [(1.0, 1.0, 0.0), (1.0, 0.0)]
    with pytest.raises(ValueError, match="Euler chooses no times"):
        Annealing(StepSchedule(2, 1), FLOW["euler"], 2, ImageNoise([1]))


@pytest.mark.parametrize(
    ("model", "sampler", "num_iter", "expected"),
    [
        ("mar_fashion", "DiSA", 4, [48, 34, 20, 5]),
        ("mar_fashion", "default", 4, [50] * 4),
        ("mar_fashion", "DPM_Solver", 4, [50, 35, 20, 5]),
        ("harmon_fashion", "DiSA", 2, [48, 5]),
        ("flowar_fashion", "euler", None, [50, 34, 20, 4]),
        ("flowar_fashion", "heun", None, [99, 67, 39, 7]),
        ("xar_fashion", "euler_maruyama", None, [50, 35, 20, 5]),
        ("xar_fashion", "heun", None, [99, 69, 39, 9]),
    ],
)
def test_nfe_is_counted_without_weights(model, sampler, num_iter, expected):
    with torch.device("meta"):
        outline = build_model(model)
    assert outline.nfe(StepSchedule(50, 5), sampler, num_iter) == expected


class Model(AnnealedModel):
    """A model without a network."""

    solvers = FLOW
    flow_times = staticmethod(lambda count: linspace(1, 0, count + 1))


def test_a_model_anneals_with_its_own_solvers_and_times():
    traces, noise, model = [], ImageNoise([1, 2]), Model()
    anneal = model.annealing(StepSchedule(6, 2), "euler_maruyama", noise, 0.5, traces.append, 3)
    assert (anneal.solver, anneal.noise, anneal.temperature) == (FLOW["euler_maruyama"], noise, 0.5)
    assert anneal.times == [linspace(1, 0, count + 1) for count in (6, 4, 2)]
    sample = anneal(1, lambda x, _: x, 3, 4)
    assert torch.equal(sample, anneal.solver.solve(lambda x, _: x, noise.normal(1, 4, 3, 4), anneal.times[1], 0.5))
    assert [(one.step, one.diffusion_steps) for one in traces] == [(1, 4)]
    assert model.nfe(StepSchedule(6, 2), "heun", 3) == [11, 7, 3]


def test_a_model_with_ar_steps_of_its_own_takes_them():
    model = Model()
    for call in (
        lambda: model.annealing(StepSchedule(), "euler", ImageNoise([1]), 1.0, None),
        lambda: model.nfe(StepSchedule(), "euler"),
    ):
        with pytest.raises(ValueError, match="num_iter is 0"):
            call()
    model.ar_steps = 2
    for num_iter in (None, 5):
        assert model.nfe(StepSchedule(6, 2), "euler", num_iter) == [6, 2]
        assert len(model.annealing(StepSchedule(6, 2), "euler", ImageNoise([1]), 1.0, None, num_iter).times) == 2
    with pytest.raises(NotImplementedError):
        model.generate()


def test_a_solver_says_whether_it_is_annealed_and_leaves_the_times_to_the_model():
    solver = Solver(lambda *_: None, "nothing", len, len)
    assert solver.annealed
    assert solver.times is None


def test_a_solver_that_is_not_annealed_always_takes_the_upper_count():
    anneal = Annealing(StepSchedule(6, 2), DIFFUSION["default"], 3, ImageNoise([1]))
    assert anneal.counts == [6, 6, 6]
    assert [len(times) for times in anneal.times] == [6, 6, 6]
    assert Annealing(StepSchedule(6, 2), DIFFUSION["DDIM"], 3, ImageNoise([1])).counts == [6, 4, 2]


def test_a_schedule_may_say_which_times_are_visited():
    schedule = StepSchedule(counts=(3, 1), times=((1.0, 0.5, 0.25, 0.0), (1.0, 0.0)), made_for={"sampler": ["euler"]})
    model, noise = Model(), ImageNoise([1, 2])
    anneal = model.annealing(schedule, "euler", noise, 1.0, None, 2)
    assert (anneal.counts, anneal.times) == ([3, 1], [(1.0, 0.5, 0.25, 0.0), (1.0, 0.0)])
    sample = anneal(0, lambda x, _: x, 3, 4)
    assert torch.equal(sample, FLOW["euler"].solve(lambda x, _: x, noise.normal(0, 1, 3, 4), schedule.times[0]))
    assert model.nfe(schedule, "euler", 2) == [3, 1]
    for call in (model.nfe, lambda *args: model.annealing(*args[:2], noise, 1.0, None, args[2])):
        with pytest.raises(ValueError, match="is for 2 AR steps, and there are 3"):
            call(schedule, "euler", 3)
        with pytest.raises(ValueError, match="for sampler euler, not heun"):
            call(schedule, "heun", 2)
    assert model.nfe(StepSchedule(counts=(3, 1)), "heun", 2) == [5, 1]


def test_another_act_may_take_the_place_of_annealing():
    class Counting(Annealing):
        pass

    model = Model()
    model.act = Counting
    anneal = model.annealing(StepSchedule(6, 2), "euler", ImageNoise([1]), 1.0, None, 3)
    assert type(anneal) is Counting
    assert anneal.counts == [6, 4, 2]


def test_defaults_are_a_temperature_of_1_and_latents():
    assert Annealing(StepSchedule(), DIFFUSION["DiSA"], 1, ImageNoise([1])).temperature == 1
    with pytest.raises(FloatingPointError, match="infinite latents"):
        check_finite(torch.tensor([float("nan"), 0.0]))


def test_impossible_settings_are_refused():
    with pytest.raises(ValueError, match="num_iter is 0; at least 1 AR step"):
        Annealing(StepSchedule(), DIFFUSION["DiSA"], 0, ImageNoise([1]))
    for wrong in (-0.1, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="temperature is"):
            Annealing(StepSchedule(), DIFFUSION["DiSA"], 1, ImageNoise([1]), temperature=wrong)
    check_temperature(0.0)
    check_finite(torch.zeros(2))
    for wrong in (float("nan"), float("inf")):
        with pytest.raises(FloatingPointError, match="NaN or infinite pixels"):
            check_finite(torch.tensor([0.0, wrong]), "pixels")


def test_solvers_are_found_by_name():
    assert get_solver(FLOW, "heun") is FLOW["heun"]
    with pytest.raises(ValueError, match="'rk4'; allowed are euler, euler_maruyama, heun"):
        get_solver(FLOW, "rk4")


@pytest.mark.parametrize("solver", [*DIFFUSION.values(), *FLOW.values()], ids=[*DIFFUSION, *FLOW])
def test_solvers_do_what_they_say(solver: Solver):
    """They evaluate the network as often as they say, and need no more noise than they ask for."""
    times = solver.times(7) if solver.times else tuple(1 - i / 7 for i in range(8))
    calls = []

    def network(x, t):
        calls.append(t)
        return halves(x, t) if solver.times else x / 2

    noise = torch.randn(solver.draws(times), 2, 3, 4)
    assert solver.solve(network, noise, times, 1.0).shape == (2, 3, 4)
    assert len(calls) == solver.evaluations(times)
    assert solver.label


def test_pixels_are_looked_at_on_any_device_and_latents_on_the_cpu_alone():
    """On fake CUDA tensors a look is an error, for its answer is not known."""
    from disa.annealing import check_latents

    with FakeTensorMode():
        somewhere = torch.empty(2, device="cuda")
        check_latents(somewhere)
        with pytest.raises(DataDependentOutputException):
            check_finite(somewhere, "pixels")
    with pytest.raises(FloatingPointError, match="latents"):
        check_latents(torch.tensor([float("nan")]))


@pytest.mark.parametrize("name", ["mar_fashion", "flowar_fashion", "xar_fashion"])
def test_a_model_wants_one_seed_per_image(name):
    model = build_model(name).eval()
    with pytest.raises(ValueError, match="the noise has 1 seeds, and 2 images are asked for"):
        model.generate(torch.tensor([1, 2]), noise=ImageNoise([1]), schedule=StepSchedule(2, 2))


def test_harmon_wants_one_seed_per_image():
    with pytest.raises(ValueError, match="the noise has 3 seeds, and 1 images are asked for"):
        build_model("harmon_fashion").eval().generate(input_ids=torch.ones(2, 3).long(), noise=ImageNoise([1, 2, 3]))


def test_known_tokens_are_of_the_images_shape_and_leave_some_to_sample():
    model = build_model("mar_fashion").eval()
    latents = torch.zeros(1, model.diffloss.channels, 8, 8)
    for where, sentence in (
        (torch.ones(8, 8, dtype=torch.bool), "all tokens are known"),
        (torch.zeros(4, 8, dtype=torch.bool), r"known tokens are \(4, 8\); the image has \(8, 8\)"),
    ):
        with pytest.raises(ValueError, match=sentence):
            model.generate(torch.tensor([1]), noise=ImageNoise([1]), known=Known(latents, where))
    where = torch.ones(8, 8, dtype=torch.bool)
    where[0, :3] = False
    with pytest.raises(ValueError, match="there must be 1 to 3 AR steps"):
        model.generate(torch.tensor([1]), noise=ImageNoise([1]), num_iter=4, known=Known(latents, where))


def test_a_trace_says_where_the_tokens_lie_and_shows_the_latents_when_asked():
    traces, asked = [], []
    anneal = Annealing(StepSchedule(2, 2), DIFFUSION["DiSA"], 1, ImageNoise([1]), on_step=traces.append)
    where = torch.tensor([[2, 5]])
    sample = anneal(0, lambda x, _: (x, x), 2, 3, where, lambda new: asked.append(new) or new + 1)
    assert traces[0].positions is where
    assert not asked
    assert torch.equal(traces[0].latents(), sample + 1)
