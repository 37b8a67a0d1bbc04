"""Stats: named scalars of a sample that a launch writes beside its results, to say what guidance did there.

A stat is one of :data:`STATS`, or a sum by its name, as a formula's argument is: ``dot_uncond_cond``, ``cov_A_B``,
``sum_A``; ``y`` is the result before a clamp. What it needs is summed in the launch that guides. Formulas know the
first prediction as ``base``, ``cond`` (or else the second prediction) as ``target``, and their difference as ``d``.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from ..math import maximum, sqrt, where

if TYPE_CHECKING:
    from .program import Stage
    from .writer import FormulaWriter

__all__ = ["STATS", "stat_functions", "write_stat"]


def delta_ratio(dot_d_d: Any, dot_base_base: Any) -> Any:
    """Return ``|d| / |base|``."""
    return where(dot_d_d == 0.0, 0.0, sqrt(dot_d_d / dot_base_base))


def delta_share(dot_d_d: Any, dot_target_target: Any) -> Any:
    """Return ``|d| / |target|``."""
    return where(dot_d_d == 0.0, 0.0, sqrt(dot_d_d / dot_target_target))


def cosine(dot_base_target: Any, dot_base_base: Any, dot_target_target: Any) -> Any:
    """Return the cosine of base and target."""
    lengths = sqrt(dot_base_base) * sqrt(dot_target_target)
    return where(lengths == 0.0, 0.0, dot_base_target / lengths)


def drift(dot_d_d: Any, dot_d_delta: Any, dot_delta_delta: Any) -> Any:
    """Return ``|d - delta| / |d|``; delta is the one of a step before, which the rule keeps in its state."""
    moved = maximum(dot_d_d - 2.0 * dot_d_delta + dot_delta_delta, 0.0)
    return where(dot_d_d == 0.0, 0.0, sqrt(moved / dot_d_d))


FORMULAS: dict[str, Callable[..., Any]] = {fn.__name__: fn for fn in (delta_ratio, delta_share, cosine, drift)}

STATS = {
    "delta_ratio": "|d| / |base|: how long the delta is beside the first prediction",
    "delta_share": "|d| / |target|: how long it is beside cond",
    "cosine": "cosine of base and target, so of uncond and cond",
    "drift": "|d - delta| / |d|: how far d is from the delta in the state (GatedCFG with drift)",
    "factor": "what modifiers multiplied the result by (Rescale, NormCap); 1 without one",
    "limited": "how many limits took hold (APG's norm threshold, NormCap); 0 is none",
}
"""Stats by name. A ratio whose numerator is zero is 0; what is not finite shows in any of them."""


def stat_functions(stages: Sequence[Stage], stats: Sequence[str]) -> dict[str, Callable[..., Any]]:
    """Return the functions that the source of ``weigh`` calls for stats, by the names it calls them by."""
    found = {f"stat_{name}": FORMULAS[name] for name in stats if name in FORMULAS}
    if "limited" in stats:
        found |= {f"limited{i}": stage.limited for i, stage in enumerate(stages) if stage.limited is not None}
    return found


def write_stat(writer: FormulaWriter, name: str, stages: Sequence[Stage]) -> str:
    """Return a stat as an expression in the source of ``weigh``; its sums are added to the writer's.

    Raises:
        ValueError: naming ``stats``, for one that is not known or that these predictions don't give.
    """
    factors = {i: f"factor{i}" for i, stage in enumerate(stages) if stage.kind == "factor"}
    if name == "factor":
        return " * ".join(factors.values()) or "1.0"
    if name == "limited":
        calls = []
        for i, stage in enumerate(stages):
            if stage.limited is not None:
                names = inspect.signature(stage.limited).parameters
                arguments = [factors[i] if n == "factor" else writer.argument(n, stage) for n in names]
                calls.append(f"limited{i}({', '.join(arguments)})")
        return " + ".join(calls) or "0.0"
    if name not in FORMULAS:
        return _sum(writer, name, name, {})
    sums = [_sum(writer, name, n, writer.aliases) for n in inspect.signature(FORMULAS[name]).parameters]
    return f"stat_{name}({', '.join(sums)})"


def _sum(writer: FormulaWriter, stat: str, name: str, aliases: dict[str, str]) -> str:
    text = writer.sum(name, aliases)
    if text is None:
        known = f"{', '.join(STATS)}, or a sum: dot_A_B, cov_A_B, sum_A of {', '.join(writer.vectors.number)}, y"
        missing = f"{stat!r} takes {name}, and the vectors are {', '.join(writer.vectors.number)}"
        reason = f"expected {known}; got {stat!r}" if name == stat else missing
        raise ValueError(f"stats: {reason}")
    return text
