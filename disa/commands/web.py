"""`disa web`: a page to play with, in the browser."""

from __future__ import annotations

import argparse
import os
import socket
import tempfile
from collections.abc import Mapping

import torch

from ..models import MODELS
from ..pipeline import Pipeline
from ..runtime.devices import resolve_device
from ..runtime.extras import extra
from ..runtime.start import announce
from ..schedule import StepSchedule
from ..web.drawing import warm_up
from .flags import add_device_flag, value

BUNDLED = [name for name, spec in MODELS.items() if spec.bundled]


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Open a page in the browser: choose a model, a class or a prompt, and settings; see the image appear, with and "
        "without DiSA; draw a part anew; ask Harmon about a picture. One generation at a time, the others wait."
    )
    text = "names of models, folders of a pipeline, or repositories on the hub; by default the models of the package"
    parser.add_argument("models", nargs="*", default=BUNDLED, metavar="MODEL", help=text)
    group = parser.add_argument_group("weights of a single MODEL that does not come with the package")
    group.add_argument("--checkpoint", help="its file or folder; by default what `disa checkpoints fetch` fetched")
    group.add_argument("--vae", help="KL-16's file; by default what was fetched")
    group.add_argument("--text_tokenizer", help="of Harmon, a folder or a repository; by default the released one")
    group = parser.add_argument_group("the page")
    text = "calibrated step schedules to choose from: files of `disa calibrate`; force:FILE where settings are others"
    group.add_argument("--step_schedule", nargs="+", default=[], metavar="FILE", help=text)
    value(group, "--host", "127.0.0.1", "the address to listen at; 0.0.0.0 lets other machines in")
    value(group, "--port", 7860, "the port to listen at")
    add_device_flag(group)
    value(group, "--dtype", "auto", "of the networks; auto: on CUDA float16, of Harmon bfloat16, elsewhere float32")


def main(args: argparse.Namespace) -> int:
    with tempfile.TemporaryDirectory() as folder, extra("web"):
        os.environ["GRADIO_TEMP_DIR"] = folder  # gradio makes it, though the page puts nothing there
        from ..web.page import Page, serve

        check_address(args.host, args.port)
        schedules = {name: StepSchedule.load(name) for name in args.step_schedule}
        serve(Page(load(args), schedules), args.host, args.port)
    return 0


def check_address(host: str, port: int) -> None:
    """Refuse an address where nobody can listen, before weights are loaded; a ValueError or an OSError says why."""
    if not 1 <= port <= 65535:
        raise ValueError(f"port is {port}; it must be in 1..65535")
    try:
        with socket.create_server((host, port)):
            pass
    except OSError as error:
        reason = (error.strerror or str(error)).partition(" (")[0]
        raise OSError(f"--host {host} --port {port} cannot be listened at ({reason}); name others") from error


def load(args: argparse.Namespace) -> Mapping[str, Pipeline]:
    """Load the models and warm them up."""
    given = {name: getattr(args, name) for name in ("checkpoint", "vae", "text_tokenizer")}
    given = {name: path for name, path in given.items() if path is not None}
    if given and len(args.models) > 1:
        raise ValueError(f"{next(iter(given))} is of one model, and there are {len(args.models)}; name one MODEL")
    device = resolve_device(args.device)
    if device.type == "cpu" and set(args.models) <= set(BUNDLED):
        torch.set_num_threads(1)  # several wait for each other longer than the work of such small networks takes
    announce(device)
    pipes = {}
    for name in dict.fromkeys(args.models):
        print(f"loading {name}", flush=True)
        pipes[name] = Pipeline.from_pretrained(name, device=args.device, dtype=args.dtype, **given)
        warm_up(pipes[name])
    return pipes
