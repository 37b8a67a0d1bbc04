"""Guidance that does without the unconditional pass at most steps: from a cached delta, or from stock noise."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import fastcfg_kernels as fk

from ..schedules import Schedule
from .base import Lowered, Parameter, Rule, check_choice, number_or_schedule
from .classifier_free import CFG
from .linear import Linear, itself

__all__ = ["GatedCFG", "Phase", "ResidualCFG", "gate_of"]

Phase = Literal["auto", "refresh", "reuse", "off"]


def cfg_and_delta(scale: Any) -> tuple[Any, Any, Any, Any]:
    """``u + s d``; the second output is d."""
    return 1.0, scale, 0.0, 1.0


def cfg_delta_and_before(scale: Any) -> tuple[Any, Any, Any, Any, Any, Any]:
    """:func:`cfg_and_delta` with the delta before as a further input, which weighs nothing: its drift is measured."""
    return 1.0, scale, 0.0, 0.0, 1.0, 0.0


def from_delta(scale: Any) -> tuple[Any, Any]:
    """``c + (s - 1) delta``."""
    return 1.0, scale - 1.0


def from_stock(scale: Any, delta: Any) -> tuple[Any, Any]:
    """``s c + (1 - s) delta stock``, which is CFG with ``delta * stock`` for u."""
    return scale, (1.0 - scale) * delta


@dataclass(frozen=True)
class GatedCFG(Rule):
    """CFG whose delta is computed at some steps and used again between: ``cond + (scale - 1) * delta``.

    Args:
        scale: guidance scale.
        every: most steps from one unconditional pass to the next; 1 is CFG at every step.
        drift: a bound on how far the delta may have moved since it was cached, as a share of its norm. How fast it
            moves is measured at each refresh against the one before; None refreshes by ``every`` alone.
        stop: a share of the conditional prediction's norm: once the delta is shorter at a refresh, it is taken for
            dead and the rest of the run is ``cond`` alone. None never stops.
        phase: ``"auto"`` until it is decided: ``"refresh"`` (two passes; ``delta`` goes into ``state``), ``"reuse"``
            (one pass), or ``"off"`` (one pass, ``cond``).

    A :class:`fastcfg.GuidedDenoiser` and the adapters take it for :class:`fastcfg.CFG` under a :class:`fastcfg.Gate`,
    and decide by what is in ``state``. ``rule.at(step, num_steps)`` decides by the step alone, every k-th of which is
    a refresh. Each call needs ``state=``. A reuse without a delta in the state guides by zero, which is ``cond``.
    """

    scale: Parameter = 7.5
    every: int = 2
    phase: Phase = "auto"
    drift: float | None = None
    stop: float | None = None

    title = "cond + (scale - 1) * delta, delta = cond - uncond of every k-th step"

    def __post_init__(self) -> None:
        object.__setattr__(self, "scale", number_or_schedule("scale", self.scale))
        if type(self.every) is not int or self.every < 1:
            raise ValueError(f"every: expected 1 or more steps, got {self.every!r}")
        check_choice("phase", self.phase, get_args(Phase))
        for name in ("drift", "stop"):
            if (value := getattr(self, name)) is not None:
                checked = number_or_schedule(name, value)
                if isinstance(checked, Schedule) or checked < 0:
                    raise ValueError(f"{name}: expected a share of 0 or more, or None, got {value!r}")
                object.__setattr__(self, name, checked)

    @property
    def conditions(self) -> tuple[str, ...]:
        return ("uncond", "cond") if self.phase in ("auto", "refresh") else ("cond",)

    @property
    def scheduled(self) -> bool:
        return self.phase == "auto" or self._holds_schedules()

    def at(self, step: int, num_steps: int, *, sigma: float | None = None) -> Rule:
        rule = super().at(step, num_steps, sigma=sigma)
        assert isinstance(rule, GatedCFG)
        if self.phase != "auto":
            return rule
        return replace(rule, phase="refresh" if step % self.every == 0 else "reuse")

    def ungated(self) -> CFG:
        """The guidance that it is at a refresh."""
        return CFG(self.scale)

    def simplify(self) -> Rule:
        idle = self.phase == "off" or (self.phase != "auto" and self.scale == 1.0)
        return Linear((("cond", 1.0),)) if idle else self

    def lower(self) -> Lowered:
        if self.phase == "off":
            return Lowered(self.conditions, (fk.Stage(itself),), {})
        params = {"scale": self.scale}
        if self.phase == "reuse":
            return Lowered(self.conditions, (fk.Stage(from_delta),), params, extras=("delta",))
        if self.drift is not None:
            stage = fk.Stage(cfg_delta_and_before)
            return Lowered(self.conditions, (stage,), params, extras=("delta",), updates=("delta",))
        return Lowered(self.conditions, (fk.Stage(cfg_and_delta),), params, updates=("delta",))


def gate_of(rule: Rule) -> GatedCFG | None:
    """The gate in a rule, under its modifiers."""
    while not isinstance(rule, GatedCFG):
        inner = getattr(rule, "rule", None)
        if not isinstance(inner, Rule):
            return None
        rule = inner
    return rule


@dataclass(frozen=True)
class ResidualCFG(Rule):
    """CFG with stock noise for the unconditional prediction: ``delta*stock + scale * (cond - delta*stock)``.

    Args:
        scale: guidance scale; delta: weight of the stock noise, which the caller puts into ``state["stock"]``
            (the initial noise, or the noise that leads to it).

    A state without it is refused: zero in its place would be ``scale * cond``.

    Source: Kodaira et al., 2312.12491, eq. 5.
    """

    scale: Parameter = 1.5
    delta: Parameter = 1.0

    title = "delta*stock + scale * (cond - delta*stock)  [2312.12491]"
    stands_for = ("uncond",)

    def __post_init__(self) -> None:
        object.__setattr__(self, "scale", number_or_schedule("scale", self.scale))
        object.__setattr__(self, "delta", number_or_schedule("delta", self.delta))

    @property
    def conditions(self) -> tuple[str, ...]:
        return ("cond",)

    def lower(self) -> Lowered:
        params = {"scale": self.scale, "delta": self.delta}
        return Lowered(self.conditions, (fk.Stage(from_stock),), params, extras=("stock",), given=("stock",))
