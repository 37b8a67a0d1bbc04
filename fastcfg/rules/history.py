"""History guidance: the frames that are known already act as the condition.

:mod:`fastcfg.methods.history` prepares the partially noised histories that the conditions here are predictions of.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, get_args

import fastcfg_kernels as fk

from .base import Lowered, Parameter, Rule, number_or_schedule
from .classifier_free import cfg_from_uncond
from .linear import sum_of_deltas
from .multi_condition import check_scales, numbered

__all__ = ["HistoryGuidance"]

Kind = Literal["vanilla", "temporal", "fractional", "between"]


def cond_and_partial(scale: Any) -> tuple[Any, Any, Any]:
    """``c + (s - 1) (p - u)`` in the deltas of c and p from u."""
    return 1.0, 1.0, scale - 1.0


def _between(count: int) -> Callable[..., Any]:
    """``u + sum_i scale_i (start_i - end_i)`` in the deltas from u."""
    names = [f"scale_{i}" for i in range(1, count + 1)]
    weights = [weight for name in names for weight in (name, f"-{name}")]
    source = f"def between({', '.join(names)}):\n    return 1.0, {', '.join(weights)}\n"
    return fk.formula_from_source("between", source)


@dataclass(frozen=True)
class HistoryGuidance(Rule):
    """Guidance of a video model by its own history, whose frames carry a noise level each.

    ============  ===============================================  ==================================================
    kind          result                                           conditions
    ============  ===============================================  ==================================================
    vanilla       ``uncond + scale * (cond - uncond)``             cond: the whole history, clean
    temporal      ``uncond + sum_i scale_i * (cond_i - uncond)``   cond_1 …: parts of the history (long, short, …), at
                                                                   a noise level each; one part is called ``cond``
    fractional    ``cond + (scale - 1) * (partial - uncond)``      partial: the whole history, noised to a level t_H
    between       ``uncond + sum_i scale_i * (start_i - end_i)``   the history at two noise levels, the bands between
    ============  ===============================================  ==================================================

    ``uncond`` is the prediction without history: every frame of it fully noised. A fractional scale counts as DFoT's
    ``guidance_scale`` does, 1 + gamma: at t_H = 0 it is vanilla guidance of the same scale, at t_H = 1 it is ``cond``.

    Args:
        scale: a number or schedule, or a tuple of them for several parts or bands. Parameters are called ``scale``
            for the kinds with one, else ``scale_1``, ``scale_2``, …
        kind: which of the forms above.

    Source: Song et al., 2502.06764 (DFoT); ``between`` is in the authors' code.
    """

    scale: Parameter | tuple[Parameter, ...] = 4.0
    kind: Kind = "vanilla"

    title = "uncond + sum_i scale_i * (cond_i - uncond), conditions by history  [2502.06764]"

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise ValueError(f"kind: expected one of {', '.join(get_args(Kind))}, got {self.kind!r}")
        if self.kind in ("vanilla", "fractional"):
            if isinstance(self.scale, tuple | list):
                raise TypeError(f"scale: {self.kind} history guidance has one scale, got {self.scale!r}")
            object.__setattr__(self, "scale", number_or_schedule("scale", self.scale))
        else:
            scales = self.scale if isinstance(self.scale, tuple | list) else (self.scale,)
            object.__setattr__(self, "scale", check_scales("scale", scales))

    @property
    def conditions(self) -> tuple[str, ...]:
        if self.kind == "vanilla":
            return ("uncond", "cond")
        if self.kind == "fractional":
            return ("uncond", "cond", "partial")
        count = len(self._scales)
        if self.kind == "temporal":
            return ("uncond", *numbered("cond", count))
        ends = zip(numbered("start", count), numbered("end", count), strict=True)
        return ("uncond", *(name for pair in ends for name in pair))

    @property
    def _scales(self) -> tuple[Parameter, ...]:
        return self.scale if isinstance(self.scale, tuple) else (self.scale,)

    def lower(self) -> Lowered:
        formula: Callable[..., Any]
        if self.kind in ("vanilla", "fractional"):
            formula = cfg_from_uncond if self.kind == "vanilla" else cond_and_partial
            return Lowered(self.conditions, (fk.Stage(formula),), {"scale": self._scales[0]})
        formula = (sum_of_deltas if self.kind == "temporal" else _between)(len(self._scales))
        params = {f"scale_{i}": scale for i, scale in enumerate(self._scales, start=1)}
        return Lowered(self.conditions, (fk.Stage(formula),), params)
