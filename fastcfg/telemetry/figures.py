"""What telemetry tells of a sample at a step: formulas of the sums that its guidance makes."""

from __future__ import annotations

from typing import Any

from fastcfg_kernels.math import maximum, sqrt, where

__all__ = ["FIGURES", "GENERAL", "HITS", "reduced", "shortened"]


def _ratio_of_deltas(dot_delta_delta: Any, dot_base_base: Any) -> Any:
    return where(dot_delta_delta == 0.0, 0.0, sqrt(maximum(dot_delta_delta, 0.0) / maximum(dot_base_base, 0.0)))


def _cosine_with_base(dot_base_delta: Any, dot_base_base: Any, dot_delta_delta: Any) -> Any:
    lengths = sqrt(maximum(dot_base_base, 0.0)) * sqrt(maximum(dot_delta_delta, 0.0))
    return where(lengths == 0.0, 0.0, dot_base_delta / lengths)


def _cosine_with_target(dot_delta_target: Any, dot_target_target: Any, dot_delta_delta: Any) -> Any:
    lengths = sqrt(maximum(dot_target_target, 0.0)) * sqrt(maximum(dot_delta_delta, 0.0))
    return where(lengths == 0.0, 0.0, dot_delta_target / lengths)


def _ratio_of_norms(dot_y_y: Any, dot_target_target: Any) -> Any:
    return where(dot_y_y == 0.0, 0.0, sqrt(maximum(dot_y_y, 0.0) / maximum(dot_target_target, 0.0)))


def _ratio_of_spreads(cov_y_y: Any, cov_target_target: Any) -> Any:
    return where(cov_y_y == 0.0, 0.0, sqrt(maximum(cov_y_y, 0.0) / maximum(cov_target_target, 0.0)))


def _weight(weight_delta: Any) -> Any:
    return weight_delta


def _factor(factor: Any) -> Any:
    return factor


def _limit(limit: Any) -> Any:
    return limit


def _projection(projection: Any) -> Any:
    return projection


def _limited(limited: Any) -> Any:
    return limited


def _ratio_to_bound(dot_y_y: Any, count: Any, high: Any) -> Any:
    return where(dot_y_y == 0.0, 0.0, sqrt(maximum(dot_y_y, 0.0) / count) / high)


def shortened(limit: Any) -> Any:
    """1 where a rule's own limit is below 1."""
    return where(limit < 1.0, 1.0, 0.0)


def reduced(factor: Any, limited: Any = 0.0) -> Any:
    """1 where a modifier's factor is below 1."""
    return where(factor < 1.0, 1.0, limited)


def _no_delta(dot_delta_delta: Any, degenerate: Any = 0.0) -> Any:
    return where(dot_delta_delta <= 0.0, 1.0, degenerate)


def _no_base(dot_base_base: Any, degenerate: Any = 0.0) -> Any:
    return where(dot_base_base <= 0.0, 1.0, degenerate)


def _no_result(dot_y_y: Any, degenerate: Any = 0.0) -> Any:
    return where(dot_y_y <= 0.0, 1.0, degenerate)


def _no_spread(cov_y_y: Any, degenerate: Any = 0.0) -> Any:
    return where(cov_y_y <= 0.0, 1.0, degenerate)


def _base_not_finite(dot_base_base: Any, nonfinite: Any = 0.0) -> Any:
    return where(dot_base_base - dot_base_base == 0.0, nonfinite, 1.0)


def _delta_not_finite(dot_delta_delta: Any, nonfinite: Any = 0.0) -> Any:
    return where(dot_delta_delta - dot_delta_delta == 0.0, nonfinite, 1.0)


def _result_not_finite(dot_y_y: Any, nonfinite: Any = 0.0) -> Any:
    return where(dot_y_y - dot_y_y == 0.0, nonfinite, 1.0)


def _spread_not_finite(cov_y_y: Any, nonfinite: Any = 0.0) -> Any:
    return where(cov_y_y - cov_y_y == 0.0, nonfinite, 1.0)


FIGURES = {
    "delta_ratio": "|d| / |base|, d from the first prediction, base, to cond (or the second, where there is no cond)",
    "cosine_base": "cosine of d with base",
    "cosine_target": "cosine of d with cond",
    "norm_ratio": "|guided| / |cond|, before a clamp",
    "spread_ratio": "standard deviation of guided over that of cond, before a clamp",
    "delta_weight": "what the result weighs d by: the guidance scale that came of it",
    "factor": "what modifiers multiplied the result by (rescale, norm cap)",
    "limit": "what the rule's own limit multiplied d by (APG's threshold, MaMBO-G's damping)",
    "projection": "the rule's projection coefficient (APG: d on cond; CFG-Zero*: cond on uncond)",
    "clamp_ratio": "root mean square of guided over the clamp's bound; above 1 something was clipped",
    "limited": "1 where a limit or a cap made the result shorter",
    "degenerate": "1 where there is nothing to measure: d, base or the result is zero or has no spread",
    "nonfinite": "1 where a sum is infinite or no number, as an input that is not finite makes it",
}
"""Figures by name, and what they are. 0 stands for a ratio whose numerator is zero."""

HITS = ("limited", "degenerate", "nonfinite")
"""Figures that are 0 or 1; the mean of several groups of a sample is their share."""

GENERAL = (
    ("delta_ratio", _ratio_of_deltas),
    ("cosine_base", _cosine_with_base),
    ("cosine_target", _cosine_with_target),
    ("norm_ratio", _ratio_of_norms),
    ("spread_ratio", _ratio_of_spreads),
    ("delta_weight", _weight),
    ("factor", _factor),
    ("limit", _limit),
    ("projection", _projection),
    ("clamp_ratio", _ratio_to_bound),
    ("limited", _limited),
    ("degenerate", _no_delta),
    ("degenerate", _no_base),
    ("degenerate", _no_result),
    ("degenerate", _no_spread),
    ("nonfinite", _base_not_finite),
    ("nonfinite", _delta_not_finite),
    ("nonfinite", _result_not_finite),
    ("nonfinite", _spread_not_finite),
)
"""The formulas of every rule's figures. Those of a rule's own doing stand with its formula, as ``Stage.figures``."""
