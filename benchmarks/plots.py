"""Pictures of a report: time against bytes beside what a copy takes, and the ratios to the peers, as SVG and PNG.

They have a white ground of their own, so that they read on a dark page too.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from math import prod
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter

from fastcfg.files import write_atomically

from .cases import REFERENCE
from .report import Report
from .rows import Row

__all__ = [
    "FAMILIES",
    "draw_plots",
    "drawn",
    "family",
    "paint_ratios",
    "paint_roofline",
    "place_bars",
    "ratio_bars",
    "roofline",
]

Looks = Mapping[str, tuple[str, str]]
"""Colour and marker of each family of contestants."""

FAMILIES: Looks = {  # Colours of Okabe and Ito, told apart by everyone; markers, for print.
    REFERENCE: ("#0072B2", "o"),
    "torch.lerp": ("#009E73", "v"),
    "torch.compile": ("#E69F00", "s"),
    "eager": ("#999999", "D"),
    "diffusers": ("#D55E00", "^"),
}
METRICS = ("graph", "time", "device")
"""What is drawn, the first of these that was measured."""
STYLE = {"svg.hashsalt": REFERENCE, "font.size": 9, "axes.spines.top": False, "axes.spines.right": False}


def family(provider: str) -> str:
    """The contestants that share a colour: diffusers' guiders, say."""
    return next((name for name in FAMILIES if provider.startswith(name)), "eager")


def drawn(report: Report) -> list[Row]:
    """Rows of one metric, without fastcfg's forced strategies and variants of ``torch.compile``."""
    metric = next((m for m in METRICS if any(row.metric == m for row in report.rows)), None)
    plain = (REFERENCE, "torch.compile", "torch.lerp", "eager")
    return [r for r in report.rows if r.metric == metric and (r.provider in plain or family(r.provider) == "diffusers")]


def _figure(width: float, height: float) -> Figure:
    figure = Figure(figsize=(width, height), facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _title(report: Report, what: str) -> str:
    return f"{what}\n{report.environment.label}, {report.cache} cache, commit {report.environment.commit}"


def paint_roofline(axes: Any, rows: Sequence[Row], looks: Looks, ink: str, *, size: float = 22) -> None:
    """Time against the bytes that a case has to move, each contestant a point, beside a plain copy's line.

    Args:
        ink: colour of the line; size: of the points, in square points.
    """
    copies: dict[int, list[float]] = {}
    for row in rows:
        if row.least and row.copy:
            copies.setdefault(row.least, []).append(row.copy)
    floor = sorted((least / 1e6, min(times)) for least, times in copies.items())
    if floor:
        axes.plot(*zip(*floor, strict=True), color=ink, linewidth=1.2, label="copy of as many bytes", zorder=1)
    for name in reversed(list(looks)):  # fastcfg comes last, on top.
        colour, marker = looks[name]
        points = [(r.least / 1e6, r.p50) for r in rows if r.least and family(r.provider) == name]
        if points:
            x, y = zip(*points, strict=True)
            axes.scatter(x, y, s=size, color=colour, marker=marker, alpha=0.8, linewidth=0, label=name)
    axes.set(xscale="log", yscale="log", xlabel="MB that any kernel has to move", ylabel="ms (median)")


def roofline(report: Report) -> Figure:
    """:func:`paint_roofline` of a whole report, as a figure of its own."""
    figure = _figure(7.5, 5)
    axes = figure.subplots()
    paint_roofline(axes, drawn(report), FAMILIES, "black")
    axes.set_title(_title(report, "Time of a call, and of a copy"), fontsize=10, loc="left")
    axes.grid(True, color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.legend(frameon=False, reverse=True)
    return figure


Places = Mapping[tuple[str, str], float]
"""Where the bar of a rule and a family stands, in bars from the top."""


def place_bars(rows: Iterable[Row], looks: Looks) -> Places:
    """A group of bars for each rule, with room for the families that it was raced against in any of the rows."""
    raced = {(row.rule, family(row.provider)) for row in rows}
    places: dict[tuple[str, str], float] = {}
    down = 0.0
    for rule in dict.fromkeys(row.rule for row in rows):
        for name in looks:
            if (rule, name) in raced:
                places[rule, name] = down
                down += 1
        down += 0.8
    return places


def paint_ratios(axes: Any, rows: Sequence[Row], places: Places, looks: Looks, ink: str, *, size: float = 6) -> None:
    """The peers' time ÷ fastcfg's as bars from 1, a group for each rule; left of the line the peer is faster.

    Args:
        rows: the peers', of one shape and dtype.
        ink: colour of the line and the whiskers; size: of the numbers, in points.
    """
    for name, (colour, marker) in looks.items():
        found = {row.rule: row for row in rows if family(row.provider) == name}
        at = [places[rule, name] for rule in found]
        values = [row.ratio for row in found.values()]
        spread = [[r.ratio - r.ratio_p20 for r in found.values()], [r.ratio_p80 - r.ratio for r in found.values()]]
        axes.barh(
            at, [value - 1 for value in values], left=1, height=0.8, color=colour,
            xerr=spread, error_kw={"elinewidth": 0.6, "ecolor": ink},
            label=name,
        )  # fmt: skip
        axes.plot(values, at, marker, color=colour, markersize=0.75 * size)
        for y, row in zip(at, found.values(), strict=True):
            place_of_text = (max(row.ratio_p80, 1), y)
            text = f"{row.ratio:.2g}"
            axes.annotate(text, place_of_text, (3, 0), textcoords="offset points", va="center", fontsize=size)
    axes.axvline(1, color=ink, linewidth=0.8)
    axes.set_xscale("log")
    axes.margins(x=0.12)
    axes.xaxis.set_major_locator(FixedLocator([0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.tick_params(axis="y", length=0)
    groups: dict[str, list[float]] = {}
    for (rule, _), down in places.items():
        groups.setdefault(rule, []).append(down)
    axes.set_yticks([sum(group) / len(group) for group in groups.values()], list(groups))


def ratio_bars(report: Report, dtype: str) -> Figure:
    """The peers' time ÷ fastcfg's, a panel for each shape; left of the line the peer is faster."""
    rows = [row for row in drawn(report) if row.dtype == dtype and row.provider != REFERENCE]
    sizes = sorted({row.shape for row in rows}, key=prod)
    names = [name for name in FAMILIES if any(family(row.provider) == name for row in rows)]
    columns = min(len(sizes), 3)
    lines = -(-len(sizes) // columns)
    looks = {name: FAMILIES[name] for name in names}
    places = place_bars(rows, looks)
    figure = _figure(1.6 + 2.8 * columns, 1.3 + lines * (0.8 + 0.15 * max(places.values())))
    panels: Any = figure.subplots(lines, columns, sharex=True, sharey=True, squeeze=False)
    for panel in panels.flat[len(sizes) :]:
        panel.set_visible(False)
    for panel, shape in zip(panels.flat, sizes, strict=False):
        here = [row for row in rows if row.shape == shape]
        paint_ratios(panel, here, places, looks, "black")
        panel.set_title(here[0].size, fontsize=9)
        panel.tick_params(axis="x", labelsize=7)
    panels[0, 0].invert_yaxis()
    figure.supxlabel(
        "peer's time ÷ fastcfg's (log); bars are medians, whiskers the 20th to the 80th percentile", fontsize=8
    )
    figure.suptitle(_title(report, f"Guidance in {dtype} against the peers"), fontsize=10)
    handles, labels = panels[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper right", frameon=False, ncols=2)
    return figure


def _plots(report: Report) -> Iterator[tuple[str, Callable[[], Figure]]]:
    if drawn(report):
        yield "roofline", partial(roofline, report)
    for dtype in dict.fromkeys(row.dtype for row in drawn(report) if row.provider != REFERENCE):
        yield f"ratios-{dtype}", partial(ratio_bars, report, dtype)


def draw_plots(report: Report, folder: Path) -> list[Path]:
    """Every plot of a report as SVG and PNG beside its JSON; the same report gives the same files."""
    written = []
    with matplotlib.rc_context(STYLE):
        for name, make in _plots(report):
            figure = make()
            for suffix, metadata in ((".svg", {"Date": None}), (".png", None)):
                file = io.BytesIO()
                figure.savefig(file, format=suffix[1:], dpi=150, metadata=metadata)
                written.append(folder / f"{report.name}-{name}{suffix}")
                write_atomically(written[-1], file.getvalue())
    return written
