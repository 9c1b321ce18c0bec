"""The first hour on a GPU in a few minutes: is everything right there, and how fast is it?

Parity of every family with the reference outputs in each number type; no synchronisation inside a generation; captured
graphs against eager runs; collective operations over all visible GPUs; then seconds per image, the share of the
measured rate of matrix products, and peak memory. What does not fit in the time or the memory is left out, and named.
Run from the repository's root, once `make setup` has installed what the tests need: `python -m benchmarks.gpu`.
`--quick --device cpu` tries all of it but the CUDA parts on the bundled models. The exit code is 1 if a check fails.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import socket
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.multiprocessing.spawn import ProcessException, spawn

from benchmarks.generations import clock, make_model, product_rate
from benchmarks.launches import Generation, arguments, find_recipe, make_vae, models, wrap
from disa import Guidance, ImageNoise, StepSchedule, build_model
from disa.acceleration import Captured, compile_blocks
from disa.acceleration.capture import TOLERANCE, CudaGraph, EagerGraph
from disa.annealing import AnnealedModel
from disa.commands.flags import HelpFormatter
from disa.evaluation.run import versions
from disa.models import MODELS
from disa.runtime import distributed
from disa.runtime.devices import DTYPES, describe_device, resolve_device, resolve_dtype
from disa.tables.report import Columns, column, decimals, percent, table, write_text
from disa.trace import StepTrace

Anything = Any  # of several types: a family's arguments, a table's values
Row = dict[str, Anything]

RESULTS = Path(__file__).parent / "results"
# Relative difference from the reference outputs, which are float32 on a CPU.
PARITY = {"float32": 5e-4, "float16": 2e-2, "bfloat16": 1e-1}
# In the order in which they get their time: what is asked most comes first.
TIMED = (
    *("mar_large", "xar_large", "flowar_large", "harmon_0.5b", "mar_base", "xar_base", "flowar_small"),
    *("harmon_1.5b", "mar_huge", "xar_huge", "flowar_huge"),
)
BATCHES, QUICK_BATCHES = (1, 8, 64, 256), (1, 8)
MODES = ("eager", "captured", "compiled")
QUICK_COMPILED = "xar_fashion"  # compiling takes long
CELL = 40.0  # s, at most, of one model, batch and mode

CHECKS: Columns[Anything] = (
    column("check", "check"),
    column("subject", "of"),
    column("found", "found"),
    column("needed", "needed"),
    column("passed", "passed", lambda passed: "yes" if passed else "**no**"),
)
TIMES: Columns[Anything] = (
    column("model", "model"),
    column("dtype", "type"),
    column("batch", "batch"),
    column("mode", "mode"),
    column("seconds", "seconds per image", decimals(4)),
    column("share", "of the product rate", percent),
    column("decoding", "decoding, seconds per image", decimals(4)),
    column("peak", "peak GiB", decimals(1)),
    column("note", "note"),
)


class OverTime(Exception):
    """A generation took longer than it may."""


class OnDevice:
    """The recorded noise of a reference generation, moved to a device."""

    def __init__(self, replayed: Anything, device: torch.device) -> None:
        self.replayed, self.device = replayed, device

    def normal(self, ar_step: int, draws: int, tokens: int, channels: int) -> Tensor:
        """Standard normal noise of one AR step: float32 [draws, B, tokens, channels]."""
        return self.replayed.normal(ar_step, draws, tokens, channels).to(self.device)

    def orders(self, length: int) -> Tensor:
        """A permutation of 0..length-1 per image: int64 [B, length]."""
        return self.replayed.orders(length).to(self.device)


def references() -> Iterator[tuple[str, AnnealedModel, dict[str, Anything], dict[str, Tensor]]]:
    """Read a recorded generation of each family: its name, model, arguments of `generate`, and what was recorded."""
    tests = importlib.import_module("tests.conftest")  # imported so because it is not typed
    case, index = "disa_linear_cfg", tests.load_json("mar/index.json")
    head, sample = index[case]["head"], index[case]["sample"]
    recorded = tests.load_reference(f"mar/sample_{case}.npz")
    schedule = StepSchedule(head["diff_upper_steps"], head["diff_lower_steps"])
    given = {
        "labels": recorded["labels"],
        "num_iter": sample["num_iter"],
        "sampler": head["diff_sampler"],
        "temperature": sample["temperature"],
    }
    guidance = Guidance(sample["cfg"], sample["cfg_schedule"])
    yield "mar", tests.small_mar(), {**given, "schedule": schedule, "guidance": guidance}, recorded

    for family, case, make in (("flowar", "cross_attn_cfg", tests.small_flowar), ("xar", "cfg", tests.small_xar)):
        index = tests.load_json(f"{family}/index.json")[case]
        sample, recorded = index.get("sample", index), tests.load_reference(f"{family}/sample_{case}.npz")
        schedule = StepSchedule(sample["flow_upper_steps"], sample["flow_lower_steps"])
        guidance = Guidance(sample["cfg"], "linear", max_time=sample.get("guidance", 1.0))
        yield family, make(), {"labels": recorded["labels"], "schedule": schedule, "guidance": guidance}, recorded

    index, case = tests.load_json("harmon/index.json"), "native_cfg"
    sample, recorded = index["samples"][case], tests.load_reference(f"harmon/sample_{case}.npz")
    model = tests.fill(build_model("harmon", mar=tests.SMALL_MAR, llm=index["llm"], vae="space_to_depth"))
    given = {
        "input_ids": recorded["input_ids"],
        "attention_mask": recorded["attention_mask"],
        "image_shape": tuple(sample["image_shape"]),
        "num_iter": sample["num_iter"],
        "schedule": StepSchedule(8, 3),  # of the recorded draws
        "guidance": Guidance(sample["cfg"], sample["cfg_schedule"]),
    }
    yield "harmon", model, given, {**recorded, "latents": 0.2325 * recorded["latents_over_scale"]}


def check_parity(device: torch.device) -> Iterator[Row]:
    """Compare a generation of each family, in each number type, with its reference outputs."""
    replay = importlib.import_module("tests.conftest").ReplayedNoise
    for family, model, given, recorded in references():
        for name, bar in PARITY.items():
            resolve_dtype(name, device)
            state = {key: value.clone() for key, value in model.state_dict().items()}
            noise = OnDevice(replay(recorded), device)
            on_device = {key: value.to(device) if isinstance(value, Tensor) else value for key, value in given.items()}
            latents = model.to(device, DTYPES[name]).generate(**on_device, noise=noise).cpu()
            model.to("cpu", torch.float32).load_state_dict(state)
            error = difference(latents, recorded["latents"])
            yield check("parity with the reference", f"{family}, {name}", f"{error:.1e}", f"≤ {bar:.0e}", error <= bar)


def check_synchronization(device: torch.device) -> Iterator[Row]:
    """Generate with each bundled model while everything for which the host would wait for the GPU is an error."""
    for name in bundled():
        model = make_model(name, device, DTYPES[MODELS[name].half])
        generate(model, name, range(2), device)  # what is made once may wait
        given = prepare(name, range(2), device)
        torch.cuda.synchronize(device)
        torch.cuda.set_sync_debug_mode("error")
        try:
            model.generate(**given)
            found = "none"
        except RuntimeError as error:
            found = str(error).splitlines()[0]
        finally:
            torch.cuda.set_sync_debug_mode("default")
        yield check("synchronisations inside a generation", name, found, "none", found == "none")


def check_graphs(device: torch.device) -> Iterator[Row]:
    """Compare replays of captured graphs, of other seeds than were captured, with eager runs."""
    for name in bundled():
        dtype = resolve_dtype("auto", device, MODELS[name].half)
        model = make_model(name, device, DTYPES[dtype])
        eager = generate(model, name, range(2, 4), device)
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            captured = capture(model, device)
            generate(model, name, range(2), device)
            error = difference(generate(model, name, range(2, 4), device), eager)
        bar = TOLERANCE[DTYPES[dtype]]
        passed = captured.on and bool(captured.captures) and error <= bar
        found = f"{error:.1e}, {len(captured.captures)} graphs" if captured.on else str(said[-1].message)
        yield check("captured graphs against eager", f"{name}, {dtype}", found, f"≤ {bar:.0e}", passed)


def check_ranks(device: torch.device) -> Iterator[Row]:
    """Run collective operations on one rank per visible GPU, or on two ranks of the CPU."""
    count = torch.cuda.device_count() if device.type == "cuda" else 2
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    subject, needed = f"{count} ranks, {device.type}", "sums and objects of all ranks"
    try:
        spawn(one_rank, (count, port, device.type), nprocs=count)
    except ProcessException as error:
        yield check("collective operations", subject, str(error).strip().splitlines()[-1], needed, False)
    else:
        yield check("collective operations", subject, needed, needed, True)


def one_rank(rank: int, count: int, port: int, kind: str) -> None:
    """Check on one of `count` ranks that sums and objects of all of them arrive."""
    names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count, "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in names.items()}, MASTER_ADDR="127.0.0.1")
    device = resolve_device(kind)
    distributed.setup(device)
    total = torch.full((1024,), float(rank), device=device)
    dist.all_reduce(total)
    if not bool((total == sum(range(count))).all()):
        raise ValueError(f"the sum over the ranks is {total[0].item()}, not {sum(range(count))}")
    if (found := distributed.gather({"rank": rank})) != [{"rank": i} for i in range(count)]:
        raise ValueError(f"the objects of the ranks are {found}")
    if (first := distributed.broadcast(rank)) != 0:
        raise ValueError(f"the object of rank 0 is {first}")
    distributed.barrier()
    distributed.shutdown()


def check(name: str, subject: str, found: str, needed: str, passed: bool) -> Row:
    """Make the row of one check."""
    return {"check": name, "subject": subject, "found": found, "needed": needed, "passed": passed}


def difference(latents: Tensor, expected: Tensor) -> float:
    """‖latents - expected‖ / ‖expected‖."""
    return ((latents - expected).double().norm() / expected.double().norm()).item()


def bundled() -> list[str]:
    """Names of the bundled models."""
    return [name for name, recipe in models().items() if recipe.bundled]


def prepare(name: str, ids: Sequence[int], device: torch.device) -> dict[str, Anything]:
    """Arguments of `generate` for a batch of the model's recipe."""
    return {**arguments(find_recipe(name), len(ids), device), "noise": ImageNoise(ids, device)}


def generate(model: Anything, name: str, ids: Sequence[int], device: torch.device, **more: object) -> Tensor:
    """Generate the latents of a batch."""
    return model.generate(**prepare(name, ids, device), **more)


def capture(model: AnnealedModel, device: torch.device) -> Captured:
    """Have `model` run as captured graphs, on a CPU as what stands for them."""
    captured = Captured(CudaGraph if device.type == "cuda" else EagerGraph)
    for module in model.modules():
        if isinstance(module, AnnealedModel):
            module.run = captured
    return captured


def measure(names: Sequence[str], batches: Sequence[int], device: torch.device, until: float) -> Iterator[Row]:
    """Time every model, batch and mode until the clock says `until`."""
    for name in names:
        dtype = DTYPES[resolve_dtype("auto", device, MODELS[name].half)]
        rate, flops = product_rate(device, dtype), flops_per_image(name)
        for mode in MODES:
            base = {"model": name, "dtype": str(dtype).removeprefix("torch."), "mode": mode, "rate": rate}
            if time.perf_counter() > until:
                yield {**base, "batch": "all", "note": "no time left"}
                continue
            if mode == "compiled" and find_recipe(name).bundled and name != QUICK_COMPILED:
                continue
            model = make_model(name, device, dtype)
            with device:
                vae = make_vae(model, find_recipe(name)).to(dtype)
            torch._dynamo.reset()  # a block's code serves all models, and may be compiled a few times only
            if mode == "captured":
                capture(model, device)
            elif mode == "compiled":
                compile_blocks(model)
            for batch in batches:
                row = time_cell(model, vae, name, batch, device, min(until, time.perf_counter() + CELL), mode)
                if flops is not None and "seconds" in row:
                    row["share"] = flops / row["seconds"] / rate
                yield {**base, "batch": batch, **row}
            del model, vae


def time_cell(
    model: Anything, vae: Anything, name: str, batch: int, device: torch.device, until: float, mode: str
) -> Row:
    """Time the generation of a batch, the second where there is time for it, and its decoding: columns of a row."""

    def in_time(_: StepTrace) -> None:
        if time.perf_counter() > until:
            raise OverTime

    try:
        started = time.perf_counter()
        first = time_batch(model, vae, name, batch, device, in_time)
        ended = time.perf_counter()
        if ended + 1.5 * (ended - started) < until:
            return time_batch(model, vae, name, batch, device, in_time)
        return {**first, "note": "first batch" if mode == "eager" else f"first batch, in which it was {mode}"}
    except OverTime:
        return {"note": f"not within {CELL:.0f} s, or the time left"}
    except torch.OutOfMemoryError:
        return {"note": "out of memory"}


def time_batch(
    model: Anything, vae: Anything, name: str, batch: int, device: torch.device, on_step: Callable[[StepTrace], None]
) -> Row:
    """Time one generation of a batch and its decoding: columns of a row."""
    on_cuda = device.type == "cuda"
    if on_cuda:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    started = clock(device)
    latents = generate(model, name, range(batch), device, on_step=on_step)
    generated = clock(device)
    with torch.no_grad():
        vae.decode(latents.to(next(model.parameters()).dtype))
    found = {"seconds": (generated - started) / batch, "decoding": (clock(device) - generated) / batch}
    return {**found, "peak": torch.cuda.max_memory_allocated(device) / 2**30} if on_cuda else found


def flops_per_image(name: str) -> float | None:
    """Read the FLOPs of a generation from the results of `benchmarks.launches`; None if they do not have the model."""
    path = RESULTS / "launches.json"
    if not path.is_file():
        return None
    found = [Generation.from_dict(one) for one in json.loads(path.read_text())["generations"] if one["model"] == name]
    return found[0].total.flops / found[0].batch if found else None


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="benchmarks.gpu", description=__doc__, formatter_class=HelpFormatter)
    parser.add_argument("--quick", action="store_true", help="bundled models and small batches alone")
    parser.add_argument("--device", default="cuda", help="cuda or cpu")
    parser.add_argument("--minutes", type=float, default=8.0, help="time for all; what does not fit is left out")
    parser.add_argument("--models", nargs="+", default=None, choices=models(), metavar="NAME", help="what is timed")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the table and the JSON")
    args = parser.parse_args(argv)
    started, device = time.perf_counter(), resolve_device(args.device)
    until = started + 60 * args.minutes
    checks: list[Row] = []
    on_cuda = [check_synchronization] if device.type == "cuda" else []
    kinds: list[Callable[[torch.device], Iterator[Row]]] = [check_parity, *on_cuda, check_graphs, check_ranks]
    for one in (row for kind in kinds for row in kind(device)):
        print(f"{one['check']}, {one['subject']}: {one['found']}{'' if one['passed'] else '  FAILED'}", flush=True)
        checks.append(one)
    rows: list[Row] = []
    names = args.models or (bundled() if args.quick else TIMED)
    for row in measure(names, QUICK_BATCHES if args.quick else BATCHES, device, until):
        seconds = f"{row['seconds']:.4f} seconds per image" if "seconds" in row else row["note"]
        print(f"{row['model']}, {row['mode']}, batch {row['batch']}: {seconds}", flush=True)
        rows.append(row)
    write(args, device, checks, rows, time.perf_counter() - started)
    return 0 if all(one["passed"] for one in checks) else 1


def write(args: argparse.Namespace, device: torch.device, checks: list[Row], rows: list[Row], seconds: float) -> None:
    """Print the tables, and write them and their JSON."""
    words = " ".join(["python -m benchmarks.gpu", *(["--quick"] if args.quick else []), f"--device {args.device}"])
    cuda = f", CUDA {torch.version.cuda}" if device.type == "cuda" else ""
    rates = {row["dtype"]: f"{row['rate'] / 1e12:.3g} TFLOP/s in {row['dtype']}" for row in rows}
    machine = f"{describe_device(device)}, torch {versions()['torch']}{cuda}"
    about = (
        f"Measured by `{words}` in {seconds / 60:.1f} minutes on {machine}. Products of square matrices: "
        f"{', '.join(rates.values())}. The share is FLOPs of a generation by its seconds, of that rate. Settings are "
        "those of the recipes with DiSA; weights of full-size models are random. Captured: diffusion steps and MAR's "
        "decoder are CUDA graphs. Compiled: blocks go through `torch.compile`. Seconds are those of the second batch, "
        "or as noted."
    )
    title = f"# {'A quick look' if args.quick else 'Everything'} on {describe_device(device)}"
    text = "\n\n".join([title, wrap(about), "## Checks", table(checks, CHECKS), "## Times", table(rows, TIMES)])
    print(text)
    args.results.mkdir(parents=True, exist_ok=True)
    name = f"gpu_{device.type}{'_quick' if args.quick else ''}"
    write_text(args.results / f"{name}.md", f"{text}\n")
    content = {"device": describe_device(device), "versions": versions(), "cuda": torch.version.cuda}
    everything = {**content, "seconds": seconds, "checks": checks, "times": rows}
    write_text(args.results / f"{name}.json", json.dumps(everything, indent=2) + "\n")


if __name__ == "__main__":
    from disa.commands.exit import run

    run(main)
