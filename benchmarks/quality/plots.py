"""The curves and the geometry as figures."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import matplotlib
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator

from .curves import CURVES
from .geometry import Trace
from .measure import Point

__all__ = ["curves_figure", "geometry_figure"]

STYLE = {"font.size": 9, "axes.spines.top": False, "axes.spines.right": False}
LOOKS = {  # Colours of Okabe and Ito; schedules are dashed, and fewer passes dotted.
    "CFG": ("#000000", "-", "o"),
    "CFG + rescale": ("#E69F00", "-", "s"),
    "CFG-Zero*": ("#56B4E9", "-", "^"),
    "TCFG": ("#009E73", "-", "v"),
    "APG": ("#0072B2", "-", "D"),
    "CFG + clip": ("#CC79A7", "-", "P"),
    "CFG interval": ("#D55E00", "--", "o"),
    "CFG cosine up": ("#56B4E9", "--", "s"),
    "CFG cosine down": ("#009E73", "--", "^"),
    "CFG cached": ("#E69F00", ":", "v"),
    "student of CFG": ("#D55E00", ":", "D"),
}
FIGURES = (
    ("accuracy", "digits read as asked, %", 100.0),
    ("precision", "precision, %", 100.0),
    ("recall", "recall, %", 100.0),
    ("frechet_distance", "Fréchet distance", 1.0),
    ("coverage", "coverage, %", 100.0),
    ("spread", "spread within a class, of real digits'", 1.0),
)


def _figure(width: float, height: float) -> Figure:
    figure = Figure(figsize=(width, height), facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110, metadata={"Software": None})
    return buffer.getvalue()


def _axes(axes: Any, title: str, x: str) -> None:
    axes.set_title(title, fontsize=9.5, loc="left")
    axes.set_xlabel(x)
    axes.grid(True, color="#e4e4e4", linewidth=0.6)
    axes.set_axisbelow(True)


def curves_figure(points: Sequence[Point], scales: Sequence[float]) -> bytes:
    """Figures against the scale as PNG; bands are two standard errors of CFG's."""
    with matplotlib.rc_context(STYLE):
        figure = _figure(10.5, 7.6)
        panels = figure.subplots(2, 3)
        for panel, (name, title, factor) in zip(panels.flat, FIGURES, strict=True):
            _axes(panel, title, "guidance scale")
            panel.set_xscale("log")
            panel.xaxis.set_major_locator(FixedLocator(scales))
            panel.xaxis.set_minor_locator(NullLocator())
            panel.set_xticks(scales, [f"{scale:g}" for scale in scales])
            for curve in CURVES:
                own = [point for point in points if point.curve == curve.name and point.curve in LOOKS]
                if own:
                    panel.plot([p.scale for p in own], [factor * getattr(p, name) for p in own], **_look(curve.name))
            error = {"accuracy": "accuracy_error", "frechet_distance": "frechet_error"}.get(name)
            if error:
                cfg = [point for point in points if point.curve == "CFG"]
                low, high = (
                    [factor * (getattr(p, name) + sign * 2 * getattr(p, error)) for p in cfg] for sign in (-1, 1)
                )
                panel.fill_between([p.scale for p in cfg], low, high, color="#000000", alpha=0.12, linewidth=0)
        handles, names = panels.flat[0].get_legend_handles_labels()
        figure.legend(handles, names, loc="outside lower center", ncols=6, frameon=False)
        return _png(figure)


def _look(name: str) -> dict[str, Any]:
    colour, line, marker = LOOKS.get(name, ("#999999", "-", "."))
    return {"color": colour, "linestyle": line, "marker": marker, "markersize": 4, "linewidth": 1.3, "label": name}


def geometry_figure(traces: Sequence[Trace]) -> bytes:
    """Each figure of the geometry by step, a line for each scale, as PNG; bands are one deviation over the samples."""
    titles = {
        "delta_ratio": "|d| / |u|",
        "cosine": "cosine of d with u",
        "parallel_share": "share of |d|² along c",
        "norm_ratio": "|guided| / |c|",
        "spread_ratio": "std guided / std c",
    }
    scales = sorted({one.scale for one in traces})
    colours = matplotlib.colormaps["viridis"]
    with matplotlib.rc_context(STYLE):
        figure = _figure(10.5, 6)
        panels = figure.subplots(2, 3)
        panels.flat[-1].set_visible(False)
        for panel, (name, title) in zip(panels.flat, titles.items(), strict=False):
            _axes(panel, title, "step")
            for place, scale in enumerate(scales):
                own = [one for one in traces if one.scale == scale]
                steps, values = [one.step for one in own], [getattr(one, name) for one in own]
                wide = [one.deviation[name] for one in own]
                colour = colours(0.92 * place / max(len(scales) - 1, 1))
                panel.plot(steps, values, color=colour, linewidth=1.4, label=f"s = {scale:g}")
                if place in (0, len(scales) - 1):
                    low, high = ([v + sign * w for v, w in zip(values, wide, strict=True)] for sign in (-1, 1))
                    panel.fill_between(steps, low, high, color=colour, alpha=0.15, linewidth=0)
        handles, names = panels.flat[0].get_legend_handles_labels()
        figure.legend(handles, names, loc="outside lower center", ncols=len(names), frameon=False)
        return _png(figure)
