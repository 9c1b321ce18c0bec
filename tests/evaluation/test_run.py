"""One evaluation and its record."""

import json
import os
import re
import shutil
import signal
from dataclasses import replace
from typing import ClassVar

import numpy as np
import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from benchmarks.faults import largest_difference
from benchmarks.features import extract_features, measure, statistics_of
from disa import StepSchedule, build_model
from disa.evaluation import run as evaluation
from disa.evaluation.accumulator import Accumulator
from disa.evaluation.metrics import Statistics
from disa.evaluation.plan import MetricSpec
from disa.evaluation.results import Results
from disa.evaluation.run import evaluate, save_grid
from disa.generation.generators import LabelGenerator, Sampling
from disa.generation.images import missing_ids
from disa.runtime.files import image_files
from disa.runtime.fingerprint import fingerprint
from disa.weights.load import load_bundled_vae
from tests.conftest import load_reference

CPU = torch.device("cpu")
ACCURACY = (MetricSpec("fashion-classifier", ("accuracy",), None),)


def tiny_generator(kind=LabelGenerator, **sampling):
    torch.manual_seed(0)
    model = build_model("mar_fashion", width=16, depth=1, num_heads=2, head_depth=1, head_width=16).eval()
    return kind(
        model,
        load_bundled_vae("mar_fashion"),
        Sampling(**{"num_iter": 2, "schedule": StepSchedule(2, 1), "seed": 7, **sampling}),
        CPU,
    )


class Exhausted(LabelGenerator):
    def __call__(self, ids):
        raise AssertionError(f"images {ids} were generated again")


def run(folder, generator=None, **options):
    arguments = {
        "specs": ACCURACY,
        "settings": {"model": "tiny"},
        "num_images": 10,
        "batch_size": 4,
        "keep_images": True,
    }
    return evaluate(generator or tiny_generator(), folder, **{**arguments, **options})


def read(folder):
    return Results.read(folder / "results.json")


def dicts(results):
    return [scores.to_dict() for scores in results.metrics]


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """An evaluation in both bundled spaces, against a file and a folder of images: results, place, specs."""
    torch.set_num_threads(1)  # as in the tests that compare with it
    root = tmp_path_factory.mktemp("evaluation")
    images = load_reference("fashion_test_60.npz")["images"]
    file, pictures = root / "real.npz", root / "real"
    statistics_of(extract_features(images[:20], "efficientnet-lite0")).save(file)
    pictures.mkdir()
    for i, image in enumerate(images[:20]):
        Image.fromarray(image.numpy()).save(pictures / f"{i}.png")
    specs = (
        MetricSpec("efficientnet-lite0", ("fid", "isc"), str(file)),
        MetricSpec("fashion-classifier", ("fid", "prc", "accuracy"), str(pictures)),
    )
    return run(root / "tiny", specs=specs, log=root / "log"), root, specs


def test_record_holds_what_was_asked(measured):
    results, root, _ = measured
    assert read(root / "tiny") == results
    generator = tiny_generator()
    expected = {
        "model": "tiny",
        "num_iter": 2,
        "diff_sampler": "DiSA",
        "diff_upper_steps": 2,
        "diff_lower_steps": 1,
        "seed": 7,
    }
    assert expected.items() <= results.settings.items()
    assert generator.sampling.to_dict().items() <= results.settings.items()
    assert results.settings["weights"] == fingerprint(generator.model)
    assert results.num_images == 10
    assert results.nfe == generator.nfe == 2 + 1
    assert [measure["reference"] for measure in results.measures] == ["real.npz", "real"]


def test_record_holds_how_it_was_made(measured):
    results, _, _ = measured
    assert results.device.startswith("cpu")
    assert results.ranks == 1
    assert results.versions["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert results.versions["numpy"] == np.__version__
    assert {"disa", "python", "torchvision", "torch-fidelity"} <= results.versions.keys()
    assert results.timed_images == 6  # the first batch warms up
    assert results.seconds_per_image == pytest.approx(1 / results.images_per_second)
    assert results.fractions.keys() == {"generation", "decoding", "metrics", "other"}
    assert sum(results.fractions.values()) == pytest.approx(1)
    assert all(part > 0 for part in results.fractions.values())


def test_both_spaces_are_measured(measured):
    lite, classifier = measured[0].metrics
    assert lite.numbers().keys() == {"fid", "inception_score_mean", "inception_score_std"}
    assert classifier.numbers().keys() == {"fid", "precision", "recall", "label_accuracy"}
    assert (lite.reference, classifier.reference) == ("real.npz", "real")
    assert (lite.extractor, classifier.extractor) == ("efficientnet-lite0", "fashion-classifier")
    assert lite.images == classifier.images == 10
    assert lite.fid > 100
    assert classifier.fid > 100
    assert 1 <= lite.inception_score_mean <= 1000
    assert 0 <= classifier.label_accuracy < 1  # of random weights


def test_scalars_are_logged(measured):
    results, root, _ = measured
    log = EventAccumulator(str(root / "log")).Reload()
    lite, classifier = results.metrics
    expected = {
        "efficientnet-lite0/fid": lite.fid,
        "efficientnet-lite0/inception_score_mean": lite.inception_score_mean,
        "efficientnet-lite0/inception_score_std": lite.inception_score_std,
        "fashion-classifier/fid": classifier.fid,
        "fashion-classifier/precision": classifier.precision,
        "fashion-classifier/recall": classifier.recall,
        "fashion-classifier/label_accuracy": classifier.label_accuracy,
        "seconds_per_image": results.seconds_per_image,
    }
    assert set(log.Tags()["scalars"]) == set(expected)
    for tag, value in expected.items():
        assert [(event.step, event.value) for event in log.Scalars(tag)] == [(0, pytest.approx(value, rel=1e-5))]


def test_samples_are_a_grid_of_the_images(measured):
    folder = measured[1] / "tiny"
    grid = Image.open(folder / "samples.png")
    assert grid.size == (10 * 98 - 2, 96)  # ten beside each other, enlarged threefold
    for i in (0, 9):
        found = grid.crop((98 * i, 0, 98 * i + 96, 96)).resize((32, 32), Image.Resampling.NEAREST)
        assert found.tobytes() == Image.open(folder / "images" / f"{i:06d}.png").convert("RGB").tobytes()


def test_grid_breaks_its_lines(tmp_path):
    for i in range(5):
        Image.new("L", (96, 96), 40 * i).save(tmp_path / f"{i}.png")
    save_grid(sorted(tmp_path.glob("*.png")), tmp_path / "grid.png", columns=2)
    grid = Image.open(tmp_path / "grid.png")
    assert grid.size == (2 * 98 - 2, 3 * 98 - 2)
    assert grid.getpixel((0, 200)) == (160, 160, 160)


def test_the_same_evaluation_is_read_from_its_record(measured):
    results, root, specs = measured
    again = run(root / "tiny", tiny_generator(Exhausted), specs=specs)
    assert again == results


def test_a_record_without_images_is_enough(tmp_path):
    results = run(tmp_path, keep_images=False)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["results.json", "samples.png"]
    assert run(tmp_path, tiny_generator(Exhausted), keep_images=False) == results


def test_kept_images_are_whole_and_say_how_they_were_made(tmp_path):
    results = run(tmp_path)
    images = tmp_path / "images"
    assert sorted(path.name for path in images.iterdir()) == [f"{i:06d}.png" for i in range(10)] + ["settings.json"]
    assert missing_ids(images, 10) == []
    assert json.loads((images / "settings.json").read_text()) == results.settings


def test_kept_images_are_measured_by_other_metrics_too(tmp_path):
    first = run(tmp_path)
    second = run(
        tmp_path, tiny_generator(Exhausted), specs=(MetricSpec("fashion-classifier", ("accuracy", "isc"), None),)
    )
    assert second.metrics[0].label_accuracy == first.metrics[0].label_accuracy
    assert second.metrics[0].inception_score_mean > 0
    assert first.metrics[0].inception_score_mean is None
    assert second.seconds_per_image is None
    assert second.images_per_second is None
    assert read(tmp_path) == second


def test_more_images_continue_the_folder(tmp_path):
    class Counting(LabelGenerator):
        asked: ClassVar = []

        def __call__(self, ids):
            self.asked.extend(ids)
            return super().__call__(ids)

    run(tmp_path, num_images=4)
    results = run(tmp_path, tiny_generator(Counting), num_images=7)
    assert Counting.asked == [4, 5, 6]
    assert results.metrics[0].images == 7


def test_an_evaluation_repeats_itself(tmp_path):
    first, second = (run(tmp_path / name, batch_size=size) for name, size in (("a", 4), ("b", 10)))
    assert first.metrics == second.metrics
    assert first.settings == second.settings
    for path in (tmp_path / "a" / "images").glob("*.png"):
        one, other = (np.asarray(Image.open(p), int) for p in (path, tmp_path / "b" / "images" / path.name))
        assert abs(one - other).max() <= 1
    assert second.seconds_per_image is None  # one batch, which warms up


def test_accuracy_is_of_the_labels_that_were_asked_for(tmp_path):
    fashion = load_reference("fashion_test_60.npz")
    order = fashion["labels"].argsort(stable=True)[::6]  # one of each class, in order

    class Perfect(LabelGenerator):
        def __call__(self, ids):
            return fashion["images"][order[list(ids)], None] / 127.5 - 1

    (scores,) = run(tmp_path, tiny_generator(Perfect)).metrics
    found = extract_features(fashion["images"][order], "fashion-classifier").logits.argmax(1)
    assert scores.label_accuracy == pytest.approx((found == torch.arange(10)).float().mean().item())
    assert scores.label_accuracy > 0.6


@pytest.mark.parametrize(
    ("sampling", "named"),
    [
        ({"seed": 8}, "seed: 7 there, 8 now"),
        ({"num_iter": 3}, "num_iter: 2 there, 3 now"),
        ({"schedule": StepSchedule(3, 1)}, "diff_upper_steps: 2 there, 3 now"),
        ({"temperature": 0.9}, "temperature: 1.0 there, 0.9 now"),
    ],
)
def test_other_sampling_beside_kept_images_is_refused_by_name(tmp_path, sampling, named):
    run(tmp_path, num_images=2)
    before = (tmp_path / "results.json").read_text()
    with pytest.raises(ValueError, match=rf"made with other settings \({named}\)"):
        run(tmp_path, tiny_generator(Exhausted, **sampling), num_images=2)
    assert (tmp_path / "results.json").read_text() == before
    assert missing_ids(tmp_path / "images", 2) == []


def test_other_settings_and_weights_beside_kept_images_are_refused(tmp_path):
    run(tmp_path, num_images=2)
    with pytest.raises(ValueError, match="model: 'tiny' there, 'large' now"):
        run(tmp_path, num_images=2, settings={"model": "large"})
    trained = tiny_generator(Exhausted)
    with torch.no_grad():
        trained.model.z_proj.bias[0] += 1e-3
    with pytest.raises(ValueError, match=r"other settings \(weights: "):
        run(tmp_path, trained, num_images=2)


def test_other_settings_replace_a_record_without_images(tmp_path):
    first = run(tmp_path, num_images=2, keep_images=False)
    second = run(tmp_path, tiny_generator(seed=8), num_images=2, keep_images=False)
    assert (first.settings["seed"], second.settings["seed"]) == (7, 8)
    assert read(tmp_path) == second


@pytest.mark.parametrize(
    "damage", [lambda text: text[: len(text) // 2], lambda _: "", lambda _: "{}", lambda text: "\0" + text]
)
def test_a_damaged_record_is_measured_again(tmp_path, damage):
    first = run(tmp_path)
    record = tmp_path / "results.json"
    record.write_text(damage(record.read_text()))
    again = run(tmp_path, tiny_generator(Exhausted))  # of the images that are there
    assert again.metrics == first.metrics
    assert read(tmp_path) == again


def test_nothing_to_measure_still_generates(tmp_path):
    results = run(tmp_path, specs=(), num_images=3)
    assert results.metrics == ()
    assert missing_ids(tmp_path / "images", 3) == []
    assert (tmp_path / "samples.png").is_file()


def test_fingerprints_tell_weights_and_shapes_apart():
    first, second = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
    second.load_state_dict(first.state_dict())
    assert fingerprint(first) == fingerprint(second)
    assert len(fingerprint(first)) == 12
    with torch.no_grad():
        second.bias[1] += 1e-6
    assert fingerprint(first) != fingerprint(second)
    square, row = torch.nn.Linear(2, 2, bias=False), torch.nn.Linear(4, 1, bias=False)
    with torch.no_grad():
        row.weight.copy_(square.weight.reshape(1, 4))
    assert fingerprint(square) != fingerprint(row)


def test_kept_images_have_the_scores_of_the_stream(tmp_path):
    """Measured on the way, and again from the files."""
    images = load_reference("fashion_test_60.npz")["images"]
    statistics_of(extract_features(images, "fashion-classifier")).save(tmp_path / "real.npz")
    spec = MetricSpec("fashion-classifier", ("fid", "isc", "kid", "prc", "accuracy"), str(tmp_path / "real.npz"))
    results = run(tmp_path / "run", specs=(spec,), num_images=12)
    files = image_files(tmp_path / "run" / "images")
    reference = Statistics.load(tmp_path / "real.npz")
    again = measure(
        extract_features(files, "fashion-classifier"),
        spec.metrics,
        reference=reference,
        labels=tiny_generator().labels(range(12)),
    )
    (found,) = results.metrics
    assert found.reference == "real.npz"
    assert found.numbers().keys() == again.numbers().keys()
    assert len(found.numbers()) == 8
    assert found.numbers() == pytest.approx(again.numbers(), abs=1e-3)
    assert (found.extractor, found.images) == (again.extractor, again.images) == ("fashion-classifier", 12)


def test_intervals_lie_around_their_distances(tmp_path, measured):
    results = run(tmp_path, specs=measured[2], intervals=True, keep_images=False)
    assert results.intervals
    assert not measured[0].intervals
    for scores, without in zip(results.metrics, measured[0].metrics, strict=True):
        low, high = scores.fid_interval
        assert 0 < low < scores.fid < high
        assert scores == replace(without, fid_interval=(low, high))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["results.json", "samples.png"]
    with pytest.raises(ValueError, match="intervals need at least 4 images; there are 3"):
        run(
            tmp_path,
            intervals=True,
            num_images=3,
            specs=(MetricSpec("fashion-classifier", ("fid",), measured[2][1].reference),),
        )


class Failing(LabelGenerator):
    """Is killed, as it were, before the image `stop`."""

    stop = 6

    def __call__(self, ids):
        if self.stop in ids:
            raise KeyboardInterrupt
        return super().__call__(ids)


@pytest.mark.slow
def test_an_interrupted_evaluation_goes_on_from_its_sums(tmp_path, measured):
    options = {"specs": measured[2], "batch_size": 2, "keep_images": False, "intervals": True, "save_seconds": 0.0}
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "run", tiny_generator(Failing), **options)
    assert not (tmp_path / "run" / "results.json").exists()

    class Rest(LabelGenerator):
        def __call__(self, ids):
            assert min(ids) >= Failing.stop
            return super().__call__(ids)

    found, whole = run(tmp_path / "run", tiny_generator(Rest), **options), run(tmp_path / "whole", **options)
    assert largest_difference(dicts(found), dicts(whole)) < 1e-6
    assert (tmp_path / "run" / "samples.png").read_bytes() == (tmp_path / "whole" / "samples.png").read_bytes()
    assert found.timed_images == 4 + 2  # the first block of each run warms things up


def test_what_a_kill_at_the_very_end_leaves_goes_with_the_next_start(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(Accumulator, "remove", lambda _: None)
        results = run(tmp_path, keep_images=False)
    assert len(list(tmp_path.glob("*progress-*"))) == 3
    assert run(tmp_path, keep_images=False) == results
    assert sorted(path.name for path in tmp_path.iterdir()) == ["results.json", "samples.png"]


def test_scores_take_every_core(tmp_path, monkeypatch):
    threads, seen, scores = torch.get_num_threads(), [], evaluation.scores

    def watch(*args, **kwargs):
        seen.append(torch.get_num_threads())
        return scores(*args, **kwargs)

    monkeypatch.setattr(evaluation, "scores", watch)
    monkeypatch.setattr(evaluation.os, "sched_getaffinity", lambda _: set(range(threads + 1)), raising=False)
    run(tmp_path)
    assert seen == [threads + 1]
    assert torch.get_num_threads() == threads


def test_lost_samples_are_generated_again(tmp_path):
    whole = run(tmp_path / "whole", batch_size=2, keep_images=False)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "run", tiny_generator(Failing), batch_size=2, keep_images=False, save_seconds=0.0)
    (folder,) = (path for path in (tmp_path / "run").glob("progress-*") if path.is_dir())
    shutil.rmtree(folder)
    found = run(tmp_path / "run", batch_size=2, keep_images=False)
    assert largest_difference(dicts(found), dicts(whole)) < 1e-6
    assert (tmp_path / "run" / "samples.png").read_bytes() == (tmp_path / "whole" / "samples.png").read_bytes()


def test_the_first_block_that_is_generated_warms_up(tmp_path):
    """Not one that is read from disk."""
    run(tmp_path, batch_size=2)
    (tmp_path / "results.json").unlink()
    for image_id in (4, 7):
        (tmp_path / "images" / f"{image_id:06d}.png").unlink()
    assert run(tmp_path, batch_size=2).timed_images == 2  # of blocks 4–5, which warms up, and 6–7


def test_times_are_of_the_present_machine_alone(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, tiny_generator(Failing), batch_size=2, keep_images=False, save_seconds=0.0)
    results = run(tmp_path, batch_size=4, keep_images=False)
    assert results.timed_images == 2
    assert results.batch_size == 4
    assert results.metrics[0].images == 10


def test_a_reference_that_cannot_be_read_is_named_before_anything_is_generated(tmp_path):
    (tmp_path / "real").mkdir()
    for name in ("a.png", "b.png"):
        (tmp_path / "real" / name).write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"a.png cannot be read as an image"):
        run(
            tmp_path / "run",
            tiny_generator(Exhausted),
            specs=(MetricSpec("fashion-classifier", ("fid",), str(tmp_path / "real")),),
        )


@pytest.mark.slow
def test_an_interrupted_evaluation_of_other_settings_is_left_alone(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, tiny_generator(Failing), batch_size=2, keep_images=False, save_seconds=0.0)
    (sums,) = tmp_path.glob("progress-*.npz")
    run(tmp_path, tiny_generator(seed=8), keep_images=False)
    assert sums.is_file()
    run(tmp_path, keep_images=False)
    names = sorted(path.name for path in tmp_path.iterdir())
    names = [re.sub("-[0-9a-f]{6}", "-digest", name) for name in names]
    assert names == ["results-digest.json", "results.json", "samples.png"]  # results of other settings are kept


def test_a_damaged_progress_file_is_named(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, tiny_generator(Failing), batch_size=2, keep_images=False, save_seconds=0.0)
    (sums,) = tmp_path.glob("progress-*.npz")
    sums.write_bytes(sums.read_bytes()[:100])
    with pytest.raises(ValueError, match=r"cannot be read .*; remove it to begin again"):
        run(tmp_path, keep_images=False)


def test_images_that_are_wanted_after_all_are_made_again(tmp_path):
    run(tmp_path, keep_images=False)
    assert not (tmp_path / "images").exists()
    run(tmp_path, keep_images=True)
    assert missing_ids(tmp_path / "images", 10) == []


def test_too_few_images_are_refused_before_they_are_made(tmp_path):
    with pytest.raises(ValueError, match="prc needs at least 4 images; there are 3"):
        run(
            tmp_path,
            tiny_generator(Exhausted),
            num_images=3,
            specs=[MetricSpec("fashion-classifier", ("prc",), None)],
        )


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_request_to_stop_saves_what_is_counted(tmp_path, number):
    class Asked(LabelGenerator):
        def __call__(self, ids):
            if 4 in ids:  # in the second block
                os.kill(os.getpid(), number)
            return super().__call__(ids)

    whole = run(tmp_path / "whole", keep_images=False)
    with pytest.raises(KeyboardInterrupt, match=r"4 of 10 images are counted; start the same command again"):
        run(tmp_path / "stopped", tiny_generator(Asked), keep_images=False)

    class Later(LabelGenerator):
        def __call__(self, ids):
            assert min(ids) >= 4
            return super().__call__(ids)

    assert dicts(run(tmp_path / "stopped", tiny_generator(Later), keep_images=False)) == dicts(whole)


def test_results_of_others_are_kept(tmp_path):
    first = run(tmp_path, specs=(), num_images=4)
    before = (tmp_path / "results.json").read_bytes()
    second = run(tmp_path, num_images=4)
    assert read(tmp_path) == second != first
    (kept,) = tmp_path.glob("results-*.json")
    assert kept.read_bytes() == before
    with pytest.raises(
        ValueError, match=r"holds results of other settings .*seed: 7 there, 8 now.*give another folder"
    ):
        run(tmp_path, tiny_generator(seed=8), keep_images=False, num_images=4, exclusive=True)
    assert read(tmp_path) == second


def test_a_block_is_no_larger_than_the_share_of_a_rank(tmp_path, monkeypatch):
    monkeypatch.setattr(evaluation.images.distributed, "world_size", lambda: 4)
    assert [evaluation.images.share(count) for count in (1, 4, 5, 9)] == [1, 1, 2, 3]
    asked = []

    class Watched(LabelGenerator):
        def __call__(self, ids):
            asked.append(list(ids))
            return super().__call__(ids)

    assert run(tmp_path, tiny_generator(Watched), num_images=4, batch_size=64).batch_size == 1
    assert asked == [[0], [1], [2], [3]]


def test_the_bar_moves_with_the_ar_steps(tmp_path, monkeypatch):
    moved, update = [], evaluation.images.tqdm.update
    monkeypatch.setattr("tqdm.tqdm.update", lambda bar, n=1: (update(bar, n), moved.append(bar.n))[0])
    run(tmp_path, num_images=8, keep_images=False)
    assert [n for n in moved if n % 4] == [2, 6]
    assert moved[-1] == 8
