"""Classifier-free guidance with one condition, and with a negative prompt in the place of the empty one."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import fastcfg_kernels as fk
from torch import Tensor

from .base import SHARE, Lowered, Parameter, Rule, number_or_schedule
from .modifiers import Rescale, check_share, rescale_formula

__all__ = ["CFG", "NegativePrompt"]


def cfg_from_uncond(scale: Any) -> tuple[Any, Any]:
    """``u + s d``."""
    return 1.0, scale


def cfg_from_cond(scale: Any) -> tuple[Any, Any]:
    """``c + s d = u + (1 + s) d``."""
    return 1.0, 1.0 + scale


@dataclass(frozen=True)
class CFG(Rule):
    """Classifier-free guidance: ``uncond + scale * (cond - uncond)``.

    Args:
        scale: guidance scale; 1 is the conditional prediction, 0 the unconditional one. With ``base="cond"`` it is
            the papers' ``w``, so that 0 is the conditional prediction.
        rescale: shorthand for ``Rescale(CFG(scale), phi=rescale)`` of the standard deviation; 0 is off.
        base: ``"uncond"``, or ``"cond"`` for ``cond + scale * (cond - uncond)``.

    Source: Ho & Salimans, 2207.12598; the conditional base is its eq. 6.
    """

    scale: Parameter = 7.5
    rescale: Parameter = 0.0
    base: Literal["uncond", "cond"] = "uncond"

    title = "uncond + scale * (cond - uncond)  [2207.12598]"

    def __post_init__(self) -> None:
        scale, rescale = number_or_schedule("scale", self.scale), check_share("rescale", self.rescale)
        if scale is not self.scale:
            object.__setattr__(self, "scale", scale)
        if rescale is not self.rescale:
            object.__setattr__(self, "rescale", rescale)
        if self.base not in ("uncond", "cond"):
            raise ValueError(f"base: expected 'uncond' or 'cond', got {self.base!r}")

    @property
    def conditions(self) -> tuple[str, ...]:
        return ("uncond", "cond")

    def eager(self, predictions: Mapping[str, Tensor], params: Mapping[str, Any]) -> Tensor:
        if self.rescale != 0.0:
            return super().eager(predictions, params)
        u, c = predictions["uncond"], predictions["cond"]
        result: Tensor = (u if self.base == "uncond" else c) + params["scale"] * (c - u)
        return result

    def lowers_like(self) -> Hashable | None:
        numbers = type(self.scale) is float and type(self.rescale) is float
        return (self.base, self.rescale != 0.0) if numbers else None

    def lower(self) -> Lowered:
        formula = cfg_from_uncond if self.base == "uncond" else cfg_from_cond
        stages: tuple[fk.Stage, ...] = (fk.Stage(formula),)
        params: dict[str, Parameter] = {"scale": self.scale}
        if self.rescale != 0.0:
            rename = (("phi", "rescale"),)
            stages += (fk.Stage(rescale_formula("std"), "factor", rename, (("ref", "cond"),)),)
            params["rescale"] = self.rescale
        return Lowered(self.conditions, stages, params, ranges={"rescale": SHARE})

    def simplify(self) -> Rule:
        if self.rescale == 0.0 or self.scheduled:
            return super().simplify()
        return Rescale(CFG(self.scale, base=self.base), phi=self.rescale).simplify()


@dataclass(frozen=True)
class NegativePrompt(Rule):
    """Guidance away from a negative prompt: ``negative + scale * (cond - negative)``.

    It is CFG with the negative prompt's prediction as the base; with an empty negative prompt it is CFG.
    """

    scale: Parameter = 7.5

    title = "negative + scale * (cond - negative)"

    def __post_init__(self) -> None:
        object.__setattr__(self, "scale", number_or_schedule("scale", self.scale))

    @property
    def conditions(self) -> tuple[str, ...]:
        return ("negative", "cond")

    def eager(self, predictions: Mapping[str, Tensor], params: Mapping[str, Any]) -> Tensor:
        n, c = predictions["negative"], predictions["cond"]
        result: Tensor = n + params["scale"] * (c - n)
        return result

    def lowers_like(self) -> Hashable | None:
        return "negative" if type(self.scale) is float else None

    def lower(self) -> Lowered:
        return Lowered(self.conditions, (fk.Stage(cfg_from_uncond),), {"scale": self.scale})
