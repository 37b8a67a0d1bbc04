"""Helpers of several adapters: rules, and a sampler's noise levels."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from ..rules import Rule
from ..schedules import Schedule

__all__ = ["step_at", "with_scale"]


def with_scale(rule: Rule, scale: float | Schedule, name: str = "scale") -> Rule | None:
    """The rule with its ``scale``, or that of the rule it modifies, replaced; None if there is none.

    Args:
        name: of the parameter, such as ``image_scale``.
    """
    if any(field.name == name for field in dataclasses.fields(rule)):
        return dataclasses.replace(rule, **{name: scale})
    inner = getattr(rule, "rule", None)
    changed = with_scale(inner, scale, name) if isinstance(inner, Rule) else None
    return None if changed is None else dataclasses.replace(rule, rule=changed)  # type: ignore[call-arg]


def step_at(sigmas: Sequence[float], sigma: float) -> tuple[int, int]:
    """The step of a noise level, from 0, and their number; a level between two steps is of the earlier one.

    Args:
        sigmas: the sampler's noise levels, falling, the last being where it ends.
    """
    count = max(len(sigmas) - 1, 1)
    # Levels that a sampler works out again differ by a rounding.
    reached = sum(level >= sigma * (1 - 1e-6) for level in sigmas[:count])
    return max(reached - 1, 0), count
