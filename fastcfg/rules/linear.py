"""A fixed linear combination of predictions, and what other linear rules become when weights are zero."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import fastcfg_kernels as fk

from .base import Lowered, Rule, number_or_schedule

__all__ = ["Linear", "itself", "sum_of_deltas"]


def itself() -> tuple[float]:
    """The first prediction as it is."""
    return (1.0,)


def sum_of_deltas(count: int, prefix: str = "scale_") -> Callable[..., Any]:
    """The formula ``base + sum_i scale_i * delta_i`` of ``count`` deltas."""
    names = [f"{prefix}{i}" for i in range(1, count + 1)]
    source = f"def sum_of_deltas({', '.join(names)}):\n    return {', '.join(['1.0', *names])}{',' * (not names)}\n"
    return fk.formula_from_source("sum_of_deltas", source)


def _weighted(count: int) -> Callable[..., Any]:
    names = [f"weight_{i}" for i in range(count)]
    source = f"def weighted({', '.join(names)}):\n    return {', '.join(names)},\n"
    return fk.formula_from_source("weighted", source)


@dataclass(frozen=True)
class Linear(Rule):
    """``sum_k weight_k * prediction_k``.

    Args:
        weights: pairs (prediction's name, weight), or a mapping; the first is the base.
    """

    weights: tuple[tuple[str, float], ...]

    title = "sum of weight * prediction"

    def __post_init__(self) -> None:
        given: Any = self.weights.items() if isinstance(self.weights, Mapping) else self.weights
        pairs = tuple(given) if isinstance(given, Iterable) and not isinstance(given, str) else (given,)
        if not all(isinstance(pair, tuple | list) and len(pair) == 2 for pair in pairs):
            raise TypeError(f"weights: expected pairs (prediction's name, weight), got {self.weights!r}")
        if not pairs or len({name for name, _ in pairs}) != len(pairs):
            raise ValueError(f"weights: expected one or more distinct predictions, got {pairs!r}")
        checked = tuple((name, number_or_schedule(f"weights[{name!r}]", weight)) for name, weight in pairs)
        object.__setattr__(self, "weights", checked)

    @property
    def conditions(self) -> tuple[str, ...]:
        return tuple(name for name, _ in self.weights)

    def lower(self) -> Lowered:
        weights = [float(weight) for _, weight in self.weights]
        # In the difference basis the base carries the sum of all weights.
        values = [math.fsum(weights), *weights[1:]]
        params = {f"weight_{i}": value for i, value in enumerate(values)}
        return Lowered(self.conditions, (fk.Stage(_weighted(len(weights))),), params)
