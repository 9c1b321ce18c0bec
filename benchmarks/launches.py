"""Count what one generation asks of a GPU, on fake CUDA tensors: it computes nothing and runs on any machine.

Kernel launches, host synchronisations, copies from the host, FLOPs of matrix products, bytes that all other kernels
move, and peak memory, by part of the model; and the time per image that they predict for named chips. Settings are
those of the recipes with DiSA. Attention counts as one fused kernel. What allocators and libraries take for themselves
does not count. Run from the repository's root:
`python -m benchmarks.launches --against a064af6 --out benchmarks/results/launches.md`.
"""

from __future__ import annotations

import argparse
import functools
import importlib.util
import json
import subprocess
import sys
import textwrap
import weakref
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.flop_counter import flop_registry
from tqdm import tqdm

from benchmarks.checkouts import worktree
from disa import ImageNoise, build_model
from disa.annealing import AnnealedModel, Annealing
from disa.commands.flags import HelpFormatter
from disa.models import MODELS
from disa.models.vae import build_vae
from disa.runtime.devices import DTYPES
from disa.tables.recipes import Recipe, load_tables
from disa.tables.report import Columns, column, decimals, percent, table, write_text

Anything = Any  # of several types: arguments of torch's operations, what a JSON file holds

WAITING = ("_local_scalar_dense", "is_nonzero", "equal", "nonzero", "masked_select", "item")
COPYING = ("_to_copy", "copy_")
# Operations that allocate or look at memory without a kernel, besides views.
FREE = (
    *("_unsafe_view", "empty", "empty_like", "new_empty", "empty_strided", "new_empty_strided", "detach", "lift_fresh"),
    *("alias", "device"),
)
# Vendors' numbers: dense matrix products in half precision, accumulated in float32 (FLOP/s), and memory (bytes/s).
CHIPS = {
    "A100": (312e12, 2.04e12),  # SXM, 80 GB
    "H100": (989e12, 3.35e12),  # SXM
    "H200": (989e12, 4.8e12),
    "RTX 4090": (165e12, 1.01e12),
}
LAUNCH = 5e-6  # s, of one kernel from the host
TABLES = {"imagenet": "disa", "harmon": "50-5", "bundled": "disa"}  # table of recipes -> row with DiSA
# What belongs to which part: the object within the model, its method, the part. The rest of a generation is "loop".
PARTS = (
    *(
        ("", "encode", "encoder"),
        ("", "decode", "decoder"),
        ("", "backbone", "backbone"),
        ("", "transform", "backbone"),
    ),
    *(("mar", "encode", "encoder"), ("mar", "decode", "decoder"), ("llm.model", "forward", "language model")),
    *(("diffloss", "guided", "head"), ("mar.diffloss", "guided", "head")),
    *(("flownet", "prepare", "head"), ("flownet", "velocity", "head")),
)
PROMPT = 24  # tokens of a prompt
STRIDE = 16  # pixels per latent of KL-16


@dataclass
class Counts:
    """What was counted.

    Attributes:
        launches: kernels, copies included; a replay of a captured graph is one.
        synchronizations: times that the host waits for the device.
        copies: from the host.
        flops: of matrix products, convolutions and attention.
        product_bytes, other_bytes: read and written by these, and by all other kernels.
        peak: bytes of memory, weights included.
        seconds: of computing in half precision by chip, each kernel by its FLOPs or its bytes, whichever take longer.
    """

    launches: int = 0
    synchronizations: int = 0
    copies: int = 0
    flops: float = 0.0
    product_bytes: float = 0.0
    other_bytes: float = 0.0
    peak: float = 0.0
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(CHIPS, 0.0))

    def add(self, other: Counts) -> Counts:
        """Add what else was counted; returns itself."""
        for name in ("launches", "synchronizations", "copies", "flops", "product_bytes", "other_bytes"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.peak = max(self.peak, other.peak)
        self.seconds = {chip: seconds + other.seconds[chip] for chip, seconds in self.seconds.items()}
        return self

    def predict(self, chip: str, batch: int) -> float:
        """Seconds per image: of launching or of computing, whichever are more."""
        return max(self.launches * LAUNCH, self.seconds[chip]) / batch


class Meter(TorchDispatchMode):
    """Counts the operations on CUDA tensors that run in its context, by part and AR step."""

    def __init__(self, max_time: float = 1.0) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.counts: dict[tuple[str, int], Counts] = defaultdict(Counts)
        self.part, self.step, self.memory, self.max_time = "loop", 0, 0.0, max_time
        self._known: set[int] = set()
        # Evaluations at this AR step, and the blocks of a network: what was met, and what it counted the second time.
        self._begun: set[bool] = set()
        self._evaluations: dict[Hashable, Anything] = {}
        self._met: set[nn.Module] = set()
        self._blocks: dict[Hashable, Anything] = {}

    def start(self) -> None:
        """Begin to count anew."""
        self.counts.clear()
        self.step = 0

    def next_step(self) -> None:
        """Count what follows for the next AR step."""
        self.step += 1
        self._begun.clear()
        self._evaluations.clear()

    @property
    def here(self) -> Counts:
        """The counts of the current part and AR step."""
        return self.counts[self.part, self.step]

    @contextmanager
    def within(self, part: str) -> Iterator[None]:
        """Count for `part`; within the head, everything is the head's."""
        before = self.part
        self.part = "head" if before == "head" else part
        yield
        self.part = before

    def once(self, seen: dict[Hashable, Anything], key: Hashable, function: Anything, *args: Anything) -> Anything:
        """Call a function that `seen` has not under `key`; one that it has counts again, and gives new fake tensors."""
        if key not in seen:
            before, start, self.counts[self.part, self.step] = self.here, self.memory, Counts()
            result, delta = function(*args), self.here
            self.counts[self.part, self.step] = before
            above, delta.peak = delta.peak - start, 0.0
            seen[key] = delta, above, tree_map_only(Tensor, partial(_empty, "meta"), result)
        else:
            delta, above, shapes = seen[key]
            start, result = self.memory, tree_map_only(Tensor, partial(_empty, "cuda"), shapes)
        self.here.add(delta)
        self.here.peak = max(self.here.peak, start + above)
        return result

    def evaluate(self, network: Callable[..., Anything], x: Tensor, t: float) -> Anything:
        """Run a head's network; with guidance and without, all evaluations of an AR step but the first are alike."""
        kind = t > self.max_time
        if kind not in self._begun:
            self._begun.add(kind)
            return network(x, t)
        return self.once(self._evaluations, kind, network, x, t)

    def run_block(
        self, block: nn.Module, forward: Callable[..., Anything], *args: Anything, **kwargs: Anything
    ) -> Anything:
        """Run one of several equal blocks; on tensors of the same shapes all are alike, each but for its first time."""
        leaves = tree_leaves((args, kwargs))
        if block not in self._met or not all(isinstance(leaf, Tensor) or leaf is None for leaf in leaves):
            self._met.add(block)
            return forward(*args, **kwargs)
        kinds = [leaf if leaf is None else (leaf.shape, leaf.stride(), leaf.dtype) for leaf in leaves]
        return self.once(self._blocks, (type(block), *kinds), partial(forward, *args, **kwargs))

    def __torch_dispatch__(self, func: Anything, _: Anything, args: Anything = (), kwargs: Anything = None) -> Anything:
        kwargs = kwargs or {}
        name = func._schema.name.split("::")[-1]
        tensors = list(_tensors((*args, *kwargs.values())))
        devices = {_device(tensor) for tensor in tensors}
        if name in WAITING and "cuda" in devices:
            self.here.synchronizations += 1
            if name in ("_local_scalar_dense", "item"):
                return True  # or the number 1
            if name in ("is_nonzero", "equal"):
                return True
        out = func(*args, **kwargs)
        results = list(_tensors(out if isinstance(out, (tuple, list)) else (out,)))
        for tensor in results:
            self.allocate(tensor)
        devices |= {_device(tensor) for tensor in results}
        empty = all(tensor.numel() == 0 for tensor in results)
        if "cuda" in devices and name not in FREE and not _is_view(func) and not empty:
            if name in COPYING and "cpu" in devices:
                self._copied(name, args, kwargs)
            self._count(func, tensors, results, args, kwargs, out)
        return out

    def _copied(self, name: str, args: Anything, kwargs: Anything) -> None:
        """Count a copy from or to the host, for which the host waits unless told not to."""
        non_blocking = kwargs.get("non_blocking", name == "copy_" and len(args) > 2 and args[2])
        self.here.copies += 1
        self.here.synchronizations += not non_blocking

    def _count(
        self,
        func: Anything,
        tensors: list[Tensor],
        results: list[Tensor],
        args: Anything,
        kwargs: Anything,
        out: Anything,
    ) -> None:
        here, packet = self.here, func.overloadpacket
        here.launches += 1
        moved = sum(tensor.numel() * tensor.element_size() for tensor in (*tensors, *results))
        flops = flop_registry[packet](*args, **kwargs, out_val=out) if packet in flop_registry else 0
        here.flops += flops
        if flops:
            here.product_bytes += moved
        else:
            here.other_bytes += moved
        for chip, (rate, bandwidth) in CHIPS.items():
            here.seconds[chip] += max(flops / rate, moved / bandwidth)

    def allocate(self, tensor: Tensor) -> None:
        """Count the memory of a tensor on the device until it is freed."""
        if _device(tensor) != "cuda":
            return
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._known:
            return
        self._known.add(key)
        size = storage.nbytes()
        self.memory += size
        self.here.peak = max(self.here.peak, self.memory)
        weakref.finalize(storage, self._free, key, size)

    def _free(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.memory -= size


def _tensors(values: Sequence[Anything]) -> Iterator[Tensor]:
    """The tensors among the arguments or results of an operation."""
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (tuple, list)):
            yield from _tensors(value)


def _empty(device: str, tensor: Tensor) -> Tensor:
    """A tensor like another one, elsewhere."""
    return torch.empty_like(tensor, device=device)


def _device(tensor: Tensor) -> str:
    """Type of the device; a fake tensor's own `device` would be one more operation."""
    return tensor.fake_device.type if isinstance(tensor, FakeTensor) else tensor.device.type


def _is_view(func: Anything) -> bool:
    """Whether an operation returns a view: its result aliases an argument that it does not write."""
    return any(result.alias_info is not None and not result.alias_info.is_write for result in func._schema.returns)


class FusedAttention(TorchFunctionMode):
    """Makes attention one kernel, as on a GPU; without one, fake tensors take it apart."""

    def __torch_function__(self, func: Anything, _: Anything, args: Anything = (), kwargs: Anything = None) -> Anything:
        if func is torch.nn.functional.scaled_dot_product_attention:
            query, key, value = (tensor.detach() for tensor in args[:3])
            if _device(query) == "cuda":
                return torch.ops.aten._scaled_dot_product_flash_attention(query, key, value)[0]
        return func(*args, **(kwargs or {}))


@dataclass
class Generation:
    """What one generation and the decoding of its latents ask for.

    Attributes:
        captured: whether diffusion steps and decoder ran as graphs, captured before.
        parts: counts by part of the model; the VAE's are apart.
        launches: of each part at each AR step.
    """

    model: str
    batch: int
    dtype: str
    captured: bool
    parts: dict[str, Counts]
    launches: dict[str, list[int]]

    @property
    def total(self) -> Counts:
        """The sum over all parts but the VAE."""
        return functools.reduce(Counts.add, (one for name, one in self.parts.items() if name != "VAE"), Counts())

    @property
    def peak(self) -> float:
        """Bytes of memory, those of decoding included."""
        return max(one.peak for one in self.parts.values())

    @classmethod
    def of(cls, model: str, batch: int, dtype: str, captured: bool, meter: Meter) -> Generation:
        """Sum what a meter counted."""
        names = dict.fromkeys(part for part, _ in meter.counts)
        steps = {part: [meter.counts[part, step] for step in range(meter.step + 1)] for part in names}
        parts = {part: functools.reduce(Counts.add, counts, Counts()) for part, counts in steps.items()}
        launches = {part: [one.launches for one in counts] for part, counts in steps.items()}
        return cls(model, batch, dtype, captured, parts, launches)

    @classmethod
    def from_dict(cls, content: Mapping[str, Anything]) -> Generation:
        """Inverse of `dataclasses.asdict`."""
        return cls(**{**content, "parts": {part: Counts(**counts) for part, counts in content["parts"].items()}})


class OneLaunch:
    """Stands for a captured graph: a replay is one launch, and computes nothing."""

    def __init__(self, meter: Meter) -> None:
        self.meter = meter

    def capture(self, function: Callable[[], Tensor]) -> Tensor:
        """Run `function`, which gives the tensor that replays fill."""
        return function()

    def replay(self) -> None:
        """Count one launch."""
        self.meter.here.launches += 1


def find_recipe(model: str) -> Recipe:
    """Find how `model` is sampled with DiSA; a ValueError if there is no such recipe."""
    if model not in (known := models()):
        raise ValueError(f"model is {model!r}; there are recipes with DiSA of {', '.join(known)}")
    return known[model]


@functools.cache
def models() -> dict[str, Recipe]:
    """Read the recipes with DiSA, by model."""
    tables = load_tables()
    found = [recipe for name, row in TABLES.items() for recipe in tables[name].recipes if recipe.row == row]
    return {recipe.model: recipe for recipe in found}


def half(model: str) -> str:
    """Name the type in which GPUs run a model by default: that of its release."""
    return "bfloat16" if model.startswith("harmon") else "float16"


def batch_size(recipe: Recipe) -> int:
    """Images at a time in the commands of the families' READMEs."""
    return 16 if recipe.table == "harmon" else recipe.batch_size


def arguments(recipe: Recipe, batch: int, device: torch.device) -> dict[str, Anything]:
    """Arguments of `generate` for a batch of a recipe, all but the noise; prompts are of PROMPT equal tokens."""
    shown: dict[str, Anything] = {"labels": torch.zeros(batch, dtype=torch.long, device=device)}
    if recipe.takes_prompts:
        shown = {"input_ids": torch.ones(2 * batch, PROMPT, dtype=torch.long, device=device)}
        if recipe.image_size:
            shown["image_shape"] = (recipe.image_size // STRIDE,) * 2
    sampling = recipe.sampling
    return {**shown, **sampling.steps, "guidance": sampling.guidance, "temperature": sampling.temperature}


def count(model: str, batch: int, dtype: str, captured: bool = False, **changes: object) -> Generation:
    """Count one generation of a batch with the settings of its recipe, or with some changed, and its decoding."""
    recipe = find_recipe(model)
    with torch.device("meta"):
        network = build_model(model).to(DTYPES[dtype]).eval()
        vae = make_vae(network, recipe).to(DTYPES[dtype])
    given = {**arguments(recipe, batch, torch.device("meta")), **changes}
    # What is computed on the host must be known before tensors are fake.
    if network.flow_times is not None:
        network.flow_times = functools.cache(network.flow_times)
    network.nfe(given["schedule"], given["sampler"], given.get("num_iter"))
    with FakeTensorMode(allow_non_fake_inputs=True):
        meter, device = Meter(given["guidance"].max_time), torch.device("cuda")
        to_fake(nn.ModuleList([network, vae]), device, meter)
        given = {**arguments(recipe, batch, device), **changes}
        graphs = capture(network, meter) if captured else nullcontext()
        with FusedAttention(), meter, by_part(network, meter), graphs:
            if captured:
                network.generate(**given, noise=ImageNoise(range(batch), device))
                meter.start()
            latents = network.generate(**given, noise=ImageNoise(range(batch), device))
            with meter.within("VAE"):
                vae.decode(latents.to(DTYPES[dtype]))
    return Generation.of(model, batch, dtype, captured, meter)


def make_vae(network: nn.Module, recipe: Recipe) -> Any:  # Any: of several kinds
    """Make the VAE of a model's latents with random weights, or take the model's own."""
    own = getattr(network, "vae", None)
    return own or build_vae(MODELS[recipe.model].vae)


@contextmanager
def capture(model: nn.Module, meter: Meter) -> Iterator[None]:
    """Run as graphs what `disa.acceleration` captures; the comparison with eager results is of fake numbers."""
    from disa.acceleration import Captured  # which earlier commits lack
    from disa.acceleration.capture import TOLERANCE

    run = Captured(lambda: OneLaunch(meter))
    for module in model.modules():
        if isinstance(module, AnnealedModel):
            module.run = run
    with mock.patch.dict(TOLERANCE, dict.fromkeys(TOLERANCE, 1.0)):
        yield


def to_fake(module: nn.Module, device: torch.device, meter: Meter) -> None:
    """Replace parameters and buffers on the device "meta" by fake ones on `device`, shared ones by one."""
    made: dict[int, Tensor] = {}
    for child in module.modules():
        places: tuple[dict[str, Anything], ...] = (child._parameters, child._buffers)
        for tensors in places:
            for name, tensor in tensors.items():
                if tensor is None:
                    continue
                if id(tensor) not in made:
                    fake = torch.empty_like(tensor, device=device, requires_grad=False)
                    made[id(tensor)] = nn.Parameter(fake, False) if isinstance(tensor, nn.Parameter) else fake
                    meter.allocate(made[id(tensor)])
                tensors[name] = made[id(tensor)]


@contextmanager
def by_part(model: nn.Module, meter: Meter) -> Iterator[None]:
    """Have `meter` count what runs in this context by part and AR step."""
    for path, method, part in PARTS:
        owner: Anything = model
        for name in path.split(".") if path else ():
            owner = getattr(owner, name, None)
        if hasattr(owner, method):
            setattr(owner, method, meter.within(part)(getattr(owner, method)))
    for module in model.modules():
        for block in module if isinstance(module, nn.ModuleList) else ():
            block.forward = partial(meter.run_block, block, block.forward)
    call = Annealing.__call__

    def counted(self: Annealing, step: int, network: Anything, *sizes: Anything, **traced: Anything) -> Tensor:
        with meter.within("head"):
            sample = call(self, step, partial(meter.evaluate, network), *sizes, **traced)
        meter.next_step()
        return sample

    with mock.patch.object(Annealing, "__call__", counted):
        yield


def count_all(names: Sequence[str], batch: int | None, dtype: str | None) -> list[Generation]:
    """Count each model at batch 1, eager and captured, and at the batch of its command, in half precision and float32.

    `batch` and `dtype` replace those of the command.
    """
    found = []
    for name in tqdm(names, unit="model"):
        many, kind = batch or batch_size(find_recipe(name)), dtype or half(name)
        found += [count(name, 1, kind), count(name, many, kind), count(name, many, "float32")]
        if importlib.util.find_spec("disa.acceleration"):
            found.append(count(name, 1, kind, captured=True))
    return found


def count_at(commit: str, words: Sequence[str]) -> list[Generation]:
    """Count in the same way at an earlier commit; `words` are flags of this command."""
    with worktree(commit) as folder:
        out = folder / "launches.json"
        command = [sys.executable, "-m", "benchmarks.launches", *words, "--json", str(out)]
        subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL)
        return [Generation.from_dict(content) for content in json.loads(out.read_text())["generations"]]


def row(name: str, now: Sequence[Generation], before: Sequence[Generation]) -> dict[str, Anything]:
    """Make what the tables have of a model, as far as it was counted."""
    found: dict[str, Anything] = {"model": name, "nfe": find_recipe(name).nfe}
    for when, generations in (("", now), ("before_", before)):
        own = [one for one in generations if one.model == name]
        if not own:
            continue
        single, many, full, *captured = own
        batch = many.batch
        found |= {"batch": batch, "dtype": many.dtype}
        found |= {
            f"{when}launches": single.total.launches,
            f"{when}synchronizations": single.total.synchronizations,
            f"{when}copies": single.total.copies,
            f"{when}tflop": many.total.flops / batch / 1e12,
            f"{when}gigabytes": many.total.other_bytes / batch / 1e9,
            f"{when}peak": many.peak / 2**30,
            f"{when}generating": many.total.peak / 2**30,
            f"{when}peak32": full.peak / 2**30,
            f"{when}eager": 1e3 * single.total.predict("H100", 1),
            **{f"{when}{chip}": 1e3 * many.total.predict(chip, batch) for chip in CHIPS},
        }
        for one in captured:
            found[f"{when}captured"] = one.total.launches
            slowest = {chip: max(one.total.launches * LAUNCH, single.total.seconds[chip]) for chip in CHIPS}
            found |= {f"{when}{chip} captured": 1e3 * seconds for chip, seconds in slowest.items()}
    for key in ("launches", "gigabytes"):
        if before:
            found[f"{key}_ratio"] = found[key] / found[f"before_{key}"]
    return found


def compared(key: str, header: str, write: Callable[[Anything], str], earlier: bool) -> list[Anything]:
    """Make a table's column, with that of the earlier commit in front of it if it was counted."""
    before = [column(f"before_{key}", f"{header}, before", write)] if earlier else []
    return [*before, column(key, f"{header}, now" if earlier else header, write)]


def write_tables(now: Sequence[Generation], before: Sequence[Generation], commit: str | None) -> str:
    """Write what was counted as Markdown."""
    names = list(dict.fromkeys(one.model for one in now))
    rows, earlier = [row(name, now, before) for name in names], bool(before)
    name, ratio = column("model", "model"), "{:.2f}".format
    whole, tenth = decimals(0), decimals(1)
    launches: Columns[Anything] = [
        *(name, column("nfe", "NFE", whole)),
        *compared("launches", "launches per image", whole, earlier),
        *([column("launches_ratio", "ratio", ratio)] if earlier else []),
        column("captured", "with captured graphs", whole),
        *compared("synchronizations", "host synchronisations", whole, earlier),
        *compared("copies", "copies from the host", whole, earlier),
    ]
    traffic: Columns[Anything] = [
        *(name, column("batch", "batch", whole), column("dtype", "type")),
        *compared("tflop", "TFLOP per image", decimals(2), earlier),
        *compared("gigabytes", "elementwise GB per image", tenth, earlier),
        *([column("gigabytes_ratio", "ratio", ratio)] if earlier else []),
    ]
    memory: Columns[Anything] = [
        *(name, column("batch", "batch", whole), column("dtype", "type")),
        *compared("peak32", "peak GiB in float32", tenth, earlier),
        *compared("peak", "in half precision", tenth, earlier),
        *compared("generating", "without decoding", tenth, earlier),
    ]
    single: Columns[Anything] = [
        *(name, *compared("eager", "eager on an H100", tenth, earlier)),
        *(column(f"{chip} captured", f"captured, {chip}", tenth) for chip in CHIPS),
    ]
    many: Columns[Anything] = [
        *(name, column("batch", "batch", whole)),
        *(one for chip in CHIPS for one in compared(chip, chip, tenth, earlier)),
    ]
    command = " ".join(["python -m benchmarks.launches", *(["--against", commit] if commit else [])])
    return "\n".join(
        [
            "# What one generation asks of a GPU",
            "",
            wrap(
                f"Counted on fake CUDA tensors by `{command}`, torch {torch.__version__.partition('+')[0]}, with the "
                "settings of the recipes with DiSA. NFE: network function evaluations per image. Attention counts as "
                "one fused kernel. Memory is that of tensors, the weights and the VAE included; allocators and "
                "libraries take more."
            ),
            *([wrap(f"Before: commit {commit}, counted in the same way.")] if commit else []),
            *("", "## Launches, one image", "", table(rows, launches)),
            "",
            wrap(
                "With captured graphs: launches from the host when the diffusion steps of an AR step are one graph, "
                "and so is MAR's decoder; a replay is one launch, and copies of its inputs are counted."
            ),
            *("", "## Traffic and arithmetic, the batch of the README's command", "", table(rows, traffic)),
            "",
            wrap("Elementwise: what all kernels but matrix products, convolutions and attention read and write."),
            *("", "## Peak memory, decoding included", "", table(rows, memory)),
            *("", "## Predicted milliseconds per image, one image at a time", "", table(rows, single)),
            "",
            wrap(
                f"{LAUNCH * 1e6:.0f} µs per launch, or each kernel's FLOPs or bytes at the vendor's rates ("
                + "; ".join(
                    f"{chip} {rate / 1e12:.0f} TFLOP/s, {band / 1e12:.2f} TB/s" for chip, (rate, band) in CHIPS.items()
                )
                + "), whichever take longer. No program reaches these rates: these are lower bounds."
            ),
            *("", "## Predicted milliseconds per image, the batch of the README's command", "", table(rows, many)),
            *("", "## By part", "", table([one for name in names for one in by_parts(name, now)], PART_COLUMNS)),
            "",
            wrap(
                "Launches of one image; FLOPs, bytes and time per image at the command's batch. The first AR step "
                "includes what is computed once per generation. Loop: what belongs to no part, such as embeddings of "
                "labels and times."
            ),
            "",
        ]
    )


PART_COLUMNS: Columns[Anything] = (
    column("model", "model"),
    column("part", "part"),
    column("launches", "launches per image", decimals(0)),
    column("first", "in the first AR step", decimals(0)),
    column("last", "in the last one", decimals(0)),
    column("tflop", "TFLOP per image", decimals(2)),
    column("gigabytes", "elementwise GB per image", decimals(1)),
    column("share", "of the H100's time", percent),
    column("peak", "peak GiB", decimals(1)),
)


def by_parts(name: str, generations: Sequence[Generation]) -> Iterator[dict[str, Anything]]:
    """Make the rows of a model's parts."""
    single, many, *_ = (one for one in generations if one.model == name)
    whole = sum(one.seconds["H100"] for one in many.parts.values())
    for part, counts in many.parts.items():
        steps = single.launches[part][:-1]  # the last entry is what follows the last AR step
        yield {
            "model": name,
            "part": part,
            "launches": single.parts[part].launches,
            **({} if part == "VAE" else {"first": steps[0], "last": steps[-1]}),
            "tflop": counts.flops / many.batch / 1e12,
            "gigabytes": counts.other_bytes / many.batch / 1e9,
            "share": counts.seconds["H100"] / whole,
            "peak": counts.peak / 2**30,
        }


def wrap(text: str) -> str:
    """Wrap a paragraph as documents are."""
    return textwrap.fill(text, 120, break_long_words=False, break_on_hyphens=False)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], formatter_class=HelpFormatter)
    full = [name for name, recipe in models().items() if not recipe.bundled]
    text = f"of {', '.join(models())}"
    parser.add_argument("--model", nargs="+", default=full, choices=models(), metavar="NAME", help=text)
    parser.add_argument("--batch", type=int, default=None, help="images at a time, instead of the README's command's")
    text = "of the networks; by default float16, bfloat16 for Harmon"
    parser.add_argument("--dtype", choices=DTYPES, default=None, help=text)
    parser.add_argument("--against", default=None, metavar="COMMIT", help="count this commit, too")
    parser.add_argument("--json", type=Path, default=None, metavar="FILE", help="write the counts")
    parser.add_argument("--out", type=Path, default=None, metavar="FILE", help="write the tables")
    args = parser.parse_args(argv)
    if args.batch is not None and args.batch < 1:
        raise ValueError(f"--batch is {args.batch}; at least 1 image is needed")
    chosen = ["--model", *args.model]
    chosen += [
        word for flag in ("batch", "dtype") if (value := getattr(args, flag)) for word in (f"--{flag}", str(value))
    ]
    before = count_at(args.against, chosen) if args.against else []
    now = count_all(args.model, args.batch, args.dtype)
    text = write_tables(now, before, args.against)
    print(text)
    if args.out:
        write_text(args.out, text)
    if args.json:
        content = {"torch": torch.__version__, "commit_before": args.against}
        lists = {"before": before, "generations": now}
        content |= {name: [asdict(one) for one in generations] for name, generations in lists.items()}
        write_text(args.json, json.dumps(content) + "\n")


if __name__ == "__main__":
    from disa.commands.exit import run

    run(main)
