"""Marks for ``torch.compile`` that cost no import."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

__all__ = ["constant_when_traced"]

F = TypeVar("F", bound=Callable[..., Any])


def constant_when_traced(function: F) -> F:
    """``torch.compiler.assume_constant_result``: a trace runs the function as it is and keeps what it returned.

    torch's own decorator imports Dynamo, which takes longer than all else that ``import fastcfg`` does.
    """
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function
