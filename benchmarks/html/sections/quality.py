"""Quality against diversity on the demo's model, samples, and the geometry of guidance."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from markupsafe import Markup

from ..charts import Line, draw, legend, lines, style
from ..content import Chart, Finding, Panel, Picture, Section, Table, Text, Tile
from ..marks import Bar, bars
from ..numbers import decimal, listed, percent
from ..pictures import read_picture
from ..results import Result
from ..tables import figures, numbers, tabulate, words

__all__ = ["build"]

Row = Mapping[str, Any]
METRICS = {
    "accuracy": "classifier accuracy",
    "frechet_distance": "Fréchet distance",
    "precision": "precision",
    "recall": "recall",
    "coverage": "coverage",
}
MEASURES = {
    "delta_ratio": "|d| ÷ |u|",
    "cosine": "cosine of d with u",
    "parallel_share": "parallel share of d",
    "norm_ratio": "|guided| ÷ |cond|",
    "spread_ratio": "std guided ÷ std cond",
}
FEWEST = 3
"""Scales that make a curve."""
MOST = 7
"""Series of a chart that are told apart."""


def build(results: list[Result]) -> Section:
    """Curves, grids, geometry."""
    section = Section(
        "quality",
        "Quality and diversity",
        "What guidance does to the samples of the demo's model: the accuracy of a classifier, precision and recall, "
        "coverage and the Fréchet distance in its features, by scale, rule and schedule. A higher scale buys quality "
        "with diversity; these are small samples of a small model, and say nothing of another.",
    )
    for result in results:
        if curves := result.data["curves"]:
            section.blocks.extend(_curves(curves, result, section))
        if (equal := result.data.get("at_equal_accuracy")) and len(equal["rows"]) > 1:
            section.blocks.append(_equal(equal, section))
        for grid in result.data.get("grids") or ():
            section.blocks.append(_grid(result, grid))
        if geometry := result.data.get("geometry"):
            section.blocks.append(_geometry(geometry, result))
    return section


def _grid(result: Result, grid: Row) -> Picture | Text:
    try:
        return read_picture(result.path.parent, grid["file"], str(grid["title"]), str(grid["alt"]))
    except ValueError as error:
        return Text(f"{grid['title']}: {error}.")


def _curves(curves: Sequence[Row], result: Result, section: Section) -> Iterator[Chart | Table]:
    """Rules, schedules, teacher and student, and what was judged beside other references: a chart each."""
    teacher = [row for row in curves if row["who"] == "teacher"]
    references = list(dict.fromkeys(map(_reference, teacher)))
    for number, reference in enumerate(references):
        here = [row for row in teacher if _reference(row) == reference]
        if len({row["scale"] for row in here}) < FEWEST:
            yield _table(f"Judged beside {reference}, at few scales", here)
            continue
        schedules = [row["schedule"] for row in here]
        usual = max(dict.fromkeys(schedules), key=schedules.count)
        plain = [row for row in here if row["schedule"] == usual]
        beside = f", judged beside {reference}" * (number > 0)
        finding = _best(plain) if number else _rules(plain, section)
        yield from _charts(f"Rules, schedule “{usual}”{beside}", plain, f"rules-{number}", result, finding)
        if scheduled := [row for row in here if row["schedule"] != usual]:
            rows = [row for row in plain if row["rule"] == plain[0]["rule"]] + scheduled
            yield from _charts(f"Schedules{beside}", rows, f"schedules-{number}", result, _best(rows))
    if pairs := {_place(row) for row in curves if row["who"] == "student"}:
        rows = [row for row in curves if _place(row) in pairs]
        yield from _charts("Teacher and student", rows, "students", result, _students(rows, section))


def _reference(row: Row) -> str:
    return str(row.get("reference", ""))


def _place(row: Row) -> tuple[str, str, str]:
    """What a student and its teacher have in common."""
    return row["rule"], row["schedule"], _reference(row)


def _name(row: Row) -> str:
    return str(row.get("curve") or f"{row['rule']}, {row['schedule']}, {row['who']}")


def _charts(title: str, rows: Sequence[Row], key: str, result: Result, finding: str) -> Iterator[Chart]:
    """One chart, or more where there are more series than are told apart."""
    names = list(dict.fromkeys(map(_name, rows)))
    for part, first in enumerate(range(0, len(names), MOST)):
        shown = names[first : first + MOST]
        here = [row for row in rows if _name(row) in shown]
        heading = title + f", part {part + 1}" * (len(names) > MOST)
        yield _chart(heading, here, shown, f"{result.path.stem}-{key}-{part}", finding)


def _chart(title: str, rows: Sequence[Row], names: Sequence[str], identifier: str, finding: str) -> Chart:
    by = {n: sorted((r for r in rows if _name(r) == n), key=lambda r: r["scale"]) for n in names}

    def series(x: str, y: str) -> list[Line]:
        return [Line([(row[x], row[y]) for row in by[n]], style(i)) for i, n in enumerate(names)]

    plane = lines(series("recall", "accuracy"), title="Quality against diversity", x="recall", y="accuracy", share=True)
    panels = [Panel("accuracy against recall, joined in the order of the scale", _draw(f"{identifier}-plane", plane))]
    for metric, what in METRICS.items():
        share = metric != "frechet_distance"
        paint = lines(series("scale", metric), title=what[0].upper() + what[1:], x="scale", y="", share=share)
        panels.append(Panel(f"{what} by scale", _draw(f"{identifier}-{metric}", paint)))
    samples = sorted({row["samples"] for row in rows})
    number = " or ".join(str(n) for n in samples)
    return Chart(
        title,
        f"{finding} {number} samples a point; up is better but for the Fréchet distance.",
        panels,
        _table(f"{title}: every point", [row for n in names for row in by[n]]),
        legend(identifier, [(n, style(i)) for i, n in enumerate(names)]),
    )


def _draw(name: str, paint: Callable[[Any], None]) -> Markup:
    return draw(name.replace("_", "-"), paint, height=195)


def _table(caption: str, rows: Sequence[Row]) -> Table:
    return tabulate(
        caption,
        rows,
        words("curve", _name),
        words("rule", lambda r: r["rule"]),
        words("schedule", lambda r: r["schedule"]),
        words("who", lambda r: r["who"]),
        numbers("scale", lambda r: decimal(r["scale"], 2)),
        numbers("accuracy", lambda r: percent(r["accuracy"], 1)),
        numbers("precision", lambda r: f"{r['precision']:.2f}"),
        numbers("recall", lambda r: f"{r['recall']:.2f}"),
        numbers("density", lambda r: f"{r['density']:.2f}"),
        numbers("coverage", lambda r: f"{r['coverage']:.2f}"),
        numbers("Fréchet distance", lambda r: decimal(r["frechet_distance"])),
        numbers("spread", lambda r: f"{r['spread']:.2f}"),
        numbers("passes a sample", lambda r: decimal(r["passes_per_sample"])),
    )


def _equal(found: Mapping[str, Any], section: Section) -> Chart:
    """Every curve where it reaches one accuracy: the Fréchet distance beside CFG's, and passes."""
    rows = [row for row in found["rows"] if row["curve"] != "CFG"]
    apart = [(row, row["difference"], 2 * (row["error"] or 0.0)) for row in rows]
    better = [f"{row['curve']} ({difference:+.1f})" for row, difference, noise in apart if difference < -noise]
    worse = [f"{row['curve']} ({difference:+.1f})" for row, difference, noise in apart if difference > noise]
    at = f"At {percent(found['accuracy'])} accuracy"
    if better:
        text = f"{at} a smaller Fréchet distance than CFG's beyond the noise: {listed(better)}."
        section.findings.append(Finding("gain", text))
    if worse:
        text = f"{at} a larger Fréchet distance than CFG's beyond the noise: {listed(worse)}."
        section.findings.append(Finding("loss", text))
    drawn = [
        Bar(row["curve"], difference, f"{difference:+.1f}", style(2), (difference - noise, difference + noise))
        for row, difference, noise in apart
    ]
    paint = bars(drawn, title="Fréchet distance less CFG's", x="left of 0 is nearer the real digits")
    return Chart(
        f"At equal accuracy, {percent(found['accuracy'])}",
        f"Each curve at the scale where it reaches that accuracy; whiskers are two standard errors. Smaller than CFG's "
        f"beyond the noise: {listed(better) or 'none'}; larger: {listed(worse) or 'none'}.",
        [Panel("Fréchet distances less CFG's", draw("quality-equal", paint, height=75 + 20 * len(drawn)))],
        tabulate(
            "Every curve where it reaches the accuracy",
            found["rows"],
            words("curve", lambda r: r["curve"]),
            numbers("scale", lambda r: f"{r['scale']:.2f}"),
            numbers("passes a sample", lambda r: decimal(r["passes_per_sample"])),
            numbers("Fréchet distance", lambda r: decimal(r["frechet_distance"])),
            numbers("less CFG's", lambda r: f"{r['difference']:+.1f}" if r["curve"] != "CFG" else "–"),
            numbers("standard error", lambda r: decimal(r["error"], 2) if r["curve"] != "CFG" else "–"),
            numbers("recall", lambda r: f"{r['recall']:.2f}"),
            numbers("coverage", lambda r: f"{r['coverage']:.2f}"),
            numbers("spread", lambda r: f"{r['spread']:.2f}"),
        ),
    )


def _best(rows: Sequence[Row]) -> str:
    best = min(rows, key=lambda row: row["frechet_distance"])
    return (
        f"The least Fréchet distance, {decimal(best['frechet_distance'])}, is that of “{_name(best)}” at scale "
        f"{best['scale']:g}, with accuracy {percent(best['accuracy'], 1)} and recall {best['recall']:.2f}."
    )


def _rules(rows: Sequence[Row], section: Section) -> str:
    first = rows[0]["rule"]
    own = sorted((row for row in rows if row["rule"] == first), key=lambda row: row["scale"])
    low, high = own[0], own[-1]
    change = (
        f"{first} from scale {low['scale']:g} to {high['scale']:g}: accuracy {percent(low['accuracy'], 1)} to "
        f"{percent(high['accuracy'], 1)}"
    )
    recall = f"recall {low['recall']:.2f} to {high['recall']:.2f}"
    if high["accuracy"] > low["accuracy"]:
        section.findings.append(Finding("gain", f"On the demo's model, {change}."))
    if high["recall"] < low["recall"]:
        section.findings.append(Finding("loss", f"More guidance costs diversity: {first}, {recall} over those scales."))
    return f"{change}, {recall}. {_best(rows)}"


def _students(rows: Sequence[Row], section: Section) -> str:
    teachers = {(*_place(r), r["scale"]): r for r in rows if r["who"] == "teacher"}
    pairs = [
        (teachers[place], row)
        for row in rows
        if row["who"] == "student" and (place := (*_place(row), row["scale"])) in teachers
    ]
    if not pairs:
        return "No scale was sampled of both."
    worst = max(pairs, key=lambda pair: pair[0]["accuracy"] - pair[1]["accuracy"])
    gap = worst[0]["accuracy"] - worst[1]["accuracy"]
    saved = 1 - sum(s["passes_per_sample"] for _, s in pairs) / sum(t["passes_per_sample"] for t, _ in pairs)
    said = f"a student saves {percent(saved)} of the passes"
    text = "at no scale is its accuracy below the teacher's"
    if gap > 0:
        text = f"its accuracy is at most {gap * 100:.1f} points below the teacher's (scale {worst[1]['scale']:g})"
    section.findings.append(Finding("gain" if gap <= 0.02 else "loss", f"Distilled: {said}; {text}."))
    section.tiles.append(Tile(percent(saved), "of the passes saved by a student", 2))
    return f"{said[0].upper()}{said[1:]}; {text}."


def _geometry(rows: Sequence[Row], result: Result) -> Chart:
    scales = sorted({row["scale"] for row in rows})
    if len(scales) > MOST:  # As many as are told apart, the first and the last among them.
        scales = [scales[round(i * (len(scales) - 1) / (MOST - 1))] for i in range(MOST)]
    panels: list[Panel] = []
    for measure, what in MEASURES.items():
        found = [
            Line([(r["step"], r[measure]) for r in sorted(rows, key=lambda r: r["step"]) if r["scale"] == s], style(i))
            for i, s in enumerate(scales)
        ]
        level = 1.0 if measure in ("norm_ratio", "spread_ratio") else None
        paint = lines(found, title=what, x="step", y="", level=level)
        panels.append(Panel(f"{what} by step", _draw(f"{result.path.stem}-geometry-{len(panels)}", paint)))
    grown = max(rows, key=lambda row: row["norm_ratio"])
    return Chart(
        "Geometry of guidance, by step",
        f"u and d are the unconditional prediction and the delta, std the spread over a sample. The guided prediction "
        f"is at most {grown['norm_ratio']:.2f} times as long as the conditional one, at step {grown['step']} of scale "
        f"{grown['scale']:g}.",
        panels,
        tabulate(
            "Geometry: every step",
            rows,
            numbers("scale", lambda r: decimal(r["scale"], 2)),
            numbers("step", lambda r: str(r["step"])),
            numbers("noise level", lambda r: decimal(r["noise_level"])),
            *(figures(what, measure, decimal) for measure, what in MEASURES.items()),
        ),
        legend(f"{result.path.stem}-geometry", [(f"scale {s:g}", style(i)) for i, s in enumerate(scales)]),
    )
