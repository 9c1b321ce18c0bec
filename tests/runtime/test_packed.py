"""Linear layers with packed weights: equal to torch's, and packed anew when weights change."""

import pytest
import torch
import torch.nn.functional as F

from disa.runtime.packed import PackedLinear


@pytest.fixture
def context():
    return PackedLinear()


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(1, 24), (3, 5, 24), (24,), (0, 24)], ids=str)
def test_float32_products_are_those_of_torch(context, shape, bias):
    layer, x = torch.nn.Linear(24, 40, bias=bias), torch.randn(shape)
    with torch.no_grad():
        expected = layer(x)
        with context:
            torch.testing.assert_close(layer(x), expected, rtol=1e-5, atol=1e-6)
            torch.testing.assert_close(layer(2 * x), layer(x * 2), rtol=0, atol=0)
    assert len(context.packed) == (x.numel() > 0)


@pytest.mark.parametrize(("dtype", "bits"), [(torch.bfloat16, 8), (torch.float16, 11)], ids=str)
def test_half_products_are_exact_up_to_the_rounding_of_the_result(context, dtype, bits):
    layer, x = torch.nn.Linear(64, 32).to(dtype), torch.randn(7, 64).to(dtype)
    with torch.no_grad(), context:
        exact = F.linear(x.double(), layer.weight.double(), layer.bias.double())
        assert layer(x).dtype == dtype
        assert (layer(x) - exact).abs().max() <= 2**-bits * exact.abs().max()
    assert len(context.packed) == 1


def test_a_part_of_a_weight_is_packed_by_itself(context):
    layer, x = torch.nn.Linear(24, 40), torch.randn(3, 24)
    with torch.no_grad(), context:
        whole = layer(x)
        torch.testing.assert_close(F.linear(x, layer.weight[8:], layer.bias[8:]), whole[:, 8:])
    assert len(context.packed) == 2


def test_a_weight_that_changed_is_packed_again(context):
    layer, x = torch.nn.Linear(24, 40), torch.randn(3, 24)
    with torch.no_grad(), context:
        before = layer(x)
        layer.weight.mul_(2)
        torch.testing.assert_close(layer(x), 2 * (before - layer.bias) + layer.bias, rtol=1e-4, atol=1e-5)
    assert len(context.packed) == 1


def test_what_needs_gradients_or_another_type_is_left_to_torch(context):
    layer, x = torch.nn.Linear(24, 40), torch.randn(3, 24)
    with context:
        layer(x).sum().backward()
        assert layer.weight.grad is not None
        with torch.no_grad():
            layer.double()(x.double())
            layer.to("meta")(x.to("meta"))
    assert not context.packed


def test_autocast_decides_the_type(context):
    layer, x = torch.nn.Linear(24, 40), torch.randn(3, 24)
    with torch.no_grad(), context, torch.autocast("cpu", torch.bfloat16):
        assert layer(x).dtype == torch.bfloat16


def test_without_onednn_nothing_changes(monkeypatch):
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    plain, layer, x = PackedLinear(), torch.nn.Linear(24, 40), torch.randn(3, 24)
    with torch.no_grad():
        expected = layer(x)
        with plain:
            assert torch.equal(layer(x), expected)
    assert not plain.packed
