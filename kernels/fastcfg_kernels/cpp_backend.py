"""The path of CPU tensors: a program as native code, all samples in one call."""

from __future__ import annotations

import ctypes
from array import array
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

from .cpp_build import load
from .cpp_source import cpp_source
from .host import host_params
from .program import Program

__all__ = ["guide_cpp"]

ONE_THREAD = 400_000
"""Elements of a call below which waking other threads costs more than they save."""


@cache
def _function(
    program: Program, inputs: tuple[torch.dtype, ...], outputs: tuple[torch.dtype, ...]
) -> Callable[..., None]:
    function = load(cpp_source(program, inputs, outputs)).guide
    tensors = len(inputs) + len(outputs)
    function.argtypes = [*[ctypes.c_void_p, ctypes.c_int64] * tensors, ctypes.c_void_p, *[ctypes.c_int64] * 4]
    function.restype = None
    return function


def guide_cpp(program: Program, inputs: Sequence[Tensor], params: Sequence[Any], outs: Sequence[Tensor]) -> None:
    """Guide ``[B, N]`` rows of last stride 1; writes ``outs``, any of which may be one of the inputs.

    Args:
        inputs: K predictions of one dtype, then E extras.
        outs: the program's outputs.

    Raises:
        RuntimeError: if the native code can't be built.
    """
    function = _function(program, tuple([t.dtype for t in inputs]), tuple([t.dtype for t in outs]))
    rows, count = inputs[0].shape
    arguments: list[int] = []
    for tensor in (*inputs, *outs):
        arguments += (tensor.data_ptr(), tensor.stride(0))
    if any([isinstance(p, Tensor) for p in params]):
        values = array("d", [v for row in host_params(params, rows) for v in row])
        step = len(params)
    else:
        values, step = array("d", params), 0
    threads = 1 if rows * count < ONE_THREAD else torch.get_num_threads()
    function(*arguments, values.buffer_info()[0], step, rows, count, threads)
