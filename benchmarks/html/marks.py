"""Bars, stacked bars and paired points on a chart's axes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from .charts import GROUND, INK, Style, labels, number_ticks

__all__ = ["Bar", "Segment", "bars", "dots", "stacks"]


@dataclass(frozen=True)
class Bar:
    """A horizontal bar.

    Attributes:
        text: stands at its end.
        spread: where its whisker begins and ends.
    """

    name: str
    value: float
    text: str
    look: Style
    spread: tuple[float, float] | None = None


@dataclass(frozen=True)
class Segment:
    """A part of a stacked bar."""

    value: float
    look: Style


def bars(found: Sequence[Bar], *, title: str, x: str, start: float = 0.0) -> Callable[[Any], None]:
    """Bars one below the other, from ``start``."""

    def paint(axes: Any) -> None:
        for place, bar in enumerate(found):
            axes.barh(place, bar.value - start, left=start, height=0.62, color=bar.look.colour)
            end = max(bar.value, start)
            if bar.spread:
                axes.plot(bar.spread, (place, place), color=INK, linewidth=0.9)
                end = max(end, bar.spread[1])
            axes.annotate(bar.text, (end, place), (4, 0), textcoords="offset points", va="center", fontsize=8.5)
        if start:
            axes.axvline(start, color=INK, linewidth=1)
        labels(axes, [bar.name for bar in found])
        axes.grid(visible=False, axis="y")
        axes.set_ylim(len(found) - 0.4, -0.6)
        low, high = axes.get_xlim()
        # Room for the longest text, of about 5 points a letter, on some 210 points of bars.
        room = max((len(bar.text) for bar in found), default=0) * 5 / 210
        axes.set_xlim(low, high + (high - low) * min(room, 0.7))
        axes.set_title(title)
        axes.set_xlabel(x)

    return paint


def stacks(found: Sequence[tuple[str, Sequence[Segment]]], *, title: str, x: str) -> Callable[[Any], None]:
    """Bars of segments, one below the other."""
    longest = max((sum(segment.value for segment in segments) for _, segments in found), default=0)

    def paint(axes: Any) -> None:
        for place, (_, segments) in enumerate(found):
            left = 0.0
            for segment in segments:
                axes.barh(
                    place,
                    segment.value,
                    left=left,
                    height=0.6,
                    color=segment.look.colour,
                    edgecolor=GROUND,
                    linewidth=1,
                )
                if segment.value > 0.16 * longest:
                    middle = left + segment.value / 2
                    text = f"{segment.value:.3g}"
                    axes.text(middle, place, text, ha="center", va="center", color=GROUND, fontsize=9)
                left += segment.value
        labels(axes, [name for name, _ in found])
        axes.grid(visible=False, axis="y")
        axes.set_ylim(len(found) - 0.4, -0.6)
        axes.set_title(title)
        axes.set_xlabel(x)

    return paint


def dots(
    names: Sequence[str], found: Sequence[tuple[Sequence[float], Style]], *, title: str, x: str
) -> Callable[[Any], None]:
    """A row for each name, in it a point of each series, on a logarithmic axis; a line joins a row's points."""

    def paint(axes: Any) -> None:
        for place in range(len(names)):
            ends = [values[place] for values, _ in found]
            axes.plot((min(ends), max(ends)), (place, place), color=INK, linewidth=0.8)
        for values, look in found:
            axes.plot(values, range(len(names)), look.marker, color=look.colour, markersize=5.5)
        axes.set_xscale("log")
        number_ticks(axes.xaxis)
        labels(axes, names)
        axes.set_ylim(len(names) - 0.4, -0.6)
        axes.set_title(title)
        axes.set_xlabel(x)

    return paint
