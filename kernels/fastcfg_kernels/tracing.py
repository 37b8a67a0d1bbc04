"""Marks for ``torch.compile`` that cost no import."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, TypeVar, overload

__all__ = ["constant_when_traced", "kept_property"]

F = TypeVar("F", bound=Callable[..., Any])
T = TypeVar("T")


class kept_property(Generic[T]):
    """``functools.cached_property`` without its lock, which Dynamo can't trace before Python 3.12.

    Two threads may both work a value out; it is the same one.
    """

    def __init__(self, function: Callable[[Any], T]) -> None:
        self.function = function
        self.name = function.__name__
        self.__doc__ = function.__doc__

    @overload
    def __get__(self, instance: None, owner: type) -> kept_property[T]: ...
    @overload
    def __get__(self, instance: object, owner: type | None = None) -> T: ...
    def __get__(self, instance: object | None, owner: type | None = None) -> kept_property[T] | T:
        if instance is None:
            return self
        value = self.function(instance)
        instance.__dict__[self.name] = value
        return value


def constant_when_traced(function: F) -> F:
    """``torch.compiler.assume_constant_result``: a trace runs the function as it is and keeps what it returned.

    torch's own decorator imports Dynamo, which takes longer than all else that ``import fastcfg`` does.
    """
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function
