"""How cost grows, and a fleet of GPUs computed from the measured parts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from statistics import median
from typing import Any

from ..charts import Line, draw, legend, lines, style
from ..content import Chart, Finding, Panel, Section, Table, Tile
from ..marks import Bar, bars
from ..numbers import count, decimal, listed, milliseconds, times
from ..results import Result
from ..tables import numbers, tabulate, verdict, words

__all__ = ["build"]

Row = Mapping[str, Any]
WHAT = {"combine": "the combination alone", "step": "a whole step"}


def build(results: list[Result]) -> Section:
    """Curves with fits, then the fleet."""
    section = Section(
        "scaling",
        "Scaling",
        "How the cost grows with batch, pixels, frames, conditions, passes and ranks, measured; then a short model "
        "from the measured parts to a fleet, its assumptions beside it.",
    )
    for result in results:
        if result.data["rows"]:
            section.blocks.extend(_curves(result, section.findings))
        if fleet := result.data.get("fleet"):
            section.blocks.extend(_fleet(fleet, result, section))
    return section


def _curves(result: Result, findings: list[Finding]) -> Iterator[Chart | Table]:
    rows, stem = result.data["rows"], result.path.stem
    fits = result.data.get("fits") or []
    for what in dict.fromkeys(row["what"] for row in rows):
        here = [row for row in rows if row["what"] == what]
        series = list(dict.fromkeys((row["rule"], row["dtype"]) for row in here))
        panels: list[Panel] = []
        for axis in dict.fromkeys(row["axis"] for row in here):
            found = []
            for index, name in enumerate(series):
                points = sorted(
                    (r["value"], r["ms"]) for r in here if (r["axis"], r["rule"], r["dtype"]) == (axis, *name)
                )
                found.append(Line(points, style(index)))
            paint = lines(found, title=f"by {axis}", x=axis, y="ms", log="xy")
            panels.append(Panel(f"time by {axis}", draw(f"{stem}-{what}-{len(panels)}", paint)))
        exponents: dict[str, list[float]] = {}
        for fit in fits:
            if fit["what"] == what and fit.get("exponent") is not None:
                exponents.setdefault(fit["axis"], []).append(fit["exponent"])
        finding = "Time against size on logarithmic axes: a line that rises by a decade in a decade is proportional."
        if exponents:
            said = [f"{axis} {_range(values)}" for axis, values in exponents.items()]
            finding += f" Fitted exponents: {', '.join(said)}; below 1 a larger one is cheaper per unit."
            flat = [axis for axis, values in exponents.items() if median(values) < 0.9]
            if what == "combine" and flat:
                text = "Fixed costs weigh on small work: the combination's cost grows less than in proportion to "
                findings.append(Finding("loss", f"{text}{listed(flat)}.", result.where))
        names = [f"{rule}, {dtype}" for rule, dtype in series]
        yield Chart(
            f"Cost of {WHAT.get(what, what)}",
            finding,
            panels,
            tabulate(
                f"Measured cost of {WHAT.get(what, what)} ({result.where})",
                here,
                words("axis", lambda r: r["axis"]),
                numbers("value", lambda r: count(r["value"])),
                words("rule", lambda r: r["rule"]),
                words("dtype", lambda r: r["dtype"]),
                numbers("time", lambda r: milliseconds(r["ms"])),
                numbers("per unit", lambda r: milliseconds(r.get("per_unit"))),
            ),
            legend(f"{stem}-{what}", [(name, style(i)) for i, name in enumerate(names)]),
            where=result.where,
        )
    if fits:
        yield tabulate(
            f"Fits: a fixed part and a part per unit ({result.where})",
            fits,
            words("axis", lambda f: f["axis"]),
            words("what", lambda f: f["what"]),
            words("rule", lambda f: f["rule"]),
            numbers("fixed", lambda f: milliseconds(f["fixed_ms"])),
            numbers("per unit", lambda f: milliseconds(f["ms_per_unit"])),
            numbers("exponent", lambda f: decimal(f["exponent"], 2)),
        )


def _range(values: Sequence[float]) -> str:
    low, high = decimal(min(values), 2), decimal(max(values), 2)
    return low if low == high else f"{low} to {high}"


def _fleet(fleet: Mapping[str, Any], result: Result, section: Section) -> Iterator[Chart | Table]:
    rows: Sequence[Row] = fleet["rows"]
    best = max(rows, key=lambda row: row["relative"])
    section.findings.append(
        Finding("gain", f"Fleet model: {best['setup']} gives {times(best['relative'])} the images per GPU.")
    )
    section.tiles.append(Tile(times(best["relative"]), f"images per GPU in the fleet model: {best['setup']}", 3))
    if worse := [row for row in rows if row["relative"] < 0.98]:
        said = listed([f"{row['setup']} {times(row['relative'])}" for row in worse])
        section.findings.append(Finding("loss", f"Fleet model: fewer images per GPU, for latency: {said}."))
    drawn = [
        Bar(row["setup"], row["relative"], times(row["relative"]), style(0 if row["relative"] >= 1 else 1))
        for row in rows
    ]
    height = 75 + 24 * len(rows)
    yield Chart(
        "A fleet of GPUs, computed",
        f"Images a second per GPU relative to the first line; the most is {best['setup']}. Computed, not measured: "
        "from the measured parts and the assumptions below.",
        [
            Panel(
                "images a second per GPU",
                draw(
                    f"{result.path.stem}-fleet",
                    bars(drawn, title="Images per GPU", x="relative to the first line", start=1.0),
                    height=height,
                ),
            ),
            Panel(
                "latency",
                draw(
                    f"{result.path.stem}-latency",
                    bars(
                        [Bar(r["setup"], r["latency_s"], f"{decimal(r['latency_s'])} s", style(4)) for r in rows],
                        title="Latency of an image",
                        x="s",
                    ),
                    height=height,
                ),
            ),
        ],
        tabulate(
            f"The fleet model's lines ({result.where})",
            rows,
            words("setup", lambda r: r["setup"]),
            numbers("passes a step", lambda r: decimal(r["passes_per_step"])),
            numbers("GPUs", lambda r: count(r["gpus"])),
            numbers("latency", lambda r: f"{decimal(r['latency_s'])} s"),
            numbers("images a second", lambda r: decimal(r["images_per_second"])),
            numbers("per GPU", lambda r: decimal(r["images_per_second_per_gpu"])),
            numbers(
                "relative", lambda r: verdict(times(r["relative"]), r["relative"], r["relative"], good=1.02, bad=0.98)
            ),
        ),
    )
    yield tabulate(
        f"What the fleet model assumes ({result.where})",
        fleet["assumptions"],
        words("assumption", lambda a: a["name"]),
        numbers("value", lambda a: decimal(a["value"]) if isinstance(a["value"], int | float) else str(a["value"])),
        words("unit", lambda a: a["unit"]),
        words("source", lambda a: a["source"]),
    )
