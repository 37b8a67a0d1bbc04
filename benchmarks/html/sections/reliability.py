"""Long runs: what was tried, how often, and what failed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..content import Cell, Finding, Section, Tile
from ..numbers import count, decimal, plural
from ..results import Result
from ..tables import numbers, tabulate, words

__all__ = ["build"]


def build(results: list[Result]) -> Section:
    """A table of runs."""
    section = Section(
        "reliability",
        "Reliability",
        "Fuzzed inputs, many threads and streams, memory over many calls, interrupted and damaged files.",
    )
    for result in results:
        rows = result.data["rows"]
        calls, failures = (sum(row[name] for row in rows) for name in ("calls", "failures"))
        text = f"Reliability: {plural(failures, 'failure')} in {count(calls)} calls."
        section.findings.append(Finding("loss" if failures else "gain", text, result.where))
        section.tiles.append(Tile(str(failures), f"failures in {count(calls)} calls of the reliability runs", 3))
        section.blocks.append(
            tabulate(
                f"Runs of {decimal(result.data['minutes'])} minutes in all ({result.where})",
                rows,
                words("run", lambda r: r["run"]),
                numbers("calls", lambda r: count(r["calls"])),
                numbers("time", lambda r: f"{decimal(r['seconds'])} s"),
                numbers("failures", lambda r: Cell(count(r["failures"]), "loss" if r["failures"] else "gain")),
                words("figures", lambda r: _figures(r.get("figures") or {})),
            )
        )
    return section


def _figures(figures: Mapping[str, Any]) -> str:
    said = (f"{name.replace('_', ' ')} {decimal(v) if isinstance(v, float) else v}" for name, v in figures.items())
    return "; ".join(said)
