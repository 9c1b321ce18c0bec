"""The three observations, on a model whose tokens are Gaussian given their image, so that every answer is known."""

import json
import math

import pytest
import torch

from disa import ImageNoise, StepSchedule
from disa.annealing import AnnealedModel, Annealing
from disa.diffusion import SOLVERS as DIFFUSION
from disa.diffusion import GaussianProcess
from disa.flow import SOLVERS as FLOW
from disa.flow import linspace
from disa.tables.evidence import Evidence, write_evidence

WIDTHS = (0.5, 0.0)  # deviations of the tokens at two AR steps, around the mean of their image
ALPHA_BAR = GaussianProcess().alpha_bar
CHANNELS, IMAGES = 4, 200
MEANS = torch.randn(IMAGES, 1, CHANNELS, generator=torch.Generator().manual_seed(3))


def velocity(width, mean, x, t):
    """E[noise - x0 | x], with x - (1 - t) · mean of variance (1 - t)² width² + t²."""
    return (x - (1 - t) * mean) * (t - (1 - t) * width**2) / ((1 - t) ** 2 * width**2 + t**2) - mean


def epsilon(width, mean, x, t):
    alpha_bar = ALPHA_BAR[int(t)]
    centred = x - math.sqrt(alpha_bar) * mean
    found = centred * math.sqrt(1 - alpha_bar) / (alpha_bar * width**2 + 1 - alpha_bar)
    return found, torch.full_like(x, -1.0)


class Gaussian(AnnealedModel):
    """One token and then three of a normal distribution around a mean that each image has."""

    def __init__(self, solvers, field):
        super().__init__()
        self.solvers, self.field = solvers, field
        self.flow_times = (lambda count: linspace(1, 0, count + 1)) if solvers is FLOW else None
        self.weight = torch.nn.Parameter(torch.zeros(1))

    @torch.no_grad()
    def generate(self, sampler, ids):
        anneal = self.annealing(StepSchedule(3, 3), sampler, ImageNoise(ids), 1.0, None, 2)
        for step, (width, tokens) in enumerate(zip(WIDTHS, (1, 3), strict=True)):

            def network(x, t, width=width, mean=MEANS[list(ids)]):
                return self.field(width, mean, x, t)

            anneal(step, network, tokens, CHANNELS)


def observe(sampler, steps=60, draws=8, batch_size=150, **more):
    model = Gaussian(*((FLOW, velocity) if sampler in FLOW else (DIFFUSION, epsilon)))
    evidence = Evidence(model, sampler, steps, draws, seed=1)
    found = evidence.observe(lambda ids: model.generate(sampler, ids), IMAGES, batch_size, **more)
    assert model.act is Annealing
    return found


@pytest.mark.parametrize("sampler", ["euler", "heun", "euler_maruyama", "DDIM", "DPM_Solver++2M", "DiSA"])
def test_variances_errors_and_paths_are_those_of_gaussians(sampler):
    loose, fixed = observe(sampler)
    assert (loose.ar_step, loose.tokens, fixed.ar_step, fixed.tokens) == (0, 1, 1, 3)
    own, between = CHANNELS * 0.25, MEANS.var(0, unbiased=False).sum().item()
    assert loose.variance == pytest.approx(own, rel=0.15)
    assert fixed.variance < 0.02
    assert loose.total_variance == pytest.approx(own + between, rel=0.1)
    assert fixed.total_variance == pytest.approx(between, rel=0.05)
    # From pure noise nothing but the mean is known; that of eight predictions at time 0.95 has a little noise.
    assert loose.prediction_error == pytest.approx(own / (own + between), rel=0.25)
    assert fixed.prediction_error < 0.02
    assert fixed.path_ratio == pytest.approx(1, abs=2e-3)
    assert loose.path_ratio > 1.005
    assert loose.variance_se == pytest.approx(own * math.sqrt(2 / (CHANNELS * 7 * IMAGES)), rel=0.3)


def test_progress_is_told_for_every_step_of_every_batch():
    told = []
    observe("euler", steps=2, draws=2, batch_size=80, progress=lambda: told.append(1))
    assert len(told) == 2 * 3


def test_files_hold_the_same_numbers(tmp_path):
    steps = observe("euler", steps=4, draws=2)
    table = write_evidence(steps, {"model": "gaussian"}, tmp_path / "new")
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == [
        "evidence.json",
        "evidence.md",
        "evidence.png",
    ]
    content = json.loads((tmp_path / "new" / "evidence.json").read_text())
    assert content["model"] == "gaussian"
    assert [one["variance"] for one in content["steps"]] == [one.variance for one in steps]
    assert (tmp_path / "new" / "evidence.md").read_text() == table + "\n"
    assert f"{steps[0].prediction_error:.3f}" in table.splitlines()[2]
