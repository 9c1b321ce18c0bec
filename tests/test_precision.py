"""The benchmark of what half precision changes."""

import pytest

from benchmarks import precision
from tests.helpers.processes import run


@pytest.mark.parametrize(("difference", "inside"), [(0.4, "yes"), (-0.5, "yes"), (0.6, "no"), (-0.6, "no")])
def test_a_difference_is_within_the_noise_or_not(difference, inside):
    assert precision.Line("mar_fashion", "float16", "inception", 3.0, difference, 0.5).inside == inside


@pytest.mark.slow
def test_the_table_has_every_type_beside_float32(tmp_path):
    more = ["--models", "flowar_fashion", "--num_images", "24", "--batch_size", "12", "--device", "cpu"]
    ended = run("-m", "benchmarks.precision", *more, "--out", "kept", "--results", "shown", cwd=tmp_path)
    rows = [line.split("|") for line in (tmp_path / "shown/precision.md").read_text().splitlines()[-6:]]
    assert [row[3].strip() for row in rows] == ["float32", "bfloat16", "float16"] * 2
    assert [row[5].strip() for row in rows if row[3].strip() == "float32"] == ["+0.000"] * 2
    assert "24 images" in ended.stdout
