"""Guidance by a weaker prediction: autoguidance, and CFG with a perturbed or skip-layer pass."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import fastcfg_kernels as fk
from torch import Tensor

from .base import Lowered, Parameter, Rule, check_choice, number_or_schedule

__all__ = ["LTX2", "Autoguidance", "Perturbed", "SelfAttentionGuidance"]


def towards(scale: Any) -> tuple[Any, Any]:
    """``p + s (c - p)``."""
    return 1.0, scale


def towards_from_cond(scale: Any) -> tuple[Any, Any]:
    """``c + s (c - p)``."""
    return 1.0, 1.0 + scale


def cfg_and_perturbed(scale: Any, perturbed_scale: Any) -> tuple[Any, Any, Any]:
    """``u + s (c - u) + k (c - p)``."""
    return 1.0, scale + perturbed_scale, -perturbed_scale


def cfg_and_perturbed_from_cond(scale: Any, perturbed_scale: Any) -> tuple[Any, Any, Any]:
    """``c + s (c - u) + k (c - p)``."""
    return 1.0, 1.0 + scale + perturbed_scale, -perturbed_scale


def cfg_and_degraded(scale: Any, perturbed_scale: Any) -> tuple[Any, Any, Any]:
    """``u + s (c - u) + k (u - p)``."""
    return 1.0, scale, -perturbed_scale


def ltx2(scale: Any, perturbed_scale: Any, modality_scale: Any) -> tuple[Any, Any, Any, Any]:
    """``c + (s - 1)(c - u) + k (c - p) + (m - 1)(c - m_p)`` in deltas from c."""
    return 1.0, 1.0 - scale, -perturbed_scale, 1.0 - modality_scale


@dataclass(frozen=True)
class Autoguidance(Rule):
    """Away from a weaker prediction of the same condition: ``perturbed + scale * (cond - perturbed)``.

    The weaker prediction comes from a smaller model, or from this one with layers skipped or attention perturbed
    (SLG, PAG, SEG without CFG).

    Args:
        scale: guidance scale; base: ``"perturbed"``, or ``"cond"`` for ``cond + scale * (cond - perturbed)``.

    Source: Karras et al., 2406.02507, eq. 5.
    """

    scale: Parameter = 2.0
    base: Literal["perturbed", "cond"] = "perturbed"

    title = "perturbed + scale * (cond - perturbed)  [2406.02507]"

    def __post_init__(self) -> None:
        object.__setattr__(self, "scale", number_or_schedule("scale", self.scale))
        check_choice("base", self.base, ("perturbed", "cond"))

    @property
    def conditions(self) -> tuple[str, ...]:
        return ("perturbed", "cond")

    def eager(self, predictions: Mapping[str, Tensor], params: Mapping[str, Any]) -> Tensor:
        p, c = predictions["perturbed"], predictions["cond"]
        result: Tensor = (p if self.base == "perturbed" else c) + params["scale"] * (c - p)
        return result

    def lower(self) -> Lowered:
        formula = towards if self.base == "perturbed" else towards_from_cond
        return Lowered(self.conditions, (fk.Stage(formula),), {"scale": self.scale})


@dataclass(frozen=True)
class Perturbed(Rule):
    """CFG and a perturbed pass: ``base + scale * (cond - uncond) + perturbed_scale * (cond - perturbed)``.

    PAG (2403.17377), SEG (2408.00760), STG (2411.18664) and skip-layer guidance: they differ in how the model makes
    the perturbed prediction, not in the sum.

    Args:
        scale: of CFG; perturbed_scale: of the perturbed delta. A step without one of them drops its pass.
        base: ``"uncond"`` or ``"cond"``.
    """

    scale: Parameter = 7.5
    perturbed_scale: Parameter = 3.0
    base: Literal["uncond", "cond"] = "uncond"

    title = "base + scale * (cond - uncond) + perturbed_scale * (cond - perturbed)  [2403.17377]"

    def __post_init__(self) -> None:
        object.__setattr__(self, "scale", number_or_schedule("scale", self.scale))
        object.__setattr__(self, "perturbed_scale", number_or_schedule("perturbed_scale", self.perturbed_scale))
        check_choice("base", self.base, ("uncond", "cond"))

    @property
    def conditions(self) -> tuple[str, ...]:
        return ("uncond", "cond", "perturbed")

    def eager(self, predictions: Mapping[str, Tensor], params: Mapping[str, Any]) -> Tensor:
        u, c, p = predictions["uncond"], predictions["cond"], predictions["perturbed"]
        shift, skip = c - u, c - p
        result: Tensor = (
            (u if self.base == "uncond" else c) + params["scale"] * shift + params["perturbed_scale"] * skip
        )
        return result

    def lower(self) -> Lowered:
        formula = cfg_and_perturbed if self.base == "uncond" else cfg_and_perturbed_from_cond
        params = {"scale": self.scale, "perturbed_scale": self.perturbed_scale}
        return Lowered(self.conditions, (fk.Stage(formula),), params)


@dataclass(frozen=True)
class SelfAttentionGuidance(Rule):
    """CFG and self-attention guidance: ``uncond + scale * (cond - uncond) + perturbed_scale * (uncond - perturbed)``.

    ``perturbed`` is the model's prediction for an input that was blurred where its attention lies.
    Source: Hong et al., 2210.00939.
    """

    scale: Parameter = 7.5
    perturbed_scale: Parameter = 0.75

    title = "uncond + scale * (cond - uncond) + perturbed_scale * (uncond - perturbed)  [2210.00939]"

    def __post_init__(self) -> None:
        object.__setattr__(self, "scale", number_or_schedule("scale", self.scale))
        object.__setattr__(self, "perturbed_scale", number_or_schedule("perturbed_scale", self.perturbed_scale))

    @property
    def conditions(self) -> tuple[str, ...]:
        return ("uncond", "cond", "perturbed")

    def lower(self) -> Lowered:
        params = {"scale": self.scale, "perturbed_scale": self.perturbed_scale}
        return Lowered(self.conditions, (fk.Stage(cfg_and_degraded),), params)


@dataclass(frozen=True)
class LTX2(Rule):
    """LTX-2's sum of text, perturbed and modality guidance, meant for x0 predictions.

    ``cond + (scale-1)(cond-uncond) + perturbed_scale (cond-perturbed) + (modality_scale-1)(cond-modality)``. A scale
    of 1 (0 for ``perturbed_scale``) drops its pass.
    """

    scale: Parameter = 4.0
    perturbed_scale: Parameter = 0.0
    modality_scale: Parameter = 1.0

    title = "c + (scale-1)(c-u) + perturbed_scale (c-p) + (modality_scale-1)(c-modality)  [LTX-2]"

    def __post_init__(self) -> None:
        for name in ("scale", "perturbed_scale", "modality_scale"):
            object.__setattr__(self, name, number_or_schedule(name, getattr(self, name)))

    @property
    def conditions(self) -> tuple[str, ...]:
        return ("cond", "uncond", "perturbed", "modality")

    def eager(self, predictions: Mapping[str, Tensor], params: Mapping[str, Any]) -> Tensor:
        c = predictions["cond"]
        result: Tensor = c + (params["scale"] - 1.0) * (c - predictions["uncond"])
        result = result + params["perturbed_scale"] * (c - predictions["perturbed"])
        result = result + (params["modality_scale"] - 1.0) * (c - predictions["modality"])
        return result

    def lower(self) -> Lowered:
        params = {
            "scale": self.scale,
            "perturbed_scale": self.perturbed_scale,
            "modality_scale": self.modality_scale,
        }
        return Lowered(self.conditions, (fk.Stage(ltx2),), params)
