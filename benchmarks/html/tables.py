"""Tables from records: each column a name and what of a record stands in it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from .content import Cell, Column, Table

__all__ = ["Field", "figures", "numbers", "tabulate", "verdict", "words"]


@dataclass(frozen=True)
class Field:
    """A column, and how a record fills it."""

    column: Column
    value: Callable[[Any], str | Cell]


def words(name: str, value: Callable[[Any], Any]) -> Field:
    """A column of text."""
    return Field(Column(name, number=False), lambda record: str(value(record)))


def numbers(name: str, value: Callable[[Any], str | Cell]) -> Field:
    """A column of numbers, as text that is set flush right."""
    return Field(Column(name), value)


def figures(name: str, key: str, show: Callable[[Any], str]) -> Field:
    """A column of one entry of the records."""
    return numbers(name, lambda record: show(record[key]))


def tabulate(caption: str, records: Iterable[Any], *fields: Field) -> Table:
    """A row for each record; the first field is the rows' header."""
    rows = [[field.value(record) for field in fields] for record in records]
    return Table(caption, [field.column for field in fields], rows)


def verdict(text: str, low: float, high: float, *, good: float = 1.0, bad: float | None = None) -> Cell:
    """A cell that is a gain where the whole interval lies above ``good``, a loss where it lies below ``bad``.

    Args:
        bad: ``good``, unless it is given.
    """
    return Cell(text, "gain" if low > good else "loss" if high < (good if bad is None else bad) else "even")
