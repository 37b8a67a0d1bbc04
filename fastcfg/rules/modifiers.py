"""Modifiers: what is done to the result of any rule."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import fastcfg_kernels as fk
from fastcfg_kernels.math import maximum, minimum, sqrt, where

from ..schedules import Schedule
from .base import (
    AT_LEAST_ZERO,
    POSITIVE,
    SHARE,
    Lowered,
    Parameter,
    Rule,
    check_choice,
    check_range,
    number_or_schedule,
)
from .linear import Linear
from .names import check_condition_names

__all__ = ["Clamp", "NormCap", "Rescale", "check_share", "rescale_formula"]


_RANGES = {"phi": SHARE, "cap": AT_LEAST_ZERO, "low": AT_LEAST_ZERO, "eps": AT_LEAST_ZERO, "k": POSITIVE}
"""Of modifiers' parameters, by the names that their formulas have for them."""


def check_share(name: str, value: Any) -> Parameter:
    """A number in 0 … 1, or a schedule."""
    checked = number_or_schedule(name, value)
    check_range(name, checked, SHARE)
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


def clamp_std_biased(cov_ref_ref: Any, count: Any, k: Any) -> tuple[Any, Any]:
    """``∓k std(ref)``, biased: divided by N."""
    bound = k * sqrt(cov_ref_ref / count)
    return -bound, bound


def norm_cap(dot_y_y: Any, dot_ref_ref: Any, cap: Any, eps: Any) -> Any:
    """``min(1, cap |ref|/|y|)``; 1 where y is zero."""
    length = sqrt(dot_y_y) + eps
    return minimum(1.0, where(length > 0.0, cap * sqrt(dot_ref_ref) / length, 1.0))


def capped(factor: Any) -> Any:
    """1 where the cap took hold."""
    return where(factor < 1.0, 1.0, 0.0)


def norm_full(dot_y_y: Any, dot_ref_ref: Any, cap: Any, eps: Any) -> Any:
    """``cap |ref|/|y|``; 1 where y is zero."""
    length = sqrt(dot_y_y) + eps
    return where(length > 0.0, cap * sqrt(dot_ref_ref) / length, 1.0)


def norm_clamp(dot_y_y: Any, dot_ref_ref: Any, cap: Any, eps: Any, low: Any) -> Any:
    """``cap |ref|/|y|`` between ``low`` and 1; 1 where y is zero."""
    length = sqrt(dot_y_y) + eps
    return minimum(1.0, maximum(low, where(length > 0.0, cap * sqrt(dot_ref_ref) / length, 1.0)))


def rescale_formula(norm: str) -> Callable[..., Any]:
    """The rescale by the standard deviation (``"std"``) or the norm (``"l2"``)."""
    return {"std": rescale_std, "l2": rescale_l2}[norm]


@dataclass(frozen=True)
class _Modifier(Rule, register=False):
    """A rule, and something done to its result with ``reference`` as the measure."""

    rule: Rule

    def _check(self, reference: str) -> None:
        if not isinstance(self.rule, Rule):
            raise TypeError(f"rule: expected a rule, got {type(self.rule).__name__}")
        check_condition_names("reference", (reference,))

    def _conditions(self, reference: str) -> tuple[str, ...]:
        inner = self.rule.conditions
        return inner if reference in inner else (*inner, reference)

    def _lower(
        self, values: Mapping[str, Parameter], formula: Callable[..., Any], kind: Literal["factor", "clamp"],
        reference: str, dims: tuple[int, ...] | None = None, limited: Callable[..., Any] | None = None,
    ) -> Lowered:  # fmt: skip
        """The inner rule's stages and one more, whose parameters get public names that are still free."""
        inner = self.rule.lowered
        if inner.program.reduces and inner.dims != dims:
            raise ValueError(f"dims: the rule's sums run over {inner.dims}, so the modifier's can't run over {dims}")
        predictions, stages = inner.predictions, inner.stages
        if missing := tuple(c for c in self.conditions if c not in predictions):
            width = stages[0].width or len(predictions)
            stages = (replace(stages[0], width=width), *stages[1:])
            predictions += missing
        rename, params = [], dict(inner.params)
        limits = dict(inner.ranges)
        for name, value in values.items():
            public = name
            while public in params:
                public = f"outer_{public}"
            rename.append((name, public))
            params[public] = value
            if name in _RANGES:
                limits[public] = _RANGES[name]
        stage = fk.Stage(formula, kind, tuple(rename), (("ref", reference),), limited=limited)
        stages = (*stages, stage)
        return replace(inner, predictions=predictions, stages=stages, params=params, dims=dims, ranges=limits)


_GROUPS: dict[str, tuple[int, ...] | None] = {"sample": None, "token": (-1,), "channel": (1,)}


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
        over: what it is measured over: ``"sample"``, ``"token"`` (last dimension) or ``"channel"`` (dimension 1: each
            frame of ``[B, C, T]`` by itself, as stable-audio-tools does).

    A result without spread (or norm) is left as it is. Source: Lin et al., 2305.08891, sec. 3.4 (std).
    """

    phi: Parameter = 0.7
    norm: Literal["std", "l2"] = "std"
    reference: str = "cond"
    over: Literal["sample", "token", "channel"] = "sample"

    title = "y * (1 - phi + phi * |cond| / |y|)  [2305.08891]"

    def __post_init__(self) -> None:
        object.__setattr__(self, "phi", check_share("phi", self.phi))
        if self.norm not in ("std", "l2"):
            raise ValueError(f"norm: expected 'std' or 'l2', got {self.norm!r}")
        check_choice("over", self.over, tuple(_GROUPS))
        self._check(self.reference)

    @property
    def conditions(self) -> tuple[str, ...]:
        return self._conditions(self.reference)

    def lower(self) -> Lowered:
        return self._lower({"phi": self.phi}, rescale_formula(self.norm), "factor", self.reference, _GROUPS[self.over])

    def simplify(self) -> Rule:
        if self.scheduled:
            return self
        inner = self.rule.simplify()
        if self.phi == 0 or inner == Linear(((self.reference, 1.0),)):
            return inner
        return replace(self, rule=inner)


@dataclass(frozen=True)
class NormCap(_Modifier):
    """Bound the norm of a rule's result by a reference prediction's: ``y * f`` with ``q = cap * |ref| / (|y| + eps)``.

    Args:
        rule: any rule.
        cap: factor on the reference's norm.
        mode: ``"cap"``: ``f = min(1, q)`` (Z-Image, RenormCFG); ``"full"``: ``f = q`` (Qwen-Image, Lumina 2);
            ``"clamp"``: ``f = min(max(q, low), 1)`` (LongCat with eps 1e-8; ComfyUI's CFGNorm with low 0).
        low: lower bound of ``"clamp"``.
        over: what a norm is taken over: ``"sample"``, ``"token"`` (last dimension of ``[B, N, C]``) or
            ``"channel"`` (dimension 1 of ``[B, C, H, W]``).
        eps: added to ``|y|``.
        reference: the prediction to measure.

    A zero result is left as it is.
    """

    cap: Parameter = 1.0
    mode: Literal["cap", "full", "clamp"] = "cap"
    low: float = 0.0
    over: Literal["sample", "token", "channel"] = "sample"
    eps: float = 0.0
    reference: str = "cond"

    title = "y * min(1, cap * |cond| / |y|) (modes: cap, full, clamp)"

    def __post_init__(self) -> None:
        object.__setattr__(self, "cap", number_or_schedule("cap", self.cap))
        check_range("cap", self.cap, AT_LEAST_ZERO)
        check_choice("mode", self.mode, ("cap", "full", "clamp"))
        check_choice("over", self.over, tuple(_GROUPS))
        for name in ("low", "eps"):
            value = number_or_schedule(name, getattr(self, name))
            if isinstance(value, Schedule) or value < 0:
                raise ValueError(f"{name}: expected a number of 0 or more, got {value!r}")
            object.__setattr__(self, name, value)
        self._check(self.reference)

    @property
    def conditions(self) -> tuple[str, ...]:
        return self._conditions(self.reference)

    def lower(self) -> Lowered:
        values: dict[str, Parameter] = {"cap": self.cap, "eps": self.eps}
        if self.mode == "clamp":
            values["low"] = self.low
        formulas: dict[str, Callable[..., Any]] = {"cap": norm_cap, "full": norm_full, "clamp": norm_clamp}
        formula = formulas[self.mode]
        limited = None if self.mode == "full" else capped
        return self._lower(values, formula, "factor", self.reference, _GROUPS[self.over], limited)

    def simplify(self) -> Rule:
        return self if self.scheduled else replace(self, rule=self.rule.simplify())


@dataclass(frozen=True)
class Clamp(_Modifier):
    """Clip a rule's result to ``±k`` standard deviations of a reference prediction, per sample and elementwise.

    It bounds the result, and so makes a cast to float16 safe at extreme scales. It is elementwise, and so the
    outermost modifier.

    Args:
        rule: any rule.
        k: bound in standard deviations of the reference, around zero.
        std: ``"unbiased"`` (N-1, torch's default) or ``"biased"`` (N).
        reference: the prediction to measure.
    """

    k: Parameter = 4.0
    std: Literal["unbiased", "biased"] = "unbiased"
    reference: str = "cond"

    title = "clip(y, -k std(cond), k std(cond))"

    def __post_init__(self) -> None:
        object.__setattr__(self, "k", number_or_schedule("k", self.k))
        check_range("k", self.k, POSITIVE)
        check_choice("std", self.std, ("unbiased", "biased"))
        self._check(self.reference)
        if isinstance(self.rule, Clamp):
            raise ValueError("rule: a clamp is the outermost modifier; it can't clamp a clamp")

    @property
    def conditions(self) -> tuple[str, ...]:
        return self._conditions(self.reference)

    def lower(self) -> Lowered:
        formula = clamp_std if self.std == "unbiased" else clamp_std_biased
        return self._lower({"k": self.k}, formula, "clamp", self.reference)

    def simplify(self) -> Rule:
        return self if self.scheduled else replace(self, rule=self.rule.simplify())
