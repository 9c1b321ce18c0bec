"""CUDA graphs: a computation of many small kernels is captured once and then replayed as one launch.

A solver is such a computation, and so is a transformer on a sequence of one length: at small batches a GPU waits for
their launches. What changes from one call to the next (noise, conditions, caches) is copied to fixed addresses before
a replay. What does not (times, guidance scale, coefficients, weights) is a part of the graph.
"""

from __future__ import annotations

import copy
import warnings
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator
from functools import partial
from typing import Any, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor, nn

T = TypeVar("T")
# Relative difference from the eager result up to which a capture is used, by the lowest precision that takes part.
TOLERANCE = {torch.float64: 1e-5, torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 5e-3}
GRAPHS = 512  # captured at the most: a generation has one for each AR step, and one for each size of a group of tokens


class Graph(Protocol):
    """A computation on fixed addresses."""

    def capture(self, function: Callable[[], Tensor]) -> Tensor:
        """Record `function`; returns the tensor that each replay fills."""

    def replay(self) -> None:
        """Compute again from what the fixed addresses hold now."""


class CudaGraph:
    """`torch.cuda.CUDAGraph`. All share one memory pool, for they run one after another."""

    pool: object = None  # a handle, whose type is torch's own

    def __init__(self) -> None:
        self.graph = torch.cuda.CUDAGraph()

    def capture(self, function: Callable[[], Tensor]) -> Tensor:
        """Record `function` after a run on a side stream, which lets libraries allocate what they need."""
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            function()
        torch.cuda.current_stream().wait_stream(stream)
        CudaGraph.pool = CudaGraph.pool or torch.cuda.graph_pool_handle()
        # What other threads do, such as pinning memory, does not concern the capture.
        with torch.cuda.graph(self.graph, pool=CudaGraph.pool, capture_error_mode="thread_local"):  # type: ignore[arg-type]
            return function()

    def replay(self) -> None:
        """Launch the graph."""
        self.graph.replay()


class EagerGraph:
    """The same without a GPU, for tests: a replay runs the function again and fills the same tensor."""

    def capture(self, function: Callable[[], Tensor]) -> Tensor:
        """Run and remember `function`."""
        self.function, self.result = function, function()
        return self.result

    def replay(self) -> None:
        """Run the function again."""
        self.result.copy_(self.function())


class Capture(NamedTuple):
    """A graph with the addresses of its inputs and its result, and the weights that it reads, which it keeps alive."""

    graph: Graph
    fixed: list[Tensor]
    result: Tensor
    weights: list[Tensor]
    versions: list[int]

    def replay(self, inputs: Iterable[Tensor]) -> Tensor:
        """Compute from `inputs`."""
        for held, tensor in zip(self.fixed, inputs, strict=True):
            held.copy_(tensor)
        self.graph.replay()
        return self.result.clone()

    @property
    def current(self) -> bool:
        """Whether the weights are what they were."""
        return self.versions == [tensor._version for tensor in self.weights]


class Captured:
    """Run functions of tensors as captured graphs; set it as a model's `run`.

    A function runs eagerly and is captured when it is first called with a combination of shapes and values, and the two
    are compared. If the capture fails, or differs by more than TOLERANCE, capturing is switched off with a warning.
    Weights that change in place are captured again. To replace parameters by others, make another `Captured`.

    A function may write into its arguments, but nobody sees what it wrote. One with a closure, or an argument with one,
    does not say what it depends on and always runs eagerly.

    Args:
        graph: makes a graph; `EagerGraph` needs no GPU.
    """

    def __init__(self, graph: Callable[[], Graph] = CudaGraph) -> None:
        self.make, self.on = graph, True
        self.captures: dict[Hashable, Capture] = {}
        self.fixed: dict[Hashable, Tensor] = {}

    def __deepcopy__(self, memo: object) -> Captured:
        return Captured(self.make)  # a copy of a model has weights of its own, and captures them

    def __call__(self, function: Callable[..., Tensor], *args: object) -> Tensor:
        """Compute `function(*args)`, in which all tensors are arguments, or a module's own."""
        tree = (function, *args)
        if not self.on or any(getattr(leaf, "__closure__", None) for leaf in _leaves(tree)):
            return function(*args)
        key = _key(tree)
        found = self.captures.get(key)
        if found is not None and found.current:
            return found.replay(tensors_of(tree))
        result = function(*args)
        if found is not None or len(self.captures) < GRAPHS:
            self._capture(key, tree, result)
        return result

    def _capture(self, key: Hashable, tree: tuple[object, ...], eager: Tensor) -> None:
        self.captures.pop(key, None)
        try:
            capture = self._graph(tree)
            difference = _difference(capture.replay(tensors_of(tree)), eager)
        except RuntimeError as error:  # of the device: an operation that cannot be captured, or no memory
            self._switch_off(f"a capture failed ({str(error).splitlines()[0]})")
            return
        if difference <= TOLERANCE[_precision(tree, eager)]:
            self.captures[key] = capture
        elif eager.isfinite().all():  # else there is nothing to compare with
            self._switch_off(f"one differs from the eager result by {difference:.1e}")

    def _graph(self, tree: tuple[object, ...]) -> Capture:
        fixed = self._places(tensors_of(tree))
        for place, tensor in zip(fixed, tensors_of(tree), strict=True):
            place.copy_(tensor)
        held = with_tensors(tree, iter(fixed))
        function, args = held[0], held[1:]
        assert callable(function)
        weights = [tensor.detach() for tensor in _weights(tree)]  # an alias: it keeps memory and counts versions
        graph = self.make()
        result = graph.capture(lambda: function(*args))
        return Capture(graph, fixed, result, weights, [tensor._version for tensor in weights])

    def _places(self, tensors: Iterable[Tensor]) -> list[Tensor]:
        """Fixed addresses for copies of tensors. All graphs share them, for they are filled before each replay."""
        places, taken = [], Counter[Hashable]()
        for tensor in tensors:
            kind = _key(tensor)
            slot = (kind, taken[kind])
            taken[kind] += 1
            if slot not in self.fixed:
                self.fixed[slot] = torch.empty_like(tensor, memory_format=torch.contiguous_format)
            places.append(self.fixed[slot])
        return places

    def _switch_off(self, reason: str) -> None:
        warnings.warn(f"captured graphs are switched off: {reason}", stacklevel=4)
        self.on = False
        self.captures.clear()
        self.fixed.clear()


def _difference(result: Tensor, expected: Tensor) -> float:
    """‖result - expected‖ / ‖expected‖."""
    expected = expected.double()
    return ((result - expected).norm() / expected.norm().clamp(min=1e-300)).item()


def _precision(tree: object, result: Tensor) -> torch.dtype:
    """The lowest precision that takes part: the networks may be half where the solver's state is not."""
    dtypes = {tensor.dtype for tensor in tensors_of(tree)} | {result.dtype}
    return max(dtypes & TOLERANCE.keys(), key=TOLERANCE.__getitem__)


def _weights(tree: object) -> Iterator[Tensor]:
    """The tensors of the modules whose methods are in `tree`: parameters, buffers, and what was made of them."""
    for leaf in _leaves(tree):
        module = getattr(leaf, "__self__", leaf)
        for part in module.modules() if isinstance(module, nn.Module) else ():
            yield from tensors_of([value for value in vars(part).values() if isinstance(value, (Tensor, tuple, dict))])


def tensors_of(tree: object) -> Iterator[Tensor]:
    """The tensors in nested partials, tuples, lists, dicts and plain objects, in a fixed order."""
    return (leaf for leaf in _leaves(tree) if isinstance(leaf, Tensor))


def _leaves(tree: object) -> Iterator[object]:
    if (children := _children(tree)) is None:
        yield tree
    else:
        for child in children:
            yield from _leaves(child)


def with_tensors(tree: T, tensors: Iterator[Tensor]) -> T:
    """`tree` with its tensors replaced by others, in the order of `tensors_of`."""
    if isinstance(tree, Tensor):
        return next(tensors)  # type: ignore[return-value]
    children: list[Any] = [with_tensors(child, tensors) for child in _children(tree) or ()]  # Any: as the tree has them
    if isinstance(tree, partial):
        function, *args = children
        return partial(function, *args)  # type: ignore[return-value]
    if isinstance(tree, (tuple, list)):
        return type(tree)(children)
    if isinstance(tree, dict):
        return dict(zip(tree, children, strict=True))  # type: ignore[return-value]
    if _is_plain(tree):
        other = copy.copy(tree)
        vars(other).update(zip(vars(tree), children, strict=True))
        return other
    return tree


def _children(tree: object) -> tuple[object, ...] | None:
    """The parts of a nested object, or None of a leaf."""
    if isinstance(tree, partial):
        return tree.func, *tree.args
    if isinstance(tree, (tuple, list)):
        return tuple(tree)
    if isinstance(tree, dict):
        return tuple(tree.values())
    return tuple(vars(tree).values()) if _is_plain(tree) else None


def _is_plain(tree: object) -> bool:
    """Whether it is an object of ours that may hold tensors, such as a cache, and no module or function."""
    return hasattr(tree, "__dict__") and not isinstance(tree, (Tensor, nn.Module)) and not callable(tree)


def _key(tree: object) -> Hashable:
    """What a graph depends on: shapes and dtypes of tensors, and the values of everything else."""
    if isinstance(tree, Tensor):
        return tree.shape, tree.dtype, tree.device
    children = _children(tree)
    if children is None:
        return tree
    names = tuple(tree) if isinstance(tree, dict) else ()
    return type(tree), names, tuple(map(_key, children))
