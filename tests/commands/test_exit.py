"""How commands end."""

import pytest
import torch
from torch.distributed import HashStore

from disa.commands.exit import run
from disa.commands.flags import Parser
from disa.runtime import distributed
from tests.helpers.scripts import exit_code


def fail_with(error):
    def main():
        raise error

    return main


@pytest.mark.parametrize(
    ("stop", "printed"),
    [(KeyboardInterrupt(), "interrupted"), (KeyboardInterrupt("stopped at step 7"), "stopped at step 7")],
)
def test_interruption_ends_in_130(capsys, stop, printed):
    assert exit_code(fail_with(stop)) == 130
    assert capsys.readouterr().err == f"\n{printed}\n"


@pytest.mark.parametrize(
    "error", [ValueError("a"), FileNotFoundError("a"), FloatingPointError("a")], ids=lambda error: type(error).__name__
)
def test_what_a_user_can_mend_ends_in_2(capsys, error):
    assert exit_code(fail_with(error)) == 2
    assert capsys.readouterr().err == "error: a\n"


def test_what_several_ranks_say_alike_is_printed_once(capsys, monkeypatch):
    store = HashStore()
    monkeypatch.setattr(distributed, "rendezvous", lambda *_, **__: iter([(store, 0, 2)]))
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        for error in ("a", f"rank {rank} alone"):
            assert exit_code(fail_with(ValueError(error))) == 2
        assert exit_code(lambda: Parser(prog="p").parse_args(["--what"])) == 2
    printed = ["error: a", "error: rank 0 alone", "error: unrecognized arguments: --what (p --help)"]
    assert capsys.readouterr().err.splitlines() == [*printed, "error: rank 1 alone"]
    assert exit_code(fail_with(KeyboardInterrupt("stopped"))) == 130
    assert capsys.readouterr().err == ""


def test_a_rank_that_nobody_answers_says_it_itself(capsys, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    for name in ("MASTER_ADDR", "MASTER_PORT", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    assert exit_code(fail_with(ValueError("a"))) == 2
    assert capsys.readouterr().err == "error: a\n"


def test_a_full_gpu_is_told_what_may_help(capsys):
    assert exit_code(fail_with(torch.OutOfMemoryError("CUDA out of memory. Tried 2 GiB\nmore"))) == 2
    setting = "PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True"
    assert capsys.readouterr().err == (
        f"error: the GPU's memory is full; take a smaller batch; {setting} in the environment wastes less "
        "(CUDA out of memory. Tried 2 GiB)\n"
    )


def test_a_defect_keeps_its_traceback(capsys):
    with pytest.raises(TypeError, match="ours"):
        run(fail_with(TypeError("ours")))
    assert capsys.readouterr().err == ""


def test_exit_codes_of_commands_are_passed_on():
    assert [exit_code(lambda code=code: code) for code in (None, 0, 1)] == [0, 0, 1]


def test_an_error_in_a_process_that_loads_data_is_one_sentence_too(capsys):
    def main():
        raise ValueError(
            "Caught ValueError in DataLoader worker process 0.\nOriginal Traceback (most recent call last):\n"
            '  File "data.py", line 1, in read\nValueError: a.png cannot be read as an image (truncated: 3 bytes)\n'
        )

    with pytest.raises(SystemExit) as end:
        run(main)
    assert end.value.code == 2
    assert capsys.readouterr().err == "error: a.png cannot be read as an image (truncated: 3 bytes)\n"
