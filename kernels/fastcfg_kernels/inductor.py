"""The torch path compiled by Inductor for CPU tensors, a call for each sample.

One compiled function of one sample, whatever the batch, keeps a sample's bits from depending on its batch mates.
"""

from __future__ import annotations

import itertools
import shutil
import sys
import threading
import types
from collections.abc import Callable, Sequence
from functools import cache, lru_cache
from typing import Any

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


@cache
def _compiled(
    program: Program, results: tuple[int, ...], dtypes: tuple[torch.dtype, ...], rest: bool
) -> Callable[..., None]:
    """One sample's program for dtypes and the presence of a partial tile."""

    def sample(outs: tuple[Tensor, ...], params: tuple[Tensor, ...], figures: Tensor | None, *inputs: Tensor) -> None:
        made = functional.guide_rows(program, inputs, params, figures=figures)
        for out, k in zip(outs, results, strict=True):
            out.copy_(made[k])

    # Dynamo counts recompilations by code object, so each has its own.
    code = sample.__code__.replace(co_name=f"fastcfg_sample_{next(_numbers)}")
    own = types.FunctionType(code, sample.__globals__, code.co_name, None, sample.__closure__)
    return torch.compile(own, dynamic=True, fullgraph=True)


_numbers = itertools.count()
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
    program: Program,
    inputs: Sequence[Tensor],
    params: Sequence[Any],
    outs: Sequence[Tensor],
    results: Sequence[int],
    figures: Tensor | None = None,
) -> None:
    """Guide ``[B, N]`` contiguous rows by an Inductor function of one sample, run sample by sample.

    Writes result ``results[k]`` to ``outs[k]``, and a sample's figures to a row of ``figures`` where the program has
    them. No output may overlap an input.
    """
    batch, count = inputs[0].shape
    acc = accumulator(inputs[0].dtype)
    values = [tuple(_scalar(v, acc, k) for k, v in enumerate(row)) for row in host_params(params, batch)]
    dtypes = tuple(t.dtype for t in (*inputs, *outs))
    run = _compiled(program, tuple(results), dtypes, count % TILE != 0)
    with _compile_lock, torch.no_grad():
        for b in range(batch):
            told = None if figures is None else _alone(figures[b])
            run(tuple(_alone(o[b]) for o in outs), values[b], told, *(_alone(p[b]) for p in inputs))
