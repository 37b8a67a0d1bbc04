"""A user's own rule from one formula."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable
from typing import Any

import fastcfg_kernels as fk

from .base import Lowered, Parameter, Rule, number_or_schedule, registry

__all__ = ["rule"]


def rule(*conditions: str) -> Callable[[Callable[..., Any]], Callable[..., Rule]]:
    """Make a rule class from a formula: the decorator of the README's example.

    The formula's arguments with a default are the rule's parameters, which take numbers, schedules and per-call
    tensors like any other rule's; the others name sums of predictions (see :mod:`fastcfg_kernels.formula.program`). It
    returns the weights of the first prediction and of the deltas from it.

    Args:
        conditions: names of the predictions, the base first.

    Returns:
        A decorator, which returns a rule class of the function's name, a frozen dataclass with a JSON round trip.

    Raises:
        ValueError: for names that are not distinct identifiers, an argument that is no sum and has no default, or a
            name that a rule has already.
    """
    if not conditions or len(set(conditions)) != len(conditions) or not all(c.isidentifier() for c in conditions):
        raise ValueError(f"conditions: expected distinct names of predictions, got {conditions!r}")

    def make(formula: Callable[..., Any]) -> Callable[..., Rule]:
        name = formula.__name__
        if name in registry and registry[name].__module__ != formula.__module__:
            raise ValueError(f"rule: {name!r} is the name of a rule already")
        signature = inspect.signature(formula).parameters.values()
        defaults = {p.name: p.default for p in signature if p.default is not inspect.Parameter.empty}
        stages = (fk.Stage(formula),)
        program = fk.compile_program(conditions, stages)
        if loose := [p for p in program.params if p not in defaults]:
            raise ValueError(
                f"formula {name}: arguments {loose} are no sums (dot_A_B, cov_A_B, sum_A, count) and have no default"
            )

        def check(self: Rule) -> None:
            for key in defaults:
                object.__setattr__(self, key, number_or_schedule(key, getattr(self, key)))

        def lower(self: Rule) -> Lowered:
            return Lowered(conditions, stages, {key: getattr(self, key) for key in program.params})

        return dataclasses.make_dataclass(
            name,
            [(key, Parameter, value) for key, value in defaults.items()],
            bases=(Rule,),
            namespace={
                "__doc__": formula.__doc__,
                "__module__": formula.__module__,
                "__post_init__": check,
                "conditions": property(lambda self: conditions),
                "lower": lower,
                "title": (formula.__doc__ or name).strip().splitlines()[0],
            },
            frozen=True,
        )

    return make
