"""Random rules, drawn from a Random that hypothesis controls, and shrinks."""

from __future__ import annotations

from dataclasses import replace
from random import Random
from typing import Any

from conformance.cases import CASES
from conformance.field_cases import FIELD

import fastcfg
from fastcfg import FDG, Rule

KINDS = ("eps", "x0", "v", "flow", "score")
RULES = (*dict.fromkeys(case.rule for case in (*CASES, *FIELD)), FDG((3.0, 5.0), parallel_weights=0.5))


def number(rng: Random, low: float, high: float) -> float:
    """A number that float32 holds, now and then one of the ends or a value at which rules change."""
    if rng.random() < 0.25:
        return float(rng.choice([v for v in (low, high, 0.0, 1.0) if low <= v <= high]))
    return round(rng.uniform(low, high) * 64) / 64


def _modified(rng: Random, rule: Rule) -> Rule:
    reference = rng.choice(("cond", rule.conditions[0]))
    match rng.choice(("rescale", "clamp", "cap")):
        case "rescale":
            return fastcfg.Rescale(rule, number(rng, 0.0, 1.0), rng.choice(("std", "l2")), reference)  # type: ignore[arg-type]
        case "clamp":
            return fastcfg.Clamp(rule, number(rng, 0.5, 6.0), rng.choice(("unbiased", "biased")), reference)  # type: ignore[arg-type]
        case _:
            return fastcfg.NormCap(
                rule,
                number(rng, 0.25, 2.0),
                rng.choice(("cap", "full", "clamp")),  # type: ignore[arg-type]
                low=number(rng, 0.0, 0.75),
                over=rng.choice(("sample", "sample", "token", "channel")),  # type: ignore[arg-type]
                eps=rng.choice((0.0, 1e-8)),
                reference=reference,
            )


def draw_rule(rng: Random) -> Rule:
    """Any rule of the conformance tests with another scale, under up to two modifiers and in any space."""
    rule: Any = rng.choice(RULES)
    if isinstance(getattr(rule, "scale", None), float):
        rule = replace(rule, scale=number(rng, -4.0, 16.0))
    for _ in range(rng.choice((0, 0, 0, 1, 1, 2))):
        try:
            rule = _modified(rng, rule)
        except ValueError:  # Sums over other dimensions, or something around a clamp: refused when it is made.
            break
    if rng.random() < 0.1 and not rule.prepares:
        rule = fastcfg.InDomain(rule, rng.choice(KINDS))  # type: ignore[arg-type]
    made: Rule = rule
    return made
