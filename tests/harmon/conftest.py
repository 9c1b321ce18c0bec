"""A tiny Harmon on disk, and the scripts called in this process."""

import sys
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist

from disa import build_model, cli
from tests.conftest import fill
from tests.test_flags import ROOT, load_script

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
        monkeypatch.chdir(FOLDER)
        monkeypatch.delenv("RANK", raising=False)
        words = [script, config, "--device", "cpu", "--checkpoint", checkpoint, *flags]  # of a flag given twice, the last counts
        monkeypatch.setattr(sys, "argv", [str(word) for word in words])
        with pytest.raises(SystemExit) as end:
            cli.run(load_script(FOLDER / "scripts" / f"{script}.py").main)
        assert not dist.is_initialized()
        printed = capsys.readouterr()
        return SimpleNamespace(code=end.value.code or 0, out=printed.out, error=printed.err.splitlines()[-1] if printed.err else "")

    return in_process


def refused(result, named):
    """Whether a call ended in one sentence with `named` in it."""
    return result.code == 2 and result.error.startswith("error: ") and named in result.error and "Traceback" not in result.error
