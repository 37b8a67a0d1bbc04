"""The backend of CPU tensors: a program as native code, all samples in one call."""

from __future__ import annotations

import ctypes
from array import array
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ...formula.program import Program
from ...host import host_params
from ...memory import collide, stored
from ..torch.tiles import accumulator
from .build import compiler, load
from .entry import short_way
from .rows import as_rows
from .source import cpp_source
from .threads import threads_of

if TYPE_CHECKING:
    from ...call import Call

__all__ = ["guide_cpp", "run", "supports", "unavailable"]


@lru_cache(maxsize=512)
def _library(
    program: Program, inputs: tuple[torch.dtype, ...], targets: tuple[tuple[int, torch.dtype], ...]
) -> ctypes.CDLL:
    return load(cpp_source(program, inputs, targets))


@lru_cache(maxsize=512)
def _function(
    program: Program, inputs: tuple[torch.dtype, ...], targets: tuple[tuple[int, torch.dtype], ...]
) -> Callable[..., None]:
    function = _library(program, inputs, targets).guide
    tensors = len(inputs) + len(targets)
    pointer, number = ctypes.c_void_p, ctypes.c_int64
    function.argtypes = [*(pointer, number) * tensors, pointer, number, number, number, number]
    function.argtypes += [pointer] * bool(program.stats)
    function.restype = None
    return function


def guide_cpp(
    program: Program,
    inputs: Sequence[Tensor],
    params: Sequence[Any],
    outs: Sequence[Tensor],
    results: Sequence[int],
    stats: Tensor | None = None,
) -> None:
    """Guide ``[B, N]`` rows of last stride 1, or contiguous ``[B, ...]``; writes ``outs``.

    An output may be one of the inputs.

    Args:
        inputs: K predictions of one dtype, the extras, and the elementwise scale and mask of a program that has them.
        results: which result of the program each of ``outs`` takes.
        stats: contiguous ``[B, K]`` in the accumulator's dtype, for those of a program that has them.

    Raises:
        RuntimeError: if the native code can't be built.
    """
    if program.masked:
        inputs = [*inputs[:-1], inputs[-1].to(accumulator(inputs[0].dtype))]
    rows = inputs[0].shape[0]
    count = inputs[0].numel() // rows
    dtypes = tuple([t.dtype for t in inputs])
    function = _function(program, dtypes, tuple([(k, t.dtype) for k, t in zip(results, outs, strict=True)]))
    arguments: list[int] = []
    for tensor in (*inputs, *outs):
        arguments += (tensor.data_ptr(), tensor.stride(0))
    if any([isinstance(p, Tensor) for p in params]):
        values = array("d", [v for row in host_params(params, rows) for v in row])
        step = len(params)
    else:
        values, step = array("d", params), 0
    threads = threads_of(rows * count)
    written = () if stats is None else (stats.data_ptr(),)
    function(*arguments, values.buffer_info()[0], step, rows, count, threads, *written)


def unavailable(device: torch.device) -> str | None:
    """Return why a device can't be used, or None where it can."""
    if device.type != "cpu" or compiler() is None:
        return "it is native code for CPU tensors; it needs them and a C++ compiler"
    return None


def supports(call: Call) -> str | None:
    """Return why a call can't be run here, or None where it can."""
    return unavailable(call.first.device) if call.native else "torch's own operations are needed"


def run(call: Call) -> list[Tensor]:
    """Run a call of tensors as they lie, copying what native code can't read or write there.

    Raises:
        RuntimeError: if the native code can't be built.
    """
    if call.groups is not None:
        groups = call.groups
        return call.deliver([groups.back(made) for made in run(call.by_rows())])
    program, results = call.program, call.results
    made = call.outputs()
    new = all([isinstance(t, torch.dtype) for _, t in call.targets])
    if new and not call.elementwise and all([t.is_contiguous() and not t.is_neg() for t in (*call.inputs, *made)]):
        guide_cpp(program, call.inputs, call.values, made, results, call.stats)
        if program.short and made[0].dtype == call.first.dtype:
            dtypes = (made[0].dtype,) * len(call.inputs)
            short_way(program).add(made[0].dtype, _library(program, dtypes, ((0, made[0].dtype),)).guide_arrays)
        return made
    inputs, elementwise = stored(call.inputs), stored(call.elementwise)
    rows, views = as_rows([*inputs, *made], elementwise)
    sources, places = rows[: len(inputs)], rows[len(inputs) :]
    acc = accumulator(inputs[0].dtype)
    written = list(places)
    for k, (row, target) in enumerate(zip(places, made, strict=True)):
        # A reshape that had to copy leaves the target apart; native code reads an element and then writes it, and
        # knows no conversion between float64 and the others.
        apart = row.data_ptr() != target.data_ptr() or target.is_neg()
        foreign = (row.dtype == torch.float64) != (acc == torch.float64)
        if apart or foreign or any([collide(row, s) for s in (*sources, *elementwise)]):
            written[k] = torch.empty(row.shape, dtype=acc if foreign else row.dtype, device=row.device)
    sources += [view.reshape(sources[0].shape).contiguous() for view in views]
    guide_cpp(program, sources, call.values, written, results, call.stats)
    for row, result, target in zip(places, written, made, strict=True):
        if result.data_ptr() != target.data_ptr() or target.is_neg():
            # The same order of elements as the rows were read in: the target's memory where it is dense.
            if row.data_ptr() == target.data_ptr():
                row.copy_(result)
            else:
                target.copy_(result.view(target.shape))
    return made
