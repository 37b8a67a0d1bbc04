"""Two folders of results: what changed beyond the noise."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ... import compare
from ..charts import INK, draw, legend, number_ticks, style
from ..content import Cell, Chart, Finding, Panel, Section, Text, Tone
from ..numbers import percent, plural, times
from ..results import read_folder
from ..tables import numbers, tabulate, words

__all__ = ["build"]

TONES: dict[str, Tone] = {"better": "gain", "same": "even", "worse": "loss"}
LOOKS = {"same": style(4), "better": style(3), "worse": style(1)}
ORDER = ("worse", "better", "same")


def build(old: Path, new: Path) -> Section:
    """The files that both folders have, compared by their ratios to peers of the same run.

    Raises:
        ValueError: if the folders have no such file in common.
    """
    section = Section(
        "comparison",
        "What changed",
        "Ratios to the peers before and after. A ratio is worse or better where its intervals from the 20th to the "
        f"80th percentile are apart by {percent(compare.MARGIN)}. Times of two runs are not compared: ratios to a peer "
        "of the same run are.",
    )
    before, after = (
        {result.path.name: result for result in read_folder(folder).of(*compare.FORMS)} for folder in (old, new)
    )
    names = [name for name in before if name in after]
    if not names:
        raise ValueError(f"compare: {str(old)!r} and {str(new)!r} have no result file with peers in common")
    for name in names:
        try:
            results = compare.load(before[name].path), compare.load(after[name].path)
            found = compare.compare(*results)
        except ValueError as error:
            section.blocks.append(Text(f"{name}: not compared: {error}."))
            continue
        worse, better = len(found.cases("worse")), len(found.cases("better"))
        if worse or better:
            section.findings.append(Finding("loss" if worse else "gain", f"{name}: {found.summary()}."))
        for difference in compare.differences(*results):
            section.blocks.append(Text(f"{name}: not the same in both: {difference}."))
        section.blocks.append(_chart(name, found))
    return section


def _chart(name: str, found: compare.Comparison) -> Chart:
    changes = sorted(found.changes, key=lambda change: (ORDER.index(change.verdict), change.new[1] / change.old[1]))

    def paint(axes: Any) -> None:
        for verdict, look in LOOKS.items():
            points = [(c.old[1], c.new[1]) for c in changes if c.verdict == verdict]
            if points:
                axes.plot(*zip(*points, strict=True), look.marker, color=look.colour, markersize=4.5)
        ends = [value for c in changes for value in (c.old[1], c.new[1])]
        axes.plot((min(ends), max(ends)), (min(ends), max(ends)), color=INK, linewidth=0.8)
        axes.set(xscale="log", yscale="log", xlabel="ratio before", ylabel="ratio after")
        axes.set_title("Ratios, before and after")
        number_ticks(axes.xaxis)
        number_ticks(axes.yaxis)

    stem = name.removesuffix(".json")
    return Chart(
        f"Ratios before and after: {stem}",
        f"{found.summary()[0].upper()}{found.summary()[1:]}. Above the line a ratio got better.",
        [Panel("ratios after against before", draw(f"compare-{stem}", paint, height=300))],
        tabulate(
            f"{plural(len(changes), 'ratio')} of {stem}, the worst first",
            changes,
            words("case", lambda c: ", ".join(c.case[1:])),
            words("peer", lambda c: c.peer),
            numbers("before", lambda c: times(c.old[1])),
            numbers("after", lambda c: times(c.new[1])),
            numbers("change", lambda c: times(c.new[1] / c.old[1])),
            numbers("verdict", lambda c: Cell(c.verdict, TONES[c.verdict])),
        ),
        legend(f"compare-{stem}", [(verdict, look) for verdict, look in LOOKS.items()], line=False),
    )
