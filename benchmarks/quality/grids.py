"""Sample grids as PNG, each with a text for those who can't see it."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from fastcfg.demo.data import COLOUR_NAMES, NUM_COLOURS
from fastcfg.demo.picture import mosaic

from .curves import CURVES
from .measure import NUM_SHOWN, Measurement, Shown

__all__ = ["Grid", "Line", "all_grids", "draw"]

CELL, TITLE, HEAD, FOOT = 0.5, 0.35, 0.7, 0.32
"""Inches: side of a digit; heights of the title, of what stands above a block, and of the line at the foot."""
MISREAD = "#d0021b"


@dataclass(frozen=True)
class Line:
    """A row of a block."""

    label: str
    shown: Shown

    @property
    def misread(self) -> list[int]:
        """Columns in which the classifier reads another digit."""
        return [column for column, digit in enumerate(self.shown.digit) if digit != column]


def told(lines: Sequence[Line]) -> str:
    """What the classifier reads in the rows of a block, in words."""
    wrong = [
        f"{line.label} ({', '.join(f'{column} as {line.shown.digit[column]}' for column in line.misread)})"
        for line in lines
        if line.misread
    ]
    return "every digit is read as asked" + (f", except in the rows {'; '.join(wrong)}" if wrong else " in every row")


@dataclass(frozen=True)
class Grid:
    """A picture, its file name and its text."""

    title: str
    file: str
    alt: str
    png: bytes


def draw(title: str, blocks: Sequence[tuple[str, Sequence[Line]]], colours: bool) -> bytes:
    """A PNG of blocks one below the other, which a phone is wide enough for; misread digits are framed.

    Args:
        blocks: heading and rows of each; colours: whether columns ask for a colour as well as a digit.
    """
    wide = CELL * NUM_SHOWN
    margin = 0.35 + 0.08 * max(len(line.label) for _, lines in blocks for line in lines)
    width = margin + wide + 0.1
    height = TITLE + sum(HEAD + CELL * len(lines) for _, lines in blocks) + FOOT
    figure = Figure(figsize=(width, height), dpi=130, facecolor="white")
    FigureCanvasAgg(figure)
    figure.text(0.1 / width, 1 - 0.2 / height, title, va="center", fontsize=11, weight="bold")
    figure.text(0.1 / width, 0.14 / height, "framed: read as another digit", va="center", fontsize=9, color=MISREAD)
    top = height - TITLE
    for heading, lines in blocks:
        rows = len(lines)
        top -= HEAD + CELL * rows
        axes = figure.add_axes((margin / width, top / height, wide / width, CELL * rows / height))
        picture = mosaic([line.shown.images for line in lines]).numpy()
        axes.imshow(picture, interpolation="nearest", aspect="auto", extent=(0, NUM_SHOWN, rows, 0))
        axes.set_axis_off()
        for index, line in enumerate(lines):
            axes.text(-0.2, index + 0.5, line.label, ha="right", va="center", fontsize=10.5)
            for column in line.misread:
                frame = Rectangle((column + 0.03, index + 0.03), 0.94, 0.94, fill=False, edgecolor=MISREAD, linewidth=2)
                axes.add_patch(frame)
        for column in range(NUM_SHOWN):
            axes.text(column + 0.5, -0.35 if colours else -0.12, str(column), ha="center", fontsize=10.5)
            if colours:
                name = COLOUR_NAMES[column % NUM_COLOURS]
                axes.text(column + 0.5, -0.1, name, ha="center", fontsize=7, color="#555555")
        axes.text(0, -0.85 if colours else -0.6, heading, fontsize=11)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def _line(measured: Measurement, curve: str, scale: float, label: str) -> Line:
    return Line(label, measured.shown[curve, scale])


def all_grids(
    measured: Measurement, scales: Sequence[float], strong: float, negative_scales: Sequence[float]
) -> list[Grid]:
    """Scales, rules and negatives.

    Args:
        strong: the scale at which rules are beside each other.
    """
    noise = "The same noise in every row; columns are the digits 0 to 9"
    both = [
        (heading, [_line(measured, curve, scale, f"s = {scale:g}") for scale in scales])
        for heading, curve in (("CFG, two passes", "CFG"), ("student, one pass", "student of CFG"))
    ]
    title = "Digits against the guidance scale, teacher and student"
    found = [
        Grid(
            title,
            "quality-scales.png",
            f"{noise}, in six colours; rows are guidance scales, the teacher above and its student below. "
            f"{_told_of(both)} Strokes get thicker and more even as the scale grows. Teacher and student begin from "
            f"the same noise: their pixels, which span 2, differ by {_apart(both[0][1], both[1][1]):.2f} (root mean "
            "square).",
            draw(title, both, colours=True),
        )
    ]

    names = [curve.name for curve in CURVES if curve.asked == "both"]
    lines = [_line(measured, "CFG", 1.0, "no guidance"), *(_line(measured, name, strong, name) for name in names)]
    beyond = {name: measured.points[name, strong].overshoot for name in names}
    most, least = max(beyond, key=beyond.__getitem__), min(beyond, key=beyond.__getitem__)
    title = f"Rules and schedules at scale {strong:g}"
    found.append(
        Grid(
            title,
            "quality-rules.png",
            f"{noise}, in six colours; rows are rules and schedules, the first without guidance; {told(lines)}. "
            f"Pixels lie farthest beyond the range with {most} ({100 * beyond[most]:.1f} % of its half on average), "
            f"least with {least} ({100 * beyond[least]:.1f} %).",
            draw(title, [("", lines)], colours=True),
        )
    )

    plain, negative = (curve.name for curve in CURVES if curve.asked == "digit")
    blocks = [
        (heading, [_line(measured, name, scale, f"s = {scale:g}") for scale in negative_scales])
        for heading, name in (("CFG", plain), ("perp-neg, red as the negative", negative))
    ]
    red = ", ".join(
        f"{100 * measured.points[plain, scale].avoided:.0f} % and "
        f"{100 * measured.points[negative, scale].avoided:.0f} % at s = {scale:g}"
        for scale in negative_scales
    )
    title = "Digits of any colour, and of any but red"
    found.append(
        Grid(
            title,
            "quality-perp-neg.png",
            f"{noise}, without a colour asked for; plain CFG above, perp-neg with red as the negative below. "
            f"{_told_of(blocks)} {_coloured(blocks)} Of all samples of the two, red are {red}.",
            draw(title, blocks, colours=False),
        )
    )
    return found


def _coloured(blocks: Sequence[tuple[str, Sequence[Line]]]) -> str:
    """The colours that the classifier sees, most of them first."""
    said = []
    for heading, lines in blocks:
        for line in lines:
            counts = Counter(COLOUR_NAMES[colour] for colour in line.shown.colour).most_common()
            said.append(f"{heading} at {line.label}: {', '.join(f'{count} {name}' for name, count in counts)}.")
    return f"Colours: {' '.join(said)}"


def _apart(one: Sequence[Line], other: Sequence[Line]) -> float:
    differences = [a.shown.images - b.shown.images for a, b in zip(one, other, strict=True)]
    return torch.stack(differences).square().mean().sqrt().item()


def _told_of(blocks: Sequence[tuple[str, Sequence[Line]]]) -> str:
    return " ".join(f"{heading}: {told(lines)}." for heading, lines in blocks)
