"""Objects that keep buffers from call to call: two threads in one at once would write each other's."""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import wraps
from typing import Any, Protocol, TypeVar, cast

import torch

__all__ = ["Busy", "one_thread"]


class Busy(Protocol):
    """An object that one thread at a time may use.

    Attributes:
        _busy: the thread that is in it, shared by all that share its buffers.
    """

    _busy: dict[str, int]


Method = TypeVar("Method", bound=Callable[..., Any])


def one_thread(method: Method) -> Method:
    """The method, which raises a RuntimeError while another thread is in the same object."""

    @wraps(method)
    def checked(self: Busy, *args: Any, **kwargs: Any) -> Any:
        if torch.compiler.is_compiling():
            return method(self, *args, **kwargs)
        me, nested = threading.get_ident(), "thread" in self._busy
        if self._busy.setdefault("thread", me) != me:
            raise RuntimeError(
                f"{type(self).__name__}: another thread is in a call of it; it keeps buffers between calls, so that "
                "each thread needs one of its own"
            )
        try:
            return method(self, *args, **kwargs)
        finally:
            if not nested:
                self._busy.pop("thread", None)

    return cast(Method, checked)
