"""Functions of tensors that are made ready once and then run again and again: CUDA graphs, ``torch.compile``."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any, Literal, get_args

import fastcfg_kernels as fk
import torch
from torch import Tensor

__all__ = ["ReplayBackend", "check_backend", "replayer"]

Function = Callable[[Sequence[Tensor]], Sequence[Tensor]]
ReplayBackend = Literal["auto", "cudagraph", "compile", "eager"]

_numbers = itertools.count()


def check_backend(backend: str) -> None:
    """Raise unless it is a :data:`ReplayBackend`."""
    if backend not in get_args(ReplayBackend):
        raise ValueError(f"backend: expected one of {', '.join(get_args(ReplayBackend))}, got {backend!r}")


def replayer(
    function: Function, tensors: Sequence[Tensor], backend: str, pool: Any, options: dict[str, Any]
) -> Function:
    """``function`` made ready for tensors like these.

    Args:
        backend: ``"cudagraph"``, ``"compile"``, ``"eager"``, or ``"auto"``: a CUDA graph on CUDA, else compiled.
        pool: what CUDA graphs share their memory by; options: of ``torch.compile``.

    Raises:
        RuntimeError: for a CUDA graph on another device.
    """
    device = tensors[0].device
    if backend == "auto":
        backend = "cudagraph" if device.type == "cuda" else "compile"
    if backend == "cudagraph":
        if device.type != "cuda":
            raise RuntimeError(f"backend: a CUDA graph needs CUDA tensors, got tensors on {device}")
        return _CudaGraph(function, tensors, pool)
    return _compiled(function, options) if backend == "compile" else function


def _compiled(function: Function, options: dict[str, Any]) -> Function:
    # Dynamo counts recompilations by code object, so each function has one of its own.
    name = f"guided_step_{next(_numbers)}"
    own = fk.function_from_source(name, f"def {name}(tensors):\n    return function(tensors)\n", {"function": function})
    return torch.compile(own, fullgraph=True, **options)  # type: ignore[no-any-return]


class _CudaGraph:
    """A function captured as a CUDA graph: its inputs are copied into the graph's own tensors, and it is replayed.

    The results are the graph's own memory, which the next replay of any graph of the pool overwrites.
    """

    WARMUP = 3
    """Runs before the capture, on a stream of their own: kernels are compiled and workspaces are allocated there."""

    def __init__(self, function: Function, tensors: Sequence[Tensor], pool: Any) -> None:
        self._own = [tensor.clone() for tensor in tensors]
        current, aside = torch.cuda.current_stream(), torch.cuda.Stream()  # type: ignore[no-untyped-call]
        aside.wait_stream(current)
        with torch.cuda.stream(aside):
            for _ in range(self.WARMUP):
                function(self._own)
        current.wait_stream(aside)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph, pool=pool):
            self._results = function(self._own)

    def __call__(self, tensors: Sequence[Tensor]) -> Sequence[Tensor]:
        torch._foreach_copy_(self._own, list(tensors), non_blocking=True)
        self._graph.replay()
        return self._results
