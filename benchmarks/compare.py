"""Two result files: what got worse beyond the noise, by the ratio to a peer measured in the same run.

Times of two runs are of two machines, or of two moods of one; a ratio to a contestant of the same rounds is neither.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from .cases import REFERENCE

__all__ = ["Change", "Comparison", "Results", "compare", "differences", "load"]

Case = tuple[str, str, str, str, str]
"""Rule, shape, dtype, metric, cache."""
Interval = tuple[float, float, float]
"""20th, 50th and 80th percentile of a ratio."""


@dataclass(frozen=True)
class Results:
    """A result file: by case and peer the peer's time ÷ fastcfg's."""

    environment: Mapping[str, Any]
    ratios: Mapping[tuple[Case, str], Interval]


def load(path: Path) -> Results:
    """Read a JSON file of ``benchmarks.run``.

    Raises:
        ValueError: if it is not one.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        rows = {(_case(row), row["provider"]): row for row in data["rows"]}
        ratios = {
            (case, provider): _interval(row, rows[case, REFERENCE])
            for (case, provider), row in rows.items()
            if not provider.startswith(REFERENCE)
        }
        return Results(data["environment"], ratios)
    except (OSError, ValueError, KeyError, TypeError) as error:
        what = f"has no {error}" if isinstance(error, KeyError) else str(error)
        raise ValueError(f"{path} is not a result file: {what}") from None


def _case(row: Mapping[str, Any]) -> Case:
    shape = "×".join(map(str, row["shape"]))
    return row["rule"], shape, row["dtype"], row["metric"], row.get("cache", "hot")


def _interval(row: Mapping[str, Any], own: Mapping[str, Any]) -> Interval:
    if "ratio_p20" in row:
        return row["ratio_p20"], row["ratio"], row["ratio_p80"]
    # The first schema has percentiles of times alone: their ratios bound the ratio's.
    return row["p20"] / own["p80"], row["ratio"], row["p80"] / own["p20"]


@dataclass(frozen=True)
class Change:
    """The ratio of one peer in one case, before and after."""

    case: Case
    peer: str
    old: Interval
    new: Interval

    @property
    def verdict(self) -> str:
        """``worse`` or ``better`` where the intervals from the 20th to the 80th percentile are apart, else ``same``."""
        if self.new[2] < self.old[0]:
            return "worse"
        return "better" if self.new[0] > self.old[2] else "same"


@dataclass(frozen=True)
class Comparison:
    """Changes of what both files have.

    Attributes:
        missing: what the old file alone has; added: what the new one alone has.
    """

    changes: tuple[Change, ...]
    missing: int
    added: int

    def cases(self, verdict: str) -> list[Case]:
        """The cases with that verdict against most of their peers: against one alone, it is the peer that changed."""
        found: dict[Case, list[bool]] = {}
        for change in self.changes:
            found.setdefault(change.case, []).append(change.verdict == verdict)
        return [case for case, said in found.items() if 2 * sum(said) > len(said)]

    def table(self) -> Table:
        """What changed, for a terminal; a case that got worse is red."""
        table = Table("rule", "shape", "dtype", "metric", "cache", "peer", "old ratio", "new ratio", "")
        worse = set(self.cases("worse"))
        for change in self.changes:
            if change.verdict != "same":
                style = "red" if change.case in worse and change.verdict == "worse" else None
                table.add_row(
                    *change.case, change.peer, _text(change.old), _text(change.new), change.verdict, style=style
                )
        return table

    def summary(self) -> str:
        """One line."""
        cases = len({change.case for change in self.changes})
        worse, better = len(self.cases("worse")), len(self.cases("better"))
        only = f"; {self.missing} ratios only in the old file, {self.added} only in the new" * (
            self.missing + self.added > 0
        )
        return f"{cases} cases: {worse} worse, {better} better, the others within the noise{only}"


def _text(interval: Interval) -> str:
    low, middle, high = interval
    return f"{middle:.2f} ({low:.2f} to {high:.2f})"


def compare(old: Results, new: Results) -> Comparison:
    """Ratios that both have.

    Raises:
        ValueError: if they have none in common.
    """
    both = [key for key in old.ratios if key in new.ratios]
    if not both:
        raise ValueError("the two files have no case and peer in common")
    changes = tuple(Change(*key, old.ratios[key], new.ratios[key]) for key in both)
    return Comparison(changes, len(old.ratios) - len(both), len(new.ratios) - len(both))


def differences(old: Results, new: Results) -> list[str]:
    """What else differs between the two runs: hardware, threads, versions."""
    before, after = ({**r.environment, **r.environment["versions"]} for r in (old, new))
    names = [name for name in before if name in after and name not in ("versions", "commit")]
    return [f"{name}: {before[name]} then {after[name]}" for name in names if before[name] != after[name]]
