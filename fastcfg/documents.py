"""Reading JSON that others wrote: bounded, and with errors that say where in the document they are."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

__all__ = ["MOST_CHARACTERS", "MOST_DEPTH", "MOST_ITEMS", "check_document", "checked", "parse_object"]

MOST_CHARACTERS = 1_000_000
"""Length of a document at most."""

MOST_DEPTH = 24
"""Objects and lists inside of each other at most."""

MOST_ITEMS = 20_000
"""Values of a document at most, those of all its lists and objects together."""

T = TypeVar("T")


def parse_object(text: str | bytes, name: str) -> dict[str, Any]:
    """Return the JSON object that ``text`` holds.

    Args:
        name: what it describes, for errors.

    Raises:
        ValueError: if it is no JSON, no object, or too large (:data:`MOST_CHARACTERS`, :data:`MOST_DEPTH`,
            :data:`MOST_ITEMS`).
    """
    if not isinstance(text, str | bytes):
        raise ValueError(f"{name}: expected JSON text, got {type(text).__name__}")
    if len(text) > MOST_CHARACTERS:
        raise ValueError(f"{name}: expected at most {MOST_CHARACTERS} characters, got {len(text)}")
    try:
        data = json.loads(text, object_pairs_hook=_distinct)
    except RecursionError:
        raise ValueError(f"{name}: expected at most {MOST_DEPTH} levels, got far more") from None
    except ValueError as error:
        raise ValueError(f"{name}: expected JSON: {error}") from None
    if not isinstance(data, dict):
        raise ValueError(f"{name}: expected a JSON object, got {type(data).__name__}")
    return data


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"{next(n for n in names if names.count(n) > 1)!r} stands twice in one object")
    return found


def check_document(data: Any, name: str) -> None:
    """Raise a ValueError that names the place unless ``data`` is a JSON value of bounded depth and size.

    Tuples count as lists.
    """
    waiting: list[tuple[str, Any, int]] = [(name, data, 0)]
    count = 0
    while waiting:
        path, value, depth = waiting.pop()
        count += 1
        if depth > MOST_DEPTH:
            raise ValueError(f"{path}: expected at most {MOST_DEPTH} levels inside of each other")
        if count > MOST_ITEMS:
            raise ValueError(f"{name}: expected at most {MOST_ITEMS} values")
        if isinstance(value, Mapping):
            for key, item in value.items():
                if not isinstance(key, str):
                    raise ValueError(f"{path}: expected names that are text, got {key!r}")
                waiting.append((f"{path}.{key}", item, depth + 1))
        elif isinstance(value, list | tuple):
            waiting += [(f"{path}[{i}]", item, depth + 1) for i, item in enumerate(value)]
        elif not (value is None or isinstance(value, str | bool | int | float)):
            raise ValueError(f"{path}: expected a JSON value, got {type(value).__name__}")


def checked(path: str, make: Callable[[], T]) -> T:
    """Return what ``make`` makes of a part of a document; what is wrong is a ValueError that begins with ``path``."""
    try:
        return make()
    except (
        ValueError,
        TypeError,
        ArithmeticError,
        AttributeError,
        LookupError,
        RecursionError,
        AssertionError,
    ) as error:
        raise ValueError(f"{path}: {error if str(error) else type(error).__name__}") from error
