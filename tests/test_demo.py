"""The demo, with fewer images and steps than `make demo` takes."""

import json
import re

import pytest
from safetensors.torch import save_file

from disa import StepSchedule, build_model, checkpoints, demo
from disa.demo import comparison, everywhere
from disa.models import MODELS
from disa.sampling import Sampling

SMALL = {
    "mar_fashion": comparison(Sampling(3, everywhere(4)), StepSchedule(3, 1), num_iter=2),
    "flowar_fashion": comparison(Sampling(None, everywhere(4), "euler"), StepSchedule(4, 1)),
    "xar_fashion": comparison(Sampling(None, everywhere(3), "euler_maruyama"), StepSchedule(3, 1)),
}
# The largest share of the fixed count's evaluations that DiSA may take.
SHARES = {"mar_fashion": 1 / 8, "flowar_fashion": 0.7, "xar_fashion": 0.7}


def evaluations(name, sampling):
    return build_model(name).evaluations(**sampling.steps)


def test_all_three_families_are_shown_with_bundled_models():
    assert list(demo.SETTINGS) == list(SHARES) and all(MODELS[name].bundled for name in SHARES)


@pytest.mark.parametrize("name", demo.SETTINGS)
def test_settings_differ_in_their_steps_alone(name):
    full, annealed, low = demo.SETTINGS[name].values()
    assert list(demo.SETTINGS[name]) == ["without DiSA", "DiSA", "low everywhere"]
    for field in ("seed", "temperature", "guidance", "sampler"):
        assert getattr(full, field) == getattr(annealed, field) == getattr(low, field)
    assert sum(evaluations(name, annealed)) <= SHARES[name] * sum(evaluations(name, full))
    assert low.num_iter == annealed.num_iter and low.schedule == demo.everywhere(annealed.schedule.lower)
    assert len(set(evaluations(name, low))) == 1 and evaluations(name, low)[-1] == evaluations(name, annealed)[-1]


@pytest.fixture
def weights(tmp_path, monkeypatch):
    """Weights of every model, for what is tested here does not depend on them."""
    folder = tmp_path / "weights"
    folder.mkdir()
    for name in SMALL:
        save_file(build_model(name).state_dict(), folder / f"{name}.safetensors")
    monkeypatch.setattr(checkpoints, "BUNDLED_WEIGHTS", folder)
    monkeypatch.setattr(demo, "SETTINGS", SMALL)


def test_demo_prints_a_table_a_model_and_writes_one_page(tmp_path, weights, monkeypatch, capsys):
    out = tmp_path / "out"
    arguments = ["--out", str(out), "--num_images", "20", "--batch_size", "10", "--device", "cpu"]
    demo.main(arguments)
    printed = capsys.readouterr().out
    page = (out / "report.html").read_text()
    for name, settings in SMALL.items():
        lines = printed.partition(f"\n{name}\n\n")[2].splitlines()[:5]
        rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines[2:]]
        assert [row[0] for row in rows] == list(settings)
        counts = [evaluations(name, sampling) for sampling in settings.values()]
        assert [(int(row[1]), int(row[2])) for row in rows] == [(len(count), sum(count)) for count in counts]
        assert f"<h2>{name}</h2>" in page
        for sampling in settings.values():
            results = json.loads((out / name / sampling.name() / "results.json").read_text())
            assert results["settings"]["model"] == name and results["num_images"] == 20 and len(results["metrics"]) == 2
    assert len(re.findall(r'<img src="data:image/png;base64,', page)) == 3 * 5  # two plots, three grids
    assert page.count("<td>low everywhere</td>") == 3
    assert not re.findall(r'(?:src|href)="(?!data:)', page)

    # Started again, with fewer models, it finds everything done.
    monkeypatch.setattr(demo.LabelSampler, "__call__", lambda *args: pytest.fail("generated again"))
    demo.main([*arguments, "--models", "flowar_fashion", "xar_fashion"])
    again = capsys.readouterr().out
    tables = printed.partition("\nmar_fashion\n\n")[2].partition("\nflowar_fashion\n\n")[2].partition("report:")[0]
    assert tables and tables in again and "mar_fashion" not in again
    assert "<h2>mar_fashion</h2>" not in (out / "report.html").read_text()


def test_missing_weights_end_the_demo_before_anything_is_generated(tmp_path, weights, monkeypatch):
    (checkpoints.BUNDLED_WEIGHTS / "xar_fashion.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="no weights of xar_fashion come with the package"):
        demo.main(["--out", str(tmp_path / "out"), "--num_images", "20", "--device", "cpu"])
    assert not (tmp_path / "out").exists()


def test_unknown_model_is_refused(capsys):
    with pytest.raises(SystemExit):
        demo.main(["--models", "mar_base"])
    assert "invalid choice: 'mar_base'" in capsys.readouterr().err
