"""Compiled blocks compute what eager ones do."""

import pytest
import torch

from disa import Guidance, ImageNoise, StepSchedule
from disa.acceleration import compile_blocks
from tests.conftest import small_xar


@pytest.mark.slow
def test_compiled_blocks_give_the_latents_of_eager_ones():
    settings = {"schedule": StepSchedule(2, 1), "sampler": "euler", "guidance": Guidance(2.0)}
    expected = small_xar().generate(torch.tensor([1, 2]), noise=ImageNoise([1, 2]), **settings)
    model = small_xar()
    assert compile_blocks(model) == 4
    latents = model.generate(torch.tensor([1, 2]), noise=ImageNoise([1, 2]), **settings)
    torch.testing.assert_close(latents, expected, rtol=1e-4, atol=1e-4)
