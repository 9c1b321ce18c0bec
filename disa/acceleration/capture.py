"""CUDA graphs: the diffusion steps of an AR step are captured once and then replayed as one launch.

A solver is a loop of many small kernels. At small batches a GPU waits for their launches; a captured graph needs one.
What changes from one generation to the next (noise, conditions, caches) is copied to fixed addresses before a replay.
What does not (times, guidance scale, coefficients) is a part of the graph.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Hashable, Iterator
from functools import partial
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from ..annealing import Network
from ..solver import Solver, Times

T = TypeVar("T")
# Relative difference from the eager result up to which a capture is used, by dtype of the result.
TOLERANCE = {torch.float64: 1e-5, torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 5e-3}
GRAPHS = 256  # captured at the most


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
        with torch.cuda.graph(self.graph, pool=CudaGraph.pool):  # type: ignore[arg-type]
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


class CapturedSolve:
    """Run solvers as captured graphs; set it as `model.solve`.

    A combination of shapes, times and scale met for the first time runs eagerly and is captured, and the two are
    compared. A capture that differs by more than TOLERANCE switches capturing off, with a warning.

    Args:
        graph: makes a graph; `EagerGraph` needs no GPU.
    """

    def __init__(self, graph: Callable[[], Graph] = CudaGraph) -> None:
        self.make, self.on = graph, True
        self.graphs: dict[Hashable, tuple[Graph, list[Tensor], Tensor]] = {}

    def __call__(self, solver: Solver, network: Network, noise: Tensor, times: Times, temperature: float) -> Tensor:
        """As `Solver.solve`."""
        if not self.on or not isinstance(network, partial):  # a closure does not say what it depends on
            return solver.solve(network, noise, times, temperature)
        inputs = list(tensors_of((network, noise)))
        key = (solver.label, tuple(times), temperature, _key((network, noise)))
        if key not in self.graphs:
            return self._capture(key, solver, network, noise, times, temperature)
        graph, fixed, result = self.graphs[key]
        for held, tensor in zip(fixed, inputs, strict=True):
            held.copy_(tensor)
        graph.replay()
        return result.clone()

    def _capture(
        self, key: Hashable, solver: Solver, network: Network, noise: Tensor, times: Times, temperature: float
    ) -> Tensor:
        eager = solver.solve(network, noise, times, temperature)
        if len(self.graphs) >= GRAPHS:
            return eager
        fixed = [tensor.clone() for tensor in tensors_of((network, noise))]
        held_network, held_noise = with_tensors((network, noise), iter(fixed))
        graph = self.make()
        result = graph.capture(lambda: solver.solve(held_network, held_noise, times, temperature))
        graph.replay()
        difference = ((result - eager).norm() / eager.norm()).item()
        if not difference <= TOLERANCE[_precision(network, eager)]:
            warnings.warn(f"captured graphs differ from eager by {difference:.1e}; they are switched off", stacklevel=2)
            self.on = False
            self.graphs.clear()
        else:
            self.graphs[key] = graph, fixed, result
        return eager


def _precision(network: Network, result: Tensor) -> torch.dtype:
    """The lowest precision that takes part: the networks may be half where the solver's state is not."""
    dtypes = {tensor.dtype for tensor in tensors_of(network) if tensor.is_floating_point()} | {result.dtype}
    return max(dtypes & TOLERANCE.keys(), key=TOLERANCE.__getitem__)


def tensors_of(tree: object) -> Iterator[Tensor]:
    """The tensors in nested partials, tuples, lists, dicts and plain objects, in a fixed order."""
    if isinstance(tree, Tensor):
        yield tree
    else:
        for child in _children(tree):
            yield from tensors_of(child)


def with_tensors(tree: T, tensors: Iterator[Tensor]) -> T:
    """`tree` with its tensors replaced by others, in the order of `tensors_of`."""
    if isinstance(tree, Tensor):
        return next(tensors)  # type: ignore[return-value]
    children = [with_tensors(child, tensors) for child in _children(tree)]
    if isinstance(tree, partial):
        return partial(tree.func, *children)  # type: ignore[return-value]
    if isinstance(tree, (tuple, list)):
        return type(tree)(children)
    if _is_plain(tree):
        other = copy.copy(tree)
        vars(other).update(zip(vars(tree), children, strict=True))
        return other
    return tree


def _children(tree: object) -> tuple[object, ...]:
    if isinstance(tree, partial):
        return tree.args
    if isinstance(tree, (tuple, list)):
        return tuple(tree)
    return tuple(vars(tree).values()) if _is_plain(tree) else ()


def _is_plain(tree: object) -> bool:
    """Whether it is an object of ours that may hold tensors, such as a cache, and no module or function."""
    return hasattr(tree, "__dict__") and not isinstance(tree, (torch.nn.Module, partial, type)) and not callable(tree)


def _key(tree: object) -> Hashable:
    """What a graph depends on: shapes and dtypes of tensors, and the values of everything else."""
    if isinstance(tree, Tensor):
        return tuple(tree.shape), tree.dtype, tree.device
    if isinstance(tree, dict):
        return tuple(tree.items())
    if isinstance(tree, partial):
        return tree.func, tuple(map(_key, tree.args))
    if isinstance(tree, (tuple, list)) or _is_plain(tree):
        return type(tree), tuple(map(_key, _children(tree)))
    return tree
