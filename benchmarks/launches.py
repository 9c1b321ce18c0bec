"""Count what one generation asks of a GPU, on fake CUDA tensors: it computes nothing and runs on any machine.

Kernel launches, host synchronisations, copies from the host, FLOPs of matrix products, bytes that all other kernels
move, and peak memory; and the time per image that they predict for named chips. Attention counts as one fused kernel.
Run from the repository's root: `python -m benchmarks.launches --model xar_large`; `--help` lists what can be chosen.
"""

from __future__ import annotations

import argparse
import json
import weakref
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from disa import Guidance, StepSchedule, build_model
from disa.commands.flags import HelpFormatter
from disa.runtime.devices import DTYPES
from disa.runtime.files import atomic_write
from disa.tables.report import column, decimals, table

SYNCHRONIZING = ("_local_scalar_dense", "is_nonzero", "equal", "nonzero", "masked_select", "item")
# Ops that allocate or look at memory without a kernel, besides views.
FREE = (
    *("_unsafe_view", "empty", "empty_like", "new_empty", "empty_strided", "new_empty_strided", "detach", "lift_fresh"),
    *("alias", "device"),
)
# What large kernels reach: matrix products in half precision (FLOP/s), memory (bytes/s). A launch from the host (s).
CHIPS = {"H100": (400e12, 2.5e12), "A100": (200e12, 1.5e12)}
LAUNCH = 5e-6
# How each family is sampled with DiSA, as the published commands do.
SETTINGS: dict[str, dict[str, Any]] = {  # Any: arguments of `generate`
    "mar": {"num_iter": 64, "schedule": StepSchedule(50, 5), "guidance": Guidance(2.9)},
    "flowar": {"schedule": StepSchedule(25, 15), "guidance": Guidance(2.4, "linear", 0.9)},
    "xar": {"schedule": StepSchedule(50, 15), "guidance": Guidance(2.7)},
    "harmon": {"num_iter": 64, "schedule": StepSchedule(50, 5), "image_shape": (32, 32)},
}
MODELS = ("mar_base", "flowar_large", "xar_base", "xar_large")


@dataclass
class Counts:
    """What was counted.

    Attributes:
        launches: kernels, copies included.
        synchronizations: times that the host waits for the device.
        copies: from the host.
        flops: of matrix products, convolutions and attention.
        product_bytes, other_bytes: read and written by these, and by all other kernels.
        peak: bytes of memory, weights included.
    """

    launches: int = 0
    synchronizations: int = 0
    copies: int = 0
    flops: float = 0.0
    product_bytes: float = 0.0
    other_bytes: float = 0.0
    peak: float = 0.0

    def predict(self, chip: str, batch: int) -> float:
        """Seconds per image: of launching or of computing, whichever is longer."""
        rate, bandwidth = CHIPS[chip]
        return max(self.launches * LAUNCH, self.flops / rate + self.other_bytes / bandwidth) / batch


class Meter(TorchDispatchMode):
    """Counts the operations on CUDA tensors that run in its context."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.counts, self.memory = Counts(), 0.0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, _: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func._schema.name.split("::")[-1]
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        on_device = any(tensor.device.type == "cuda" for tensor in tensors)
        if name in SYNCHRONIZING and on_device:
            self.counts.synchronizations += 1
            if name in ("_local_scalar_dense", "item"):
                return tensors[0].dtype == torch.bool  # true, or the number 0
            if name in ("is_nonzero", "equal"):
                return True
        out = func(*args, **kwargs)
        results = [leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]
        for tensor in results:
            self.allocate(tensor)
        self._count(func, name, tensors, results, args, kwargs, out)
        return out

    def _count(
        self, func: Any, name: str, tensors: list[Tensor], results: list[Tensor], args: Any, kwargs: Any, out: Any
    ) -> None:
        devices = {tensor.device.type for tensor in (*tensors, *results)}
        if "cuda" not in devices or name in FREE or _is_view(func):
            return
        self.counts.launches += 1
        if name in ("_to_copy", "copy_") and "cpu" in devices:
            self.counts.copies += 1
        moved = sum(tensor.numel() * tensor.element_size() for tensor in (*tensors, *results))
        packet = func.overloadpacket
        if packet in flop_registry:
            self.counts.flops += flop_registry[packet](*args, **kwargs, out_val=out)
            self.counts.product_bytes += moved
        else:
            self.counts.other_bytes += moved

    def allocate(self, tensor: Tensor) -> None:
        """Count the memory of a tensor on the device until it is freed."""
        if tensor.device.type != "cuda":
            return
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._known:
            return
        self._known.add(key)
        size = storage.nbytes()
        self.memory += size
        self.counts.peak = max(self.counts.peak, self.memory)
        weakref.finalize(storage, self._free, key, size)

    def _free(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.memory -= size


class FusedAttention(TorchFunctionMode):
    """Makes attention one kernel, as on a GPU; without one, fake tensors take it apart."""

    def __torch_function__(self, func: Any, _: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.nn.functional.scaled_dot_product_attention:
            query, key, value = (tensor.detach() for tensor in args[:3])
            if query.device.type == "cuda":
                return torch.ops.aten._scaled_dot_product_flash_attention(query, key, value)[0]
        return func(*args, **(kwargs or {}))


def _is_view(func: Any) -> bool:
    """Whether an operation returns a view: its result aliases an argument that it does not write."""
    return any(result.alias_info is not None and not result.alias_info.is_write for result in func._schema.returns)


class FakeNoise:
    """Noise on the fake device."""

    def __init__(self, batch: int) -> None:
        self.batch = batch

    def normal(self, _: int, draws: int, tokens: int, channels: int) -> Tensor:
        """Of one AR step."""
        return torch.empty(draws, self.batch, tokens, channels, device="cuda")

    def orders(self, length: int) -> Tensor:
        """Of every image."""
        return torch.empty(self.batch, length, dtype=torch.long, device="cuda")


def count(name: str, batch: int, dtype: torch.dtype, **changes: object) -> Counts:
    """Count one generation of a batch, with guidance and DiSA, or with settings changed."""
    settings = {**SETTINGS[name.partition("_")[0]], **changes}
    with torch.device("meta"):  # what is computed on the host must be known before tensors are fake
        build_model(name).nfe(settings["schedule"], solver(name)["sampler"], settings.get("num_iter"))
    with FakeTensorMode(allow_non_fake_inputs=True):
        torch.set_default_dtype(dtype)
        with torch.device("cuda"):
            model = build_model(name).eval()
            ids = torch.ones(2 * batch, 24, dtype=torch.long)
        torch.set_default_dtype(torch.float32)
        inputs = (
            {"input_ids": ids} if name.startswith("harmon") else {"labels": torch.zeros(batch, dtype=torch.long).cuda()}
        )
        meter = Meter()
        for parameter in model.parameters():
            meter.allocate(parameter)
        with FusedAttention(), meter:
            model.generate(**inputs, **settings, **solver(name), noise=FakeNoise(batch))
    return meter.counts


def solver(name: str) -> dict[str, str]:
    """The sampler that the released command takes."""
    return {"sampler": {"flowar": "euler", "xar": "euler_maruyama"}.get(name.partition("_")[0], "DiSA")}


COLUMNS = (
    column("model", "model"),
    column("launches", "launches per image", decimals(0)),
    column("synchronizations", "synchronisations", decimals(0)),
    column("copies", "copies from the host", decimals(0)),
    column("tflop", "TFLOP per image", decimals(2)),
    column("gigabytes", "elementwise GB per image", decimals(1)),
    column("peak", "peak GiB", decimals(1)),
    *(column(chip, f"{chip}, predicted ms per image", decimals(0)) for chip in CHIPS),
)


def row(name: str, batch: int, counts: Counts) -> dict[str, object]:
    """Counts per image as the table has them."""
    return {
        "model": name,
        "launches": counts.launches / batch,
        "synchronizations": counts.synchronizations,
        "copies": counts.copies,
        "tflop": counts.flops / batch / 1e12,
        "gigabytes": counts.other_bytes / batch / 1e9,
        "peak": counts.peak / 2**30,
        **{chip: 1e3 * counts.predict(chip, batch) for chip in CHIPS},
    }


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], formatter_class=HelpFormatter)
    parser.add_argument("--model", nargs="+", default=MODELS, metavar="NAME", help="models of the registry")
    parser.add_argument("--batch", type=int, default=1, help="images at a time")
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="of the networks")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the counts, too")
    args = parser.parse_args(argv)
    found = {name: count(name, args.batch, DTYPES[args.dtype]) for name in args.model}
    print(table([row(name, args.batch, counts) for name, counts in found.items()], COLUMNS))
    if args.json:
        with atomic_write(args.json) as beside:
            content = {"batch": args.batch, "dtype": args.dtype, "torch": torch.__version__}
            counts = {name: asdict(one) for name, one in found.items()}
            beside.write_text(json.dumps({**content, "models": counts}, indent=2) + "\n")


if __name__ == "__main__":
    from disa.commands.exit import run

    run(main)
