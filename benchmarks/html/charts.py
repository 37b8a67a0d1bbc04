"""Drawings by matplotlib as SVG that takes its colours and fonts from the page.

matplotlib draws in stand-in colours, which become the page's CSS variables, so that one drawing serves the light and
the dark scheme. Texts stay texts. A panel is as wide as a phone; a page sets several side by side where it has room.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from io import BytesIO
from typing import Any
from xml.etree import ElementTree

import matplotlib
from markupsafe import Markup
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator

from .content import Key
from .numbers import tick

__all__ = [
    "FAINT",
    "GRID",
    "GROUND",
    "INK",
    "SERIES",
    "Line",
    "Style",
    "draw",
    "labels",
    "legend",
    "lines",
    "number_ticks",
    "short",
    "style",
]

WIDTH = 320
"""Of a panel, in points: its texts are then as large on a phone as they were drawn."""
INK, FAINT, GRID, GROUND = "#0a0b01", "#0a0b02", "#0a0b03", "#0a0b04"
_VARIABLES = {INK: "--ink", FAINT: "--faint", GRID: "--grid", GROUND: "--ground"}


@dataclass(frozen=True)
class Style:
    """How a series is drawn: told apart by its marker and its dashes as well as its colour."""

    colour: str
    marker: str
    dash: Any = "-"
    hollow: bool = False

    @property
    def points(self) -> dict[str, Any]:
        """Its markers, as arguments of ``plot``."""
        filled = {"markerfacecolor": GROUND} if self.hollow else {}
        return {"marker": self.marker, "color": self.colour, **filled}


SERIES = (
    Style("#0a0c01", "o", "-"),
    Style("#0a0c02", "^", (0, (5, 2))),
    Style("#0a0c03", "s", (0, (1.5, 1.5))),
    Style("#0a0c04", "v", (0, (7, 2, 1.5, 2))),
    Style("#0a0c05", "D", (0, (3, 1.5))),
    Style("#0a0c06", "P", (0, (9, 2))),
    Style("#0a0c07", "X", (0, (4, 1.5, 1, 1.5, 1, 1.5))),
)
_VARIABLES |= {style.colour: f"--series-{index + 1}" for index, style in enumerate(SERIES)}
_SETTINGS = {
    "svg.fonttype": "none",
    "text.parse_math": False,  # A name from a file is no formula.
    "font.size": 10.5,
    "text.color": INK,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": FAINT,
    "axes.labelsize": 10,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.linewidth": 0.8,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.labelsize": 10,
    "ytick.labelsize": 10,
    "figure.constrained_layout.use": True,
    "figure.constrained_layout.h_pad": 0.06,
}


def short(name: str, letters: int = 26) -> str:
    """A name that leaves room for what it names; the table has all of it."""
    return name if len(name) <= letters else name[: letters - 1].rstrip() + "…"


def labels(axes: Any, names: Sequence[str]) -> None:
    """Names of the rows below each other; a long one takes two lines."""
    broken = ["\n".join(short(line) for line in _halves(name)) for name in names]
    size = 8.5 if any("\n" in name for name in broken) else 10
    axes.set_yticks(range(len(names)), broken, fontsize=size)
    axes.tick_params(axis="y", length=0)


def _halves(name: str, letters: int = 24) -> list[str]:
    """A name in one line or, broken at the space that is nearest its middle, in two."""
    spaces = [place for place, letter in enumerate(name) if letter == " "]
    if len(name) <= letters or not spaces:
        return [name]
    middle = min(spaces, key=lambda place: abs(2 * place - len(name)))
    return [name[:middle], name[middle + 1 :]]


def style(index: int) -> Style:
    """The style of a series; after the last they begin again with hollow markers."""
    return replace(SERIES[index % len(SERIES)], hollow=index // len(SERIES) % 2 == 1)


def draw(name: str, paint: Callable[[Any], None], *, height: float = 230) -> Markup:
    """One panel.

    Args:
        name: unique on the page and made of letters, digits and hyphens: identifiers in the drawing begin with it.
        paint: draws on the axes it is given.
        height: in points.
    """
    with matplotlib.rc_context({**_SETTINGS, "svg.hashsalt": name}):
        figure = Figure(figsize=(WIDTH / 72, height / 72))
        FigureCanvasSVG(figure)
        axes = figure.subplots()
        paint(axes)
        title = short(axes.get_title("left"), 42)
        axes.set_title("")
        figure.suptitle(title, x=0.0, ha="left", fontsize=11, fontweight="bold")
        file = BytesIO()
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    return _inline(file.getvalue(), name)


_NUMBER = re.compile(r"-?\d+\.\d+")
_COLOUR = re.compile("|".join(_VARIABLES))
_FONT = re.compile(r"font: ((?:\w+ )*)([\d.]+px)[^;]*")
_FAMILY = re.compile(r" ?font-family:[^;]*;?")


def _inline(svg: bytes, name: str) -> Markup:
    """SVG of matplotlib as part of an HTML page: no namespaces, no fonts, no identifiers but those referred to."""
    root = ElementTree.fromstring(svg)
    for parent in list(root.iter()):
        parent.text, parent.tail = (text and text.strip() for text in (parent.text, parent.tail))
        for child in list(parent):
            # A style element in a page's SVG would hold for the whole page.
            if _local(child.tag) in ("metadata", "style") or child.get("style") == "fill: none":
                parent.remove(child)
    used = set(re.findall(r"#([\w-]+)", svg.decode()))
    for element in root.iter():
        element.tag = _local(element.tag)
        attributes = {_local(key): value for key, value in element.attrib.items()}
        if attributes.get("id") not in used:
            attributes.pop("id", None)
        element.attrib.clear()
        element.attrib.update({key: _attribute(key, value, name) for key, value in attributes.items()})
    box = root.get("viewBox", "")
    root.attrib.clear()
    # Its name and description are the figure's around it.
    root.attrib.update({"viewBox": box, "aria-hidden": "true", "focusable": "false"})
    return Markup(ElementTree.tostring(root, encoding="unicode"))


def _local(name: str) -> str:
    return name.rpartition("}")[2]


def _attribute(key: str, value: str, name: str) -> str:
    if key == "id":
        return f"{name}-{value}"
    if key in ("href", "clip-path"):
        return re.sub(r"^#|(?<=url\()#", f"#{name}-", value)
    value = _COLOUR.sub(lambda match: f"var({_VARIABLES[match[0]]})", value)
    if key == "style":
        value = _FAMILY.sub("", _FONT.sub(_font, value))
    # A tenth of a point is less than a pixel; line widths and dashes are finer.
    places = 2 if key == "style" else 1
    value = " ".join(value.split())
    return _NUMBER.sub(lambda match: f"{float(match[0]):.{places}f}".rstrip("0").rstrip("."), value)


def _font(match: re.Match[str]) -> str:
    """The size and weight of a font in short, which older releases write; its family is the page's."""
    weight = "; font-weight: 700" if re.search("bold|700", match[1]) else ""
    return f"font-size: {match[2]}{weight}"


@cache
def _mark(look: Style, line: bool) -> bytes:
    with matplotlib.rc_context({"svg.hashsalt": "key"}):
        figure = Figure(figsize=((34 if line else 14) / 72, 14 / 72))
        FigureCanvasSVG(figure)
        axes = figure.add_axes((0.0, 0.0, 1.0, 1.0))
        axes.axis("off")
        axes.plot([0, 1, 2], [0, 0, 0], color=look.colour, linestyle=look.dash if line else "", linewidth=1.8)
        axes.plot([1], [0], linestyle="", markersize=7, **look.points)
        file = BytesIO()
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    return file.getvalue()


def legend(chart: str, entries: Iterable[tuple[str, Style]], *, line: bool = True) -> list[Key]:
    """A legend's lines, the marks drawn as the series are.

    Args:
        chart: unique on the page, as in :func:`draw`.
        entries: what each mark stands for; line: whether there are lines through the marks.
    """
    return [Key(_inline(_mark(look, line), f"{chart}-key-{i}"), name) for i, (name, look) in enumerate(entries)]


@dataclass(frozen=True)
class Line:
    """A series of points ``(x, y)``, joined in their order or not."""

    points: Sequence[tuple[float, float]]
    look: Style
    joined: bool = True


def lines(
    found: Iterable[Line], *, title: str, x: str, y: str, log: str = "", level: float | None = None, share: bool = False
) -> Callable[[Any], None]:
    """Lines with markers.

    Args:
        x, y: the axes' names; log: which of them are logarithmic, as ``"xy"``.
        level: where a horizontal line is drawn that the others are seen against.
        share: whether y is a share of 1, which has nothing above it.
    """
    drawn = list(found)

    def paint(axes: Any) -> None:
        if level is not None:
            axes.axhline(level, color=INK, linewidth=1)
        for line in drawn:
            if line.points:
                across, up = zip(*line.points, strict=True)
                look, dash = line.look, line.look.dash if line.joined else ""
                axes.plot(across, up, linestyle=dash, linewidth=1.6, markersize=4.5, **look.points)
        axes.set(xlabel=x, ylabel=y)
        axes.set_title(title)
        for name in log:
            getattr(axes, f"set_{name}scale")("log")
            number_ticks(getattr(axes, f"{name}axis"))
        whole = all(float(place).is_integer() for line in drawn for place, _ in line.points)
        if whole and "x" not in log:
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.margins(x=0.05, y=0.1)
        if share and (least := min((up for line in drawn for _, up in line.points), default=0)) >= 0:
            room = max(1 - least, 0.1)
            axes.set_ylim(1 - 1.1 * room, 1 + 0.05 * room)

    return paint


def number_ticks(axis: Any) -> None:
    """Ticks of a logarithmic axis: at the decades, and between them where there are few."""
    low, high = axis.get_view_interval()
    range_ = high / low if low > 0 else 1
    between = (1, 1.5, 2, 3, 4, 6, 8) if range_ < 6 else (1, 2, 5) if range_ < 300 else (1,)
    axis.set_major_locator(LogLocator(10, subs=between, numticks=9))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: tick(value)))
    axis.set_minor_formatter(NullFormatter())
