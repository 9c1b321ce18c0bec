"""The models that come with the package: small, and good enough to show the method."""

import pytest
import torch

from disa.checkpoints import BUNDLED_WEIGHTS
from disa.demo import SETTINGS, samplers_of
from disa.features import load_classifier
from disa.generation import to_uint8

models = pytest.mark.parametrize("name", SETTINGS)


@models
def test_weights_are_small_and_have_a_card(name):
    assert (BUNDLED_WEIGHTS / f"{name}.safetensors").stat().st_size <= 8_000_000
    assert (BUNDLED_WEIGHTS / f"{name}.md").read_text().startswith(f"# {name}\n")


@models
def test_images_show_what_is_asked_for(name):
    sampler, ids = samplers_of(name, torch.device("cpu"))["DiSA"], range(60)
    images = to_uint8(sampler(ids))
    with torch.no_grad():
        _, logits = load_classifier()(images / 127.5 - 1)
    # At least 85 % of many images; of 60 only a broken model shows fewer than this.
    assert (logits.argmax(1) == sampler.labels(ids)).float().mean() >= 0.75
