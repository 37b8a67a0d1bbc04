"""The part of ``weigh`` that gives a group's figures: what can be said of it from sums that are there.

A figure is a formula like a rule's own. Its arguments may also name an earlier figure, ``factor`` (of the modifier that
it belongs to, or of all of them), ``weight_A`` (what the result weighs the vector ``A`` by), and a clamp's ``low`` and
``high``; ``y`` is the result before a clamp. An argument that can't be had takes its default. Where one has none, or
nothing but defaults are left, the figure is left out, and an earlier one of its name stands.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from .program import Figures, Stage
    from .writer import FormulaWriter

__all__ = ["figure_functions", "write_figures"]

TERMS = 3
"""Sums that one sum is worked out from at most."""


def figure_functions(stages: Sequence[Stage], figures: Figures) -> list[Callable[..., Any]]:
    """The formulas of figures by number, as the source of ``weigh`` calls them: the stages' own come first."""
    return [fn for stage in stages for _, fn in stage.figures] + [fn for _, fn in figures]


def write_figures(writer: FormulaWriter, stages: Sequence[Stage], figures: Figures, more_sums: bool) -> dict[str, str]:
    """Write the figures behind the stages; returns the variables of those that can be had, by name.

    Args:
        figures: names and formulas; the stages' own figures come before them, and a name may come more than once.
        more_sums: sum what is missing. Otherwise a figure has the sums that the stages ask for.
    """
    found = _Figures(writer, more_sums)
    factors = {i: f"factor{i}" for i, stage in enumerate(stages) if stage.kind == "factor"}
    number = 0
    for index, stage in enumerate(stages):
        for name, fn in stage.figures:
            found.write(number, name, fn, stage, factors.get(index))
            number += 1
    for name, fn in figures:
        found.write(number, name, fn, None, " * ".join(factors.values()) or None)
        number += 1
    names = dict.fromkeys(name for name, _ in figures)
    return {name: found.values[name] for name in names if name in found.values}


class _Figures:
    def __init__(self, writer: FormulaWriter, more_sums: bool) -> None:
        self.writer = writer
        self.more_sums = more_sums
        self.values: dict[str, str] = {}

    def write(self, number: int, name: str, fn: Callable[..., Any], stage: Stage | None, factor: str | None) -> None:
        """Write a figure if it can be had; ``stage`` is the one that it belongs to."""
        arguments, found = [], False
        for parameter in inspect.signature(fn).parameters.values():
            text = self._argument(parameter.name, stage, factor)
            found |= text is not None
            if text is None:
                if parameter.default is inspect.Parameter.empty:
                    return
                text = repr(float(parameter.default))
            arguments.append(text)
        if found:
            self.values[name] = f"figure_{name}"
            self.writer.lines.append(f"figure_{name} = figure{number}({', '.join(arguments)})")

    def _argument(self, name: str, stage: Stage | None, factor: str | None) -> str | None:
        writer = self.writer
        aliases = writer.aliases
        if stage is not None:
            aliases = dict(stage.vectors)
            public = dict(stage.rename).get(name, name)
            if public in writer.params:
                return f"params[{writer.params.index(public)}]"
        if name in self.values:
            return self.values[name]
        if name == "count":
            return "count"
        if name == "factor":
            return factor
        if name in ("low", "high"):
            return name if writer.bounds else None
        kind, _, rest = name.partition("_")
        if kind == "weight":
            vector = writer.vectors.number.get(aliases.get(rest, rest))
            return f"w{vector}" if vector in writer.weighed else None
        split = writer.vectors.split(rest, aliases) if kind in ("dot", "cov") else None
        return None if split is None else self._sum(kind, *split)

    def _sum(self, kind: str, a: str, b: str) -> str | None:
        """The sum of two vectors, of which one or both may be the result ``y``."""
        number, basis = self.writer.vectors.number, self.writer.weighed
        left = [(f"w{i} * ", i) for i in basis] if a == "y" else [("", number[a])]
        right = [(f"w{i} * ", i) for i in basis] if b == "y" else [("", number[b])]
        terms = []
        for (x, i), (y, j) in ((x, y) for x in left for y in right):
            value = self._pair(kind, i, j)
            if value is None:
                return None
            terms.append(f"{x}{y}({value})" if x or y else value)
        return " + ".join(terms)

    def _pair(self, kind: str, a: int, b: int) -> str | None:
        """The sum of two fixed vectors, from the sums that are there."""
        if (kind, min(a, b), max(a, b)) in self.writer.pairs:
            return self.writer.pair(kind, a, b)
        sums, wanted = list(self._known(kind)), self._form(a, b)
        for size in range(1, TERMS + 1):
            for chosen in combinations(sums, size):
                forms = np.stack([form for _, form in chosen], axis=1)
                shares = np.linalg.lstsq(forms, wanted, rcond=None)[0]
                shares = np.round(2 * shares) / 2
                if np.all(shares) and np.array_equal(forms @ shares, wanted):
                    parts = zip(shares.tolist(), chosen, strict=True)
                    return " + ".join(text if share == 1.0 else f"{share!r} * {text}" for share, (text, _) in parts)
        return self.writer.pair(kind, a, b) if self.more_sums and kind == "dot" else None

    def _known(self, kind: str) -> Iterator[tuple[str, Any]]:
        """The sums there are, as expressions and as forms; a plain sum follows from a centred one and two means."""
        writer = self.writer
        for of, a, b in writer.pairs:
            if of == kind:
                yield writer.pair(of, a, b), self._form(a, b)
            elif kind == "dot":
                yield f"({writer.pair(of, a, b)} + {writer.mean(a)} * {writer.mean(b)} * count)", self._form(a, b)

    def _form(self, a: int, b: int) -> Any:
        """A sum as a quadratic form of the difference basis and the extras: it is linear in these."""
        x, y = self._coordinates(a), self._coordinates(b)
        return (np.outer(x, y) + np.outer(y, x)).ravel()

    def _coordinates(self, vector: int) -> Any:
        size = self.writer.vectors.size
        found = np.zeros(size)
        if vector < size:
            found[vector] = 1.0
        else:  # A prediction is the base and its delta.
            found[[0, vector - size + 1]] = 1.0
        return found
