"""Guidance inside exported graphs: the same result as eager torch's, and what a step costs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ..charts import draw, legend, style
from ..content import Cell, Chart, Finding, Panel, Picture, Section, Table
from ..marks import Bar, bars, dots
from ..numbers import count, decimal, milliseconds, plural, times
from ..pictures import read_picture
from ..results import Result
from ..tables import numbers, tabulate, verdict, words

__all__ = ["build", "graph_steps"]

Row = Mapping[str, Any]


def build(results: list[Result]) -> Section:
    """Parity of every exported model, what plans cost, and the demo sampled from a graph."""
    section = Section(
        "export",
        "Export parity",
        "Models exported with their guidance inside and run in ONNX Runtime, beside eager torch. A difference stands "
        "beside a control: how far eager torch's own result moves when its input moves by one unit in the last place.",
    )
    for result in results:
        rows = result.data["rows"]
        good = [row for row in rows if row["ok"]]
        text = f"{len(good)} of {plural(len(rows), 'exported model')} within what is allowed of eager torch"
        section.findings.append(Finding("gain" if good else "loss", f"Export: {text}."))
        if bad := [row for row in rows if not row["ok"]]:
            said = "; ".join(
                f"{_name(row)}: {decimal(row['difference'])}, control {decimal(row['control'])}" for row in bad
            )
            section.findings.append(Finding("loss", f"Export, outside of what is allowed: {said}."))
        section.blocks.extend(_parity(rows, result, text))
        for row in rows:
            if sampling := row.get("sampling"):
                section.blocks.extend(_sampling(row, sampling, result, section))
    return section


def _name(row: Row) -> str:
    return f"{row['model']} · {row['rule']}"


def _parity(rows: list[Row], result: Result, text: str) -> Iterator[Chart | Table]:
    panels = []
    for dtype in dict.fromkeys(row["dtype"] for row in rows):
        here = [row for row in rows if row["dtype"] == dtype]
        found = [([row["difference"] for row in here], style(0)), ([row["control"] for row in here], style(1))]
        paint = dots([_name(row) for row in here], found, title=dtype, x="roundings of the dtype (log)")
        panels.append(Panel(dtype, draw(f"{result.path.stem}-{dtype}", paint, height=75 + 20 * len(here))))
    yield Chart(
        "Graphs against eager torch",
        f"{text}. A point left of its control differs by less than a rounding of the input does.",
        panels,
        tabulate(
            "Exported models, differences in roundings of the dtype",
            rows,
            words("model", lambda r: r["model"]),
            words("rule", lambda r: r["rule"]),
            words("dtype", lambda r: r["dtype"]),
            numbers("parameters", lambda r: count(r["parameters"])),
            numbers("difference", lambda r: decimal(r["difference"])),
            numbers("control", lambda r: decimal(r["control"])),
            numbers("allowed", lambda r: Cell("yes", "gain") if r["ok"] else Cell("no", "loss")),
            numbers("export", lambda r: f"{decimal(r['export_s'])} s"),
            numbers("ONNX", lambda r: f"{decimal(r['onnx_mb'])} MB"),
            numbers("plan", lambda r: _unit(r.get("plan_mb"), "MB")),
            numbers("plan built in", lambda r: _unit(r.get("plan_s"), "s")),
        ),
        legend(result.path.stem, [("graph − eager", style(0)), ("one-ulp control", style(1))], line=False),
    )


def _unit(value: float | None, unit: str) -> str:
    return "–" if value is None else f"{decimal(value)} {unit}"


def _sampling(row: Row, sampling: Row, result: Result, section: Section) -> Iterator[Picture]:
    ratio = sampling["eager_ms"] / sampling["graph_ms"]
    text = (
        f"{row['model']} sampled by {sampling['runs_on']} takes {milliseconds(sampling['graph_ms'])}, by eager torch "
        f"{milliseconds(sampling['eager_ms'])} ({times(ratio)})"
    )
    section.findings.append(Finding("gain" if ratio > 1 else "loss", f"Export: {text}."))
    if picture := sampling.get("picture"):
        apart, control = decimal(sampling["difference"]), decimal(sampling["control"])
        title = f"{text}; the images differ by {apart}, the control by {control}"
        alt = "Digits sampled by eager torch and by the graph, which look the same, and their differences, magnified."
        yield read_picture(result.path.parent, picture, title, alt)


def graph_steps(results: list[Result]) -> Section:
    """A guided step from a graph that holds the guidance, beside guidance outside of it."""
    section = Section(
        "graph-steps",
        "Guidance inside a graph",
        "One step, its two passes in one batch: from an exported graph with the guidance inside, from a graph and "
        "eager operations after it, and from eager torch. A ratio is the other's time divided by that of the first.",
    )
    for result in results:
        rows = result.data["rows"]
        others = [row for row in rows if row["provider"] != "fastcfg"]
        drawn = []
        for row in others:
            name, whisker = f"{row['batch']}: {row['provider']}", (row["ratio_p20"], row["ratio_p80"])
            drawn.append(Bar(name, row["ratio"], times(row["ratio"]), style(1), whisker))
        ratios = [row["ratio"] for row in others]
        faster = sum(row["ratio_p20"] > 1 for row in others)
        text = f"{faster} of {plural(len(others), 'other')} slower beyond the noise, {times(min(ratios))} to "
        text += f"{times(max(ratios))}"
        section.findings.append(Finding("gain" if faster else "loss", f"A step from a graph: {text}.", result.where))
        if lost := [row for row in others if row["ratio_p80"] < 1]:
            said = "; ".join(f"{r['provider']}, batch {r['batch']}: {times(r['ratio'])}" for r in lost)
            section.findings.append(Finding("loss", f"A step from a graph is slower than: {said}.", result.where))
        paint = bars(drawn, title="By batch size and contestant", x="its time ÷ the graph's", start=1.0)
        section.blocks.append(
            Chart(
                "Steps from graphs",
                f"{text}. Whiskers: 20th to 80th percentile over rounds.",
                [Panel("ratios", draw(f"{result.path.stem}-steps", paint, height=75 + 20 * len(drawn)))],
                tabulate(
                    f"Steps with the guidance inside a graph and outside ({result.where})",
                    rows,
                    words("model", lambda r: r["model"]),
                    words("rule", lambda r: r["rule"]),
                    numbers("batch", lambda r: str(r["batch"])),
                    words("provider", lambda r: r["provider"]),
                    numbers("a step", lambda r: milliseconds(r["p50"])),
                    numbers("ratio", lambda r: verdict(times(r["ratio"]), r["ratio_p20"], r["ratio_p80"])),
                    numbers("difference", lambda r: decimal(r["error"])),
                    numbers("bound", lambda r: decimal(r["bound"])),
                ),
                where=result.where,
            )
        )
    return section
