"""A user's own rule from one formula."""

from __future__ import annotations

import dataclasses
import hashlib
import inspect
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import fastcfg_kernels as fk

from .base import Lowered, Parameter, Rule, number_or_schedule, registry
from .names import check_condition_names

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

    The formula is kept by value: numbers and functions that it names (closures and globals) are those of its
    definition, belong to the rule, and go into its JSON. A name may be defined again, with another formula or other
    numbers: rules of both live side by side, and a document is read by the definition that wrote it.

    Raises:
        ValueError: naming the formula, its line and the remedy, for names that are not distinct identifiers or are
            taken by the calls, an argument that is no sum and has no default, a name that a rule of another module has,
            and a formula that would not run, or not run alike, on every backend.
    """
    check_condition_names("conditions", conditions)

    def make(formula: Callable[..., Any]) -> Callable[..., Rule]:
        name = formula.__name__
        taken = registry.get(name)
        if taken is not None and (taken.__module__ != formula.__module__ or not hasattr(taken, "versions")):
            raise ValueError(f"rule: {name!r} is the name of a rule already")
        formula = fk.by_value(formula)
        signature = inspect.signature(formula).parameters.values()
        defaults = {p.name: p.default for p in signature if p.default is not inspect.Parameter.empty}
        if wrong := sorted(_TAKEN.intersection(defaults)):
            raise ValueError(f"formula {name}: no parameter may be called {', '.join(wrong)}, which its JSON uses")
        stages = (fk.Stage(formula),)
        program = fk.compile_program(conditions, stages)
        if loose := [p for p in program.params if p not in defaults]:
            raise ValueError(
                f"formula {name}: arguments {loose} are no sums (dot_A_B, cov_A_B, sum_A, count) and have no default"
            )
        numbers = fk.captured_numbers(formula)
        told = f"{conditions} {sorted(defaults.items(), key=str)} {fk.content_digest(formula)}"
        content = hashlib.sha256(told.encode()).hexdigest()[:16]
        key = (content, tuple(sorted(numbers.items())))
        versions: dict[Any, type[Rule]] = {} if taken is None else taken.versions  # type: ignore[attr-defined]
        if (same := versions.get(key)) is not None:
            registry[name] = same
            return same

        def check(self: Rule) -> None:
            for field in defaults:
                object.__setattr__(self, field, number_or_schedule(field, getattr(self, field)))

        def lower(self: Rule) -> Lowered:
            return Lowered(conditions, stages, {field: getattr(self, field) for field in program.params})

        made = dataclasses.make_dataclass(
            name,
            [(field, Parameter, value) for field, value in defaults.items()],
            bases=(_Custom,),
            namespace={
                "__doc__": formula.__doc__,
                "__module__": formula.__module__,
                "__qualname__": formula.__qualname__,
                "__post_init__": check,
                "conditions": property(lambda self: conditions),
                "lower": lower,
                "title": (formula.__doc__ or name).strip().splitlines()[0],
                "content": content,
                "captured": numbers,
                "versions": versions,
            },
            frozen=True,
        )
        versions[key] = made
        return made

    return make


_TAKEN = frozenset({"type", "module", "schedule", "content", "captured", "versions"})


class _Custom(Rule, register=False):
    """A rule of :func:`rule`."""

    content: ClassVar[str]
    """Digest of the formula's text, conditions and defaults."""
    captured: ClassVar[Mapping[str, float]]
    """Numbers that the formula names."""
    versions: ClassVar[dict[Any, type[Rule]]]
    """The definitions of this name, by content and numbers."""

    def to_dict(self) -> dict[str, Any]:
        numbers = {"captured": dict(self.captured)} if self.captured else {}
        return super().to_dict() | {"content": self.content} | numbers

    @classmethod
    def version(cls, fields: dict[str, Any]) -> type[Rule]:
        content, given = fields.pop("content", None), fields.pop("captured", None)
        if given is not None and not (
            isinstance(given, Mapping) and all(isinstance(v, int | float) for v in given.values())
        ):
            raise ValueError(f"captured: expected numbers by name, got {given!r}")
        numbers = None if given is None else tuple(sorted((n, float(v)) for n, v in given.items()))
        if content is None and numbers is None and len({own for _, own in cls.versions}) == 1:
            return cls  # Written by hand, about the definition that stands.
        found = [
            made
            for (of, own), made in cls.versions.items()
            if content in (None, of)
            and (own == (numbers or ()) if content is not None or numbers is not None else True)
        ]
        if len(found) != 1:
            known = [{"content": of, "captured": dict(own)} for of, own in cls.versions]
            raise ValueError(
                f"{cls.__name__} was written by another definition than those of {cls.__module__!r} here "
                f"(content {content!r}, captured {given or {}}; here {known}); run the definition that wrote it"
            )
        return found[0]
