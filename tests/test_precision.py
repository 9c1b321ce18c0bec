"""The benchmark of what half precision changes."""

import pytest

from benchmarks import precision
from disa.evaluation.results import Scores
from tests.tables.test_show import results


@pytest.mark.parametrize(("difference", "inside"), [(0.4, "yes"), (-0.5, "yes"), (0.6, "no"), (-0.6, "no")])
def test_a_difference_is_within_the_noise_or_not(difference, inside):
    assert precision.Line("mar_fashion", "float16", "inception", 3.0, difference, 0.5).inside == inside


def test_every_type_stands_beside_float32():
    exact = results(metrics=(Scores("inception", 8, fid=3.0, fid_interval=(2.804, 3.196)),))
    half = results(metrics=(Scores("inception", 8, fid=2.75),))
    text = precision.describe({"mar_fashion": {"float32": exact, "float16": half}}, 10_000)
    assert "10,000 images" in text.replace("\n", " ")
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()[-2:]]
    assert cells[0] == ["mar_fashion", "inception", "float32", "3.000", "+0.000", "0.100", "yes"]
    assert cells[1] == ["mar_fashion", "inception", "float16", "2.750", "-0.250", "0.100", "no"]
