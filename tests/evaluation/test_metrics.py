"""Scores: closed forms, torch-fidelity's own numbers, statistics files, ranks, refusals."""

import datetime
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch_fidelity
from PIL import Image
from torch._subclasses.fake_tensor import FakeTensorMode
from torch_fidelity import feature_extractor_inceptionv3
from torch_fidelity.feature_extractor_base import FeatureExtractorBase
from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3
from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
from torch_fidelity.metric_isc import isc_features_to_metric
from torch_fidelity.metric_kid import kid_features_to_metric
from torch_fidelity.registry import register_feature_extractor

from benchmarks.features import Features, extract_features, measure, statistics_of
from disa import Guidance, ImageNoise, StepSchedule, load_model
from disa.data.transforms import to_uint8
from disa.evaluation import metrics
from disa.evaluation.extractors import feature_extractor
from disa.evaluation.metrics import (
    Statistics,
    add,
    check_metrics,
    frechet_distance,
    frechet_interval,
    image_statistics,
    metric_sums,
    scores,
)
from disa.evaluation.results import Scores
from disa.runtime import distributed
from disa.runtime.files import image_files
from disa.weights.load import load_bundled_vae
from tests.conftest import load_reference
from tests.helpers.devices import OnGpu
from tests.models.test_synchronization import NoWaiting

CLASSIFIER = "fashion-classifier"


@pytest.fixture(scope="module")
def fashion():
    """60 test images of Fashion-MNIST, 6 a class."""
    return load_reference("fashion_test_60.npz")


def save_images(folder, images):
    folder.mkdir()
    for i, image in enumerate(images):
        Image.fromarray(image.numpy()).save(folder / f"{i:02d}.png")
    return folder


@pytest.fixture(scope="module")
def folders(fashion, tmp_path_factory):
    """Two folders of 30 different images each."""
    root = tmp_path_factory.mktemp("images")
    return [
        save_images(root / name, images)
        for name, images in (("ours", fashion["images"][::2]), ("real", fashion["images"][1::2]))
    ]


@pytest.fixture(scope="module")
def halves(fashion):
    """The classifier's features of the same two halves."""
    return [extract_features(fashion["images"][start::2], CLASSIFIER) for start in (0, 1)]


def gaussian(mu, variances, extractor=None):
    return Statistics(np.array(mu), np.diag(np.array(variances)), extractor=extractor)


def test_frechet_distance_of_diagonal_gaussians():
    a, b = gaussian([1.0, -2.0, 0.5], [4.0, 0.25, 9.0]), gaussian([0.0, 1.0, 0.5], [1.0, 2.25, 9.0])
    # |1|² + |3|² between the means; (2 - 1)² + (1/2 - 3/2)² between the standard deviations
    assert frechet_distance(a, b) == pytest.approx(10 + 2, abs=1e-9) == frechet_distance(b, a)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-9)


def test_frechet_distance_turns_with_the_axes():
    turn = np.array([[0.6, -0.8], [0.8, 0.6]])
    a, b = gaussian([3.0, 4.0], [4.0, 1.0]), gaussian([0.0, 0.0], [1.0, 1.0])
    turned = Statistics(turn @ a.mu, turn @ a.sigma @ turn.T)
    assert frechet_distance(turned, b) == pytest.approx(25 + 1)


def test_single_precision_files_compare_with_double_ones():
    a = Statistics(np.zeros(2, np.float32), np.eye(2, dtype=np.float32))
    assert frechet_distance(a, gaussian([3.0, 4.0], [1.0, 1.0])) == pytest.approx(25)


def test_other_extractors_are_refused_by_name():
    with pytest.raises(ValueError, match="statistics of one cannot be compared with statistics of two"):
        frechet_distance(gaussian([0.0], [1.0], "one"), gaussian([0.0], [1.0], "two"))
    assert frechet_distance(gaussian([0.0], [1.0], "one"), gaussian([2.0], [1.0])) == pytest.approx(
        4
    )  # a file may not name its own


def test_other_shapes_are_refused_by_size():
    with pytest.raises(ValueError, match="statistics of 2 features cannot be compared with statistics of 3"):
        frechet_distance(gaussian([0.0] * 2, [1.0] * 2), gaussian([0.0] * 3, [1.0] * 3))


def test_statistics_are_mean_and_unbiased_covariance():
    rows = torch.tensor([[0.0, 1.0], [2.0, 1.0], [4.0, 4.0]])
    found = statistics_of(Features(rows, rows, "name"))
    np.testing.assert_allclose(found.mu, [2, 2])
    np.testing.assert_allclose(found.sigma, [[4, 3], [3, 3]])
    assert found.extractor == "name"
    assert torch.equal(found.features, rows)


@pytest.mark.parametrize("with_features", [False, True])
def test_statistics_survive_a_file(tmp_path, halves, with_features):
    path, saved = tmp_path / "deep" / "statistics.npz", statistics_of(halves[0])
    (saved if with_features else replace(saved, features=None)).save(path)
    loaded = Statistics.load(path)
    assert list(path.parent.iterdir()) == [path]
    assert (loaded.extractor, loaded.count, loaded.resize) == (CLASSIFIER, 30, "none, 32")
    np.testing.assert_array_equal(loaded.mu, saved.mu)
    np.testing.assert_array_equal(loaded.sigma, saved.sigma)
    assert torch.equal(loaded.features, saved.features) if with_features else loaded.features is None


def test_files_of_many_images_are_half_as_large_and_give_the_same_distance(tmp_path):
    torch.manual_seed(0)
    many, few = torch.randn(900, 100) * 3, torch.randn(50, 100) * 3
    of = {len(rows): statistics_of(Features(rows, rows, "name")) for rows in (many, few)}
    for count, statistics in of.items():
        replace(statistics, features=None).save(tmp_path / f"{count}.npz")
        loaded = Statistics.load(tmp_path / f"{count}.npz")
        assert loaded.sigma.dtype == (np.float32 if count == 900 else np.float64)
        assert frechet_distance(of[900], loaded) == pytest.approx(frechet_distance(of[900], statistics), abs=1e-3)


def test_a_file_with_mu_and_sigma_alone_is_enough(tmp_path):
    np.savez(tmp_path / "statistics.npz", mu=np.ones(2), sigma=np.eye(2))
    loaded = Statistics.load(tmp_path / "statistics.npz")
    assert loaded.extractor is loaded.count is loaded.resize is loaded.features is None
    assert loaded.sigma.shape == (2, 2)
    loaded.save(tmp_path / "again.npz")
    assert sorted(np.load(tmp_path / "again.npz")) == ["mu", "sigma"]


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"no statistics file .*none.npz.*disa checkpoints fetch adm_in256_stats"
    ):
        Statistics.load(tmp_path / "none.npz")


@pytest.mark.parametrize("kept", [0.0, 0.001, 0.5, 0.99])
def test_truncated_files_are_refused(tmp_path, halves, kept):
    path = tmp_path / "statistics.npz"
    statistics_of(halves[0]).save(path)
    path.write_bytes(path.read_bytes()[: int(kept * path.stat().st_size)])
    with pytest.raises(ValueError, match=r"statistics.npz is not a statistics file"):
        Statistics.load(path)


def test_damaged_files_are_refused(tmp_path, halves):
    path = tmp_path / "statistics.npz"
    statistics_of(halves[0]).save(path)
    content = bytearray(path.read_bytes())
    content[len(content) // 4] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"statistics.npz is not a statistics file"):
        Statistics.load(path)


def test_other_files_are_refused(tmp_path):
    path = tmp_path / "statistics.npz"
    path.write_text("mu and sigma")
    with pytest.raises(ValueError, match="is not a statistics file"):
        Statistics.load(path)
    np.savez(path, mu=np.zeros(3))
    with pytest.raises(ValueError, match=r"is not a statistics file .*sigma"):
        Statistics.load(path)
    np.savez(path, mu=np.zeros(3), sigma=np.zeros((2, 2)))
    with pytest.raises(ValueError, match=r"mu \(3,\) and sigma \(2, 2\); \[D\] and \[D, D\] are needed"):
        Statistics.load(path)


def test_a_single_array_is_refused(tmp_path):
    with open(tmp_path / "statistics.npz", "wb") as file:
        np.save(file, np.zeros(3))
    with pytest.raises(ValueError, match="is not a statistics file"):
        Statistics.load(tmp_path / "statistics.npz")


class LiteOfFidelity(FeatureExtractorBase):
    """EfficientNet-Lite0 as torch-fidelity takes it."""

    def __init__(self, name, features_list, **_):
        super().__init__(name, features_list)
        self.net = feature_extractor("efficientnet-lite0")

    @staticmethod
    def get_provided_features_list():
        return "features", "logits"

    @staticmethod
    def get_default_feature_layer_for_metric(metric):
        return "logits" if metric == "isc" else "features"

    @staticmethod
    def can_be_compiled():
        return False

    def forward(self, images):
        outputs = dict(zip(("features", "logits"), self.net(images), strict=True))
        return tuple(outputs[name] for name in self.features_list)


@pytest.mark.slow
def test_scores_are_torch_fidelitys(folders):
    register_feature_extractor("lite-of-disa", LiteOfFidelity)
    ours, real = (extract_features(image_files(folder), "efficientnet-lite0", batch_size=16) for folder in folders)
    found = measure(ours, ("fid", "isc", "prc"), reference=statistics_of(real))
    expected = torch_fidelity.calculate_metrics(
        input1=str(folders[0]),
        input2=str(folders[1]),
        feature_extractor="lite-of-disa",
        batch_size=16,
        cuda=False,
        fid=True,
        isc=True,
        prc=True,
        cache=False,
        verbose=False,
        save_cpu_ram=True,  # without worker processes
    )
    assert found.extractor == "efficientnet-lite0"
    assert found.images == 30
    assert found.fid == pytest.approx(expected["frechet_inception_distance"], abs=1e-3)
    assert found.fid > 100
    assert found.inception_score_mean == pytest.approx(expected["inception_score_mean"], abs=1e-3)
    assert found.inception_score_std == pytest.approx(expected["inception_score_std"], abs=1e-3)
    assert (found.precision, found.recall) == (expected["precision"], expected["recall"])
    assert found.precision != found.recall  # so that neither could stand for the other


def test_statistics_files_give_the_distance_of_their_images(tmp_path, folders):
    ours, real = (extract_features(image_files(folder), CLASSIFIER) for folder in folders)
    statistics_of(real).save(tmp_path / "real.npz")
    images, file = (
        measure(ours, ("fid", "prc"), reference=s)
        for s in (statistics_of(real), Statistics.load(tmp_path / "real.npz"))
    )
    assert file.fid == pytest.approx(images.fid, abs=1e-9)
    assert images.fid > 1
    assert (file.precision, file.recall) == (images.precision, images.recall)


def parts(count, rng):
    """The numbers below `count` in a few groups, each in any order."""
    order = rng.permutation(count)
    return np.split(order, sorted(rng.choice(np.arange(1, count), 4, replace=False)))


@pytest.mark.parametrize("count", [7, 12, 57])
def test_scores_follow_from_sums_over_parts_in_any_order(count):
    torch.manual_seed(count)
    features, logits, labels = torch.randn(count, 5) + 3, 4 * torch.randn(count, 6), torch.randint(6, (count,))
    reference = statistics_of(Features(torch.randn(40, 5), torch.zeros(40, 6), "name"))
    metrics, total = ("fid", "isc", "accuracy"), {}
    for ids in parts(count, np.random.default_rng(count)):
        add(total, metric_sums(features[ids], logits[ids], metrics, ids, count, labels[ids]))
    found = scores(total, metrics, "name", count, reference=reference)
    expected = isc_features_to_metric(logits, splits=min(10, count))
    assert found.inception_score_mean == pytest.approx(expected["inception_score_mean"], rel=1e-12)
    assert found.inception_score_std == pytest.approx(expected["inception_score_std"], rel=1e-9, abs=1e-12)
    assert found.label_accuracy == (logits.argmax(1) == labels).double().mean()
    statistics = [fid_features_to_statistics(rows.double()) for rows in (features, reference.features)]
    assert found.fid == pytest.approx(
        fid_statistics_to_metric(*statistics, verbose=False)["frechet_inception_distance"], rel=1e-9
    )


def test_fewer_images_than_features_give_one_distance_in_any_order():
    """The covariance is singular, and roots of rounding errors would be large."""
    torch.manual_seed(0)
    features = torch.randn(20, 64).relu() * 10
    reference = statistics_of(Features(torch.randn(200, 64).relu() * 10, torch.zeros(200, 2), "name"))
    found = []
    for seed in range(5):
        total = {}
        for ids in parts(20, np.random.default_rng(seed)):
            add(total, metric_sums(features[ids], features[ids], ("fid",), ids, 20, None))
        found.append(scores(total, ("fid",), "name", 20, reference=reference).fid)
    assert max(found) - min(found) < 1e-8
    assert found[0] > 1
    statistics = [fid_features_to_statistics(rows.double()) for rows in (features, reference.features)]
    assert found[0] == pytest.approx(
        fid_statistics_to_metric(*statistics, verbose=False)["frechet_inception_distance"], abs=1e-3
    )


def test_certain_logits_add_no_nan():
    found = metric_sums(torch.zeros(4, 2), torch.eye(4) * 1e4, ("isc",), range(4), 4, None)
    assert all(torch.isfinite(value).all() for value in found.values())


@pytest.mark.parametrize("count", [60, 400])
def test_intervals_are_as_wide_as_other_images_are_apart(count):
    """On both sides of the number of features, for the two are computed differently."""
    generator = torch.Generator().manual_seed(0)

    def draw(number):
        return torch.randn(number, 100, generator=generator) * torch.linspace(0.1, 3, 100) + 0.2

    reference = statistics_of(Features(draw(5000) - 0.2, torch.zeros(5000, 1), "name"))
    samples = [draw(count) for _ in range(40)]
    distances = [frechet_distance(statistics_of(Features(rows, rows, "name")), reference) for rows in samples]
    widths = []
    for rows, distance in zip(samples[:5], distances, strict=False):
        low, high = frechet_interval(rows, reference, distance)
        assert low < distance < high
        widths.append(high - low)
    assert 0.7 < np.mean(widths) / (2 * 1.96 * np.std(distances, ddof=1)) < 1.6
    assert frechet_interval(samples[0], reference, 1.0) == frechet_interval(samples[0], reference, 1.0)


def test_intervals_of_too_few_images_are_refused():
    with pytest.raises(ValueError, match="an interval needs at least 4 images; there are 3"):
        frechet_interval(torch.randn(3, 2), gaussian([0.0] * 2, [1.0] * 2), 1.0)


def test_kid_is_torch_fidelitys(halves):
    found = measure(halves[0], ("kid",), reference=statistics_of(halves[1]))
    expected = kid_features_to_metric(halves[0].features, halves[1].features, kid_subset_size=30, verbose=False)
    assert found.kid_mean == expected["kernel_inception_distance_mean"] != 0


@pytest.mark.slow
def test_inceptions_scores_are_those_of_the_fidelity_command(tmp_path, monkeypatch, fashion):
    """On images of a bundled model, with random weights where Inception's own would lie, for they are not here."""
    model = load_model("mar_fashion")
    schedule, seeds = StepSchedule(10, 5), range(12)
    latents = model.generate(
        torch.arange(12) % 10, num_iter=8, schedule=schedule, guidance=Guidance(2.0), noise=ImageNoise(seeds, "cpu")
    )
    ours = save_images(tmp_path / "ours", to_uint8(load_bundled_vae("mar_fashion").decode(latents))[:, 0])
    real = save_images(tmp_path / "real", fashion["images"][:12])
    weights = tmp_path / "hub" / "checkpoints" / Path(URL_INCEPTION_V3).name
    weights.parent.mkdir(parents=True)
    torch.manual_seed(0)
    with monkeypatch.context() as patch:
        patch.setattr(feature_extractor_inceptionv3, "load_state_dict_from_url", lambda *_, **__: None)
        patch.setattr(torch.nn.Module, "load_state_dict", lambda *_: None)
        net = feature_extractor_inceptionv3.FeatureExtractorInceptionV3("inception-v3-compat", ["2048"])
    for module in net.modules():
        if isinstance(module, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(module.weight)
    torch.save(net.state_dict(), weights)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    features = [extract_features(image_files(folder), "inception", batch_size=8) for folder in (ours, real)]
    found = measure(features[0], ("fid", "isc", "prc"), reference=statistics_of(features[1]))
    command = [
        Path(sys.executable).parent / "fidelity",
        "--cpu",
        "--fid",
        "--isc",
        "--prc",
        "--batch-size",
        "8",
        "--no-cache",
        "--json",
    ]
    command += ["--feature-extractor", "inception-v3-compat", "--feature-layer-prc", "2048"]
    ended = subprocess.run(
        [*command, "--save-cpu-ram", "--silent", "--input1", ours, "--input2", real],
        env={**os.environ, "TORCH_HOME": str(tmp_path), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert ended.returncode == 0, ended.stderr
    expected = json.loads(ended.stdout)
    assert found.fid == pytest.approx(expected["frechet_inception_distance"], abs=1e-3)
    assert found.fid > 1e-2
    assert found.inception_score_mean == pytest.approx(expected["inception_score_mean"], abs=1e-3)
    assert found.inception_score_mean > 1
    assert (found.precision, found.recall) == (expected["precision"], expected["recall"])


def test_images_are_at_no_distance_from_themselves(halves):
    found = measure(halves[0], ("fid", "prc"), reference=statistics_of(halves[0]))
    assert abs(found.fid) < 1e-2
    assert (found.precision, found.recall) == (1, 1)


def test_noise_is_further_away_than_clothes(halves):
    noise = torch.randint(256, (30, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    far = measure(extract_features(noise, CLASSIFIER), ("fid",), reference=statistics_of(halves[1]))
    near = measure(halves[0], ("fid",), reference=statistics_of(halves[1]))
    assert far.fid > 2 * near.fid > 0


def test_files_and_tensors_have_the_same_features(folders, halves):
    found = extract_features(image_files(folders[0]), CLASSIFIER, batch_size=64)
    assert found.features.dtype == torch.float32
    assert torch.equal(found.features, halves[0].features)
    assert torch.equal(found.logits, halves[0].logits)


def test_inception_score_of_fewer_images_than_splits():
    sure = torch.eye(4) * 100
    found = measure(Features(sure, sure, "name"), ("isc",))
    assert found.inception_score_mean == pytest.approx(1)
    assert found.inception_score_std == pytest.approx(0)


def test_label_accuracy_counts_the_largest_logits():
    logits = torch.tensor([[0.1, 0.9], [0.8, 0.2], [0.3, 0.4], [5.0, 4.0]])
    found = measure(Features(logits, logits, "name"), ("accuracy",), labels=torch.tensor([1, 1, 1, 0]))
    assert found == Scores("name", 4, label_accuracy=0.75)


@pytest.mark.parametrize(
    ("metrics", "reference", "named"),
    [
        (("fid", "lpips"), None, "metrics has 'lpips'; allowed are fid, isc, kid, prc, accuracy"),
        (("fid",), None, "fid needs a reference"),
        (("prc",), None, "prc: the reference has no features"),
        (("prc",), gaussian([0.0] * 128, [1.0] * 128), "mu and sigma alone has none, give images"),
        (("accuracy",), None, "accuracy needs the labels"),
        (
            ("fid",),
            gaussian([0.0] * 128, [1.0] * 128, "inception"),
            "statistics of fashion-classifier .* statistics of inception",
        ),
    ],
)
def test_metrics_without_what_they_need_are_refused(halves, metrics, reference, named):
    with pytest.raises(ValueError, match=named):
        measure(halves[0], metrics, reference=reference)


def test_unreadable_images_are_named(tmp_path, fashion):
    folder = save_images(tmp_path / "images", fashion["images"][:3])
    broken = folder / "01.png"
    broken.write_bytes(broken.read_bytes()[: broken.stat().st_size // 2])
    with pytest.raises(ValueError, match=r"01.png cannot be read as an image"):
        extract_features(image_files(folder), CLASSIFIER)
    broken.write_text("no picture")
    with pytest.raises(ValueError, match=r"01.png cannot be read as an image"):
        extract_features(image_files(folder), CLASSIFIER)


@pytest.mark.parametrize("images", [[], torch.zeros(0, 32, 32, dtype=torch.uint8)])
def test_no_images_are_refused(images):
    with pytest.raises(ValueError, match="no images"):
        extract_features(images, CLASSIFIER)


@pytest.mark.slow
@pytest.mark.distributed
def test_two_ranks_extract_what_one_does(tmp_path, fashion):
    save_images(tmp_path / "images", fashion["images"][:7])
    command = [
        sys.executable,
        "-c",
        "import sys; from tests.evaluation.test_metrics import extract_as_rank; extract_as_rank(1, sys.argv[1])",
    ]
    other = subprocess.Popen([*command, str(tmp_path)], env={**os.environ, "OMP_NUM_THREADS": "1"})
    try:
        extract_as_rank(0, tmp_path)
        assert other.wait(timeout=60) == 0
    finally:
        other.kill()
    for count in (7, 1):  # neither divides by two; of one image, a rank has none
        alone = extract_features(fashion["images"][:count], CLASSIFIER, batch_size=2)
        first, second = (torch.load(tmp_path / f"{count}-rank{rank}.pt", weights_only=True) for rank in range(2))
        assert first["rows"] == list(range(count // 2))
        assert second["rows"] == list(range(count // 2, count))
        for name in ("features", "logits"):
            assert torch.equal(first[name], second[name])
            torch.testing.assert_close(first[name], getattr(alone, name), rtol=1e-4, atol=1e-4)


class Seen(list):
    """Paths, and which of them were read."""

    def __init__(self, paths):
        super().__init__(paths)
        self.rows = []

    def __getitem__(self, rows):
        self.rows += range(*rows.indices(len(self)))
        return super().__getitem__(rows)


def extract_as_rank(rank, folder):
    torch.set_num_threads(1)
    # The ranks meet in a file, which needs no free port.
    meeting = f"file://{folder}/ranks"
    dist.init_process_group(
        "gloo", init_method=meeting, rank=rank, world_size=2, timeout=datetime.timedelta(seconds=60)
    )
    try:
        for count in (7, 1):
            paths = Seen(image_files(Path(folder) / "images")[:count])
            found = extract_features(paths, CLASSIFIER, batch_size=2)
            torch.save(
                {"features": found.features, "logits": found.logits, "rows": paths.rows},
                f"{folder}/{count}-rank{rank}.pt",
            )
    finally:
        distributed.shutdown()


def test_images_of_different_sizes_are_named(tmp_path):
    for name, size in (("a", 32), ("b", 24)):
        Image.new("L", (size, size)).save(tmp_path / f"{name}.png")
    with pytest.raises(ValueError, match=r"b.png is 24×24, others are 32×32"):
        extract_features([tmp_path / "a.png", tmp_path / "b.png"], "fashion-classifier")


def test_images_with_an_odd_number_of_channels_are_refused():
    with pytest.raises(ValueError, match=r"images are \[2, 4, 32, 32\]"):
        extract_features(torch.zeros(2, 4, 32, 32, dtype=torch.uint8), "fashion-classifier")


@pytest.mark.parametrize(("metric", "least"), [("fid", 2), ("isc", 1), ("kid", 2), ("prc", 4), ("accuracy", 1)])
def test_the_fewest_images_of_a_metric(metric, least):
    check_metrics([metric], least)
    with pytest.raises(ValueError, match=f"{metric} needs at least {least} images; there are {least - 1}"):
        check_metrics([metric], least - 1)


@pytest.mark.parametrize(("count", "dtype"), [(None, np.float64), (8, np.float64), (9, np.float32)])
def test_single_precision_is_for_more_than_four_images_a_feature(tmp_path, count, dtype):
    replace(gaussian([0.0, 1.0], [1.0, 2.0]), count=count).save(tmp_path / "a.npz")
    with np.load(tmp_path / "a.npz") as file:
        assert file["mu"].dtype == file["sigma"].dtype == dtype
        assert set(file) == ({"mu", "sigma"} if count is None else {"mu", "sigma", "count"})


def test_statistics_of_images_on_disk(tmp_path, fashion):
    wide = torch.nn.functional.pad(fashion["images"][:5], (8, 8, 0, 0), value=255)
    plain, padded = (
        image_files(save_images(tmp_path / name, x)) for name, x in (("a", fashion["images"][:5]), ("b", wide))
    )
    expected = image_statistics(plain, CLASSIFIER, keep_features=True, batch_size=2, device="cpu")
    assert (expected.count, expected.extractor, expected.resize) == (5, CLASSIFIER, "none, 32")
    assert expected.features.shape == (5, 128)
    assert np.allclose(expected.mu, expected.features.double().mean(0))
    assert np.allclose(expected.sigma, expected.features.double().T.cov(), atol=1e-6)
    cropped = image_statistics(padded, CLASSIFIER, keep_features=False, batch_size=3, device="cpu", crop=32)
    assert (cropped.count, cropped.features, cropped.resize) == (5, None, "central square of 32, none, 32")
    assert np.allclose(cropped.mu, expected.mu, atol=1e-5)
    with pytest.raises(ValueError, match="statistics need at least 2 images; there are 1"):
        image_statistics(plain[:1], CLASSIFIER, keep_features=True, batch_size=2, device="cpu")
    assert image_statistics(plain[:2], CLASSIFIER, keep_features=False, batch_size=2, device="cpu").count == 2


def test_ranks_send_sums_from_main_memory(monkeypatch):
    """Those of a GPU would arrive on it."""
    sent = []
    features = torch.randn(3, 4).as_subclass(OnGpu)
    monkeypatch.setattr(metrics, "feature_batches", lambda *_: [(features, None), (features, None)])
    monkeypatch.setattr(distributed, "gather_to_main", lambda value: sent.append(value) or [value])
    found = image_statistics(torch.zeros(6, 8, 8), CLASSIFIER, keep_features=True, batch_size=3, device="cpu")
    sums, rows = sent[0]
    assert {type(value) for value in (*sums.values(), *rows)} == {torch.Tensor}
    assert found.count == len(found.features) == 6


def test_only_what_was_asked_for_is_summed():
    logits, labels = torch.tensor([[0.0, 1.0], [2.0, 1.0]]), torch.tensor([1, 1])
    assert metric_sums(logits, logits, ("kid", "prc"), [0, 1], 2, labels) == {}
    assert metric_sums(logits, logits, ("fid",), [0, 1], 2, None).keys() == {"count", "features", "products"}
    right = metric_sums(logits, logits, ("accuracy",), [0, 1], 2, labels)
    assert right == {"right": torch.tensor(1.0)}
    assert right["right"].dtype == torch.float64


def test_sums_stay_on_the_gpu_and_nothing_waits_for_it():
    total = {}
    with FakeTensorMode(allow_non_fake_inputs=True):
        features, logits = (torch.empty(4, size, device="cuda") for size in (5, 10))
        with NoWaiting() as watched:
            for first in (0, 4):
                ids, labels = list(range(first, first + 4)), torch.zeros(4, dtype=torch.long)
                add(total, metric_sums(features, logits, ("fid", "isc", "accuracy"), ids, 8, labels))
    assert len(total) == 7
    assert {(value.device.type, value.dtype) for value in total.values()} == {("cuda", torch.float64)}
    assert watched.copies == 2 * 2  # the images' splits, and their labels


def test_sums_of_an_apple_gpu_are_on_the_cpu():
    """It has no float64."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        features, labels = torch.empty(4, 10, device="mps"), torch.zeros(4, dtype=torch.long)
        sums = metric_sums(features, features, ("fid", "isc", "accuracy"), [0, 1, 2, 3], 8, labels)
    assert {(value.device.type, value.dtype) for value in sums.values()} == {("cpu", torch.float64)}


def test_the_splits_of_the_inception_score_are_torch_fidelitys():
    """Image i of 25 is at place p of the shuffled order, whose tenths end at floor(25 · k / 10)."""
    logits = torch.eye(25)
    order = np.random.RandomState(2020).permutation(25)
    sums = metric_sums(logits, logits, ("isc",), list(range(25)), 25, None)
    for split in range(10):
        chosen = order[split * 25 // 10 : (split + 1) * 25 // 10]
        assert sums["images"][split] == len(chosen)
        p = logits[chosen].double().softmax(1)
        assert torch.allclose(sums["probabilities"][split], p.sum(0))
        assert torch.allclose(sums["negentropies"][split], (p * p.log()).sum())


def test_an_interval_does_not_begin_below_zero():
    features = torch.randn(40, 3, generator=torch.Generator().manual_seed(0))
    low, high = frechet_interval(features, gaussian([0.0] * 3, [1.0] * 3), 0.001)
    assert low == 0.0 < 0.001 < high
    low, high = frechet_interval(features, gaussian([0.0] * 3, [1.0] * 3), 9.0)
    assert high - 9 == pytest.approx(9 - low)
    assert frechet_interval(features[:4], gaussian([0.0] * 3, [1.0] * 3), 9.0)[1] > 9
    with pytest.raises(ValueError, match="an interval needs at least 4 images; there are 3"):
        frechet_interval(features[:3], gaussian([0.0] * 3, [1.0] * 3), 9.0)


def test_statistics_need_a_mean_and_a_covariance_alone():
    found = Statistics(np.zeros(2), np.eye(2))
    assert [getattr(found, name) for name in ("count", "extractor", "resize", "features")] == [None] * 4
