"""The short way of the commonest calls, whose time is their own overhead.

A call of predictions of one kind, with numbers or a value per sample for its parameters and one result, needs no more
than a look at its tensors' signature, which names a prepared function, and their pointers. :class:`ShortWay` does
that in Python, and in a compiled extension where Python's headers, a compiler and torch's DLPack interface are there.
Both give the same bits as the long way: they run what it runs.
"""

from __future__ import annotations

import ctypes
import importlib.machinery
import importlib.util
import os
import sysconfig
import threading
from array import array
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch._C import _get_tracing_state, _len_torch_dispatch_stack
from torch._C._functorch import peek_interpreter_stack
from torch.autograd import forward_ad

from ...formula.program import Program
from ...memory import observed
from .build import built, compiler
from .entry_text import ENTRY
from .threads import ONE_THREAD, threads_of

__all__ = ["ShortWay", "enable", "extension", "is_open", "short_way"]

KINDS = {torch.float32: 0, torch.float64: 1, torch.float16: 2, torch.bfloat16: 3}
_enabled = True


class ShortWay:
    """A program's short way."""

    def __init__(self, program: Program) -> None:
        self._program = program
        self._names = program.predictions
        self._params = program.params
        self._native: dict[torch.dtype, Any] = {}
        self._table: Any = None
        self.launches: Any = None
        """Prepared launches on a GPU: see :mod:`fastcfg_kernels.backends.triton.short`."""
        if (module := _ready()) is not None:
            self._compile(module)

    def _compile(self, module: ModuleType) -> None:
        weigh = self._program.weigh if self._program.is_lerp else None
        self._table = module.Table(self._names, self._params, weigh)
        for dtype, function in self._native.items():
            self._table.add(KINDS[dtype], ctypes.cast(function, ctypes.c_void_p).value)
        self.__dict__["guide"] = self._table.guide

    def add(self, dtype: torch.dtype, function: Any) -> None:
        """Note the function ``guide_arrays`` of a library for predictions of a dtype."""
        if dtype in self._native:
            return
        function.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p, *[ctypes.c_int64] * 4]
        function.restype = None
        self._native[dtype] = function
        if self._table is not None:
            self._table.add(KINDS[dtype], ctypes.cast(function, ctypes.c_void_p).value)

    def clear(self) -> None:
        """Take the long way from now on."""
        self.__dict__["guide"] = lambda *_: None
        self.launches = None

    def guide(
        self,
        predictions: Mapping[str, Any],
        numbers: tuple[float, ...] | None,
        params: Mapping[str, Any] | None,
        out: Tensor | None,
    ) -> Tensor | None:
        """Return the guided prediction, or None where the call has to go the long way.

        Args:
            numbers: the parameters' values; params: by name, what stands in their place.
        """
        if (module := _ready()) is not None:
            self._compile(module)
            made: Tensor | None = self._table.guide(predictions, numbers, params, out)
            return made
        if not is_open() or observed() or numbers is None or len(predictions) != len(self._names):
            return None
        tensors: list[Any] = [predictions.get(name) for name in self._names]
        if not _alike(tensors if out is None else [*tensors, out]):
            return None
        values: list[Any] = list(numbers)
        rows = 0
        for name, value in (params or {}).items():
            if name not in self._params:
                return None
            if type(value) is Tensor and value.is_cpu and value.is_floating_point() and not value.requires_grad:
                if value.dim() > 1 or (value.dim() and value.shape[0] not in (1, tensors[0].shape[0])):
                    return None
                rows = tensors[0].shape[0] if value.dim() else rows
                value = value.tolist()
            elif type(value) is not float or value - value != 0:
                return None
            values[self._params.index(name)] = value
        return self._run(tensors, values, rows, out)

    def _run(self, tensors: list[Any], values: list[Any], rows: int, out: Tensor | None) -> Tensor | None:
        first = tensors[0]
        if out is not None:
            size, start = out.nbytes, out.data_ptr()
            if any([0 < abs(t.data_ptr() - start) < size for t in tensors]):
                return None
        if self._program.is_lerp and not rows:
            base, weight = self._program.weigh((), 0.0, tuple(values))
            if base == 1:
                return torch.lerp(first, tensors[1], float(weight), out=out)
        function = self._native.get(first.dtype)
        if function is None or not first.is_cpu or not first.numel():
            return None
        if rows:
            columns = [
                v if isinstance(v, list) and len(v) > 1 else [v[0] if isinstance(v, list) else v] * rows for v in values
            ]
            values = [v for row in zip(*columns, strict=True) for v in row]
        made = torch.empty_like(first) if out is None else out
        count = first.numel() // first.shape[0]
        pointers = array("Q", [t.data_ptr() for t in (*tensors, made)])
        strides = array("q", [count]) * len(pointers)
        given = array("d", values)
        places = [a.buffer_info()[0] for a in (pointers, strides, given)]
        step = len(self._params) if rows else 0
        function(*places, step, first.shape[0], count, threads_of(first.numel()))
        return made


def _alike(tensors: list[Any]) -> bool:
    """Return whether values are contiguous tensors of one kind, with memory of their own and no gradient."""
    first, grad = tensors[0], torch.is_grad_enabled()
    if type(first) is not Tensor or first.dtype not in KINDS or first.dim() < 2:
        return False
    shape, dtype, device = first.shape, first.dtype, first.device
    return all(
        [
            type(t) is Tensor
            and t.shape == shape
            and t.dtype is dtype
            and t.device == device
            and t.is_contiguous()
            and not t.is_neg()
            and not (grad and t.requires_grad)
            for t in tensors
        ]
    )


def short_way(program: Program) -> ShortWay:
    """Return a program's short way, made once."""
    made: ShortWay | None = program.__dict__.get("_short_way")
    if made is None:
        made = ShortWay(program)
        object.__setattr__(program, "_short_way", made)
    return made


def enable(on: bool) -> None:
    """Open or close the short way of all programs: shadow mode has to see every call."""
    global _enabled
    _enabled = on
    if _module is not None:
        _module.enable(on)


def is_open(environment: bool = True) -> bool:
    """Return whether calls may go the short way: no shadow mode, and no backend named by the environment."""
    return _enabled and not (environment and os.environ.get("FASTCFG_BACKEND"))


_module: ModuleType | None = None
_builder: threading.Thread | None = None


def _ready() -> ModuleType | None:
    """Return the extension once it is there; the first call has it built meanwhile, and waits for nothing."""
    global _builder
    if _module is None and _builder is None:
        _builder = threading.Thread(target=extension, name="fastcfg-entry", daemon=True)
        _builder.start()
    return _module


@cache
def extension() -> ModuleType | None:
    """Return the compiled extension, built where it is not in the cache; None where it can't be."""
    global _module
    exchange = getattr(Tensor, "__dlpack_c_exchange_api__", None)
    headers = Path(sysconfig.get_paths()["include"])
    free_threaded = bool(sysconfig.get_config_var("Py_GIL_DISABLED"))
    if exchange is None or free_threaded or not (headers / "Python.h").exists() or compiler() is None:
        return None
    try:
        undefined = ["-undefined", "dynamic_lookup"] if os.uname().sysname == "Darwin" else []
        path = built(ENTRY, f"-I{headers}", *undefined)
        loader = importlib.machinery.ExtensionFileLoader("fastcfg_entry", str(path))
        spec = importlib.util.spec_from_file_location("fastcfg_entry", path, loader=loader)
        assert spec is not None
        module = importlib.util.module_from_spec(spec)
        loader.exec_module(module)
        module.setup(
            Tensor, exchange, Tensor.is_neg, torch.empty_like, torch.lerp, threads_of, torch.is_grad_enabled,
            _get_tracing_state, _len_torch_dispatch_stack, peek_interpreter_stack, vars(forward_ad), ONE_THREAD,
        )  # fmt: skip
        module.enable(_enabled)
    except (
        RuntimeError,
        ImportError,
        OSError,
    ):  # The short way in Python stays; the long way tells of a compiler's faults.
        return None
    _module = module
    return module
