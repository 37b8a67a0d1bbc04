"""Trying a formula when it is defined: what no backend could run, or two would run differently, is refused then."""

from __future__ import annotations

import inspect
import traceback
from collections.abc import Callable
from typing import Any

from .capture import REMEDY, where_in
from .terms import Term, Trace

__all__ = ["check_formula"]


def check_formula(fn: Callable[..., Any], expected: int | None) -> None:
    """Run a formula once on symbols in place of its arguments, and look at what it returns.

    Args:
        fn: from :func:`~fastcfg_kernels.formula.capture.by_value`.
        expected: how many values it has to return, in a tuple; None is one, and no tuple.

    Raises:
        ValueError: naming the formula, the line, what is wrong and the remedy.
    """
    trace = Trace()
    names = list(inspect.signature(fn).parameters)
    try:
        result = fn(*(trace.bind(name) for name in names))
    except Exception as error:
        raise ValueError(f"{where_in(fn, _line(fn, error))}: {_told(error)}") from error
    values: Any = (result,) if expected is None else result
    if expected is not None and (not isinstance(values, tuple | list) or len(values) != expected):
        given = f"{len(values)}" if isinstance(values, tuple | list) else f"a {type(values).__name__}"
        raise ValueError(f"{where_in(fn)}: expected a tuple of {expected} values, got {given}")
    for value in values:
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number and not (isinstance(value, Term) and value.kind != "bool"):
            what = "a comparison" if isinstance(value, Term | bool) else f"a {type(value).__name__}"
            raise ValueError(f"{where_in(fn)}: expected to return numbers, got {what}; choose by where(a > b, c, d)")


def _line(fn: Callable[..., Any], error: Exception) -> int | None:
    """The last line of the formula's own file on the way to an error."""
    if hasattr(fn, "__written__"):  # Whose lines are not those of the text that runs.
        return None
    file = fn.__code__.co_filename
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == file]
    return lines[-1] if lines else None


def _told(error: Exception) -> str:
    text = str(error).removeprefix("formula: ")
    if isinstance(error, TypeError) and ("use fastcfg_kernels.math" in text or str(error).startswith("formula: ")):
        return text
    if isinstance(error, AttributeError):
        return f"a value has no methods of its own ({text}); {REMEDY}"
    if isinstance(error, TypeError) and "Term" in text:
        return f"an operation that does not run on every backend ({text.replace('Term', 'value')}); {REMEDY}"
    return f"{type(error).__name__}: {text}; {REMEDY}"
