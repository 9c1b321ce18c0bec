"""`disa web`: what it refuses before it loads anything."""

import socket
import sys

import pytest

from disa.commands import web
from disa.commands.cli import get_parser
from tests.helpers.processes import free_port
from tests.helpers.scripts import command


@pytest.fixture
def without_page(monkeypatch):
    """The command without gradio, which would only show; returns what it would."""
    shown = []
    fake = type(sys)("disa.web.page")
    fake.Page, fake.serve = lambda *args: args, lambda *args: shown.append(args)
    monkeypatch.setitem(sys.modules, "disa.web.page", fake)
    return shown


def test_the_page_needs_an_extra(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "gradio", None)
    monkeypatch.delitem(sys.modules, "disa.web.page", raising=False)
    assert command("web") == 2
    assert capsys.readouterr().err == "error: gradio is not installed; pip install 'disa[web]'\n"


def test_a_model_is_loaded_and_served_on_this_machine_alone(without_page):
    port = free_port()
    assert command("web", "mar_fashion", "--port", port, "--device", "cpu") == 0
    (((pipes, schedules), host, served_port),) = without_page
    assert (list(pipes), schedules, host, served_port) == (["mar_fashion"], {}, "127.0.0.1", port)
    assert pipes["mar_fashion"].name == "mar_fashion"


def test_by_default_the_models_of_the_package_are_there():
    args = get_parser(["web"]).parse_args(["web"])
    assert args.models == ["mar_fashion", "flowar_fashion", "xar_fashion", "harmon_fashion"]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--port", "0"], "--port is 0; it must be in 1..65535"),
        (["--port", "many"], "argument --port: invalid int value: 'many' (disa web --help)"),
        (["--host", "192.0.2.1"], "--host 192.0.2.1 --port 7860 cannot be listened at"),
        (["mar_fashon"], "there is no model or folder 'mar_fashon'; did you mean mar_fashion?"),
        (["mar_base", "mar_large", "--checkpoint", "x.pth"], "--checkpoint is of one model, and there are 2; name one"),
        (["--checkpoint", "x.pth"], "--checkpoint is of one model, and there are 4; name one MODEL"),
        (["mar_base", "--checkpoint", "nowhere.pth"], "there is no pretrained_models/vae/kl16.ckpt; fetch it with"),
        (["mar_fashion", "--step_schedule", "nowhere.json"], "there is no step schedule nowhere.json"),
        (["mar_fashion", "--dtype", "int8"], "dtype is 'int8'; allowed are auto, float32, bfloat16, float16"),
        (["mar_fashion", "--device", "tpu"], "device is 'tpu'; allowed are auto, cuda, cpu and mps"),
    ],
)
def test_what_is_wrong_is_one_sentence(words, sentence, without_page, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert command("web", *words) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert sentence in line
    assert without_page == []
    assert list(tmp_path.iterdir()) == []


def test_a_port_that_is_taken_is_refused():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(
            OSError, match=rf"--port {port} cannot be listened at \(Address already in use\); name other"
        ):
            web.check_address("127.0.0.1", port)
