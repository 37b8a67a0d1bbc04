"""Functions made from text, which tracebacks, Dynamo and Triton can still read."""

from __future__ import annotations

import hashlib
import linecache
from collections.abc import Callable, Mapping
from functools import lru_cache
from types import ModuleType
from typing import Any

import torch

from ..tracing import constant_when_traced

__all__ = ["formula_from_source", "function_from_source"]


def function_from_source(name: str, source: str, scope: Mapping[str, Any]) -> Callable[..., Any]:
    """Run ``source``, which defines ``name``, with the names in ``scope``; its text is kept in ``linecache``.

    The text is the program's own: nothing that comes from a file or a request may become part of it.
    """
    filename = f"<fastcfg {name} {hashlib.sha256(source.encode()).hexdigest()[:12]}>"
    linecache.cache[filename] = (len(source), None, source.splitlines(keepends=True), filename)
    names = dict(scope)
    exec(compile(source, filename, "exec"), names)
    function: Callable[..., Any] = names[name]
    return function


def formula_from_source(name: str, source: str, scope: Mapping[str, Any] | None = None) -> Callable[..., Any]:
    """Return :func:`function_from_source` of these, the same one each time; ``torch.compile`` may trace the call."""
    names = () if scope is None else tuple(scope.items())
    if torch.compiler.is_compiling():
        found: Callable[..., Any] = getattr(_TRACED, _name_when_traced(name, source, names))
        return found
    return _kept(name, source, names)


@lru_cache(maxsize=512)
def _kept(name: str, source: str, scope: tuple[tuple[str, Any], ...]) -> Callable[..., Any]:
    return function_from_source(name, source, dict(scope))


_TRACED = ModuleType("formulas made while torch.compile traced")
"""Functions by name, where a trace finds and guards them as it does any module's attributes."""


@constant_when_traced
def _name_when_traced(name: str, source: str, scope: Any) -> str:
    function = _kept(name, source, tuple(scope))
    place = f"{name}_{hashlib.sha256(source.encode()).hexdigest()[:16]}"
    setattr(_TRACED, place, function)
    return place
