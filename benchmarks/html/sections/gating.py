"""Guidance with fewer unconditional passes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ..charts import Line, draw, legend, lines, style
from ..content import Cell, Chart, Finding, Panel, Section, Tile
from ..numbers import decimal, percent, plural
from ..results import Result
from ..tables import numbers, tabulate, words

__all__ = ["build"]

Row = Mapping[str, Any]
DRAWN: Mapping[str, Callable[[Row], float]] = {
    "Fréchet distance": lambda row: row["quality"]["frechet_distance"],
    "Classifier accuracy": lambda row: row["quality"]["accuracy"],
    "Recall": lambda row: row["quality"]["recall"],
    "Difference to full guidance": lambda row: row["difference"],
}


def build(results: list[Result]) -> Section:
    """What becomes of the samples."""
    section = Section(
        "gating",
        "Fewer unconditional passes",
        "Guidance that runs the unconditional pass in a part of the steps, and what becomes of the samples of the "
        "demo's model, from the same noise and labels.",
    )
    section.blocks.extend(_chart(result, section) for result in results)
    return section


def _chart(result: Result, section: Section) -> Chart:
    rows, best = result.data["rows"], result.data.get("sweet_spot")
    kinds = list(dict.fromkeys(map(_kind, rows)))
    panels: list[Panel] = []
    for what, value in DRAWN.items():
        drawn = [
            Line([(100 * r["unconditional"], value(r)) for r in rows if _kind(r) == kind], style(i), joined=False)
            for i, kind in enumerate(kinds)
        ]
        share = what in ("Classifier accuracy", "Recall")
        paint = lines(drawn, title=what, x="unconditional passes, %", y="", share=share)
        panels.append(Panel(f"{what} by passes", draw(f"{result.path.stem}-{len(panels)}", paint)))
    return Chart(
        "Samples by the share of unconditional passes",
        _finding(rows, best, result.where, section),
        panels,
        tabulate(
            f"Gated guidance ({result.where})",
            rows,
            words("guidance", lambda r: r["name"]),
            numbers("unconditional", lambda r: percent(r["unconditional"])),
            numbers("passes", lambda r: percent(r["passes"])),
            numbers("difference", lambda r: f"{r['difference']:.3f}"),
            numbers("accuracy", lambda r: percent(r["quality"]["accuracy"], 1)),
            numbers("precision", lambda r: f"{r['quality']['precision']:.2f}"),
            numbers("recall", lambda r: f"{r['quality']['recall']:.2f}"),
            numbers("coverage", lambda r: f"{r['quality']['coverage']:.2f}"),
            numbers("Fréchet distance", lambda r: decimal(r["quality"]["frechet_distance"])),
            numbers("chosen", lambda r: Cell("yes", "gain") if r["name"] == best else ""),
        ),
        legend(result.path.stem, [(kind, style(i)) for i, kind in enumerate(kinds)], line=False),
        where=result.where,
    )


def _finding(rows: list[Row], best: str | None, where: str, section: Section) -> str:
    """What is told of the setting that was chosen, and of those that lost accuracy."""
    by_name = {row["name"]: row for row in rows}
    text = "No setting was as good as full guidance."
    if best in by_name:
        spot = by_name[best]
        text = (
            f"The fewest passes as good as full guidance: {best}, with {percent(spot['unconditional'])} of the "
            f"unconditional passes and {percent(spot['passes'])} of all."
        )
        section.findings.append(Finding("gain", f"Gating: {text[0].lower()}{text[1:]}", where))
        tile = Tile(percent(spot["unconditional"]), "of the unconditional passes: as good samples", 2)
        section.tiles.append(tile)
    if "full" in by_name:
        least = by_name["full"]["quality"]["accuracy"] - 0.05
        if poor := [row for row in rows if row["quality"]["accuracy"] < least and row["name"] != "none"]:
            low = min(poor, key=lambda row: row["quality"]["accuracy"])
            lost = f"{plural(len(poor), 'setting')} lost more than 5 points of accuracy; worst {low['name']}, "
            lost += percent(low["quality"]["accuracy"], 1)
            section.findings.append(Finding("loss", f"Gating: {lost}.", where))
    return text


def _kind(row: Row) -> str:
    return str(row["name"]).partition(",")[0]
