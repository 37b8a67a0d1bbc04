"""Inner guidance: a model that predicts an inner signal with the video is guided by its own signal, as by a prompt."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import fastcfg_kernels as fk

from .base import Lowered, Parameter, Rule, number_or_schedule

__all__ = ["InnerGuidance"]


def away_from_both(scale: Any, inner_scale: Any) -> tuple[Any, Any, Any]:
    """``c - w1 (u - c) - w2 (n - c)``: weights that add to 1 in the deltas from cond."""
    return 1.0, -scale, -inner_scale


@dataclass(frozen=True)
class InnerGuidance(Rule):
    """``(1 + scale + inner_scale) * cond - scale * uncond - inner_scale * without_inner``.

    ``cond`` is p(x, d, y), ``uncond`` p(x, d, no text) and ``without_inner`` p(x, no d, y), where d is the inner
    signal (VideoJAM's motion) that the model predicts together with x. Each prediction is the joint output [x, d] in
    one tensor, so that both parts are guided by the same weights; the d that goes into the next step is the model's
    own. With ``inner_scale=0`` it is ``CFG(1 + scale)``, in two passes.

    Args:
        scale: w1, away from the prediction without text.
        inner_scale: w2, away from the prediction without the inner signal. The authors guide in the first half of
            the steps, which is ``inner_scale=Interval(3.0, stop=0.5, outside=0.0)``.

    Source: Chefer et al., 2502.02492 (VideoJAM).
    """

    scale: Parameter = 5.0
    inner_scale: Parameter = 3.0

    title = "(1 + scale + inner_scale) * cond - scale * uncond - inner_scale * without_inner  [2502.02492]"

    def __post_init__(self) -> None:
        object.__setattr__(self, "scale", number_or_schedule("scale", self.scale))
        object.__setattr__(self, "inner_scale", number_or_schedule("inner_scale", self.inner_scale))

    @property
    def conditions(self) -> tuple[str, ...]:
        return ("uncond", "cond", "without_inner")

    def lower(self) -> Lowered:
        params = {"scale": self.scale, "inner_scale": self.inner_scale}
        return Lowered(("cond", "uncond", "without_inner"), (fk.Stage(away_from_both),), params)
