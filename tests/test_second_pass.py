"""The measurement of GtR's frequency weight."""

import sys

import torch

from benchmarks import second_pass


def test_weights_count_high_frequencies_up_to_twice():
    n = torch.arange(8)
    waves = torch.stack([torch.ones(8), torch.cos(torch.pi * n / 2), torch.cos(torch.pi * n)])
    weights = second_pass.frequency_weight(waves)  # |FFT| is 8, 4 (and 4 beyond D/2), 8, at n = 0, 2 and 4
    torch.testing.assert_close(weights, torch.tensor([8.0, 4 * 1.5, 8 * 2.0]))


def test_a_table_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["second_pass", "--conditions", "11", "--draws", "4", "--results", str(tmp_path)])
    second_pass.main()
    text = (tmp_path / "second_pass.md").read_text()
    assert "11 tokens of the last AR step, 4 samples" in text
    assert [line.split("|")[1].strip() for line in text.splitlines()[-3:]] == ["4", "8", "20"]
