"""Guidance scales, combination and refusals."""

import pytest
import torch

from disa import Guidance
from disa.guidance import combine, guided_velocity


def test_scale_by_progress():
    assert [Guidance(3.0, "linear").at(p) for p in (0, 0.5, 1)] == [1, 2, 3]
    assert [Guidance(3.0, "constant").at(p) for p in (0, 0.5, 1)] == [3, 3, 3]
    assert not Guidance(1.0).active
    assert Guidance(0.5).active


def test_scales_below_a_threshold_count_as_none():
    guidance = Guidance(3.0, "linear", skip_below=2.0)
    assert [guidance.at(p) for p in (0, 0.25, 0.499, 0.5, 1)] == [1, 1, 1, 2, 3]
    assert guidance.active
    assert Guidance(3.0).at(1e-9) > 1  # without one, none does
    assert not Guidance(1.5, skip_below=1.6).active
    assert not Guidance(1.5, "constant", skip_below=1.6).active
    assert Guidance(0.5, skip_below=1.6).at(0.5) == 0.75  # away from the condition is no little guidance


def test_combine():
    conditional, unconditional = torch.tensor([2.0]), torch.tensor([1.0])
    assert combine(conditional, unconditional, 3.0).item() == 4.0
    assert combine(conditional, unconditional, 1.0).item() == 2.0
    assert combine(conditional, unconditional, 0.0).item() == 1.0


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ((-1.0,), "scale is -1"),
        ((float("nan"),), "scale"),
        ((2.0, "square"), "'square'"),
        ((2.0, "linear", 1.5), "max_time"),
        ((2.0, "linear", 0.5, 0.6), "min_time is 0.6"),
        ((2.0, "linear", 0.5, -0.1), "min_time is -0.1"),
        ((2.0, "linear", 1.0, 0.0, 0.9), "skip_below is 0.9"),
        ((2.0, "linear", 1.0, 0.0, float("inf")), "skip_below is inf"),
    ],
)
def test_impossible_settings_are_refused(arguments, named):
    with pytest.raises(ValueError, match=named):
        Guidance(*arguments)


def test_defaults_and_bounds_are_allowed():
    assert Guidance() == Guidance(1.0, "linear", 1.0, 0.0, 1.0)
    for allowed in (Guidance(0.0), Guidance(2.0, max_time=0.0), Guidance(2.0, max_time=0.5)):
        assert allowed.active


def test_guided_velocity_is_guided_within_its_times():
    asked = []

    def velocity(x, t):
        """As if the first half were the conditional branch: 2x + t there, and x in the other half."""
        asked.append((x.dtype, len(x), t))
        conditional, *unconditional = x.split(3)
        return torch.cat([2 * conditional + t, *unconditional])

    x = torch.arange(3.0, dtype=torch.float64)[:, None, None]
    guided = guided_velocity(velocity, 3.0, (0.25, 0.5), torch.bfloat16)
    assert torch.equal(guided(x, 0.5), (x + 3 * (x + 0.5)).float())
    assert guided(x, 0.5).dtype == torch.float32  # whatever the network's
    assert torch.equal(guided(x, 0.75), (2 * x + 0.75).bfloat16())
    assert torch.equal(guided(x, 0.125), (2 * x + 0.125).bfloat16())
    unguided = guided_velocity(velocity, 1.0, (0.0, 0.5), torch.bfloat16)
    assert torch.equal(unguided(x, 0.25), (2 * x + 0.25).bfloat16())
    assert asked == [
        (torch.bfloat16, 6, 0.5),
        (torch.bfloat16, 6, 0.5),
        (torch.bfloat16, 3, 0.75),
        (torch.bfloat16, 3, 0.125),
        (torch.bfloat16, 3, 0.25),
    ]
    assert guided_velocity(velocity, 2.0, (0.0, 1.0), torch.float32)(x, 1.0).flatten().tolist() == [2.0, 5.0, 8.0]
