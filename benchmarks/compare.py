"""Two results: what got worse beyond the noise, by the ratio to a peer measured in the same run.

Times of two runs are of two machines, or of two moods of one; a ratio to a contestant of the same rounds is neither.
What is left is the noise of the ratio itself. Within a run it shows in the rounds: an interval from the 20th to the
80th percentile. Between runs of the same code the ratios move further than the rounds of either tell (memory lies
elsewhere, threads do): in recorded results by 2 % at the median and 13 % root mean square. So a case is *worse* only if

- the whole interval lies below the recorded one, by :data:`MARGIN`,
- against most of the peers of the case (against one alone, it is that peer that changed), and
- it does so again when that case alone is measured anew (:meth:`Comparison.confirmed`).

In simulated runs whose ratios move by 5 % between runs and by 10 % between rounds none of a thousand unchanged cases is
called worse, and nine in ten of those that lost a third are. Where rounds differ by 20 % a loss has to be a half.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.table import Table

from .cases import REFERENCE
from .environment import Environment
from .records import OtherKind, read
from .sections import Case

__all__ = ["FORMS", "MARGIN", "Change", "Comparison", "Form", "Results", "compare", "differences", "load", "results_of"]

Interval = tuple[float, float, float]
"""20th, 50th and 80th percentile of a ratio."""
MARGIN = 0.1
"""How far below the recorded interval the new one has to lie, as a share of it."""


@dataclass(frozen=True)
class Form:
    """The reading of the rows of a kind of result.

    Attributes:
        identity: what tells the cases apart; provider: whose row it is; own: which one ratios are taken to.
        peers: the others that are no part of fastcfg; None for all whose name does not begin with its.
        ratio: of which times; its percentiles have the same name with ``_p20`` and ``_p80``.
    """

    identity: tuple[str, ...]
    provider: str = "provider"
    own: str = REFERENCE
    peers: tuple[str, ...] | None = None
    ratio: str = "ratio"

    def is_peer(self, name: str) -> bool:
        return not name.startswith(REFERENCE) if self.peers is None else name in self.peers


FORMS: Mapping[str, Form] = {
    "kernels": Form(("rule", "shape", "dtype", "metric", "cache")),
    "guided-step": Form(("model", "shape"), "contestant", "batched", ("by hand",)),
    # The passes are the model's, and the larger part of a step's noise.
    "samplers": Form(("model", "scheduler", "rule"), ratio="outside_ratio"),
    "export": Form(("model", "rule", "batch")),
}
"""By kind; other kinds have no peers."""


@dataclass(frozen=True)
class Results:
    """Results of one machine: by case and peer the peer's time ÷ fastcfg's.

    Attributes:
        environments: by kind.
    """

    environments: Mapping[str, Mapping[str, Any]]
    ratios: Mapping[tuple[Case, str], Interval]


def load(path: Path, machine: str = "") -> Results:
    """Read a result file; or all those of a folder that were measured on a machine.

    Args:
        machine: its :attr:`.Environment.name`.

    Raises:
        ValueError: if there is none, or one isn't as it should be.
    """
    if not path.is_dir():
        return _load_file(path)
    environments: dict[str, Mapping[str, Any]] = {}
    ratios: dict[tuple[Case, str], Interval] = {}
    others: set[str] = set()
    for file in sorted(path.glob("*.json")):
        try:
            found = _load_file(file)
        except OtherKind:
            continue
        names = {_machine(environment) for environment in found.environments.values()}
        if names == {machine}:
            environments |= found.environments
            ratios |= found.ratios
        else:
            others |= names
    if not ratios:
        those = f"; it has results of {', '.join(sorted(others))}" if others else ""
        raise ValueError(f"{path} has no result of {machine} with a peer{those}")
    return Results(environments, ratios)


def _load_file(path: Path) -> Results:
    data = read(path, FORMS)
    try:
        return results_of(data)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        what = f"has no {error}" if isinstance(error, KeyError) else str(error)
        raise ValueError(f"{path} is not a result file: {what}") from None


def _machine(environment: Mapping[str, Any]) -> str:
    return Environment(**environment).name


def results_of(data: Mapping[str, Any]) -> Results:
    """The ratios in what a result file holds.

    Raises:
        KeyError, TypeError: if something is missing.
    """
    kind, form = data["kind"], FORMS[data["kind"]]
    rows = {((kind, *(_text_of(row, name) for name in form.identity)), row[form.provider]): row for row in data["rows"]}
    ratios = {
        (case, provider): _interval(row, rows[case, form.own], form.ratio)
        for (case, provider), row in rows.items()
        if form.is_peer(provider)
    }
    return Results({kind: data["environment"]}, ratios)


def _text_of(row: Mapping[str, Any], name: str) -> str:
    # Kernels of the first schema were all hot.
    value = row.get(name, "hot") if name == "cache" else row[name]
    return "×".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _interval(row: Mapping[str, Any], own: Mapping[str, Any], ratio: str) -> Interval:
    if f"{ratio}_p20" in row:
        return row[f"{ratio}_p20"], row[ratio], row[f"{ratio}_p80"]
    # Older files have percentiles of times alone: their ratios bound the ratio's.
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
        """``worse`` or ``better`` where the intervals are apart by :data:`MARGIN`, else ``same``."""
        if self.new[2] < (1 - MARGIN) * self.old[0]:
            return "worse"
        return "better" if (1 - MARGIN) * self.new[0] > self.old[2] else "same"


@dataclass(frozen=True)
class Comparison:
    """Changes of what both results have.

    Attributes:
        missing: by kind how many ratios the old one alone has; added: the new one alone.
        dismissed: cases that looked worse and did not when they were measured again.
    """

    changes: tuple[Change, ...]
    missing: Mapping[str, int]
    added: Mapping[str, int]
    dismissed: frozenset[Case] = frozenset()

    def cases(self, verdict: str) -> list[Case]:
        """The cases with that verdict against most of their peers."""
        found: dict[Case, list[bool]] = {}
        for change in self.changes:
            found.setdefault(change.case, []).append(change.verdict == verdict)
        said = [case for case, votes in found.items() if 2 * sum(votes) > len(votes)]
        return [case for case in said if verdict != "worse" or case not in self.dismissed]

    def confirmed(self, old: Results, again: Results) -> Comparison:
        """The same, but that a case which was measured again is worse only if it was so again."""
        second = Comparison(_changes(old, again), {}, {})
        measured = {change.case for change in second.changes}
        innocent = measured.difference(second.cases("worse")).intersection(self.cases("worse"))
        return replace(self, dismissed=self.dismissed | innocent)

    def table(self) -> Table:
        """Return what changed, for a terminal; a case that got worse is red."""
        table = Table("what", "case", "peer", "old ratio", "new ratio", "")
        worse = set(self.cases("worse"))
        for change in self.changes:
            verdict = change.verdict
            if verdict == "same":
                continue
            if verdict == "worse" and change.case in self.dismissed:
                verdict = "worse, not again"
            style = "red" if change.case in worse and verdict == "worse" else None
            kind, *identity = change.case
            table.add_row(
                kind, ", ".join(identity), change.peer, _text(change.old), _text(change.new), verdict, style=style
            )
        return table

    def summary(self) -> str:
        """One line."""
        cases = len({change.case for change in self.changes})
        worse, better = len(self.cases("worse")), len(self.cases("better"))
        text = f"{cases} cases: {worse} worse, {better} better, the others within the noise"
        if self.dismissed:
            text += f"; {len(self.dismissed)} looked worse and did not when measured again"
        for where, ratios in (("old", self.missing), ("new", self.added)):
            if ratios:
                kinds = ", ".join(f"{kind} {count}" for kind, count in ratios.items())
                total = sum(ratios.values())
                text += f"; only in the {where} result {total} ratio{'s' * (total != 1)} ({kinds})"
        return text


def _text(interval: Interval) -> str:
    low, middle, high = interval
    return f"{middle:.2f} ({low:.2f} to {high:.2f})"


def _changes(old: Results, new: Results) -> tuple[Change, ...]:
    return tuple(Change(*key, interval, new.ratios[key]) for key, interval in old.ratios.items() if key in new.ratios)


def compare(old: Results, new: Results) -> Comparison:
    """Ratios that both have.

    Raises:
        ValueError: if they have none in common.
    """
    changes = _changes(old, new)
    if not changes:
        raise ValueError("the two results have no case and peer in common")
    return Comparison(changes, _alone(old, new), _alone(new, old))


def _alone(one: Results, other: Results) -> Counter[str]:
    """By kind how many ratios one has and the other has not."""
    return Counter(case[0] for case, peer in one.ratios if (case, peer) not in other.ratios)


def differences(old: Results, new: Results) -> list[str]:
    """Return what else differs between the two: hardware, threads, versions."""
    found = []
    for kind in old.environments.keys() & new.environments.keys():
        before, after = ({**r.environments[kind], **r.environments[kind]["versions"]} for r in (old, new))
        names = [name for name in before if name in after and name not in ("versions", "commit")]
        found += [f"{name}: {before[name]} then {after[name]}" for name in names if before[name] != after[name]]
    return sorted(set(found))
