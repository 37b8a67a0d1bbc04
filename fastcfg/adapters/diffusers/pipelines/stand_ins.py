"""Stand-ins for a pipeline's components: all of a component, with a few calls of its own."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

__all__ = ["StandIn"]


def _in_place_of(original: Callable[..., Any], replacement: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def call(*args: Any, **kwargs: Any) -> Any:
        return replacement(*args, **kwargs)

    return call


class StandIn:
    """An object that passes for another one, except in the calls given.

    Attributes are read from, set on and deleted from the other object, which does not change and does not know; a
    copy is a copy of that object.

    Args:
        inner: the object.
        call: what calling the stand-in does; default calls the object.
        methods: replacements of the object's methods, by name; each keeps the signature of what it replaces.
    """

    __slots__ = ("__call", "__inner", "__methods")

    def __init__(
        self,
        inner: Any,
        *,
        call: Callable[..., Any] | None = None,
        methods: Mapping[str, Callable[..., Any]] | None = None,
    ) -> None:
        replaced = {name: _in_place_of(getattr(inner, name), method) for name, method in (methods or {}).items()}
        # Assignment goes to the other object, these three excepted.
        object.__setattr__(self, "_StandIn__inner", inner)
        object.__setattr__(self, "_StandIn__call", inner if call is None else call)
        object.__setattr__(self, "_StandIn__methods", replaced)

    @property  # type: ignore[misc]
    def __class__(self) -> Any:  # ``isinstance`` asks it; ``type`` does not.
        return self.__inner.__class__

    def __getattr__(self, name: str) -> Any:
        methods = self.__methods
        return methods[name] if name in methods else getattr(self.__inner, name)

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
