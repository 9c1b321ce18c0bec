"""The models that come with the package: small, and good enough to show the method."""

import pytest
import torch

from benchmarks import harmon as harmon_benchmark
from disa.checkpoints import BUNDLED_WEIGHTS, load_model
from disa.demo import SETTINGS, samplers_of
from disa.features import load_classifier
from disa.generation import to_uint8
from disa.sampling import PromptSampler
from disa.training.captions import brightness, grammar_prompts
from disa.training.data import FASHION_CLASSES, to_signed
from tests.conftest import load_reference

models = pytest.mark.parametrize("name", SETTINGS)


@pytest.mark.parametrize("name", [*SETTINGS, "harmon_fashion"])
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


def classes_seen(images):
    """What the bundled classifier sees in images [B, 1, 32, 32] in [-1, 1]."""
    with torch.no_grad():
        return load_classifier()(to_uint8(images) / 127.5 - 1)[1].argmax(1)


@pytest.fixture(scope="module")
def harmon():
    return load_model("harmon_fashion")


def test_harmon_draws_what_its_prompts_say(harmon):
    prompts, classes = grammar_prompts(40)
    sampler = PromptSampler(harmon, prompts, harmon_benchmark.SETTINGS["DiSA"], torch.device("cpu"), image_shape=(8, 8))
    # More than nine of ten among 1,000; chance is one of ten.
    assert (classes_seen(sampler(range(40))) == classes).float().mean() >= 0.75


def test_harmon_draws_bright_and_dark(harmon):
    prompts = [f"a {light} {name}" for name in ("pullover", "coat", "bag", "ankle boot") for light in ("dark", "bright")]
    sampler = PromptSampler(harmon, prompts, harmon_benchmark.SETTINGS["DiSA"], torch.device("cpu"), image_shape=(8, 8))
    dark, bright = brightness(to_uint8(sampler(range(8)))[:, 0]).view(4, 2).unbind(1)
    assert (bright - dark).mean() > 20


def test_harmon_names_what_it_sees(harmon):
    fashion = load_reference("fashion_test_60.npz")
    latents = harmon.vae.encode(to_signed(fashion["images"])[:, None])
    question = torch.tensor([harmon.text.question("What is this?", harmon.image_tokens((8, 8)))]).expand(60, -1)
    answers = harmon.answer(
        latents, question, harmon.text.image_token, max_new_tokens=8, do_sample=False, eos_token_id=harmon.text.end_token
    )
    said = [harmon.text.decode(answer) for answer in answers]
    right = [text.endswith(f" {FASHION_CLASSES[label]}") for text, label in zip(said, fashion["labels"].tolist(), strict=True)]
    assert sum(right) >= 0.65 * 60
