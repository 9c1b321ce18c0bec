"""What is measured by which flags."""

import dataclasses
import hashlib
from pathlib import Path

import pytest
import torch
from PIL import Image

from benchmarks.features import Features, statistics_of
from disa.evaluation.extractors import EXTRACTORS
from disa.evaluation.metrics import Statistics
from disa.evaluation.plan import IMAGENET_STATISTICS, MetricSpec, plan_metrics, reference_statistics

SMALL = {name: dataclasses.replace(one, width=2) for name, one in EXTRACTORS.items()}  # the statistics here are small
WIDER = {name: dataclasses.replace(one, width=3, missing=lambda: None) for name, one in EXTRACTORS.items()}


@pytest.fixture
def place(tmp_path, monkeypatch):
    """An empty working directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def plan(*flags, bundled, inception="its weights are away"):
    """`plan_metrics` with the bundled statistics in the working directory; `inception` says why it is missing."""
    extractors = {**SMALL, "inception": dataclasses.replace(SMALL["inception"], missing=lambda: inception)}
    return plan_metrics(*flags, bundled=bundled, extractors=extractors, statistics=Path.cwd() / "bundled")


def statistics(path, features=False, extractor=None):
    rows = torch.arange(8.0).reshape(4, 2)
    found = statistics_of(Features(rows, rows, extractor))
    (found if features else dataclasses.replace(found, features=None)).save(path)
    return str(path)


def picture_folder(path):
    path.mkdir()
    Image.new("L", (32, 32)).save(path / "0.png")
    return str(path)


def bundle(place, features=False):
    return [
        statistics(place / "bundled" / f"fashion_test_{name}.npz", features, name)
        for name in ("efficientnet-lite0", "fashion-classifier")
    ]


def test_auto_takes_the_bundled_spaces_and_statistics(place):
    files = bundle(place)
    found, left_out = plan("auto", "auto", "auto", bundled=True)
    assert found == [
        MetricSpec("efficientnet-lite0", ("fid", "isc"), files[0]),
        MetricSpec("fashion-classifier", ("fid", "accuracy"), files[1]),
    ]
    assert left_out == []
    assert [spec.reference_name for spec in found] == [
        "fashion_test_efficientnet-lite0.npz",
        "fashion_test_fashion-classifier.npz",
    ]


def test_auto_takes_precision_and_recall_from_statistics_with_features(place):
    bundle(place, features=True)
    found, _ = plan("auto", "auto", "auto", bundled=True)
    assert [spec.metrics for spec in found] == [("fid", "isc", "kid", "prc"), ("fid", "kid", "prc", "accuracy")]


@pytest.mark.usefixtures("place")
def test_auto_without_statistics_leaves_fid_out_and_says_so():
    found, left_out = plan("auto", "auto", "auto", bundled=True)
    assert found == [
        MetricSpec("efficientnet-lite0", ("isc",), None),
        MetricSpec("fashion-classifier", ("accuracy",), None),
    ]
    assert found[0].reference_name is None
    assert [sentence.split(":")[0] for sentence in left_out] == [
        "no fid in efficientnet-lite0",
        "no fid in fashion-classifier",
    ]


@pytest.mark.usefixtures("place")
def test_auto_leaves_a_missing_extractor_out_and_says_why():
    assert plan("auto", "auto", "auto", bundled=False) == (
        [],
        ["nothing is measured in inception: its weights are away"],
    )


@pytest.mark.parametrize("there", IMAGENET_STATISTICS)
def test_auto_finds_imagenets_statistics(place, there):
    statistics(place / there)
    assert plan("auto", "auto", "auto", bundled=False, inception=None) == (
        [MetricSpec("inception", ("fid", "isc"), there)],
        [],
    )


def test_auto_finds_imagenets_statistics_in_the_shared_folder(place, monkeypatch):
    monkeypatch.setenv("DISA_WEIGHTS", str(place / "weights"))
    statistics(place / "weights" / IMAGENET_STATISTICS[0])
    ((spec,), _) = plan("auto", "auto", "auto", bundled=False, inception=None)
    assert spec.reference == str(place / "weights" / IMAGENET_STATISTICS[0])


@pytest.mark.usefixtures("place")
def test_auto_without_imagenets_statistics_says_how_to_get_them():
    found, (sentence,) = plan("auto", "auto", "auto", bundled=False, inception=None)
    assert found == [MetricSpec("inception", ("isc",), None)]
    assert "disa checkpoints fetch adm_in256_stats" in sentence


def test_imagenets_statistics_are_inceptions_alone(place):
    statistics(place / IMAGENET_STATISTICS[0])
    found, _ = plan("auto", "efficientnet-lite0", "auto", bundled=False, inception=None)
    assert found == [MetricSpec("efficientnet-lite0", ("isc",), None)]


@pytest.mark.usefixtures("place")
def test_none_measures_nothing():
    assert plan("none", "auto", "auto", bundled=True) == ([], [])


@pytest.mark.usefixtures("place")
def test_unknown_names_are_refused():
    with pytest.raises(
        ValueError, match="--metrics has 'lpips'; allowed are fid, isc, kid, prc, accuracy, auto and none"
    ):
        plan("isc,lpips", "auto", "auto", bundled=True)
    with pytest.raises(ValueError, match="features are 'vgg'; allowed are"):
        plan("auto", "fashion-classifier,vgg", "auto", bundled=True)


@pytest.mark.parametrize(("metrics", "features"), [("auto", "inception"), ("isc", "inception"), ("isc", "auto")])
@pytest.mark.usefixtures("place")
def test_a_missing_extractor_that_was_asked_for_is_refused(metrics, features):
    with pytest.raises(FileNotFoundError, match="--features inception: its weights are away"):
        plan(metrics, features, "auto", bundled=False)


@pytest.mark.parametrize("metric", ["fid", "prc"])
@pytest.mark.usefixtures("place")
def test_metrics_that_lack_their_reference_are_refused(metric):
    with pytest.raises(
        ValueError, match=f"--metrics {metric} in efficientnet-lite0 needs a reference.*give --reference"
    ):
        plan(metric, "efficientnet-lite0", "auto", bundled=True)


def test_precision_and_recall_need_features(place):
    file = statistics(place / "real.npz")
    with pytest.raises(
        ValueError, match="--metrics prc in fashion-classifier needs a reference with features, such as images"
    ):
        plan("fid,prc", "fashion-classifier", file, bundled=True)
    file = statistics(place / "real.npz", features=True)
    assert plan("fid,prc", "fashion-classifier", file, bundled=True)[0] == [
        MetricSpec("fashion-classifier", ("fid", "prc"), file)
    ]


def test_a_folder_of_images_is_a_reference_for_all(place):
    folder = picture_folder(place / "real")
    found, left_out = plan("auto", "auto", folder, bundled=True)
    assert left_out == []
    assert found == [
        MetricSpec("efficientnet-lite0", ("fid", "isc", "kid", "prc"), folder),
        MetricSpec("fashion-classifier", ("fid", "kid", "prc", "accuracy"), folder),
    ]
    assert plan("prc", "efficientnet-lite0", folder, bundled=False)[0] == [
        MetricSpec("efficientnet-lite0", ("prc",), folder)
    ]


@pytest.mark.usefixtures("place")
def test_a_missing_reference_is_named():
    with pytest.raises(FileNotFoundError, match=r"there is no --reference nowhere.npz"):
        plan("auto", "auto", "nowhere.npz", bundled=True)


def test_a_reference_that_is_no_statistics_file_is_refused(place):
    (place / "real.npz").write_text("no arrays")
    with pytest.raises(ValueError, match=r"real.npz is not a statistics file"):
        plan("auto", "fashion-classifier", "real.npz", bundled=True)


@pytest.mark.usefixtures("place")
def test_metrics_that_no_space_can_have_are_refused():
    with pytest.raises(ValueError, match="--metrics accuracy cannot be measured in inception; choose other --features"):
        plan("isc,accuracy", "inception", "auto", bundled=False, inception=None)
    with pytest.raises(ValueError, match="--metrics isc cannot be measured in fashion-classifier"):
        plan("isc", "fashion-classifier", "auto", bundled=True, inception=None)


def test_each_space_has_the_metrics_that_it_can_have(place):
    files = bundle(place)
    found, left_out = plan("accuracy,isc,fid", "auto", "auto", bundled=True)
    assert left_out == []
    assert found == [
        MetricSpec("efficientnet-lite0", ("isc", "fid"), files[0]),
        MetricSpec("fashion-classifier", ("accuracy", "fid"), files[1]),
    ]


def test_a_reference_of_another_extractor_is_refused_before_anything_is_generated(place):
    file = statistics(place / "real.npz", extractor="efficientnet-lite0")
    with pytest.raises(ValueError, match=r"real.npz holds statistics of efficientnet-lite0, not of fashion-classifier"):
        plan("auto", "fashion-classifier", file, bundled=True)
    found, left_out = plan("fid", "auto", file, bundled=True)
    assert found == [MetricSpec("efficientnet-lite0", ("fid",), file)]
    misfit = f"{file} holds statistics of efficientnet-lite0, not of fashion-classifier"
    assert left_out == [f"nothing is measured in fashion-classifier: {misfit}"]


def test_a_reference_without_features_or_images_says_so(place):
    _, (sentence,) = plan("auto", "fashion-classifier", statistics(place / "real.npz"), bundled=True)
    assert sentence.startswith("no precision and recall in fashion-classifier")
    (place / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"no images in .*empty"):
        plan("auto", "fashion-classifier", str(place / "empty"), bundled=True)


@pytest.mark.usefixtures("place")
def test_spaces_that_have_nothing_to_measure_are_left_away():
    found, _ = plan("accuracy,accuracy", "auto", "auto", bundled=True)
    assert found == [MetricSpec("fashion-classifier", ("accuracy",), None)]


def test_references_are_told_apart_by_their_content(place):
    first = MetricSpec("fashion-classifier", ("fid",), statistics(place / "real.npz")).reference_digest()
    assert (
        MetricSpec("fashion-classifier", ("fid",), statistics(place / "real.npz", features=True)).reference_digest()
        != first
    )
    folder = picture_folder(place / "real")
    listed = MetricSpec("fashion-classifier", ("fid",), folder).reference_digest()
    Image.new("L", (32, 32)).save(place / "real" / "1.png")
    assert MetricSpec("fashion-classifier", ("fid",), folder).reference_digest() != listed


@pytest.mark.parametrize(
    ("metrics", "intervals", "expected"),
    [
        (("isc",), True, False),
        (("fid",), False, False),
        (("fid",), True, True),
        (("fid", "kid"), False, True),
        (("prc",), False, True),
    ],
)
def test_features_are_kept_where_sums_do_not_do(metrics, intervals, expected):
    assert MetricSpec("inception", metrics, None).keeps_features(intervals) is expected


def test_a_spec_is_written_without_its_folder(place):
    file = statistics(place / "real.npz")
    spec = MetricSpec("inception", ("fid",), file)
    digest = hashlib.sha256((place / "real.npz").read_bytes()).hexdigest()[:12]
    assert spec.to_dict() == {"extractor": "inception", "metrics": ("fid",), "reference": "real.npz", "digest": digest}
    assert MetricSpec("inception", ("isc",), None).to_dict() == {
        "extractor": "inception",
        "metrics": ("isc",),
        "reference": None,
        "digest": None,
    }
    folder = picture_folder(place / "real")
    listing = repr([("0.png", (place / "real" / "0.png").stat().st_size)])
    expected = hashlib.sha256(listing.encode()).hexdigest()[:12]
    assert MetricSpec("inception", ("fid",), folder).reference_digest() == expected


def test_statistics_of_another_width_are_refused(place):
    file = statistics(place / "real.npz")
    with pytest.raises(ValueError, match=r"real.npz holds statistics of 2 features, and inception has 3"):
        plan_metrics("fid", "inception", file, bundled=False, extractors=WIDER, statistics=place)
    with pytest.raises(
        ValueError, match=r"--reference fits none of efficientnet-lite0, fashion-classifier; nothing is"
    ):
        plan_metrics("auto", "auto", file, bundled=True, extractors=WIDER, statistics=place)


def test_names_are_taken_once_and_in_their_order(place):
    bundle(place)
    found, _ = plan("isc,fid,isc", "efficientnet-lite0,efficientnet-lite0", "auto", bundled=True)
    assert [(spec.extractor, spec.metrics) for spec in found] == [("efficientnet-lite0", ("isc", "fid"))]


def test_gaps_say_how_to_fill_them(place):
    _, (sentence,) = plan("auto", "fashion-classifier", "auto", bundled=True)
    assert sentence == (
        "no fid in fashion-classifier: there is no reference; give --reference, or make one with `disa stats`"
    )
    file = statistics(place / "real.npz")
    _, (sentence,) = plan("auto", "fashion-classifier", file, bundled=True)
    assert sentence == f"no precision and recall in fashion-classifier: {file} holds no features; give images"


def test_statistics_to_compare_with(place):
    cpu = torch.device("cpu")
    assert reference_statistics(MetricSpec("fashion-classifier", ("isc",), None), 4, cpu) is None
    file = statistics(place / "real.npz")
    found = reference_statistics(MetricSpec("fashion-classifier", ("fid",), file), 4, cpu)
    assert found.mu.tolist() == Statistics.load(file).mu.tolist()
    folder = picture_folder(place / "real")
    Image.new("L", (32, 32), 255).save(place / "real" / "1.png")
    for metrics, kept in ((("fid",), False), (("fid", "prc"), True)):
        found = reference_statistics(MetricSpec("fashion-classifier", metrics, folder), 4, cpu)
        assert found.extractor == "fashion-classifier"
        assert (found.features is not None) is kept
