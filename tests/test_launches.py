"""The benchmark that counts launches, on small models and few steps."""

import pytest
import torch

from benchmarks.launches import count
from disa import Guidance, StepSchedule


@pytest.mark.parametrize("name", ["mar_fashion", "flowar_fashion", "xar_fashion"])
@pytest.mark.slow
def test_more_evaluations_take_more_launches_and_flops(name):
    short = {"num_iter": 4} if name == "mar_fashion" else {}
    few, many = (count(name, 1, torch.float32, schedule=StepSchedule(n, n), **short) for n in (4, 8))
    assert 0 == few.synchronizations == many.synchronizations
    assert few.copies == many.copies <= 1
    assert few.launches < many.launches < 2 * few.launches
    assert few.flops < many.flops
    assert few.predict("H100", 1) == few.launches * 5e-6  # launch-bound


@pytest.mark.slow
def test_a_batch_moves_more_bytes_by_as_many_launches():
    settings = {"schedule": StepSchedule(3, 3), "guidance": Guidance(2.0)}
    one, many = (count("xar_fashion", batch, torch.bfloat16, **settings) for batch in (1, 4))
    assert one.launches == many.launches
    assert many.other_bytes > 2 * one.other_bytes
    assert many.flops > 3 * one.flops
    assert many.peak > one.peak > 3.7e6  # the weights alone take so much
