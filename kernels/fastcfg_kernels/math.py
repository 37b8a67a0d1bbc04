"""The functions a guidance formula may call, on every backend.

A formula is written once with ``+ - * / **`` and these functions (``a ** b`` is :func:`power`). The same source runs
on torch tensors (eager, ``torch.compile``, ONNX export), on NumPy and Python scalars (the eager CPU path) and inside
a Triton kernel. Each function therefore looks at what it was given:

* inside a compiled Triton kernel ``_semantic`` is passed by the compiler;
* under Triton's interpreter the arguments are ``tl.tensor``;
* while C++ is written for the CPU they are :class:`~fastcfg_kernels.formula.terms.Term`;
* otherwise they are torch tensors, or host numbers.

Only operations that every device and the interpreter have are here; nothing that lives in a device library alone.
"""

from __future__ import annotations

import builtins
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from .formula.terms import Term

try:
    import triton.language as tl
except ImportError:  # Triton is optional: without it no argument can be a tl.tensor.
    tl = None

__all__ = ["abs", "exp", "log", "maximum", "minimum", "power", "sqrt", "where"]


def _in_triton(semantic: Any, *args: Any) -> bool:
    if semantic is not None:
        return True
    return tl is not None and any(isinstance(arg, tl.tensor) for arg in args)


def _kwargs(semantic: Any) -> dict[str, Any]:
    return {} if semantic is None else {"_semantic": semantic}


def _builtin(fn: Callable[..., Any]) -> Callable[..., Any]:
    fn.__triton_builtin__ = True  # type: ignore[attr-defined]  # Triton then calls it with `_semantic`.
    return fn


def _pair(a: Any, b: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Both as tensors; a host number takes the other's dtype and device, and no memory is read from a device."""
    if not isinstance(a, torch.Tensor):
        a = torch.full((), a, dtype=b.dtype, device=b.device)
    elif not isinstance(b, torch.Tensor):
        b = torch.full((), b, dtype=a.dtype, device=a.device)
    return a, b


def _host(value: Any, a: Any, b: Any) -> Any:
    """A host number as NumPy's where an argument is: a constant of the formula would raise when divided by."""
    return np.float64(value) if isinstance(a, np.generic) or isinstance(b, np.generic) else value


def _term(a: Any, b: Any) -> Term | None:
    return a if isinstance(a, Term) else b if isinstance(b, Term) else None


@_builtin
def sqrt(x: Any, _semantic: Any = None) -> Any:
    """Square root, correctly rounded; NaN below zero."""
    if _in_triton(_semantic, x):
        if x.dtype.is_fp64():  # `sqrt_rn` is the correctly rounded form of fp32 alone; fp64's own already is.
            return tl.sqrt(x, **_kwargs(_semantic))
        return tl.sqrt_rn(x, **_kwargs(_semantic))
    if isinstance(x, Term):
        return x.call("__builtin_sqrt", x)
    if isinstance(x, torch.Tensor):
        return torch.sqrt(x)
    return math.sqrt(x) if type(x) is float and x >= 0 else np.sqrt(x)


@_builtin
def exp(x: Any, _semantic: Any = None) -> Any:
    """Natural exponential."""
    if _in_triton(_semantic, x):
        return tl.exp(x, **_kwargs(_semantic))
    if isinstance(x, Term):
        return x.call("__builtin_exp", x)
    if isinstance(x, torch.Tensor):
        return torch.exp(x)
    return math.exp(x) if type(x) is float else np.exp(x)


@_builtin
def log(x: Any, _semantic: Any = None) -> Any:
    """Natural logarithm; minus infinity at zero, NaN below."""
    if _in_triton(_semantic, x):
        return tl.log(x, **_kwargs(_semantic))
    if isinstance(x, Term):
        return x.call("__builtin_log", x)
    if isinstance(x, torch.Tensor):
        return torch.log(x)
    return math.log(x) if type(x) is float and x > 0 else np.log(x)


def _times(a: Any, b: Any, semantic: Any) -> Any:
    return a * b if semantic is None else a.__mul__(b, _semantic=semantic)


def _one_over(x: Any, semantic: Any) -> Any:
    if semantic is not None:
        return x.__rtruediv__(1.0, _semantic=semantic)
    return np.float64(1.0) / x if isinstance(x, float | int) else 1.0 / x


MOST_FACTORS = 64
"""The largest whole exponent, up or down: a power of one is that many products at most."""


@_builtin
def power(x: Any, exponent: Any, _semantic: Any = None) -> Any:
    """``x ** exponent`` for an exponent that is a number, known when the formula is compiled.

    Whole exponents of up to 64 are products, the same ones on every backend; halves are roots of these; others are
    ``exp(exponent * log(x))``, which is NaN below zero.

    Raises:
        TypeError: for an exponent that is a value of the call.
        ValueError: for a whole exponent beyond 64.
    """
    number = getattr(exponent, "value", exponent)  # Triton's constants are wrapped.
    if isinstance(number, bool) or not isinstance(number, int | float):
        raise TypeError("power: expected an exponent that is a number; for a value of the call, exp(b * log(a))")
    twice = 2.0 * number
    if twice != int(twice):
        return exp(_times(log(x, _semantic), number, _semantic), _semantic)
    if builtins.abs(number) > MOST_FACTORS:
        raise ValueError(f"power: expected an exponent in {-MOST_FACTORS} ... {MOST_FACTORS}, got {number}")
    left, halves = divmod(int(builtins.abs(twice)), 2)
    square = getattr(x, "value", x)
    result = sqrt(square, _semantic) if halves else None
    while left:
        if left & 1:
            result = square if result is None else _times(result, square, _semantic)
        left >>= 1
        if left:
            square = _times(square, square, _semantic)
    if result is None:
        return 1.0
    return result if number > 0 else _one_over(result, _semantic)


@_builtin
def abs(x: Any, _semantic: Any = None) -> Any:
    """Absolute value."""
    if _in_triton(_semantic, x):
        return tl.abs(x, **_kwargs(_semantic))
    return torch.abs(x) if isinstance(x, torch.Tensor) else builtins.abs(x)


@_builtin
def minimum(a: Any, b: Any, _semantic: Any = None) -> Any:
    """Elementwise minimum. A NaN in either argument stays NaN."""
    if _in_triton(_semantic, a, b):
        return tl.minimum(a, b, propagate_nan=tl.PropagateNan.ALL, **_kwargs(_semantic))
    if (term := _term(a, b)) is not None:
        return term.call("minimum", a, b)
    if isinstance(a, torch.Tensor) or isinstance(b, torch.Tensor):
        return torch.minimum(*_pair(a, b))
    return _host(min(a, b) if a == a and b == b else a + b, a, b)


@_builtin
def maximum(a: Any, b: Any, _semantic: Any = None) -> Any:
    """Elementwise maximum. A NaN in either argument stays NaN."""
    if _in_triton(_semantic, a, b):
        return tl.maximum(a, b, propagate_nan=tl.PropagateNan.ALL, **_kwargs(_semantic))
    if (term := _term(a, b)) is not None:
        return term.call("maximum", a, b)
    if isinstance(a, torch.Tensor) or isinstance(b, torch.Tensor):
        return torch.maximum(*_pair(a, b))
    return _host(max(a, b) if a == a and b == b else a + b, a, b)


@_builtin
def where(condition: Any, a: Any, b: Any, _semantic: Any = None) -> Any:
    """``a`` where ``condition`` holds, else ``b``: a select, so a NaN in the branch not taken does no harm."""
    if _in_triton(_semantic, condition, a, b):
        return tl.where(condition, a, b, **_kwargs(_semantic))
    if isinstance(condition, Term):
        return condition.select(a, b)
    if isinstance(condition, torch.Tensor):
        return torch.where(condition, a, b)
    return _host(a if condition else b, condition, b)
