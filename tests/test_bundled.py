"""The models that come with the package: small, and good enough to show the method."""

import torch

from disa import Guidance, StepSchedule, load_model
from disa.checkpoints import BUNDLED_WEIGHTS
from disa.features import load_classifier
from disa.generation import to_uint8
from disa.metrics import label_accuracy
from disa.models.tokenizer import SpaceToDepth
from disa.sampling import LabelSampler, Sampling


def test_weights_are_small():
    assert (BUNDLED_WEIGHTS / "mar_fashion.safetensors").stat().st_size <= 8_000_000


def test_mar_fashion_draws_what_is_asked_for():
    sampling = Sampling(16, StepSchedule(20, 5), guidance=Guidance(2.0))
    sampler = LabelSampler(load_model("mar_fashion"), SpaceToDepth(), sampling, torch.device("cpu"))
    ids = range(60)
    images = to_uint8(sampler(ids))
    with torch.no_grad():
        _, logits = load_classifier()(images / 127.5 - 1)
    assert label_accuracy(logits, sampler.labels(ids)) >= 0.75
