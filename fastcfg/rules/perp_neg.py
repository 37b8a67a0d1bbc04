"""Perp-Neg: negatives act only where they do not oppose the positive condition."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import fastcfg_kernels as fk
from fastcfg_kernels.math import where

from .base import Lowered, Parameter, Rule, check_choice, number_or_schedule
from .classifier_free import CFG
from .multi_condition import check_scales, numbered

__all__ = ["PerpNeg"]


def _formula(negatives: tuple[str, ...], scale_negative: bool) -> Callable[..., Any]:
    """The formula for so many negatives; the names are this module's own."""
    sums = ", ".join(f"dot_d_cond_d_{name}" for name in negatives)
    scales = [f"negative_scale_{i}" for i in range(1, len(negatives) + 1)]
    lines = [f"def perp_neg(dot_d_cond_d_cond, {sums}, scale, {', '.join(scales)}):", "    along = 0.0"]
    for name, scale in zip(negatives, scales, strict=True):
        if scale_negative:
            lines.append(f"    {scale} = scale * {scale}")
        share = f"where(dot_d_cond_d_cond > 0.0, dot_d_cond_d_{name} / dot_d_cond_d_cond, 0.0)"
        lines.append(f"    along = along + {scale} * {share}")
    lines.append(f"    return 1.0, scale + along, {', '.join('-' + s for s in scales)}")
    return fk.formula_from_source("perp_neg", "\n".join(lines) + "\n", {"where": where})


@dataclass(frozen=True)
class PerpNeg(Rule):
    """``uncond + scale * p - sum_i negative_scale_i * (n_i - p <n_i, p> / <p, p>)``, p and n_i deltas from uncond.

    The part of a negative along the positive direction is taken out, per sample, so that a negative can't cancel
    what is asked for. Where ``cond == uncond`` there is no direction, and the negative acts whole.

    Args:
        scale: scale of the positive delta.
        negative_scales: one for each negative. One negative is called ``negative``, several ``negative_1``, …; the
            parameters are called ``negative_scale_1``, …
        scale_negative: multiply the negatives by ``scale`` too, as the authors' code and ComfyUI's node do.
        over: what the projection's sums run over: ``"sample"``, or ``"batch"`` for ComfyUI's value, in which the
            samples of a batch change each other.

    Source: Armandpour et al., 2304.04968, sec. 4.
    """

    scale: Parameter = 7.5
    negative_scales: tuple[Parameter, ...] = (1.0,)
    scale_negative: bool = False
    over: Literal["sample", "batch"] = "sample"

    title = "uncond + scale * p - sum_i negative_scale_i * (n_i - p <n_i,p>/<p,p>)  [2304.04968]"

    def __post_init__(self) -> None:
        object.__setattr__(self, "scale", number_or_schedule("scale", self.scale))
        object.__setattr__(self, "negative_scales", check_scales("negative_scales", self.negative_scales))
        if not isinstance(self.scale_negative, bool):
            raise TypeError(f"scale_negative: expected a bool, got {type(self.scale_negative).__name__}")
        check_choice("over", self.over, ("sample", "batch"))

    @property
    def conditions(self) -> tuple[str, ...]:
        return ("uncond", "cond", *numbered("negative", len(self.negative_scales)))

    def lower(self) -> Lowered:
        formula = _formula(self.conditions[2:], self.scale_negative)
        params = {"scale": self.scale}
        params |= {f"negative_scale_{i}": value for i, value in enumerate(self.negative_scales, start=1)}
        return Lowered(self.conditions, (fk.Stage(formula),), params, dims=() if self.over == "batch" else None)

    def simplify(self) -> Rule:
        """Without negatives it is CFG. Single negatives of weight zero stay: their names are the caller's."""
        if self.scheduled:
            return self
        if not any(self.negative_scales) or (self.scale_negative and self.scale == 0):
            return CFG(self.scale).simplify()
        return self
