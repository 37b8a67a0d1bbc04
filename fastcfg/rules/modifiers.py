"""Modifiers: what is done to the result of any rule."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import fastcfg_kernels as fk
from fastcfg_kernels.math import sqrt, where

from ..schedules import Schedule
from .base import Lowered, Parameter, Rule, number_or_schedule
from .linear import Linear

__all__ = ["Clamp", "Rescale", "check_share", "rescale_stage"]


def check_share(name: str, value: Any) -> Parameter:
    """A number in 0 … 1, or a schedule."""
    checked = number_or_schedule(name, value)
    if not isinstance(checked, Schedule) and not 0 <= checked <= 1:
        raise ValueError(f"{name}: expected a share in 0 ... 1, got {checked}")
    return checked


def rescale_std(cov_y_y: Any, cov_ref_ref: Any, phi: Any) -> Any:
    """``1 - phi + phi std(ref)/std(y)``; 1 where y has no spread."""
    return 1.0 - phi + phi * where(cov_y_y > 0.0, sqrt(cov_ref_ref / cov_y_y), 1.0)


def rescale_l2(dot_y_y: Any, dot_ref_ref: Any, phi: Any) -> Any:
    """``1 - phi + phi |ref|/|y|``; 1 where y is zero."""
    return 1.0 - phi + phi * where(dot_y_y > 0.0, sqrt(dot_ref_ref / dot_y_y), 1.0)


def clamp_std(cov_ref_ref: Any, count: Any, k: Any) -> tuple[Any, Any]:
    """``∓k std(ref)``, unbiased; zero for a single element, which has no spread."""
    bound = k * sqrt(where(cov_ref_ref == 0.0, 0.0, cov_ref_ref / (count - 1.0)))
    return -bound, bound


def rescale_stage(norm: str, reference: str, public: str) -> fk.Stage:
    """The rescale of ``norm`` by a reference prediction, its ``phi`` known as ``public``."""
    formula = {"std": rescale_std, "l2": rescale_l2}[norm]
    return fk.Stage(formula, "factor", (("phi", public),), (("ref", reference),))


@dataclass(frozen=True)
class _Modifier(Rule, register=False):
    """A rule, and something done to its result with ``reference`` as the measure."""

    rule: Rule

    def _check(self, reference: str) -> None:
        if not isinstance(self.rule, Rule):
            raise TypeError(f"rule: expected a rule, got {type(self.rule).__name__}")
        if not reference.isidentifier():
            raise ValueError(f"reference: expected a prediction's name, got {reference!r}")

    def _conditions(self, reference: str) -> tuple[str, ...]:
        inner = self.rule.conditions
        return inner if reference in inner else (*inner, reference)

    def _lower(self, name: str, value: Parameter, stage: Callable[[str], fk.Stage]) -> Lowered:
        """The inner rule's stages and one more, whose parameter gets a public name that is still free."""
        inner = self.rule.lowered
        predictions, stages = inner.predictions, inner.stages
        if missing := tuple(c for c in self.conditions if c not in predictions):
            width = stages[0].width or len(predictions)
            stages = (replace(stages[0], width=width), *stages[1:])
            predictions += missing
        public = name
        while public in inner.params:
            public = f"outer_{public}"
        return Lowered(predictions, (*stages, stage(public)), {**inner.params, public: value})


@dataclass(frozen=True)
class Rescale(_Modifier):
    """Scale a rule's result towards the norm of a reference prediction.

    ``y * (1 - phi + phi * |reference| / |y|)``, per sample.

    Args:
        rule: any rule.
        phi: 0 is off, 1 gives the result exactly the reference's norm.
        norm: ``"std"``, the standard deviation (the bias of N or N-1 cancels in the ratio), or ``"l2"``, the norm;
            they are equal only for predictions of zero mean.
        reference: the prediction to measure.

    A result without spread (or norm) is left as it is. Source: Lin et al., 2305.08891, sec. 3.4 (std).
    """

    phi: Parameter = 0.7
    norm: Literal["std", "l2"] = "std"
    reference: str = "cond"

    title = "y * (1 - phi + phi * |cond| / |y|)  [2305.08891]"

    def __post_init__(self) -> None:
        object.__setattr__(self, "phi", check_share("phi", self.phi))
        if self.norm not in ("std", "l2"):
            raise ValueError(f"norm: expected 'std' or 'l2', got {self.norm!r}")
        self._check(self.reference)

    @property
    def conditions(self) -> tuple[str, ...]:
        return self._conditions(self.reference)

    def lower(self) -> Lowered:
        return self._lower("phi", self.phi, lambda public: rescale_stage(self.norm, self.reference, public))

    def simplify(self) -> Rule:
        if self.scheduled:
            return self
        inner = self.rule.simplify()
        if self.phi == 0 or inner == Linear(((self.reference, 1.0),)):
            return inner
        return replace(self, rule=inner)


@dataclass(frozen=True)
class Clamp(_Modifier):
    """Clip a rule's result to ``±k`` standard deviations of a reference prediction, per sample and elementwise.

    It bounds the result, and so makes a cast to float16 safe at extreme scales. It is elementwise, and so the
    outermost modifier.

    Args:
        rule: any rule.
        k: bound in unbiased standard deviations (N-1) of the reference, around zero.
        reference: the prediction to measure.
    """

    k: Parameter = 4.0
    reference: str = "cond"

    title = "clip(y, -k std(cond), k std(cond))"

    def __post_init__(self) -> None:
        object.__setattr__(self, "k", number_or_schedule("k", self.k))
        if not isinstance(self.k, Schedule) and self.k <= 0:
            raise ValueError(f"k: expected a positive number, got {self.k}")
        self._check(self.reference)
        if isinstance(self.rule, Clamp):
            raise ValueError("rule: a clamp is the outermost modifier; it can't clamp a clamp")

    @property
    def conditions(self) -> tuple[str, ...]:
        return self._conditions(self.reference)

    def lower(self) -> Lowered:
        aliases = (("ref", self.reference),)
        return self._lower("k", self.k, lambda public: fk.Stage(clamp_std, "clamp", (("k", public),), aliases))

    def simplify(self) -> Rule:
        return self if self.scheduled else replace(self, rule=self.rule.simplify())
