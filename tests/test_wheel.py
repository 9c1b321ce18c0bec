"""The built wheel, outside the clone: with the core dependencies alone, and with an extra."""

import shutil
import statistics
import subprocess
import sys
import sysconfig
import time
import venv
import zipfile
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from PIL import Image

from disa.generation.images import read_metadata
from tests.helpers.processes import ROOT

pytestmark = pytest.mark.slow

HIDE_FCNTL = "import sys; sys.modules['fcntl'] = None; "


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel, built from a copy of the tree: setuptools leaves a folder behind, from which it would build again."""
    source = tmp_path_factory.mktemp("source")
    shutil.copytree(ROOT / "disa", source / "disa", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    command = ["-m", "pip", "wheel", "--quiet", "--no-deps", "--no-index", "--no-build-isolation", "--wheel-dir", "."]
    subprocess.run([sys.executable, *command, "."], cwd=source, check=True)
    (built,) = source.glob("*.whl")
    return built


def needed(requirements, extras=(), found=None):
    """The names of the distributions here that `requirements` ask for, with `extras`, and that these need in turn."""
    found = {} if found is None else found
    for requirement in map(Requirement, requirements):
        environments = [{"extra": extra} for extra in ("", *extras)]
        wanted = requirement.marker is None or any(map(requirement.marker.evaluate, environments))
        key = (requirement.name.lower().replace("_", "-"), *sorted(requirement.extras))
        if wanted and key not in found:
            found[key] = requirement.name
            needed(metadata.requires(requirement.name) or (), requirement.extras, found)
    return set(found.values())


def install(wheel, folder, *extras):
    """A new environment with the wheel, and what it needs linked from here; returns its Python."""
    venv.create(folder, symlinks=True)
    places = sysconfig.get_paths(vars={"base": str(folder), "platbase": str(folder)})
    (info,) = (path for path in zipfile.Path(wheel).iterdir() if path.name.endswith(".dist-info"))
    for name in needed(metadata.PathDistribution(info).requires, extras):
        distribution = metadata.distribution(name)
        for top in {path.parts[0] for path in distribution.files} - {"..", "__pycache__"}:
            link, target = Path(places["purelib"], top), Path(distribution.locate_file(top))
            if target.suffix != ".pth" and not link.exists():
                link.symlink_to(target)
    python = Path(places["scripts"], "python")
    pip = [sys.executable, "-m", "pip", "--python", str(python), "--disable-pip-version-check"]
    subprocess.run([*pip, "install", "--quiet", "--no-deps", "--no-index", str(wheel)], check=True)
    subprocess.run([*pip, "check"], check=True)
    return python


@pytest.fixture(scope="module")
def core(wheel, tmp_path_factory):
    return install(wheel, tmp_path_factory.mktemp("core"))


def run(python, *words, cwd, code=0):
    """Run Python, or a script beside it, with nothing of the clone in reach."""
    ended = subprocess.run([str(python), *words], cwd=cwd, env={}, capture_output=True, text=True, timeout=120)
    assert ended.returncode == code, ended.stderr
    return ended


def test_core_dependencies_load_and_sample_a_model(core, tmp_path):
    program = """
import sys, torch, disa
model = disa.load_model("mar_fashion")
latents = model.generate(torch.arange(2), num_iter=2, schedule=disa.StepSchedule(2, 1), noise=disa.ImageNoise([1, 2]))
print(disa.__version__, *latents.shape, disa.__file__, *sorted({"scipy", "matplotlib"} & sys.modules.keys()))
"""
    version, *shape, place = run(core, "-c", program, cwd=tmp_path).stdout.split()
    assert version == metadata.version("disa")
    assert shape == ["2", "8", "8", "8"]
    assert Path(place).is_relative_to(core.parents[1])
    assert (Path(place).parent / "py.typed").is_file()


def test_recipes_are_listed_and_swept_outside_the_clone(core, tmp_path):
    disa = core.with_name("disa")
    assert "imagenet/mar_base-disa" in run(disa, "reproduce", "--list", "imagenet", cwd=tmp_path).stdout
    assert "--diff_upper_steps" in run(disa, "sweep", "--help", cwd=tmp_path).stdout
    assert run(disa, "checkpoints", "list", cwd=tmp_path).stdout.startswith("kl16 ")


def test_a_picture_in_one_command(core, tmp_path):
    """Seconds are not asserted: see CONTRIBUTING.md."""
    words = ("generate", "mar_fashion", "--labels", "bag", "--seeds", "1", "--out", "bag.png")
    assert run(core.with_name("disa"), *words, cwd=tmp_path).stdout.startswith("bag.png\n1 picture, NFE 368")
    assert [path.name for path in tmp_path.iterdir()] == ["bag.png"]
    picture = Image.open(tmp_path / "bag.png")
    assert picture.size == (32, 32)
    assert picture.getextrema()[1] > 100
    assert read_metadata(tmp_path / "bag.png")["label"] == "bag"


def test_shells_complete_commands_without_more_packages(core, tmp_path):
    for shell in ("bash", "zsh"):
        assert "--annealing_strategy" in run(core.with_name("disa"), "--print-completion", shell, cwd=tmp_path).stdout


def test_help_answers_in_half_a_second(core, tmp_path):
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        run(core.with_name("disa"), "--help", cwd=tmp_path)
        seconds.append(time.perf_counter() - start)
    assert statistics.median(seconds) < 0.5


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["stats", "fashion-mnist"], "error: torch_fidelity is not installed; pip install 'disa[eval]'"),
        (["reproduce", "bundled"], "error: torch_fidelity is not installed; pip install 'disa[eval]'"),
        (["score", "pictures"], "error: torch_fidelity is not installed; pip install 'disa[eval]'"),
        (
            ["generate", "harmon_fashion", "--prompt", "a bag"],
            "error: transformers is not installed; pip install 'disa[harmon]'",
        ),
    ],
    ids=["stats", "reproduce", "score", "generate"],
)
def test_a_missing_extra_is_one_sentence(core, tmp_path, words, sentence):
    assert run(core.with_name("disa"), *words, cwd=tmp_path, code=2).stderr.splitlines() == [sentence]


def test_without_fcntl_everything_on_the_front_page_is_there(core, tmp_path):
    program = f"{HIDE_FCNTL}import disa; print(*(getattr(disa, name).__name__ for name in disa.__all__))"
    assert "load_model" in run(core, "-c", program, cwd=tmp_path).stdout.split()


def test_harmons_configs_come_with_the_package(core, wheel, tmp_path):
    program = "from disa.runtime.configs import read_config; read_config('configs/models/harmon_fashion.py', ['model'])"
    sentence = "mmengine is not installed; pip install 'disa[harmon]'"
    assert sentence in run(core, "-c", program, cwd=tmp_path, code=1).stderr
    harmon = install(wheel, tmp_path / "harmon", "harmon")
    names = "qwen2_5_1_5b_kl16_mar_h_disa_50_5", "harmon_fashion"
    for name in names:
        program = f"from disa.commands.harmon import *; print(read_model_config('configs/models/{name}.py')['sampler'])"
        assert run(harmon, "-c", program, cwd=tmp_path).stdout == "DiSA\n"
