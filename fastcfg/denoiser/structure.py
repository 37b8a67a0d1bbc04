"""Structure that two rules share if one piece of code, or one call, serves both."""

from __future__ import annotations

from collections.abc import Hashable

from ..rules import Rule

__all__ = ["structure_of"]


def structure_of(rule: Rule) -> Hashable:
    """Equal for two resolved rules that differ in the values of their parameters alone."""
    if rule.prepares:
        return rule  # What it makes of the predictions depends on its fields.
    lowered = rule.lowered
    return lowered.predictions, lowered.stages, lowered.extras, lowered.updates, lowered.dims, lowered.domain
