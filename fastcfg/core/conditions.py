"""Conditions of a pass: keyword arguments, and a model or a hook of its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

__all__ = ["Condition", "Conditions", "same_condition"]


@dataclass(frozen=True, eq=False)
class Condition:
    """A condition that is more than keyword arguments: another model, or this one with something changed.

    Args:
        kwargs: the model's keyword arguments, as where a mapping stands for a condition.
        model: called in place of the denoiser's model (a weaker one, a skip-layer variant).
        context: makes a context manager that the pass runs in (hooks that skip layers or perturb attention). What it
            changes would change a whole batch, so that the pass shares one only with passes of the same context.
    """

    kwargs: Mapping[str, Any]
    model: Callable[..., Any] | None = None
    context: Callable[[], AbstractContextManager[Any]] | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.kwargs, Mapping):
            raise TypeError(f"kwargs: expected a mapping of keyword arguments, got {type(self.kwargs).__name__}")
        for name in ("model", "context"):
            value = getattr(self, name)
            if value is not None and not callable(value):
                raise TypeError(f"{name}: expected a callable, got {type(value).__name__}")


Conditions = Mapping[str, Mapping[str, Any] | Condition]
"""A condition for each prediction, by name."""


def same_condition(a: Any, b: Any) -> bool:
    """Return whether two conditions are the same without looking at tensor values.

    Tensors are the same if they are one object or one view of the same memory (address, shape, strides, dtype); two
    copies of equal values are not. Mappings, lists and tuples are compared item by item, other values by ``==``.
    A :class:`Condition` is the same as another with the same arguments, model and context.
    """
    if isinstance(a, Mapping) and isinstance(b, Mapping):  # Before ``is``, which torch 2.8 can't compile for these.
        return a.keys() == b.keys() and all(same_condition(a[key], b[key]) for key in a)
    if a is b:
        return True
    if isinstance(a, Tensor) or isinstance(b, Tensor):
        return isinstance(a, Tensor) and isinstance(b, Tensor) and _same_memory(a, b)
    if isinstance(a, Condition) or isinstance(b, Condition):
        return _parts(a)[1:] == _parts(b)[1:] and same_condition(_parts(a)[0], _parts(b)[0])
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        return len(a) == len(b) and all(map(same_condition, a, b))
    try:
        return type(a) is type(b) and bool(a == b)
    except (TypeError, ValueError, RuntimeError):  # Arrays, whose comparison is no single truth value.
        return False


def _parts(condition: Any) -> tuple[Any, Any, Any]:
    if isinstance(condition, Condition):
        return condition.kwargs, condition.model, condition.context
    return condition, None, None


def _same_memory(a: Tensor, b: Tensor) -> bool:
    if torch.compiler.is_compiling() or a.layout is not torch.strided or b.layout is not torch.strided:
        return False  # No address to compare.
    if a.shape != b.shape or a.dtype != b.dtype or a.device != b.device or a.stride() != b.stride():
        return False
    try:
        return a.numel() > 0 and a.data_ptr() == b.data_ptr() != 0
    except RuntimeError:  # A fake or wrapped tensor without memory of its own.
        return False
