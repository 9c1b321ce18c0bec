"""Scores and results: what their file holds, and that those of before this version still serve."""

import json
import shutil
from dataclasses import replace

import pytest
import torch

from disa import Guidance, StepSchedule
from disa.evaluation.plan import plan_metrics
from disa.evaluation.results import Results, Scores
from disa.evaluation.run import evaluate
from disa.generation.generators import LabelGenerator, Sampling
from disa.models.vae import SpaceToDepth
from tests.conftest import REFERENCE, small_mar

# From the code before this format: `results.json` of an evaluation that ended, and the files of one that was killed.
BEFORE = REFERENCE / "before"
LITE = Scores("efficientnet-lite0", 10, fid=12.25, fid_interval=(11.5, 13.0), inception_score_mean=3.0)
CLASSIFIER = Scores("fashion-classifier", 10, "real", kid_mean=0.5, precision=0.25, label_accuracy=0.75)


def results(**changes):
    made = Results(
        settings={"model": "tiny", "image_shape": [2, 3]},
        num_images=10,
        measures=[{"extractor": "efficientnet-lite0", "metrics": ["fid", "isc"], "reference": None, "digest": None}],
        intervals=True,
        nfe=11,
        images_per_second=4.0,
        seconds_per_image=0.25,
        timed_images=6,
        fractions={"generation": 0.9, "other": 0.1},
        metrics=(LITE, CLASSIFIER),
        device="cpu (x86_64, 1 thread per rank)",
        batch_size=4,
        ranks=2,
        versions={"torch": "2.6"},
    )
    return replace(made, **changes)


def test_a_file_holds_everything(tmp_path):
    results().write(tmp_path / "results.json")
    assert Results.read(tmp_path / "results.json") == results()
    written = json.loads((tmp_path / "results.json").read_text())
    assert written["nfe"] == 11
    assert written["metrics"][1] == {
        "extractor": "fashion-classifier",
        "images": 10,
        "reference": "real",
        "kid_mean": 0.5,
        "precision": 0.25,
        "label_accuracy": 0.75,
    }


def test_scores_by_name():
    assert LITE.numbers() == {"fid": 12.25, "inception_score_mean": 3.0}
    assert Scores.from_dict(LITE.to_dict()) == LITE
    assert results().scores("fashion-classifier") is CLASSIFIER
    assert results().scores("inception") is None


def test_the_summary_is_in_words():
    assert results().summary() == (
        "10 images, NFE 11, 0.25 seconds per image (4 images/s, first batch excluded) "
        "on cpu (x86_64, 1 thread per rank)\n"
        "time: generation 90.0 %, other 10.0 %\n"
        "efficientnet-lite0: fid 12.2500, inception_score_mean 3.0000\n"
        "fashion-classifier: kid_mean 0.5000, precision 0.2500, label_accuracy 0.7500"
    )
    untimed = results(images_per_second=None, seconds_per_image=None, fractions={}, metrics=())
    assert untimed.summary() == "10 images, NFE 11, too few images to time on cpu (x86_64, 1 thread per rank)"


def test_the_machine_is_in_words():
    assert results().machine == "cpu (x86_64, 1 thread per rank), 2 ranks, batches of 4"
    assert results(device="H100", ranks=1).machine == "H100, 1 rank, batches of 4"


@pytest.mark.parametrize("lost", ["settings", "nfe", "metrics", "device", "ranks", "batch_size", "versions"])
def test_a_file_that_lacks_something_is_no_result(tmp_path, lost):
    path = tmp_path / "results.json"
    results().write(path)
    path.write_text(json.dumps({name: value for name, value in json.loads(path.read_text()).items() if name != lost}))
    assert Results.read(path) is None


@pytest.mark.parametrize("text", ["", "[]", "1", '"nfe"', '{"metrics": [1]}', '{"metrics": [{"vgg": 1.0}]}', "\0"])
def test_another_file_is_no_result(tmp_path, text):
    (tmp_path / "results.json").write_text(text)
    assert Results.read(tmp_path / "results.json") is None
    assert Results.read(tmp_path / "none.json") is None


class Watched(LabelGenerator):
    """Remembers what it was asked for."""

    def __call__(self, ids):
        self.asked = [*getattr(self, "asked", []), *ids]
        return super().__call__(ids)


def evaluate_as_before(folder):
    """The evaluation of `BEFORE`, and the ids that it generated."""
    sampling = Sampling(4, StepSchedule(4, 2), guidance=Guidance(2.0))
    generator = Watched(small_mar(image_size=32, latent_stride=4), SpaceToDepth(), sampling, torch.device("cpu"))
    specs, _ = plan_metrics("fid,accuracy", "fashion-classifier", "auto", bundled=True)
    settings = {"model": "mar", "dtype": "float32"}
    found = evaluate(generator, folder, specs=specs, settings=settings, num_images=24, batch_size=8)
    return found, getattr(generator, "asked", [])


def test_results_of_before_are_read_and_not_measured_again(tmp_path):
    shutil.copy(BEFORE / "results.json", tmp_path)
    found, generated = evaluate_as_before(tmp_path)
    assert generated == []
    assert found == Results.read(BEFORE / "results.json")
    assert found.nfe == 11
    assert found.device == "cpu (x86_64, 1 thread per rank)"
    assert found.scores("fashion-classifier").fid == 499.70517176136656


def test_a_killed_evaluation_of_before_goes_on_and_ends_with_the_undisturbed_numbers(tmp_path):
    shutil.copytree(BEFORE / "killed", tmp_path / "run")
    found, generated = evaluate_as_before(tmp_path / "run")
    assert generated == list(range(16, 24))
    undisturbed = Results.read(BEFORE / "results.json")
    assert (found.settings, found.measures) == (undisturbed.settings, undisturbed.measures)
    (scores,), (expected,) = found.metrics, undisturbed.metrics
    assert scores.fid == pytest.approx(expected.fid, rel=1e-4)  # on another machine, a pixel may differ by one
    assert replace(scores, fid=None) == replace(expected, fid=None)
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["results.json", "samples.png"]


def test_what_was_not_measured_is_left_out():
    assert Scores("inception", 3).to_dict() == {"extractor": "inception", "images": 3}
