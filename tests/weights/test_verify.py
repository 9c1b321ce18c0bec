"""Checkpoints beside the published names and shapes."""

import pytest
import torch

from disa.weights.verify import manifest, verify


def state_of(name: str) -> dict[str, torch.Tensor]:
    """Zeros of a published model's shapes that take no space."""
    return {key: torch.zeros(1).expand(shape) for key, shape in manifest(name)["parameters"].items()}


@pytest.mark.parametrize("name", ["kl16", "mar_base", "flowar_small", "xar_base", "harmon_0.5b"])
def test_verify_finds_the_manifest(tmp_path, name):
    torch.save({"model": state_of(name)}, tmp_path / "weights.pth")
    assert verify(tmp_path / "weights.pth") == (name, [])


def test_verify_lets_a_released_attention_mask_be_infinite(tmp_path):
    torch.save(
        {**state_of("flowar_small"), "mask": torch.tensor(-torch.inf).expand(1, 1, 341, 341)}, tmp_path / "weights.pth"
    )
    assert verify(tmp_path / "weights.pth") == ("flowar_small", [])


def test_verify_lists_every_difference(tmp_path):
    state = state_of("kl16")
    del state["quant_conv.weight"], state["quant_conv.bias"]
    state["encoder.conv_in.bias"] = torch.full((128,), float("inf"))
    state["decoder.conv_in.bias"] = torch.zeros(3)
    torch.save(state, tmp_path / "weights.pth")
    name, problems = verify(tmp_path / "weights.pth")
    assert name == "kl16"
    assert sorted(problems) == [
        "missing: quant_conv.bias",
        "missing: quant_conv.weight",
        "of another shape: decoder.conv_in.bias [3] instead of [512]",
        "with NaN or infinity: encoder.conv_in.bias",
    ]
    assert len(verify(tmp_path / "weights.pth", "mar_base")[1]) > 100
    with pytest.raises(ValueError, match="no manifest 'kl8'; allowed are flowar_huge"):
        verify(tmp_path / "weights.pth", "kl8")
