"""A process that holds one model and generates when asked: for each number on its input, a batch.

`benchmarks.speed` starts one in each of two checkouts of this repository, so this uses only what both of them have.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import importlib.util
import json
import statistics
import sys
import time
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import disa
from disa.generation.generators import LabelGenerator, Sampling
from disa.models import MODELS
from disa.runtime.devices import DTYPES, describe_device

# Side of the matrices whose product is timed.
SIDES = {"cuda": 8192, "cpu": 2048}


def make_model(name: str, device: torch.device, dtype: torch.dtype) -> Any:  # Any: of any family
    """Load a bundled model, or build another one with weights that depend on their names and shapes alone."""
    if MODELS[name].bundled:
        return disa.load_model(name).to(device, dtype)
    with device:
        model = disa.build_model(name).eval()
    for key, parameter in model.named_parameters():
        randomize(key, parameter)
    return model.to(dtype)


@torch.no_grad()
def randomize(name: str, parameter: nn.Parameter) -> None:
    """Fill a parameter with normal numbers that keep activations of order one, also where it begins as zero."""
    generator = torch.Generator(parameter.device).manual_seed(zlib.crc32(name.encode()))
    parameter.normal_(generator=generator)
    if parameter.dim() == 1:
        parameter.mul_(0.05).add_(float(name.endswith("weight")))
    elif parameter.dim() == 3:  # position embeddings, tokens
        parameter.mul_(0.2)
    else:
        parameter.mul_(parameter[0].numel() ** -0.5)


@functools.cache
@torch.no_grad()
def product_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Measure the FLOP/s of a product of square matrices, on a CPU with packed weights, too: the median of ten."""
    side = SIDES[device.type]
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    contexts: list[contextlib.AbstractContextManager[object]] = [contextlib.nullcontext()]
    if device.type == "cpu" and importlib.util.find_spec("disa.runtime.packed"):  # which earlier commits lack
        contexts.append(importlib.import_module("disa.runtime.packed").PackedLinear())
    rates = []
    for context in contexts:
        taken = []
        with context:
            for _ in range(12):
                started = clock(device)
                F.linear(a, b)
                taken.append(clock(device) - started)
        rates.append(2 * side**3 / statistics.median(taken[2:]))  # without those that warm up
    return max(rates)


def clock(device: torch.device) -> float:
    """Seconds, once the device has done all that was asked of it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


class Latents(nn.Module):
    """Decodes latents to themselves, so that a generator gives them."""

    def decode(self, latents: Tensor) -> Tensor:
        """Return `latents`."""
        return latents


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True, choices=MODELS)
    parser.add_argument("--sampling", required=True, type=json.loads, help="settings, as `Sampling.to_dict` names them")
    parser.add_argument("--batch", required=True, type=int)
    parser.add_argument("--dtype", required=True, choices=DTYPES)
    parser.add_argument("--latents", required=True, type=Path, help="file that each generation's latents go to")
    parser.add_argument("--compiled", action="store_true", help="compile the blocks")
    args = parser.parse_args(argv)
    device, dtype, sampling = torch.device("cpu"), DTYPES[args.dtype], Sampling.from_dict(args.sampling)
    answers = sys.stdout
    with contextlib.redirect_stdout(sys.stderr):
        model = make_model(args.model, device, dtype)
        if args.compiled:
            from disa.acceleration import compile_blocks  # which earlier commits lack

            compile_blocks(model)
        generate = LabelGenerator(model, Latents(), sampling, device)
        about = {"disa": disa.__file__, "device": describe_device(device)}
        print(json.dumps(about), file=answers, flush=True)
        for line in sys.stdin:
            ids = [args.batch * int(line) + i for i in range(args.batch)]
            started = time.perf_counter()
            latents = generate(ids)
            seconds = time.perf_counter() - started
            torch.save(latents, args.latents)
            print(json.dumps({"seconds": seconds}), file=answers, flush=True)


if __name__ == "__main__":
    from disa.commands.exit import run

    run(main)
