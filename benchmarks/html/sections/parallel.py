"""Passes of a step spread over processes."""

from __future__ import annotations

from ..charts import Line, draw, legend, lines, style
from ..content import Chart, Finding, Panel, Section, Tile
from ..numbers import milliseconds, plural, times
from ..results import Result
from ..tables import numbers, tabulate, verdict, words

__all__ = ["build"]


def build(results: list[Result]) -> Section:
    """Passes over several processes."""
    section = Section(
        "parallel",
        "Passes over processes",
        "The passes of a step on several ranks, beside the same passes one after another in one process. A ratio is "
        "the serial time divided by the parallel one.",
    )
    for result in results:
        rows = result.data["rows"]
        rules = list(dict.fromkeys(row["rule"] for row in rows))
        found = [
            Line([(r["ranks"], r["ratio"]) for r in rows if r["rule"] == rule], style(i))
            for i, rule in enumerate(rules)
        ]
        paint = lines(found, title="Speed-up by ranks", x="ranks", y="serial ÷ parallel", level=1)
        best = max(rows, key=lambda row: row["ratio"])
        text = f"Up to {times(best['ratio'])} as fast as one process ({best['rule']}, {plural(best['ranks'], 'rank')})"
        section.findings.append(Finding("gain", f"Passes over processes: {text[0].lower()}{text[1:]}.", result.where))
        poor = [row for row in rows if row["ranks"] > 1 and row["ratio"] < 1.2]
        if poor:
            said = "; ".join(f"{row['rule']} on {row['ranks']} ranks, {times(row['ratio'])}" for row in poor)
            section.findings.append(Finding("loss", f"Passes over processes hardly pay: {said}.", result.where))
        section.tiles.append(Tile(times(best["ratio"]), f"passes over {best['ranks']} processes, {best['rule']}", 4))
        section.blocks.append(
            Chart(
                "Speed-up by ranks",
                f"{text}. More ranks than the machine has cores share them.",
                [Panel("speed-up against ranks", draw(f"{result.path.stem}-ranks", paint))],
                tabulate(
                    f"Passes over processes ({result.where})",
                    rows,
                    words("rule", lambda r: r["rule"]),
                    numbers("ranks", lambda r: str(r["ranks"])),
                    numbers("parallel", lambda r: milliseconds(r["ms"])),
                    numbers("serial", lambda r: milliseconds(r["serial_ms"])),
                    numbers("ratio", lambda r: verdict(times(r["ratio"]), r["ratio"], r["ratio"], good=1.05, bad=0.95)),
                ),
                legend(f"{result.path.stem}-ranks", [(rule, style(i)) for i, rule in enumerate(rules)]),
                where=result.where,
            )
        )
    return section
