"""Names that somebody typed."""

import pytest

from disa.runtime.names import did_you_mean, user_name


def test_the_closest_name_is_proposed():
    assert did_you_mean("MAR_fashoin", ["xar_fashion", "mar_fashion"]) == "; did you mean mar_fashion?"
    assert did_you_mean("nothing", ["mar_fashion"]) == ""


@pytest.mark.parametrize(
    ("message", "own", "expected"),
    [
        ("Guidance.scale is -1; no", None, ("cfg", ": scale is -1; no")),
        ("scale is -1; no", None, ("cfg", ": scale is -1; no")),
        ("upper is 2", None, ("flow_upper_steps", ": upper is 2")),
        ("seed is -1", None, ("seed", " is -1")),
        ("scales are (1, 2)", None, ("scales", " are (1, 2)")),
        ("num_classes is 0", {"num_classes": "class_num"}, ("class_num", ": num_classes is 0")),
        ("width is 0", None, None),
        ("there is no file", None, None),
    ],
)
def test_a_setting_is_called_as_the_user_does(message, own, expected):
    assert user_name(message, {"cfg", "flow_upper_steps", "seed", "scales", "class_num"}, own) == expected
