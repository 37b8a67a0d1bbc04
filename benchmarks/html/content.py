"""What a report consists of, apart from how it is written down.

Everything here is plain text and numbers but the charts' SVG, which :mod:`benchmarks.html.charts` makes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from markupsafe import Markup

__all__ = ["Cell", "Chart", "Column", "Finding", "Key", "Panel", "Picture", "Section", "Table", "Text", "Tile", "Tone"]

Tone = Literal["gain", "even", "loss"]


@dataclass(frozen=True)
class Column:
    """A table's column; numbers are set flush right."""

    name: str
    number: bool = True


@dataclass(frozen=True)
class Cell:
    """A table's cell that says how good it is, by a mark as well as a colour."""

    text: str
    tone: Tone


@dataclass(frozen=True)
class Table:
    """Rows under a caption; the first cell of a row is its header."""

    caption: str
    columns: Sequence[Column]
    rows: Sequence[Sequence[str | Cell]]


@dataclass(frozen=True)
class Panel:
    """One drawing of a chart, and in a few words what it shows."""

    name: str
    svg: Markup


@dataclass(frozen=True)
class Key:
    """A line of a legend: a small drawing of the mark, and what it stands for."""

    svg: Markup
    name: str


@dataclass(frozen=True)
class Chart:
    """Drawings that belong together.

    Attributes:
        finding: what they show, in a sentence: the text alternative, and the caption.
        table: the numbers that were drawn; where: they were measured.
    """

    title: str
    finding: str
    panels: Sequence[Panel]
    table: Table
    legend: Sequence[Key] = ()
    where: str = ""


@dataclass(frozen=True)
class Picture:
    """A bitmap as a data URI."""

    title: str
    alt: str
    uri: str
    width: int
    height: int


@dataclass(frozen=True)
class Text:
    """A paragraph."""

    text: str


@dataclass(frozen=True)
class Finding:
    """A sentence for the summary, computed from the results.

    Attributes:
        where: it was measured.
    """

    tone: Tone
    text: str
    where: str = ""


@dataclass(frozen=True)
class Tile:
    """A number for the top of the page.

    Attributes:
        rank: those with the lowest come first, where there is no room for all.
    """

    value: str
    what: str
    rank: int = 5


@dataclass
class Section:
    """A part of the report under a heading."""

    key: str
    title: str
    lead: str
    blocks: list[Chart | Picture | Table | Text] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    tiles: list[Tile] = field(default_factory=list)
