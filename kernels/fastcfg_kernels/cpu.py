"""The CPU paths: plain ``torch.lerp``, a few eager operations for small samples, and Inductor for large ones.

The path is chosen by the size of one sample, never by the batch, and each path treats a sample alone or in a batch
with the same operations in the same order, so that its bits do not depend on its batch mates.
"""

from __future__ import annotations

import shutil
import sys
import threading
import types
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from . import functional
from .notices import warn_once
from .program import Program
from .tiles import TILE, accumulator, basis

__all__ = ["SMALL", "can_compile", "guide_compiled", "guide_small", "is_lerp", "lerp_weight"]

SMALL = 20_000
"""Largest sample, in elements, for which a few eager operations beat the call of a compiled function. It also lies
below the size (32,768) from which torch splits the reduction of one row between threads."""


def host_params(params: Sequence[Any], batch: int) -> list[Sequence[float]]:
    """Parameters as numbers, per sample: a list (one entry a sample) of tuples."""
    columns = [p.tolist() if isinstance(p, Tensor) else p for p in params]
    return [tuple(c[b] if isinstance(c, list) else c for c in columns) for b in range(batch)]


def weigh_on_host(program: Program, sums: Sequence[float], count: int, params: Sequence[float]) -> list[float]:
    """``program.weigh`` in float64 on the host; a division by zero gives inf or NaN there, as it does on a device."""
    with np.errstate(all="ignore"):
        weighed = program.weigh(
            tuple(np.float64(s) for s in sums), np.float64(count), tuple(np.float64(p) for p in params)
        )
    return [float(w) for w in weighed]


def lerp_weight(program: Program, params: Sequence[float]) -> float | None:
    """The weight of ``torch.lerp`` where a program without sums is one, else None."""
    if len(program.predictions) != 2 or program.reduces or program.clamps:
        return None
    base, delta = weigh_on_host(program, (), 0, params)
    return delta if base == 1 else None


def is_lerp(program: Program) -> bool:
    """Whether the program can be one ``torch.lerp``: two predictions, no sums, no clamp."""
    return len(program.predictions) == 2 and not program.reduces and not program.clamps


def _small_sums(program: Program, predictions: Sequence[Tensor], acc: torch.dtype) -> list[list[float]]:
    """The sums of each sample, ``predictions`` being K tensors ``[B, N]``.

    All vectors lie in one buffer, whose rows start at multiples of 64 bytes: a BLAS dot product may round otherwise
    for another alignment.
    """
    batch, count = predictions[0].shape
    used = sorted({v for _, a, b in program.pairs for v in (a, b)} | set(program.centred))
    row = {v: i for i, v in enumerate(used)}
    size = len(program.predictions)
    buffer = torch.empty((len(used), batch, -(-count // 16) * 16), dtype=acc)[..., :count]
    for v in used:
        if 0 < v < size:
            torch.sub(predictions[v], predictions[0], out=buffer[row[v]]) if predictions[0].dtype == acc else (
                buffer[row[v]].copy_(predictions[v]).sub_(predictions[0])
            )
        else:
            buffer[row[v]].copy_(predictions[v if v == 0 else v - size + 1])
    found: dict[tuple[str, int, int], list[float]] = {}

    def dots(kind: str) -> None:
        for pair in program.pairs:
            if pair[0] == kind:
                x, y = buffer[row[pair[1]]], buffer[row[pair[2]]]
                found[pair] = [torch.dot(x[b], y[b]).item() for b in range(batch)]

    dots("dot")
    means: dict[int, list[float]] = {}
    if program.centred:
        pivot = buffer[..., :1].clone()
        buffer -= pivot
        mean = buffer.mean(-1, keepdim=True)
        buffer -= mean
        totals = (pivot + mean)[..., 0].tolist() if program.means else []
        means = {v: totals[row[v]] for v in program.means}
        dots("cov")
    return [[*(found[p][b] for p in program.pairs), *(means[v][b] for v in program.means)] for b in range(batch)]


def guide_small(program: Program, predictions: Sequence[Tensor], params: Sequence[Any], out: Tensor) -> None:
    """Guide ``[B, N]`` rows of small samples by eager operations, the formula on host numbers; writes ``out``.

    Only operations that round each element by IEEE rules alone are used to combine, so that an element's place in
    a vector register does not show in its bits.
    """
    batch, count = predictions[0].shape
    acc = accumulator(predictions[0].dtype)
    values = host_params(params, batch)
    sums = _small_sums(program, predictions, acc) if program.reduces else [[] for _ in range(batch)]
    weights = [weigh_on_host(program, s, count, p) for s, p in zip(sums, values, strict=True)]

    def column(k: int) -> Any:
        if batch == 1 or all(w[k] == weights[0][k] for w in weights[1:]):
            return weights[0][k]
        return torch.tensor([[w[k]] for w in weights], dtype=acc)

    result: Tensor | None = None
    for k, vector in enumerate(basis(predictions, acc)):
        weight = column(k)
        if isinstance(weight, Tensor) or weight != 1:
            # The first vector may be the caller's own tensor: only deltas are ours to overwrite.
            vector = torch.mul(vector, weight) if k == 0 else vector.mul_(weight)
        result = vector if result is None else vector.add_(result)
    assert result is not None
    if program.clamps:
        low, high = column(-2), column(-1)
        if isinstance(low, Tensor) != isinstance(high, Tensor):
            low, high = (torch.as_tensor(b, dtype=acc) for b in (low, high))
        result = torch.clamp(result, low, high)
    out.copy_(result)


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
def _compiled(program: Program, dtype: torch.dtype, rest: bool) -> Callable[..., None]:
    """One compiled function of one sample for each program, dtype, and presence of a partial tile.

    Dynamo counts recompilations by code object, so each has its own.
    """

    def sample(out: Tensor, params: tuple[Tensor, ...], *predictions: Tensor) -> None:
        out.copy_(functional.guide_rows(program, predictions, params))

    code = sample.__code__.replace(co_name=f"fastcfg_sample_{len(_compiled_names)}")
    _compiled_names.append(code.co_name)
    own = types.FunctionType(code, sample.__globals__, code.co_name, None, sample.__closure__)
    return torch.compile(own, dynamic=True, fullgraph=True)


_compiled_names: list[str] = []
_compile_lock = threading.Lock()


def guide_compiled(program: Program, predictions: Sequence[Tensor], params: Sequence[Any], out: Tensor) -> None:
    """Guide ``[B, N]`` contiguous rows by an Inductor function of one sample, run sample by sample; writes ``out``.

    ``out`` may not overlap a prediction.
    """
    batch, count = predictions[0].shape
    acc = accumulator(predictions[0].dtype)
    # Tensors, not numbers: Dynamo compiles again for a number that changes.
    columns = [torch.as_tensor(p, dtype=acc).expand(batch).unbind() for p in params]
    run = _compiled(program, predictions[0].dtype, count % TILE != 0)
    with torch.no_grad(), _compile_lock:
        for b in range(batch):
            run(out[b], tuple(c[b] for c in columns), *(p[b] for p in predictions))
