"""Reports of passes: run, and saved by reason."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

__all__ = ["REASONS", "PassReport"]

REASONS: Mapping[str, str] = {
    "weight": "its weight is zero (CFG at scale 1)",
    "schedule": "its weight is zero at this step (outside of an interval)",
    "shared": "another prediction is under the same condition",
    "cached": "a cached delta stands for it",
    "stopped": "the delta has died out",
    "stock": "stock noise stands for it",
}
"""Why a pass was not run, by the names that :attr:`PassReport.saved_by` has."""


@dataclass
class PassReport:
    """Passes of a batch of samples that a denoiser ran and saved.

    Attributes:
        steps: calls of the denoiser.
        run: passes that were run.
        saved_by: passes that were not, by reason; see :data:`REASONS`.
    """

    steps: int = 0
    run: int = 0
    saved_by: Counter[str] = field(default_factory=Counter)

    @property
    def saved(self) -> int:
        """Passes that were not run."""
        return self.saved_by.total()

    @property
    def share(self) -> float:
        """Passes run as a share of those of the full guidance; 1 before the first."""
        return self.run / (self.run + self.saved) if self.run else 1.0

    def count(self, run: int, saved_by: Iterable[tuple[str, int]]) -> None:
        """Add a step."""
        self.steps += 1
        self.run += run
        for reason, number in saved_by:
            self.saved_by[reason] += number

    def copy(self) -> PassReport:
        """The numbers of now, which later steps don't change."""
        return PassReport(self.steps, self.run, Counter(self.saved_by))

    def __str__(self) -> str:
        lines = [f"{self.steps} steps, {self.run} passes run, {self.saved} saved ({100 * self.share:.0f} % of all run)"]
        lines += [f"  {number} saved: {REASONS.get(reason, reason)}" for reason, number in self.saved_by.most_common()]
        return "\n".join(lines)
