"""Names that predictions may have."""

from __future__ import annotations

import keyword
from collections.abc import Sequence

__all__ = ["RESERVED", "check_condition_names"]

RESERVED = frozenset(
    # What formulas call by these names, in sums and as arguments.
    {"y", "d", "count"}
    # Arguments of `guide`, `guide_step` and `guide_frames`, which take predictions by name beside them.
    | {"rule", "batch", "params", "out", "backend", "order", "check", "state", "numerics", "x", "prediction"}
    | {"scale_map", "mask", "shards", "stats", "stats_out", "grid", "batched"}
    | {"step", "noise", "batch_out", "scales", "frame_dim", "parameter", "group"}
)
"""Names that no prediction may have."""


def check_condition_names(name: str, values: Sequence[str]) -> None:
    """Raise a ValueError unless these are names of predictions: distinct, identifiers, and not taken.

    Args:
        name: what errors call the argument.
    """
    if not values or len(set(values)) != len(values):
        raise ValueError(f"{name}: expected distinct names of predictions, got {values!r}")
    for value in values:
        if not isinstance(value, str) or not value.isidentifier() or keyword.iskeyword(value):
            raise ValueError(f"{name}: expected distinct names of predictions, which are identifiers, got {value!r}")
        if value in RESERVED or value.startswith(("d_", "before_")):
            raise ValueError(
                f"{name}: {value!r} is no name for a prediction: formulas and calls mean something else by it "
                f"({', '.join(sorted(RESERVED))}, d_*, before_*); choose another"
            )
