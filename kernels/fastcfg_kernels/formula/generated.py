"""Functions made from text, which tracebacks, Dynamo and Triton can still read."""

from __future__ import annotations

import hashlib
import linecache
from collections.abc import Callable, Mapping
from typing import Any

__all__ = ["function_from_source"]


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
