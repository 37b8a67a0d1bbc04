"""Stand-ins of a pipeline's components for the time of a call."""

from __future__ import annotations

import copyreg
import functools
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import MethodType
from typing import Any

__all__ = ["GuidedCalls", "StandIn", "calls_through", "methods_replaced", "signature_of"]


class GuidedCalls:
    """Mark of a pipeline's class inside a ``with`` block of :func:`guided`."""


@contextmanager
def calls_through(pipe: Any, call: Callable[..., Any]) -> Iterator[None]:
    """Let ``pipe(...)`` be ``call(own, args, kwargs)`` meanwhile, ``own`` being the pipeline's own call.

    The pipeline is of a subclass of its class for that time, of the same name; copies of it, and what is unpickled,
    are of its class. Its attributes are untouched.
    """
    cls: Any = type(pipe)

    @functools.wraps(cls.__call__)
    def __call__(self: Any, *args: Any, **kwargs: Any) -> Any:
        return call(MethodType(cls.__call__, self), args, kwargs)

    def __reduce_ex__(self: Any, protocol: Any) -> Any:
        return copyreg.__newobj__, (cls,), vars(self)  # type: ignore[attr-defined]

    body = {"__call__": __call__, "__reduce_ex__": __reduce_ex__, "__module__": cls.__module__, "__doc__": cls.__doc__}
    subclass: Any = type(cls.__name__, (GuidedCalls, cls), body | {"__qualname__": cls.__qualname__})
    object.__setattr__(pipe, "__class__", subclass)
    try:
        yield
    finally:
        object.__setattr__(pipe, "__class__", cls)


class _Method:
    """A method of an object that does something else for a while; what is copied from it is the copy's own method."""

    def __init__(self, owner: Any, name: str, call: Callable[..., Any]) -> None:
        self._owner, self._name, self._call = owner, name, call
        functools.update_wrapper(self, getattr(owner, name))

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._call(*args, **kwargs)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        copied = memo.get(id(self._owner))
        return self if copied is None else MethodType(getattr(type(copied), self._name), copied)


@contextmanager
def methods_replaced(owner: Any, **methods: Callable[..., Any]) -> Iterator[None]:
    """Let an object's methods be others meanwhile. Its class is untouched, and so is what it says of its type."""
    own = {name: vars(owner)[name] for name in methods if name in vars(owner)}
    made = {name: _Method(owner, name, method) for name, method in methods.items()}
    vars(owner).update(made)
    try:
        yield
    finally:
        for name, method in made.items():
            if vars(owner).get(name) is method:
                del vars(owner)[name]
                vars(owner).update({name: own[name]} if name in own else {})


def signature_of(owner: Any, name: str) -> inspect.Signature:
    """The signature of a method; that of the class, where a wrapper hides it behind ``*args, **kwargs``."""
    found = inspect.signature(getattr(owner, name))
    if any(p.kind is p.VAR_POSITIONAL for p in found.parameters.values()):
        own = inspect.signature(getattr(type(owner), name))
        return own.replace(parameters=list(own.parameters.values())[1:])
    return found


class StandIn:
    """An object that passes for another one, except when it is called.

    Attributes are read from, set on and deleted from the other object, which does not change and does not know; a
    copy is a copy of that object.

    Args:
        inner: the object.
        call: what calling the stand-in does; default calls the object.
    """

    __slots__ = ("__call", "__inner", "__weakref__")

    def __init__(self, inner: Any, *, call: Callable[..., Any] | None = None) -> None:
        # Assignment goes to the other object, these two excepted.
        object.__setattr__(self, "_StandIn__inner", inner)
        object.__setattr__(self, "_StandIn__call", inner if call is None else call)

    @property  # type: ignore[misc]
    def __class__(self) -> Any:  # ``isinstance`` asks it; ``type`` does not.
        return self.__inner.__class__

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__inner, name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self.__inner, name, value)

    def __delattr__(self, name: str) -> None:
        delattr(self.__inner, name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.__call(*args, **kwargs)

    def __dir__(self) -> list[str]:
        return dir(self.__inner)

    def __repr__(self) -> str:
        return repr(self.__inner)

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.__inner.__reduce_ex__(protocol)
