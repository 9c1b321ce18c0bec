"""What is measured by which flags."""

import dataclasses

import pytest
import torch
from PIL import Image

from disa import spaces
from disa.features import EXTRACTORS, WIDTH
from disa.metrics import Features, Statistics
from disa.spaces import Space, choose_spaces


@pytest.fixture
def place(tmp_path, monkeypatch):
    """An empty working directory without bundled statistics, where Inception is missing."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(spaces, "BUNDLED_STATISTICS", tmp_path / "bundled")
    monkeypatch.setattr(spaces, "WIDTH", dict.fromkeys(WIDTH, 2))  # the statistics here are small
    monkeypatch.setitem(EXTRACTORS, "inception", (*EXTRACTORS["inception"][:2], lambda: "its weights are away"))
    return tmp_path


@pytest.fixture
def with_inception(place, monkeypatch):
    monkeypatch.setitem(EXTRACTORS, "inception", (*EXTRACTORS["inception"][:2], lambda: None))
    return place


def statistics(path, features=False, extractor=None):
    rows = torch.arange(8.0).reshape(4, 2)
    found = Statistics.of(Features(rows, rows, extractor))
    (found if features else dataclasses.replace(found, features=None)).save(path)
    return str(path)


def picture_folder(path):
    path.mkdir()
    Image.new("L", (32, 32)).save(path / "0.png")
    return str(path)


def bundle(place, features=False):
    return [
        statistics(place / "bundled" / f"fashion_test_{name}.npz", features, name) for name in ("efficientnet-lite0", "fashion-classifier")
    ]


def test_auto_takes_the_bundled_spaces_and_statistics(place):
    files = bundle(place)
    found, left_out = choose_spaces("auto", "auto", "auto", bundled=True)
    assert found == [
        Space("efficientnet-lite0", ("fid", "isc"), files[0]),
        Space("fashion-classifier", ("fid", "accuracy"), files[1]),
    ]
    assert left_out == [] and [space.reference_name for space in found] == [
        "fashion_test_efficientnet-lite0.npz",
        "fashion_test_fashion-classifier.npz",
    ]


def test_auto_takes_precision_and_recall_from_statistics_with_features(place):
    bundle(place, features=True)
    found, _ = choose_spaces("auto", "auto", "auto", bundled=True)
    assert [space.metrics for space in found] == [("fid", "isc", "kid", "prc"), ("fid", "kid", "prc", "accuracy")]


def test_auto_without_statistics_leaves_fid_out_and_says_so(place):
    found, left_out = choose_spaces("auto", "auto", "auto", bundled=True)
    assert found == [Space("efficientnet-lite0", ("isc",), None), Space("fashion-classifier", ("accuracy",), None)]
    assert found[0].reference_name is None
    assert [sentence.split(":")[0] for sentence in left_out] == ["no fid in efficientnet-lite0", "no fid in fashion-classifier"]


def test_auto_leaves_a_missing_extractor_out_and_says_why(place):
    assert choose_spaces("auto", "auto", "auto", bundled=False) == ([], ["nothing is measured in inception: its weights are away"])


@pytest.mark.parametrize("there", spaces.IMAGENET_STATISTICS)
def test_auto_finds_imagenets_statistics(with_inception, there):
    statistics(with_inception / there)
    assert choose_spaces("auto", "auto", "auto", bundled=False) == ([Space("inception", ("fid", "isc"), there)], [])


def test_auto_without_imagenets_statistics_says_how_to_get_them(with_inception):
    found, (sentence,) = choose_spaces("auto", "auto", "auto", bundled=False)
    assert found == [Space("inception", ("isc",), None)] and "disa checkpoints fetch adm_in256_stats" in sentence


def test_imagenets_statistics_are_inceptions_alone(with_inception):
    statistics(with_inception / spaces.IMAGENET_STATISTICS[0])
    found, _ = choose_spaces("auto", "efficientnet-lite0", "auto", bundled=False)
    assert found == [Space("efficientnet-lite0", ("isc",), None)]


def test_none_measures_nothing(place):
    assert choose_spaces("none", "auto", "auto", bundled=True) == ([], [])


def test_unknown_names_are_refused(place):
    with pytest.raises(ValueError, match="--metrics has 'lpips'; allowed are fid, isc, kid, prc, accuracy, auto and none"):
        choose_spaces("isc,lpips", "auto", "auto", bundled=True)
    with pytest.raises(ValueError, match="features are 'vgg'; allowed are"):
        choose_spaces("auto", "fashion-classifier,vgg", "auto", bundled=True)


@pytest.mark.parametrize(("metrics", "features"), [("auto", "inception"), ("isc", "inception"), ("isc", "auto")])
def test_a_missing_extractor_that_was_asked_for_is_refused(place, metrics, features):
    with pytest.raises(FileNotFoundError, match="--features inception: its weights are away"):
        choose_spaces(metrics, features, "auto", bundled=False)


@pytest.mark.parametrize("metric", ["fid", "prc"])
def test_metrics_that_lack_their_reference_are_refused(place, metric):
    with pytest.raises(ValueError, match=f"--metrics {metric} in efficientnet-lite0 needs a reference.*give --reference"):
        choose_spaces(metric, "efficientnet-lite0", "auto", bundled=True)


def test_precision_and_recall_need_features(place):
    file = statistics(place / "real.npz")
    with pytest.raises(ValueError, match="--metrics prc in fashion-classifier needs a reference with features, such as images"):
        choose_spaces("fid,prc", "fashion-classifier", file, bundled=True)
    file = statistics(place / "real.npz", features=True)
    assert choose_spaces("fid,prc", "fashion-classifier", file, bundled=True)[0] == [Space("fashion-classifier", ("fid", "prc"), file)]


def test_a_folder_of_images_is_a_reference_for_all(place):
    folder = picture_folder(place / "real")
    found, left_out = choose_spaces("auto", "auto", folder, bundled=True)
    assert left_out == [] and found == [
        Space("efficientnet-lite0", ("fid", "isc", "kid", "prc"), folder),
        Space("fashion-classifier", ("fid", "kid", "prc", "accuracy"), folder),
    ]
    assert choose_spaces("prc", "efficientnet-lite0", folder, bundled=False)[0] == [Space("efficientnet-lite0", ("prc",), folder)]


def test_a_missing_reference_is_named(place):
    with pytest.raises(FileNotFoundError, match="there is no --reference nowhere.npz"):
        choose_spaces("auto", "auto", "nowhere.npz", bundled=True)


def test_a_reference_that_is_no_statistics_file_is_refused(place):
    (place / "real.npz").write_text("no arrays")
    with pytest.raises(ValueError, match="real.npz is not a statistics file"):
        choose_spaces("auto", "fashion-classifier", "real.npz", bundled=True)


def test_metrics_that_no_space_can_have_are_refused(with_inception):
    with pytest.raises(ValueError, match="--metrics accuracy cannot be measured in inception; choose other --features"):
        choose_spaces("isc,accuracy", "inception", "auto", bundled=False)
    with pytest.raises(ValueError, match="--metrics isc cannot be measured in fashion-classifier"):
        choose_spaces("isc", "fashion-classifier", "auto", bundled=True)


def test_each_space_has_the_metrics_that_it_can_have(place):
    files = bundle(place)
    found, left_out = choose_spaces("accuracy,isc,fid", "auto", "auto", bundled=True)
    assert left_out == [] and found == [
        Space("efficientnet-lite0", ("isc", "fid"), files[0]),
        Space("fashion-classifier", ("accuracy", "fid"), files[1]),
    ]


def test_a_reference_of_another_extractor_is_refused_before_anything_is_generated(place):
    file = statistics(place / "real.npz", extractor="efficientnet-lite0")
    with pytest.raises(ValueError, match="real.npz holds statistics of efficientnet-lite0, not of fashion-classifier"):
        choose_spaces("auto", "fashion-classifier", file, bundled=True)
    found, left_out = choose_spaces("fid", "auto", file, bundled=True)
    assert found == [Space("efficientnet-lite0", ("fid",), file)]
    assert left_out == [
        f"nothing is measured in fashion-classifier: {file} holds statistics of efficientnet-lite0, not of fashion-classifier"
    ]


def test_a_reference_without_features_or_images_says_so(place):
    _, (sentence,) = choose_spaces("auto", "fashion-classifier", statistics(place / "real.npz"), bundled=True)
    assert sentence.startswith("no precision and recall in fashion-classifier")
    (place / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="no images in .*empty"):
        choose_spaces("auto", "fashion-classifier", str(place / "empty"), bundled=True)


def test_spaces_that_have_nothing_to_measure_are_left_away(place):
    found, _ = choose_spaces("accuracy,accuracy", "auto", "auto", bundled=True)
    assert found == [Space("fashion-classifier", ("accuracy",), None)]


def test_references_are_told_apart_by_their_content(place):
    first = Space("fashion-classifier", ("fid",), statistics(place / "real.npz")).reference_digest()
    assert Space("fashion-classifier", ("fid",), statistics(place / "real.npz", features=True)).reference_digest() != first
    folder = picture_folder(place / "real")
    listed = Space("fashion-classifier", ("fid",), folder).reference_digest()
    Image.new("L", (32, 32)).save(place / "real" / "1.png")
    assert Space("fashion-classifier", ("fid",), folder).reference_digest() != listed
