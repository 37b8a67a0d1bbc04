"""Plans and results of the sections of ``fastcfg bench``."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

from .records import Record

__all__ = ["Case", "Measured", "Plan", "Progress", "wanted"]

Case = tuple[str, ...]
"""What a ratio is of: the kind of the result, and what tells its rows apart."""
Progress = Callable[[str], None]
"""Called with the name of each part before it is measured."""


@dataclass(frozen=True)
class Plan:
    """A plan of measurements.

    Attributes:
        full: all sizes, and more rounds; device: ``cpu`` or ``cuda``.
        cold: of the kernels, predictions that are in no cache; rules: of the kernels, by name; empty for all.
        rounds: of each case instead of its own number.
        only: these cases alone, with twice their rounds; None for all.
    """

    full: bool = False
    device: str = "cpu"
    cold: bool = False
    rules: tuple[str, ...] = ()
    rounds: int | None = None
    only: Collection[Case] | None = None

    @property
    def all_sizes(self) -> bool:
        """Return whether the sizes of a full run are to be looked through.

        Cases that are asked for may be among them.
        """
        return self.full or self.only is not None

    def rounds_of(self, usual: int) -> int:
        """The rounds of a case that has a usual number."""
        return self.rounds or usual * (1 if self.only is None else 2)


def wanted(plan: Plan, *identity: str) -> bool:
    """Return whether a plan has a case whose name begins so."""
    return plan.only is None or any(case[: len(identity)] == identity for case in plan.only)


@dataclass(frozen=True)
class Measured:
    """A section's result.

    Attributes:
        record: its files.
        show: what a terminal is shown: renderables of rich.
        notes: lines below it.
    """

    record: Record
    show: Sequence[Any] = ()
    notes: Sequence[str] = ()
