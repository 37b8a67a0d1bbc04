"""Weighted sums of tensors with weights of any kind, through the fused op: one pass, one rounding."""

from __future__ import annotations

from collections.abc import Mapping
from functools import reduce
from typing import Any, Literal, overload

import fastcfg_kernels as fk
import torch
from fastcfg_kernels import check_param
from fastcfg_kernels.backends.torch.tiles import accumulator
from fastcfg_kernels.checks import FLOATS
from torch import Tensor

__all__ = ["Weight", "check_choice", "check_tensor", "number", "per_sample", "upcast", "weighted_sum", "weights_like"]

Weight = float | Tensor
"""A number, a 0-dim tensor, or one value a sample ``[B]``."""


def _program(count: int) -> fk.Program:
    weights = ", ".join(f"weight_{k}" for k in range(count))
    formula = fk.function_from_source("weighted", f"def weighted({weights}):\n    return {weights}\n", {})
    return fk.compile_program(tuple(f"term_{k}" for k in range(count)), (fk.Stage(formula),))


# Made beforehand: torch.compile can't trace the making of a program.
_PROGRAMS = {count: _program(count) for count in (2, 3, 4)}


def check_tensor(name: str, value: Any, like: Tensor | None = None) -> Tensor:
    """``value`` if it is a floating tensor ``[B, ...]`` (of the shape and device of ``like``).

    Raises:
        TypeError, ValueError: naming the argument.
    """
    if not isinstance(value, Tensor):
        raise TypeError(f"{name}: expected a tensor, got {type(value).__name__}")
    if value.dtype not in FLOATS:
        raise TypeError(f"{name}: expected a float32, bfloat16, float16 or float64 tensor, got {value.dtype}")
    if value.dim() < 2:
        raise ValueError(f"{name}: expected [B, ...] with at least two dimensions, got {list(value.shape)}")
    if like is not None:
        if value.shape != like.shape:
            raise ValueError(f"{name}: expected the shape {list(like.shape)}, got {list(value.shape)}")
        if value.device != like.device:
            raise ValueError(f"{name}: expected a tensor on {like.device}, got one on {value.device}")
    return value


def check_choice(name: str, value: Any, choices: tuple[str, ...]) -> None:
    """Raise a ValueError naming the argument unless ``value`` is one of ``choices``."""
    if value not in choices:
        raise ValueError(f"{name}: expected one of {', '.join(map(repr, choices))}, got {value!r}")


@overload
def number(name: str, value: Any, low: float | None = ..., high: float | None = ...) -> float: ...
@overload
def number(
    name: str, value: Any, low: float | None = ..., high: float | None = ..., *, optional: Literal[True]
) -> float | None: ...
def number(
    name: str, value: Any, low: float | None = None, high: float | None = None, *, optional: bool = False
) -> float | None:
    """A finite host number in ``[low, high]``; None passes where it is ``optional``."""
    if value is None and optional:
        return None
    checked = check_param(name, value, 1, torch.device("cpu")) if not isinstance(value, Tensor) else None
    if checked is None:
        raise TypeError(f"{name}: expected a number, got a tensor")
    if (low is not None and checked < low) or (high is not None and checked > high):
        bounds = f"at least {low}" if high is None else f"in {low} ... {high}" if low is not None else f"at most {high}"
        raise ValueError(f"{name}: expected a number {bounds}, got {value}")
    return float(checked)


def upcast(tensor: Tensor) -> Tensor:
    """``tensor`` in the dtype that is computed in: float64 for float64, else float32."""
    return tensor.to(accumulator(tensor.dtype))


def weights_like(values: Mapping[str, Any], like: Tensor) -> list[Weight]:
    """Checked parameters: floats, or 0-dim or ``[B]`` tensors in the dtype that ``like`` is computed in.

    Raises:
        TypeError, ValueError: naming the argument.
    """
    dtype = accumulator(like.dtype)
    checked = [check_param(name, value, like.shape[0], like.device) for name, value in values.items()]
    return [value.to(dtype) if isinstance(value, Tensor) else value for value in checked]


def per_sample(name: str, value: Any, like: Tensor) -> Weight:
    """A parameter that broadcasts against ``like`` ``[B, ...]``: a float, or a tensor ``[]`` or ``[B, 1, ...]``."""
    (weight,) = weights_like({name: value}, like)
    return weight.view(-1, *[1] * (like.dim() - 1)) if isinstance(weight, Tensor) and weight.dim() else weight


def weighted_sum(terms: Mapping[str, tuple[Weight, Tensor]], *, dtype: torch.dtype | None = None) -> Tensor:
    """``sum_k weight_k * tensor_k`` in one pass, accumulated in float32 (float64 for float64), rounded once.

    Args:
        terms: at most four pairs of a weight and a tensor ``[B, ...]`` by name, the tensors of one shape and device.
            A weight is a number, a 0-dim or a ``[B]`` tensor; terms whose weight is the number 0 are left out.
        dtype: of the result; default the tensors' own (the wider where they differ).

    Raises:
        TypeError, ValueError: naming the term.
    """
    first = next(iter(terms.values()))[1]
    for name, (_, tensor) in terms.items():
        check_tensor(name, tensor, None if tensor is first else first)
    own = reduce(torch.promote_types, (tensor.dtype for _, tensor in terms.values()))
    dtype = dtype or own
    used = {name: (w, tensor) for name, (w, tensor) in terms.items() if isinstance(w, Tensor) or w != 0}
    if not used:
        return torch.zeros_like(first, dtype=dtype)
    if len(used) == 1:
        [(name, (weight, tensor))] = used.items()
        values = tensor.to(accumulator(torch.promote_types(tensor.dtype, dtype)))
        return (values * per_sample(name, weight, values)).to(dtype)
    if all(not isinstance(w, Tensor) for w, _ in used.values()):
        # Deltas are formed from the base, so that its rounding counts with their weights: the largest leads.
        used = dict(sorted(used.items(), key=lambda term: -abs(float(term[1][0]))))
    weights = [w for w, _ in used.values()]
    total = weights[0]
    for weight in weights[1:]:
        total = total + weight
    # Where dtypes differ, or the result is to be wider than its inputs, all of it is computed in the wide dtype.
    same = all(tensor.dtype == dtype for _, tensor in used.values())
    wide = dtype if same else accumulator(torch.promote_types(own, dtype))
    params = {f"weight_{k}": w for k, w in enumerate([total, *weights[1:]])}
    return fk.guide([tensor.to(wide) for _, tensor in used.values()], _PROGRAMS[len(used)], params).to(dtype)
