"""A folder of results as one HTML file that needs no other and no network: each kind's charts above its tables.

Charts are drawn by matplotlib in stand-in colours, which become the page's CSS variables, so that one drawing serves
the light and the dark scheme. Everything but our own SVG is escaped.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from io import BytesIO
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any
from xml.etree import ElementTree

import jinja2
import matplotlib
from markupsafe import Markup
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

from fastcfg.files import write_atomically

from .. import compare

__all__ = ["KINDS", "Kind", "write_report"]

Row = Mapping[str, Any]
FASTCFG = "fastcfg"
EVEN = 0.02
"""Ratios nearer to 1 than this are called even."""
MOST_ROWS = 400
INK, FAINT, GRID = "#0a0b01", "#0a0b02", "#0a0b03"
SERIES = tuple(f"#0a0c0{i}" for i in range(1, 8))
LOOKS = tuple(zip("o^svDPX", ("-", "--", ":", "-.", "--", "-", ":"), SERIES, strict=True))
VARIABLES = {INK: "--ink", FAINT: "--faint", GRID: "--grid"} | {c: f"--series-{i}" for i, c in enumerate(SERIES, 1)}
SETTINGS = {
    "svg.fonttype": "none", "text.parse_math": False, "font.size": 10.5, "text.color": INK,
    "axes.edgecolor": FAINT, "axes.labelcolor": FAINT, "axes.labelsize": 10, "axes.titlelocation": "left",
    "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "axes.axisbelow": True,
    "grid.color": GRID, "xtick.color": FAINT, "ytick.color": FAINT, "xtick.labelcolor": INK, "ytick.labelcolor": INK,
    "figure.constrained_layout.use": True,
}  # fmt: skip


@dataclass(frozen=True)
class Lines:
    """A chart of lines: ``y`` against ``x``, a line for each value of ``by`` and a panel for each value of ``panels``.

    Attributes:
        entry: of the result, whose rows are drawn; where: what their other entries are.
    """

    x: str
    y: str
    by: str
    panels: str = ""
    entry: str = "rows"
    log: bool = False
    where: Row = field(default_factory=dict)


@dataclass(frozen=True)
class Kind:
    """A kind of result.

    Attributes:
        columns: of its table of rows; none is all of them.
        raced: the entry that names contestants, whose ``ratio`` is their time by that of fastcfg (or of ``reference``).
        panels: the entry by whose values their bars are in panels of their own.
    """

    title: str
    command: str = "fastcfg bench"
    columns: tuple[str, ...] = ()
    raced: str = ""
    panels: str = ""
    reference: str = FASTCFG
    lines: tuple[Lines, ...] = ()


KINDS: Mapping[str, Kind] = {
    "kernels": Kind(
        "Guidance against its peers", "fastcfg bench",
        ("rule", "provider", "metric", "shape", "dtype", "p20", "p50", "p80", "ratio", "error", "launches"),
        "provider", "rule",
    ),
    "samplers": Kind(
        "Samplers' steps", "fastcfg bench",
        ("model", "scheduler", "rule", "provider", "ms_per_step", "ratio", "guidance_ms", "error", "bound"),
        "provider", "scheduler",
    ),
    "guided-step": Kind("A guided step", raced="contestant", panels="model", reference="batched"),
    "parallel": Kind(
        "Passes over processes", "python -m benchmarks.parallel", lines=(Lines("ranks", "ratio", "rule"),)
    ),
    "scaling": Kind(
        "How cost grows", columns=("axis", "value", "what", "rule", "dtype", "ms", "p20", "p80", "per_unit"),
        lines=(Lines("value", "ms", "rule", "axis", log=True, where={"what": "combine"}),),
    ),
    "quality": Kind(
        "Quality and diversity", "python -m benchmarks.quality",
        lines=(
            *(
                Lines("scale", y, "curve", "reference", "curves", where={"schedule": "constant"})
                for y in ("accuracy", "recall", "frechet_distance")
            ),
            Lines("step", "delta_ratio", "scale", entry="geometry"),
        ),
    ),
    "gating": Kind("Fewer unconditional passes", "python -m benchmarks.gating_demo"),
    "distillation": Kind(
        "Distillation", "python -m benchmarks.distillation",
        lines=(Lines("scale", "student", "variant", entry="gaps"),),
    ),
    "export-parity": Kind("Graphs beside eager torch", "python -m benchmarks.export"),
    "export": Kind("Guidance inside a graph", raced="provider", panels="model"),
}  # fmt: skip


@dataclass(frozen=True)
class Cell:
    """A table's cell that says how good it is, by a mark as well as a colour."""

    text: str
    tone: str

    @property
    def mark(self) -> str:
        """The tone as a sign."""
        return {"gain": "▲", "even": "＝", "loss": "▼"}[self.tone]


@dataclass(frozen=True)
class Table:
    """Rows under a caption; the first cell of a row is its header."""

    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str | Cell]]


@dataclass(frozen=True)
class Chart:
    """Panels of SVG by name, and the names of their series with a key each."""

    title: str
    panels: Sequence[tuple[str, Markup]]
    legend: Sequence[tuple[str, Markup]]


@dataclass
class Section:
    """A part of the page."""

    key: str
    title: str
    lead: str
    charts: list[Chart] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)


@dataclass(frozen=True)
class Result:
    """A result file."""

    path: Path
    kind: str
    data: Row

    @property
    def where(self) -> str:
        """Return where it was measured, and from which commit."""
        found = self.data.get("environment")
        given: Row = found if isinstance(found, dict) else {}
        threads = f", {given['threads']} threads" if given.get("threads") else ""
        return f"{given.get('hardware', 'unknown hardware')}{threads}, commit {given.get('commit', 'unknown')}"


def write_report(
    folder: Path, path: Path, changes: tuple[Path, Path] | None = None, *, recorded: Path | None = None
) -> Path:
    """Write a report of all results in a folder.

    A kind without results is named, with the command that makes them; so is a file that can't be read.

    Args:
        folder: holds result files.
        path: of the HTML file, written whole or not at all.
        changes: two folders of results, the older first, for a part that says what changed.
        recorded: another folder, whose results stand in for kinds that ``folder`` has none of.

    Returns:
        ``path``.

    Raises:
        ValueError: if a folder is none, or the two have nothing in common.
    """
    results, missing = read_folder(folder)
    if recorded is not None and recorded.is_dir():
        here = {result.kind for result in results}
        results += [result for result in read_folder(recorded)[0] if result.kind not in here]
    sections = [] if changes is None else [_changes(*changes)]
    for number, result in enumerate(results):
        try:
            sections.append(_section(result, f"{result.kind}-{number}"))
        except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
            # The files are not ours to trust: one of another form costs its part of the report, not the report.
            what = f"has no {error}" if isinstance(error, KeyError) else str(error)
            missing.append((result.path.name, f"has not the form of {result.kind}: {what}"))
    found = {result.kind for result in results}
    missing += [(kind.title, f"no results: {kind.command}") for name, kind in KINDS.items() if name not in found]
    script = _asset("script.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    page = environment.from_string(_asset("page.html.j2")).render(
        sections=sections,
        summary=_summary(results),
        missing=missing,
        style=Markup(_asset("style.css")),
        script=Markup(script),
        script_hash=f"sha256-{digest}",
    )
    write_atomically(path, page)
    return path


def read_folder(folder: Path) -> tuple[list[Result], list[tuple[str, str]]]:
    """Read every JSON file of a folder that says a known kind; and why others are left out.

    Raises:
        ValueError: if there is no such folder.
    """
    if not folder.is_dir():
        raise ValueError(f"folder: expected a folder of results, got {str(folder)!r}")
    results, unread = [], []
    for path in sorted(folder.glob("*.json")):
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            unread.append((path.name, f"is not readable JSON: {error}"))
            continue
        kind = data.get("kind") if isinstance(data, dict) else None
        if isinstance(kind, str) and kind in KINDS:
            results.append(Result(path, kind, data))
        else:
            unread.append((path.name, f"its kind is not known: {kind!r}"))
    return results, unread


def _asset(name: str) -> str:
    return resources.files(__package__).joinpath(name).read_text(encoding="utf-8")


# --- What is shown of a result -----------------------------------------------------------------------------------


def _summary(results: Sequence[Result]) -> Table:
    """The median of each contestant's ratios, by what is raced."""
    rows = []
    for result in results:
        kind = KINDS[result.kind]
        for peer, ratios in _ratios(result).items():
            middle = median(ratios)
            tone = "even" if abs(middle - 1) < EVEN else "gain" if middle > 1 else "loss"
            ends = f"{min(ratios):.2f} … {max(ratios):.2f}"
            rows.append((peer, Cell(f"{middle:.2f}", tone), kind.title, str(len(ratios)), ends, result.where))
    columns = ("contestant", "median", "in", "cases", "lowest … highest", "where")
    return Table("Every contestant's time ÷ fastcfg's, in the same run", columns, rows)


def _ratios(result: Result) -> dict[str, list[float]]:
    kind = KINDS[result.kind]
    found: dict[str, list[float]] = {}
    for row in _raced(result) if result.data.get("rows") else ():
        found.setdefault(str(row[kind.raced]), []).append(float(row["ratio"]))
    return found


def _raced(result: Result) -> list[dict[str, Any]]:
    """The rows of contestants other than the one that they are raced against."""
    kind = KINDS[result.kind]
    rows = _entry(result, "rows") if kind.raced else []
    return [row for row in rows if row.get("metric", "time") == "time" and row[kind.raced] != kind.reference]


def _entry(result: Result, name: str) -> list[dict[str, Any]]:
    """The rows of an entry; those of students' findings stand under each of them."""
    if result.kind == "distillation":
        findings = result.data["findings"].items()
        return [{"variant": key, **row} for key, one in findings for row in one.get(name, ())]
    rows: list[dict[str, Any]] = list(result.data[name])
    return rows


def _section(result: Result, key: str) -> Section:
    kind = KINDS[result.kind]
    section = Section(key, kind.title, f"{result.path.name}: {result.where}")
    if kind.raced:
        section.charts.append(_bars(result, kind, key))
    for number, lines in enumerate(kind.lines):
        rows = [r for r in _entry(result, lines.entry) if all(r.get(n) == v for n, v in lines.where.items())]
        if rows:
            section.charts.append(_lines(rows, lines, f"{key}-{number}"))
    entries = ("gaps", "judged") if result.kind == "distillation" else [n for n, v in result.data.items() if _rows(v)]
    for entry in entries:
        columns = kind.columns if entry == "rows" else ()
        section.tables.append(_table(f"{kind.title}: {entry}", _entry(result, entry), columns))
    if not section.tables:
        raise KeyError("rows")
    return section


def _rows(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(row, dict) for row in value)


def _flat(row: Row) -> dict[str, str]:
    """A row's entries as texts; those of a mapping are columns of their own."""
    found: dict[str, str] = {}
    for name, value in row.items():
        if isinstance(value, Mapping):
            found |= {f"{name} {key}": text for key, text in _flat(value).items()}
        elif isinstance(value, list | tuple):
            found[name] = "×".join(map(str, value)) if len(value) < 7 else f"{len(value)} entries"
        elif isinstance(value, float):
            found[name] = f"{value:.4g}"
        else:
            found[name] = "–" if value is None else str(value)
    return found


def _table(caption: str, rows: Iterable[Row], columns: Sequence[str] = ()) -> Table:
    rows = list(rows)
    flat = [_flat(row) for row in islice(rows, MOST_ROWS)]
    names = list(dict.fromkeys(name for row in flat for name in row if not columns or name in columns))
    more = f", the first {MOST_ROWS} of {len(rows)}" if len(rows) > MOST_ROWS else ""
    return Table(caption + more, names, [[row.get(name, "–") for name in names] for row in flat])


def _changes(old: Path, new: Path) -> Section:
    """Two folders of results: what changed beyond the noise.

    Raises:
        ValueError: if the folders have no such file in common.
    """
    before, after = ({r.path.name: r for r in read_folder(f)[0] if r.kind in compare.FORMS} for f in (old, new))
    names = [name for name in before if name in after]
    if not names:
        raise ValueError(f"compare: {str(old)!r} and {str(new)!r} have no result file with peers in common")
    section = Section("changes", "What changed", f"Ratios to peers of the same run, in {old} and in {new}.")
    tones = {"better": "gain", "same": "even", "worse": "loss"}
    for name in names:
        found = compare.compare(compare.load(before[name].path), compare.load(after[name].path))
        worst = sorted(found.changes, key=lambda c: (c.verdict == "same", c.new[1] / c.old[1]))
        rows = [
            (", ".join(c.case[1:]), c.peer, f"{c.old[1]:.2f}", f"{c.new[1]:.2f}", Cell(c.verdict, tones[c.verdict]))
            for c in worst
        ]
        caption = f"{name}: {found.summary()}"
        section.tables.append(Table(caption, ("case", "peer", "ratio before", "after", "verdict"), rows))
    return section


# --- Charts ------------------------------------------------------------------------------------------------------


def _groups(rows: Iterable[Row], name: str) -> dict[str, list[Row]]:
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(str(row[name]) if name else "", []).append(row)
    return found


def _bars(result: Result, kind: Kind, key: str) -> Chart:
    """The median ratio of each contestant as a bar from 1."""

    def panel(rows: Sequence[Row]) -> Callable[[Any], None]:
        ratios = {name: [float(r["ratio"]) for r in group] for name, group in _groups(rows, kind.raced).items()}
        names = sorted(ratios, key=lambda name: -median(ratios[name]))

        def paint(axes: Any) -> None:
            for place, name in enumerate(names):
                values = ratios[name]
                axes.barh(place, median(values) - 1, left=1, height=0.6, color=SERIES[0 if median(values) >= 1 else 1])
                axes.plot((min(values), max(values)), (place, place), color=INK, linewidth=0.9)
                end = (max(*values, 1), place)
                axes.annotate(f"{median(values):.2f}", end, (4, 0), textcoords="offset points", va="center", size=8.5)
            axes.axvline(1, color=INK, linewidth=1)
            axes.set_yticks(range(len(names)), [_short(name) for name in names], fontsize=8.5)
            axes.set(ylim=(len(names) - 0.4, -0.6), xscale="log", xlabel=f"time ÷ {kind.reference}'s, median")
            axes.margins(x=0.25)
            _numbers(axes.xaxis)

        return paint

    panels = [
        (
            f"{kind.panels} {name}",
            _draw(f"{key}-b{i}", f"{name}", panel(rows), 60 + 22 * len(_groups(rows, kind.raced))),
        )
        for i, (name, rows) in enumerate(_groups(_raced(result), kind.panels).items())
    ]
    return Chart(f"{kind.title}: contestants", panels, [])


def _lines(rows: Sequence[Row], lines: Lines, key: str) -> Chart:
    names = list(_groups(rows, lines.by))
    looks = {name: LOOKS[i % len(LOOKS)] for i, name in enumerate(names)}

    def panel(rows: Sequence[Row]) -> Callable[[Any], None]:
        def paint(axes: Any) -> None:
            for name, group in _groups(rows, lines.by).items():
                points = sorted((float(r[lines.x]), float(r[lines.y])) for r in group)
                marker, dash, colour = looks[name]
                axes.plot(*zip(*points, strict=True), marker=marker, linestyle=dash, color=colour, markersize=4)
            axes.set(xlabel=lines.x, ylabel=lines.y)
            if lines.log:
                axes.set(xscale="log", yscale="log")
                _numbers(axes.xaxis)
                _numbers(axes.yaxis)

        return paint

    panels = [
        (f"{lines.y} against {lines.x} {name}".strip(), _draw(f"{key}-l{i}", name, panel(group), 230))
        for i, (name, group) in enumerate(_groups(rows, lines.panels).items())
    ]
    legend = [(name, _key(f"{key}-k{i}", *looks[name])) for i, name in enumerate(names)]
    return Chart(f"{lines.y} against {lines.x}, by {lines.by}", panels, legend)


def _short(name: str, letters: int = 26) -> str:
    return name if len(name) <= letters else name[: letters - 1].rstrip() + "…"


def _numbers(axis: Any) -> None:
    """Few ticks of a logarithmic axis, as plain numbers."""
    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0), numticks=6))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def _draw(name: str, title: str, paint: Callable[[Any], None], height: float, width: float = 320) -> Markup:
    """A panel, as wide as a phone: its texts are then as large there as they were drawn."""
    with matplotlib.rc_context({**SETTINGS, "svg.hashsalt": name}):
        figure = Figure(figsize=(width / 72, height / 72))
        FigureCanvasSVG(figure)
        axes = figure.subplots()
        paint(axes)
        if title:
            figure.suptitle(_short(title, 42), x=0.0, ha="left", fontsize=11, fontweight="bold")
        file = BytesIO()
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    return _inline(file.getvalue(), name)


def _key(name: str, marker: str, dash: str, colour: str) -> Markup:
    def paint(axes: Any) -> None:
        axes.axis("off")
        axes.plot([0, 1, 2], [0, 0, 0], marker=marker, markevery=[1], color=colour, linestyle=dash, linewidth=1.8)

    return _draw(name, "", paint, 16, 36)


def _local(name: str) -> str:
    return name.rpartition("}")[2]


def _inline(svg: bytes, name: str) -> Markup:
    """SVG of matplotlib as part of a page: no namespaces, styles or fonts of its own, identifiers of its own."""
    root = ElementTree.fromstring(svg)
    for parent in list(root.iter()):
        for child in list(parent):
            # A style element in a page's SVG would hold for the whole page.
            if _local(child.tag) in ("metadata", "style", "title") or child.get("style") == "fill: none":
                parent.remove(child)
    for element in root.iter():
        element.tag = _local(element.tag)
        attributes = {_local(key): value for key, value in element.attrib.items()}
        element.attrib.clear()
        for key, value in attributes.items():
            text = f"{name}-{value}" if key == "id" else re.sub(r"(?<=url\()#", f"#{name}-", value)
            if key == "href":
                text = f"#{name}-{value[1:]}"
            if key != "id":
                text = re.sub("|".join(VARIABLES), lambda found: f"var({VARIABLES[found[0]]})", text)
                text = re.sub(r"font: (?:\w+ )*([\d.]+px)[^;]*", r"font-size: \1", text)
                text = re.sub(r" ?font-family:[^;]*;?", "", text)
            element.set(key, text)
    box = root.get("viewBox", "")
    root.attrib.clear()
    root.attrib.update({"viewBox": box, "aria-hidden": "true", "focusable": "false"})
    return Markup(ElementTree.tostring(root, encoding="unicode"))
