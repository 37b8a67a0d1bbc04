"""The curves: rules and schedules by guidance scale."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from fastcfg import APG, CFG, TCFG, CFGZeroStar, GatedCFG, InDomain, PerpNeg, Rule, schedules

__all__ = ["CURVES", "DYNAMIC", "NEGATIVE_SCALES", "RESCALE", "SCALES", "Asked", "Curve", "Keep", "points"]

Asked = Literal["both", "digit"]
Keep = Literal["", "clip", "dynamic"]

SCALES = (1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 7.5, 10.0)
NEGATIVE_SCALES = (1.5, 3.0)
RESCALE = 0.7


@dataclass(frozen=True)
class Curve:
    """One line of the figures.

    Attributes:
        name: what figures call it.
        rule, schedule: what it is made of, as in the results.
        at: the rule at a guidance scale above 1; at 1 none of them guides.
        about: its settings, in words.
        who: the guided network, or the student distilled from it.
        keep: how each step's clean sample is kept in range.
        asked: digits in colours, or digits of any colour but that of the negative.
    """

    name: str
    rule: str
    at: Callable[[float], Rule]
    about: str
    schedule: str = "constant"
    who: Literal["teacher", "student"] = "teacher"
    keep: Keep = ""
    asked: Asked = "both"

    def rule_at(self, scale: float) -> Rule:
        """The rule at a guidance scale; the same one for all curves where there is no guidance."""
        return CFG(1.0) if scale == 1.0 else self.at(scale)


def _apg(scale: float) -> Rule:
    return InDomain(APG(scale - 1.0, eta=0.0, norm_threshold=5.0, momentum=-0.5, base="cond"))


CURVES = (
    Curve("CFG", "CFG", CFG, "`u + s (c - u)`."),
    Curve(
        "CFG + rescale",
        f"CFG + rescale {RESCALE:g}",
        lambda s: CFG(s, rescale=RESCALE),
        f"φ = {RESCALE:g}, on the model's own v.",
    ),
    Curve(
        "CFG-Zero*",
        "CFG-Zero*",
        lambda s: CFGZeroStar(s, zero_init_steps=0),
        "the unconditional prediction scaled to fit, on v; without its zero first steps, which are meant for flow "
        "models.",
    ),
    Curve("TCFG", "TCFG", TCFG, "on v."),
    Curve(
        "APG",
        "APG",
        _apg,
        "on x0, the paper's form `c + (s - 1) D`: only the part across the conditional prediction, norm at most 5 "
        "(unguided deltas begin at 10), momentum -0.5.",
    ),
    Curve("CFG + clip", "CFG + clip", CFG, "the clean sample of each step clipped to [-1, 1].", keep="clip"),
    Curve(
        "CFG interval",
        "CFG",
        lambda s: CFG(schedules.Interval(s, 0.1, 0.75)),
        "guidance from 10 % to 75 % of the steps alone: neither at the noisiest nor at the cleanest.",
        schedule="interval 10-75 %",
    ),
    Curve("CFG cosine up", "CFG", lambda s: CFG(schedules.Cosine(1.0, s)), "from 1 to s.", schedule="cosine 1 to s"),
    Curve("CFG cosine down", "CFG", lambda s: CFG(schedules.Cosine(s, 1.0)), "from s to 1.", schedule="cosine s to 1"),
    Curve(
        "CFG cached",
        "Gated CFG",
        lambda s: GatedCFG(s, every=3),
        "the unconditional pass at every third step, its delta kept between.",
        schedule="every 3rd step",
    ),
    Curve("student of CFG", "CFG", CFG, "a student distilled from CFG, one pass a step.", who="student"),
    Curve("digit alone: CFG", "CFG", CFG, "digits without a colour.", asked="digit"),
    Curve(
        "digit alone: perp-neg red",
        "Perp-neg",
        lambda s: PerpNeg(s, (1.2,)),
        "digits without a colour, and red as the negative, at 1.2.",
        asked="digit",
    ),
)

DYNAMIC = Curve(
    "CFG + dynamic thresholding",
    "CFG + dynamic thresholding",
    CFG,
    "the clean sample of each step divided by its 99.5th percentile where that is above 1.",
    keep="dynamic",
)
"""No curve: what it does to images whose ground is at the edge of the range is seen at one scale."""


def points(scales: Sequence[float], negative_scales: Sequence[float]) -> list[tuple[Curve, float]]:
    """All curves at their scales."""
    return [(curve, scale) for curve in CURVES for scale in (scales if curve.asked == "both" else negative_scales)]
