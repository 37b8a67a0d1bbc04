"""Guidance that does without the unconditional pass at most steps: from a cached delta, or from stock noise."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

import fastcfg_kernels as fk

from .base import Lowered, Parameter, Rule, check_choice, number_or_schedule

__all__ = ["GatedCFG", "ResidualCFG"]


def cfg_and_delta(scale: Any) -> tuple[Any, Any, Any, Any]:
    """``u + s d``; the second output is d."""
    return 1.0, scale, 0.0, 1.0


def from_delta(scale: Any) -> tuple[Any, Any]:
    """``c + (s - 1) delta``."""
    return 1.0, scale - 1.0


def from_stock(scale: Any, delta: Any) -> tuple[Any, Any]:
    """``s c + (1 - s) delta stock``, which is CFG with ``delta * stock`` for u."""
    return scale, (1.0 - scale) * delta


@dataclass(frozen=True)
class GatedCFG(Rule):
    """CFG whose delta is computed at every ``every``-th step and used again between: ``cond + (scale - 1) * delta``.

    Args:
        scale: guidance scale.
        every: steps from one unconditional pass to the next; 1 is CFG at every step.
        phase: ``"auto"`` until ``rule.at(step, num_steps)`` makes it ``"refresh"`` (two passes; ``delta`` goes into
            ``state``) or ``"reuse"`` (one pass).

    Each call needs ``state=``. A reuse without a delta in the state guides by zero, which is ``cond``.
    """

    scale: Parameter = 7.5
    every: int = 2
    phase: Literal["auto", "refresh", "reuse"] = "auto"

    title = "cond + (scale - 1) * delta, delta = cond - uncond of every k-th step"

    def __post_init__(self) -> None:
        object.__setattr__(self, "scale", number_or_schedule("scale", self.scale))
        if type(self.every) is not int or self.every < 1:
            raise ValueError(f"every: expected 1 or more steps, got {self.every!r}")
        check_choice("phase", self.phase, ("auto", "refresh", "reuse"))

    @property
    def conditions(self) -> tuple[str, ...]:
        return ("cond",) if self.phase == "reuse" else ("uncond", "cond")

    @property
    def scheduled(self) -> bool:
        return self.phase == "auto" or super().scheduled

    def at(self, step: int, num_steps: int, *, sigma: float | None = None) -> Rule:
        rule = super().at(step, num_steps, sigma=sigma)
        assert isinstance(rule, GatedCFG)
        return replace(rule, phase="refresh" if step % self.every == 0 else "reuse")

    def lower(self) -> Lowered:
        params = {"scale": self.scale}
        if self.phase == "reuse":
            return Lowered(self.conditions, (fk.Stage(from_delta),), params, extras=("delta",))
        return Lowered(self.conditions, (fk.Stage(cfg_and_delta),), params, updates=("delta",))


@dataclass(frozen=True)
class ResidualCFG(Rule):
    """CFG with stock noise for the unconditional prediction: ``delta*stock + scale * (cond - delta*stock)``.

    Args:
        scale: guidance scale; delta: weight of the stock noise, which the caller puts into ``state["stock"]``
            (the initial noise, or the noise that leads to it).

    Source: Kodaira et al., 2312.12491, eq. 5.
    """

    scale: Parameter = 1.5
    delta: Parameter = 1.0

    title = "delta*stock + scale * (cond - delta*stock)  [2312.12491]"

    def __post_init__(self) -> None:
        object.__setattr__(self, "scale", number_or_schedule("scale", self.scale))
        object.__setattr__(self, "delta", number_or_schedule("delta", self.delta))

    @property
    def conditions(self) -> tuple[str, ...]:
        return ("cond",)

    def lower(self) -> Lowered:
        params = {"scale": self.scale, "delta": self.delta}
        return Lowered(self.conditions, (fk.Stage(from_stock),), params, extras=("stock",))
