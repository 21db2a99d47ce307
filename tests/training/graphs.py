"""CUDA graphs for a machine without CUDA: what is recorded is done again on the same tensors, and on nothing else.

This stands where torch calls CUDA. A graph knows operations and the tensors that they read and write; whatever Python
decides, adds up or passes as a number is what it was when the graph was recorded. So a step that depends on anything
but the contents of its tensors goes wrong here as it would on a GPU, and what would wait for the device, or draw
random numbers of a generator's, is refused.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

REFUSED = ("_local_scalar_dense", "normal_", "uniform_", "randn", "rand", "randperm")


class Graph:
    """What torch.cuda.CUDAGraph is: operations on tensors that stay in place."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, tuple[Any, ...], dict[str, Any], list[Any]]] = []
        self.replays = 0

    def replay(self) -> None:
        """Do all of it again; CUDA does it for the first time at the first replay, here that was the recording."""
        self.replays += 1
        if self.replays == 1:
            return
        with torch.no_grad():
            for function, arguments, options, outputs in self.calls:
                for there, found in zip(outputs, tree_leaves(function(*arguments, **options)), strict=True):
                    if isinstance(there, Tensor) and there.data_ptr() != found.data_ptr():
                        there.copy_(found)


class _Recording(TorchDispatchMode):
    def __init__(self, graph: Graph) -> None:
        super().__init__()
        self._graph = graph

    def __torch_dispatch__(
        self, function: Any, types: Any, arguments: tuple[Any, ...] = (), options: dict[str, Any] | None = None
    ) -> Any:
        name = function.overloadpacket.__name__
        if name in REFUSED:
            raise RuntimeError(f"{name} cannot be recorded")
        result = function(*arguments, **(options or {}))
        self._graph.calls.append((function, arguments, options or {}, tree_leaves(result)))
        return result


class _Stream:
    def __init__(self, device: torch.device) -> None:
        self.device = device

    def wait_stream(self, other: _Stream) -> None:
        """Do nothing: everything is done in order here."""


@contextlib.contextmanager
def _recorded(graph: Graph, *, pool: object, stream: _Stream, capture_error_mode: str) -> Iterator[None]:
    assert (pool, capture_error_mode) == ("pool", "thread_local")
    with _Recording(graph):
        yield


def use(patch: pytest.MonkeyPatch) -> list[Graph]:
    """Have torch.cuda record on this machine; returns the graphs, to which all that are made are added."""
    made: list[Graph] = []

    def graph() -> Graph:
        made.append(Graph())
        return made[-1]

    patch.setattr(torch.cuda, "CUDAGraph", graph)
    patch.setattr(torch.cuda, "graph", _recorded)
    patch.setattr(torch.cuda, "graph_pool_handle", lambda: "pool")
    patch.setattr(torch.cuda, "Stream", _Stream)
    patch.setattr(torch.cuda, "current_stream", _Stream)
    patch.setattr(torch.cuda, "set_stream", lambda stream: None)
    patch.setattr(torch.cuda, "stream", lambda stream: contextlib.nullcontext())
    return made
