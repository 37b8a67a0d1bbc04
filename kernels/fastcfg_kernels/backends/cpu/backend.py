"""The path of CPU tensors: a program as native code, all samples in one call."""

from __future__ import annotations

import ctypes
import os
from array import array
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from ...formula.program import Program
from ...host import host_params
from ..torch.tiles import accumulator
from .build import load
from .source import cpp_source

__all__ = ["guide_contiguous", "guide_cpp"]

ONE_THREAD = 400_000
"""Elements of a call below which waking other threads costs more than they save."""


_forked = False


def _note_fork() -> None:
    global _forked
    _forked = True


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_note_fork)


def _threads(elements: int) -> int:
    """Threads of a call. A forked process has one: OpenMP's others are in its parent, and it would wait for them."""
    return 1 if elements < ONE_THREAD or _forked else torch.get_num_threads()


@lru_cache(maxsize=512)
def _function(
    program: Program, inputs: tuple[torch.dtype, ...], targets: tuple[tuple[int, torch.dtype], ...]
) -> Callable[..., None]:
    function = load(cpp_source(program, inputs, targets)).guide
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
    threads = _threads(rows * count)
    written = () if stats is None else (stats.data_ptr(),)
    function(*arguments, values.buffer_info()[0], step, rows, count, threads, *written)


@lru_cache(maxsize=1024)
def _numbers(values: tuple[float, ...]) -> array[float]:
    return array("d", values)


def guide_contiguous(
    program: Program, inputs: Sequence[Tensor], values: Sequence[float], out: Tensor | None = None
) -> Tensor:
    """:func:`guide_cpp` of contiguous ``[B, ...]`` predictions of a program with one result.

    Args:
        out: contiguous, of the inputs' kind and apart from them or one of them. None: a new tensor.

    Raises:
        RuntimeError: if the native code can't be built.
    """
    first = inputs[0]
    out = torch.empty_like(first) if out is None else out
    rows, size = first.shape[0], first.numel()
    function = _function(program, (first.dtype,) * len(inputs), ((0, first.dtype),))
    count = size // rows
    arguments: list[int] = []
    for tensor in (*inputs, out):
        arguments += (tensor.data_ptr(), count)
    params = _numbers(tuple(values))
    function(*arguments, params.buffer_info()[0], 0, rows, count, _threads(size))
    return out
