"""The path of large CPU samples: the torch path compiled by Inductor, a call for each sample.

One compiled function of one sample, whatever the batch, keeps a sample's bits from depending on its batch mates.
"""

from __future__ import annotations

import itertools
import re
import shutil
import sys
import threading
import types
from collections.abc import Callable, Sequence
from functools import cache, lru_cache
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils.dlpack import to_dlpack  # type: ignore[attr-defined]

from . import functional
from .host import host_params
from .notices import warn_once
from .program import Program
from .tiles import TILE, accumulator

__all__ = ["can_compile", "guide_compiled"]


@cache
def can_compile() -> bool:
    """Whether Inductor finds a C++ compiler; where not, a warning says so once."""
    try:
        from torch._inductor import config
        from torch._inductor.cpp_builder import get_cpp_compiler

        compiler = get_cpp_compiler()
        if shutil.which(compiler) is None:
            raise RuntimeError(f"{compiler} is not on PATH (inductor config: {config.cpp.cxx})")
    except Exception as error:
        warn_once(f"fastcfg: no C++ compiler for torch.compile ({error}); large CPU tensors take the eager path")
        return False
    return sys.platform != "win32"


ONE_THREAD = 500_000
"""Smallest sample, in elements, for which waking other threads and waiting for them pays."""


class _Sample:
    """One sample's program, compiled by Inductor, for dtypes, the presence of a partial tile, and one thread or all.

    Dynamo finds the compiled function for a length the first time; after that it is called by itself, since Dynamo's
    own work costs more than a medium sample. A length is kept only where it is certain which function it led to.
    """

    def __init__(
        self, program: Program, results: tuple[int, ...], dtypes: tuple[torch.dtype, ...], rest: bool, alone: bool
    ) -> None:
        self._options: dict[str, Any] = {"cpp.threads": 1} if alone else {}

        def sample(outs: tuple[Tensor, ...], params: tuple[Tensor, ...], *inputs: Tensor) -> None:
            made = functional.guide_rows(program, inputs, params)
            for out, k in zip(outs, results, strict=True):
                out.copy_(made[k])

        # Dynamo counts recompilations by code object, so each has its own.
        code = sample.__code__.replace(co_name=f"fastcfg_sample_{next(_numbers)}")
        own = types.FunctionType(code, sample.__globals__, code.co_name, None, sample.__closure__)
        self._run = torch.compile(own, backend=self._backend, dynamic=True, fullgraph=True)
        self._compiled: list[tuple[list[tuple[str, int] | None], Callable[..., Any]]] = []
        self._direct: dict[int, tuple[list[tuple[str, int] | None], Callable[..., Any]]] = {}

    def _backend(self, graph: torch.fx.GraphModule, examples: list[Any]) -> Callable[..., Any]:
        """Inductor; notes which argument each of the graph's inputs is, None being the length."""
        from torch._inductor.compile_fx import compile_fx

        function = cast(Callable[..., Any], compile_fx(graph, examples, config_patches=self._options))
        order: list[tuple[str, int] | None] = []
        for node in graph.graph.nodes:
            if node.op == "placeholder":
                found = re.fullmatch(r"l_(outs|params|inputs)_(\d+)_", node.name)
                if found is None and not isinstance(node.meta.get("example_value"), torch.SymInt):
                    return function  # An input that is not known here: only Dynamo can call it.
                order.append((found[1], int(found[2])) if found else None)
        self._compiled.append((order, function))
        return function

    def __call__(self, outs: Sequence[Tensor], params: Sequence[Tensor], inputs: Sequence[Tensor]) -> None:
        count = inputs[0].shape[0]
        if (direct := self._direct.get(count)) is not None:
            given = {"outs": outs, "params": params, "inputs": inputs}
            order, function = direct
            function(*(count if place is None else given[place[0]][place[1]] for place in order))
            return
        before = len(self._compiled)
        with torch.no_grad():
            self._run(tuple(_alone(o) for o in outs), tuple(params), *(_alone(p) for p in inputs))
        if len(self._compiled) == before + 1 or before == len(self._compiled) == 1:
            self._direct[count] = self._compiled[-1]


_numbers = itertools.count()
_compiled = cache(_Sample)
_compile_lock = threading.Lock()


def _alone(view: Tensor) -> Tensor:
    """The same memory as a tensor that is no view: of a view Dynamo guards the base, and so the caller's shapes."""
    alone: Tensor = torch.from_dlpack(to_dlpack(view))  # type: ignore[attr-defined]
    return alone


@lru_cache(maxsize=1024)
def _scalar(value: float, dtype: torch.dtype, place: int) -> Tensor:
    """A parameter as a tensor, which nothing writes: Dynamo compiles again for a number that changes.

    Each place has tensors of its own: of two arguments that are one object Dynamo makes one input.
    """
    return torch.tensor(value, dtype=dtype)


def guide_compiled(
    program: Program, inputs: Sequence[Tensor], params: Sequence[Any], outs: Sequence[Tensor], results: Sequence[int]
) -> None:
    """Guide ``[B, N]`` contiguous rows by an Inductor function of one sample, run sample by sample.

    Writes result ``results[k]`` to ``outs[k]``. No output may overlap an input.
    """
    batch, count = inputs[0].shape
    acc = accumulator(inputs[0].dtype)
    values = [tuple(_scalar(v, acc, k) for k, v in enumerate(row)) for row in host_params(params, batch)]
    dtypes = tuple(t.dtype for t in (*inputs, *outs))
    run = _compiled(program, tuple(results), dtypes, count % TILE != 0, count < ONE_THREAD)
    with _compile_lock:
        for b in range(batch):
            run([o[b] for o in outs], values[b], [p[b] for p in inputs])
