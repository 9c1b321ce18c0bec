"""D(s, k) on models whose tokens are Gaussian, so that every answer is known."""

import math
from functools import partial

import numpy as np
import pytest
import torch

from disa import Guidance, ImageNoise, StepSchedule, build_model
from disa.acceleration.calibration import (
    IMAGES,
    KINDS,
    Calibration,
    StepDistances,
    energy_distance,
    path_deviations,
)
from disa.annealing import AnnealedModel, Annealing
from disa.diffusion import SOLVERS as DIFFUSION
from disa.diffusion import GaussianProcess
from disa.flow import SOLVERS as FLOW
from disa.flow import linspace
from tests.conftest import small_flowar, small_mar, small_xar

WIDTHS = (0.5, 0.1)  # deviations of the tokens at two AR steps; the narrower, the more curved is the way there
TOKENS = (1, 3)
ALPHA_BAR = GaussianProcess().alpha_bar


def epsilon(width, x, t):
    alpha_bar = ALPHA_BAR[int(t)]
    return x * math.sqrt(1 - alpha_bar) / (alpha_bar * width**2 + 1 - alpha_bar), torch.zeros_like(x)


def velocity(width, x, t):
    return x * (t - (1 - t) * width**2) / ((1 - t) ** 2 * width**2 + t**2)


class Gaussian(AnnealedModel):
    """Tokens of two AR steps from normal distributions around 0."""

    def __init__(self, solvers, field):
        super().__init__()
        self.solvers, self.field, self.made = solvers, field, []
        self.flow_times = (lambda count: linspace(1, 0, count + 1)) if solvers is FLOW else None
        self.weight = torch.nn.Parameter(torch.zeros(1))

    @torch.no_grad()
    def generate(self, sampler, noise):
        anneal = self.annealing(StepSchedule(3, 3), sampler, noise, 1.0, None, 2)
        for step, (width, tokens) in enumerate(zip(WIDTHS, TOKENS, strict=True)):
            known = set(anneal.times[step])

            def network(x, t, width=width, known=known):
                assert t in known
                return self.field(width, x, t)

            self.made.append(anneal(step, network, tokens, 4))


def calibrated(sampler, counts=(2, 4, 8, 16), conditions=16, **how):
    model = Gaussian(*((FLOW, velocity) if sampler in FLOW else (DIFFUSION, epsilon)))
    calibration = Calibration(model, sampler, counts, 16, **{"copies": 8, "draws": 16, "kinds": KINDS, **how})
    calibration.measure(lambda _: model.generate(sampler, ImageNoise(range(8 * IMAGES))), conditions)
    return model, calibration


SAMPLERS = ["DiSA", "DDIM", "DPM_Solver++2M", "DPM_Solver++2M_SDE", "euler", "euler_maruyama", "heun"]


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_distances_fall_to_nothing(sampler):
    """With as many steps as the reference and the same noise, samples are the same."""
    _, calibration = calibrated(sampler)
    for step, tokens in zip(calibration.steps, TOKENS, strict=True):
        own = step.mean[0]
        assert step.tokens == tokens
        assert own[-1] == pytest.approx(0, abs=1e-6)
        assert (step.error[0][:-1] > 0).all()
        assert abs(own[2]) < 0.01
        if calibration.solver.draws(calibration.reference) == 1:  # few steps with noise may be right by luck
            assert own[0] > own[1] > own[2] > 0
            assert step.error[0][0] < 0.1 * own[0]
        assert step.seconds > 0


def test_each_ar_step_has_its_conditions_and_samples_are_those_of_many_steps():
    model, calibration = calibrated("DDIM", conditions=IMAGES * 2)
    assert [sum(map(len, step.distances)) for step in calibration.steps] == [2 * IMAGES, IMAGES]
    assert [step.conditions for step in calibration.steps] == [16, 16]
    assert len(model.made) == 4  # two generations
    for sample, (width, tokens) in zip(model.made, [*zip(WIDTHS, TOKENS, strict=True)] * 2, strict=True):
        assert sample.shape == (8 * IMAGES, tokens, 4)
        copies = sample.unflatten(0, (IMAGES, 8))
        assert (copies == copies[:, :1]).all()
        assert copies[:, 0].std().item() == pytest.approx(width, rel=0.35)
    assert model.act is Annealing


def test_progress_counts_conditions():
    model = Gaussian(FLOW, velocity)
    calibration, seen = Calibration(model, "euler", (1,), 4, copies=2, draws=2), []
    calibration.measure(lambda _: model.generate("euler", ImageNoise(range(16))), 12, seen.append)
    assert seen == [8, 12, 4, 0]


@pytest.mark.parametrize("sampler", ["DPM_Solver", "DiSA", "euler", "heun", "euler_maruyama"])
def test_times_of_a_path_are_as_many_as_the_solvers_own_and_begin_and_end_with_them(sampler):
    _, calibration = calibrated(sampler)
    for count in (1, 2, 5, 11):
        own, path = (calibration.times(1, count, kind) for kind in KINDS)
        assert len(own) == len(path) == len(set(path))
        assert set(path) <= set(calibration.reference)
        assert list(path) == sorted(path, reverse=sampler != "DiSA")
        assert max(path) == max(calibration.reference)
        assert sampler not in FLOW or path[-1] == 0
        assert calibration.evaluations(count) == calibration.solver.evaluations(path)


@pytest.mark.parametrize("sampler", ["DPM_Solver", "euler"])
def test_times_of_a_path_are_where_it_bends(sampler):
    """For narrow tokens the last part of the way is the bent one."""
    _, calibration = calibrated(sampler, conditions=32)
    own, path = calibration.steps[1].mean
    assert path[1] < 0.7 * own[1]
    best, kinds = calibration.distances(8)
    assert kinds[1][3] == "path"
    assert best[1, 3] == pytest.approx(path[1])
    assert calibration.distances(8, ("own",))[0][1, 3] == pytest.approx(own[1])
    for line in best:
        assert (np.diff(line) <= 0).all()
        assert line[4] == pytest.approx(np.interp(-1 / 25, [-1 / 16, -1 / 64], [line[3], line[7]]), rel=0.2)


def test_the_same_seed_gives_the_same_distances():
    one, same, other = (calibrated("DiSA", seed=seed)[1].steps[0].mean for seed in (1, 1, 2))
    assert (one == same).all()
    assert (one != other)[:, :-1].all()


def test_energy_distance_of_two_normal_distributions():
    """X - Y is normal, and the mean of its absolute value known."""
    x, y = torch.randn(2, 400, 64, 1, generator=torch.Generator().manual_seed(0))
    shift = 1.5
    mean = 2 / math.sqrt(math.pi)  # of |X - X'|
    between = mean * math.exp(-(shift**2) / 4) + shift * math.erf(shift / 2)
    found = energy_distance(x + shift, y)
    assert found.shape == (400,)
    assert found.mean().item() == pytest.approx(2 * between - 2 * mean, abs=4 * found.std().item() / 20)
    none = energy_distance(x, y)
    assert abs(none.mean().item()) < 4 * none.std().item() / 20  # no bias
    assert energy_distance(x, x).abs().max() < 1e-5
    assert energy_distance(x + 0.1, x).std() < energy_distance(x + 0.1, y).std() / 3


def test_noise_of_a_longer_step_is_the_sum_of_that_of_shorter_ones():
    calibration = Calibration(Gaussian(FLOW, velocity), "euler_maruyama", (4,), 8)
    noise = torch.arange(8.0)[:, None]
    times = (1.0, 0.5, 0.25, 0.0)
    found = calibration._coarsen(noise, times)
    # The start; the steps from 1, 7/8, 6/8 and 5/8; those from 4/8 and 3/8. The last adds no noise.
    assert found[:, 0].tolist() == [0, (1 + 2 + 3 + 4) / 2, pytest.approx((5 + 6) / math.sqrt(2))]


def test_errors_have_all_later_tokens_as_heirs():
    calibration = Calibration(Gaussian(FLOW, velocity), "euler", (4,), 8)
    calibration.steps = [StepDistances(tokens=n) for n in (1, 4, 16)]
    assert calibration.heirs == pytest.approx([1, 20 / 21, 16 / 21])


def test_deviations_are_those_of_steps_of_eulers_method():
    start = torch.randn(5, 2, 3, generator=torch.Generator().manual_seed(0))
    times = (1.0, 0.6, 0.3)
    found = path_deviations(lambda x, t: velocity(0.1, x, t), start, times)
    fine = [FLOW["euler"].solve(lambda x, t: velocity(0.1, x, t), start[None], (*times[:i], times[i])) for i in (1, 2)]
    assert found.shape == (4, 4)
    assert (np.tril(found) == 0).all()
    assert found[[0, 1, 2], [1, 2, 3]] == pytest.approx(0, abs=1e-6)
    once = FLOW["euler"].solve(lambda x, t: velocity(0.1, x, t), start[None], (1.0, 0.3))
    assert found[0, 2] == pytest.approx((once - fine[1]).norm(dim=-1).mean().item(), rel=1e-5)
    ddim = path_deviations(lambda x, t: epsilon(0.1, x, t), start, (900, 500))
    end = DIFFUSION["DDIM"].solve(lambda x, t: epsilon(0.1, x, t), start[None], (500, 900))
    once = DIFFUSION["DDIM"].solve(lambda x, t: epsilon(0.1, x, t), start[None], (900,))
    assert ddim[0, 2] == pytest.approx((once - end).norm(dim=-1).mean().item(), rel=1e-4)


@pytest.mark.parametrize(
    ("make", "tokens", "sampler", "more"),
    [
        (small_mar, 16, "DiSA", {"num_iter": 3}),
        (partial(small_flowar, image_size=64, scales=(1, 2, 4)), 21, "euler", {}),
        (partial(small_xar, image_size=64), 16, "euler_maruyama", {}),
    ],
    ids=["MAR", "FlowAR", "xAR"],
)
def test_models_are_watched_without_a_change_to_them(make, tokens, sampler, more):
    model = make()
    labels, guidance = torch.arange(IMAGES).repeat_interleave(2) % 10, Guidance(2.0)

    def generate(_=0):
        noise = ImageNoise(labels.tolist())
        return model.generate(labels, sampler=sampler, guidance=guidance, noise=noise, **more)

    before, calibration = generate(), Calibration(model, sampler, (1, 4), 8, copies=2, draws=2, kinds=KINDS)
    calibration.measure(generate, 1)
    assert torch.equal(generate(), before)
    assert sum(step.tokens for step in calibration.steps) == tokens
    assert all(np.isfinite(step.mean).all() for step in calibration.steps)


def test_a_failed_generation_leaves_the_model_as_it_was():
    with torch.device("meta"):
        model = build_model("xar_fashion")

    def fail(_):
        raise FloatingPointError("NaN")

    calibration = Calibration(Gaussian(FLOW, velocity), "euler", (1,), 2)
    with pytest.raises(FloatingPointError):
        calibration.measure(fail, 1)
    assert calibration.model.act is Annealing
    assert model.act is Annealing
