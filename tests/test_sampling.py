"""Settings of a generation under the names of the commands' flags."""

import json
import re

import pytest

from disa import Guidance, StepSchedule
from disa.sampling import Sampling


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(64, StepSchedule(50, 5, "cosine"), "DDIM", Guidance(2.9, "constant"), 0.9, 7),
        Sampling(None, StepSchedule(25, 15, "two-stage"), "heun", Guidance(2.4, "linear", 0.7), 1.0, 0),
    ],
    ids=["diffusion", "flow"],
)
def test_settings_lead_back_to_the_sampling(sampling):
    assert Sampling.from_settings(sampling.describe()) == sampling
    assert Sampling.from_settings(json.loads(json.dumps(sampling.describe()))) == sampling


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"cfg": None}, "nothing says what cfg shall be"),
        ({"guidance": 0.9}, "there is no setting guidance here"),
        ({"num_iter": 3.5}, "num_iter is 3.5; a value like 1 is needed"),
        ({"seed": True}, "seed is True"),
        ({"cfg": "2.9"}, "cfg is '2.9'; a value like 1.0 is needed"),
        ({"diff_lower_steps": 51}, "upper is 50, below lower = 51"),
        ({"diff_annealing_strategy": "lineer"}, "strategy is 'lineer'"),
    ],
)
def test_impossible_settings_are_refused(change, message):
    settings = {**Sampling(64, StepSchedule(50, 5)).describe(), **change}
    with pytest.raises(ValueError, match=re.escape(message)):
        Sampling.from_settings({name: value for name, value in settings.items() if value is not None})
