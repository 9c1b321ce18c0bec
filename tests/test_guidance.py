"""Guidance scales, combination and refusals."""

import pytest
import torch

from disa import Guidance
from disa.guidance import combine


def test_scale_by_progress():
    assert [Guidance(3.0, "linear").at(p) for p in (0, 0.5, 1)] == [1, 2, 3]
    assert [Guidance(3.0, "constant").at(p) for p in (0, 0.5, 1)] == [3, 3, 3]
    assert not Guidance(1.0).active
    assert Guidance(0.5).active


def test_combine():
    conditional, unconditional = torch.tensor([2.0]), torch.tensor([1.0])
    assert combine(conditional, unconditional, 3.0).item() == 4.0
    assert combine(conditional, unconditional, 1.0).item() == 2.0
    assert combine(conditional, unconditional, 0.0).item() == 1.0


@pytest.mark.parametrize(
    ("arguments", "named"),
    [((-1.0,), "scale"), ((float("nan"),), "scale"), ((2.0, "square"), "'square'"), ((2.0, "linear", 1.5), "max_time")],
)
def test_impossible_settings_are_refused(arguments, named):
    with pytest.raises(ValueError, match=named):
        Guidance(*arguments)
