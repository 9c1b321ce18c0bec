"""A tiny Harmon on disk, and the scripts called in this process."""

from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist

from disa import build_model
from tests.conftest import fill
from tests.helpers.processes import ROOT
from tests.helpers.scripts import call as call_script
from tests.helpers.scripts import load_script

FOLDER = ROOT / "Harmon_DiSA"
CONFIG = "configs/models/harmon_fashion.py"
QUICK = ["--num_iter", "2", "--upper_steps", "4", "--lower_steps", "3"]


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    """harmon_fashion with the weights of the reference outputs, as text has no effect on new ones."""
    path = tmp_path_factory.mktemp("harmon") / "harmon.pth"
    torch.save(fill(build_model("harmon_fashion")).state_dict(), path)
    return path


@pytest.fixture
def call(checkpoint, monkeypatch, capsys):
    """A script in this process: name, flags -> its exit code, stdout, the sentence on stderr."""

    def in_process(script, *flags, config=CONFIG):
        main = load_script(FOLDER / "scripts" / f"{script}.py").main
        words = [config, "--device", "cpu", "--checkpoint", checkpoint]
        code, out, error = call_script(
            monkeypatch, capsys, FOLDER, main, *words, *flags
        )  # of two flags the last counts
        assert not dist.is_initialized()
        return SimpleNamespace(code=code, out=out, error=error.splitlines()[-1] if error else "")

    return in_process


def refused(result, named):
    """Whether a call ended in one sentence with `named` in it."""
    sentence = result.error.startswith("error: ") and "Traceback" not in result.error
    return result.code == 2 and sentence and named in result.error
