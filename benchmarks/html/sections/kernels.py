"""Guidance alone, beside its peers: ratios, the roofline, accuracy, targets."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from statistics import median
from typing import Any

from ...cases import REFERENCE
from ...environment import Environment
from ...plots import FAMILIES, drawn, family, paint_ratios, paint_roofline, place_bars
from ...report import Report
from ...rows import Row
from ..charts import INK, SERIES, Style, draw, labels, legend, number_ticks, short
from ..content import Cell, Chart, Finding, Panel, Section, Table, Text, Tile
from ..numbers import between, count, decimal, listed, milliseconds, percent, plural, times
from ..results import Result
from ..tables import numbers, tabulate, verdict, words

__all__ = ["build", "report_of"]

_ORDER = (REFERENCE, "diffusers", "torch.compile", "torch.lerp", "eager")
STYLES: dict[str, Style] = dict(zip(_ORDER, SERIES, strict=False))
LOOKS = {name: (look.colour, look.marker) for name, look in STYLES.items()}
LONG = {
    REFERENCE: "fastcfg",
    "diffusers": "diffusers' guider",
    "torch.compile": "torch.compile of the formula",
    "torch.lerp": "torch.lerp",
    "eager": "the formula in eager torch",
}
TILES = {
    "diffusers": "the time of diffusers' guiders ÷ fastcfg's, median",
    "torch.compile": "the time of the compiled formula ÷ fastcfg's, median",
    "torch.lerp": "the time of torch.lerp ÷ fastcfg's, plain CFG, median",
}
assert set(_ORDER) == set(FAMILIES)


def report_of(result: Result) -> Report:
    """The report that a JSON file was written from.

    Raises:
        KeyError, TypeError: if it is none.
    """
    data = result.data
    left_out = [(each["case"], each["provider"], each["reason"]) for each in data.get("left_out", ())]
    rows = [Row.from_dict(row) for row in data["rows"]]
    return Report(Environment(**data["environment"]), rows, left_out, data.get("cache", "hot"))


def build(results: list[Result]) -> Section:
    """Every file of the kind, one after the other."""
    section = Section(
        "kernels",
        "Guidance against its peers",
        "The combination of the predictions alone. Contestants take turns in one process and round, each checked "
        "against float64 first. A ratio is the peer's time divided by fastcfg's: above 1× fastcfg is faster.",
    )
    # The page's first numbers are of a GPU, if there is one, and of the most threads.
    for result in sorted(results, key=lambda r: (r.environment["device"] == "cpu", -r.environment["threads"])):
        report = report_of(result)
        where = f"{report.environment.label}, {report.cache} cache"
        for block in _blocks(report, where, result.path.stem):
            section.blocks.append(block)
        section.findings.extend(_findings(report, where))
        section.tiles.extend(_tiles(report, first=not section.tiles))
    return section


def _peers(report: Report) -> list[tuple[Row, Row]]:
    shown = {id(row) for row in drawn(report)}
    return [pair for pair in report.pairs() if id(pair[1]) in shown]


def _by_family(report: Report) -> dict[str, list[Row]]:
    rows = [peer for _, peer in _peers(report)]
    found = {name: [row for row in rows if family(row.provider) == name] for name in _ORDER[1:]}
    return {name: rows for name, rows in found.items() if rows}


def _spread(rows: Sequence[Row]) -> str:
    ratios = [row.ratio for row in rows]
    spread = between(ratios, times)
    return f"median {times(median(ratios))}" + f" ({spread})" * (" to " in spread)


def _range(rows: Sequence[Row]) -> str:
    low, high = (times(pick(row.ratio for row in rows)) for pick in (min, max))
    return f"{low}, 1 case" if len(rows) == 1 else f"{low} to {high}, {plural(len(rows), 'case')}"


def _blocks(report: Report, where: str, key: str) -> Iterator[Chart | Table | Text]:
    rows = drawn(report)
    if not rows:
        return
    dtypes = list(dict.fromkeys(row.dtype for row in rows))
    for dtype in dtypes:
        yield _ratios(report, dtype, where, key)
    yield _roofline(rows, dtypes, where, key)
    yield _accuracy(rows, dtypes, where, key)
    if targets := report.targets():
        met = sum(target.met for target in targets)
        yield tabulate(
            f"What fastcfg promises, and what became of it: {met} of {len(targets)} met ({where})",
            sorted(targets, key=lambda target: target.met),
            words("target", lambda t: t.what),
            words("shape", lambda t: t.row.size),
            words("dtype", lambda t: t.row.dtype),
            numbers("asked", lambda t: times(t.least)),
            numbers("measured", lambda t: Cell(times(t.row.ratio), "gain" if t.met else "loss")),
        )
    if report.left_out:
        yield tabulate(
            f"Contestants that took no part, and why ({where})",
            report.left_out,
            words("case", lambda each: each[0]),
            words("contestant", lambda each: each[1]),
            words("why", lambda each: each[2]),
        )


def _ratios(report: Report, dtype: str, where: str, key: str) -> Chart:
    pairs = [pair for pair in _peers(report) if pair[1].dtype == dtype]
    peers = [peer for _, peer in pairs]
    looks = {name: LOOKS[name] for name in _ORDER if any(family(row.provider) == name for row in peers)}
    places = place_bars(peers, looks)
    panels: list[Panel] = []
    for shape in sorted({row.shape for row in peers}, key=math.prod):
        here = [row for row in peers if row.shape == shape]

        def paint(axes: Any, here: list[Row] = here) -> None:
            paint_ratios(axes, here, places, looks, INK, size=8)
            axes.set_yticks(axes.get_yticks(), [short(label.get_text()) for label in axes.get_yticklabels()])
            axes.set_ylim(max(places.values()) + 1, -1)
            axes.grid(visible=False, axis="y")
            axes.set_title(here[0].size)
            axes.set_xlabel("peer's time ÷ fastcfg's (log)")

        height = 70 + 11 * max(places.values())
        name = f"{key}-ratios-{dtype}-{len(panels)}"
        panels.append(Panel(f"{here[0].size}, {_spread(here)}", draw(name, paint, height=height)))
    faster = sum(row.ratio_p20 > 1 for row in peers)
    slower = sum(row.ratio_p80 < 1 for row in peers)
    return Chart(
        f"Ratios to the peers, {dtype}",
        f"Of {plural(len(peers), 'ratio')} in {dtype}, {faster} show fastcfg faster beyond the noise and {slower} the "
        f"peer. Bars begin at 1×; whiskers are the 20th to the 80th percentile over rounds.",
        panels,
        tabulate(
            f"Every ratio in {dtype} ({where})",
            pairs,
            words("rule", lambda p: p[1].rule),
            words("shape", lambda p: p[1].size),
            words("peer", lambda p: p[1].provider),
            numbers("fastcfg", lambda p: milliseconds(p[0].p50)),
            numbers("peer", lambda p: milliseconds(p[1].p50)),
            numbers("ratio", lambda p: verdict(times(p[1].ratio), p[1].ratio_p20, p[1].ratio_p80)),
            numbers("20th–80th", lambda p: f"{times(p[1].ratio_p20)}–{times(p[1].ratio_p80)}"),
            numbers("kernels, ours / theirs", lambda p: f"{count(p[0].launches)} / {count(p[1].launches)}"),
            numbers("MB, ours / theirs", lambda p: f"{_megabytes(p[0])} / {_megabytes(p[1])}"),
        ),
        legend(f"{key}-ratios-{dtype}", [(LONG[name], STYLES[name]) for name in looks], line=False),
        where=where,
    )


def _megabytes(row: Row) -> str:
    return "–" if row.moved is None else decimal(row.moved / 1e6)


def _roofline(rows: list[Row], dtypes: list[str], where: str, key: str) -> Chart:
    panels: list[Panel] = []
    for dtype in dtypes:
        here = [row for row in rows if row.dtype == dtype]

        def paint(axes: Any, here: list[Row] = here, dtype: str = dtype) -> None:
            paint_roofline(axes, here, LOOKS, INK, size=26)
            axes.set_title(dtype)
            number_ticks(axes.xaxis)
            number_ticks(axes.yaxis)

        panels.append(Panel(dtype, draw(f"{key}-roofline-{dtype}", paint, height=290)))
    own = [row for row in rows if row.provider == REFERENCE and row.share]
    largest = max((math.prod(row.shape) for row in own), default=0)
    shares = [row.share for row in own if math.prod(row.shape) == largest and row.share]
    finding = "The line is a copy of as many bytes as the case has to move, timed in the same rounds."
    if shares:
        finding += (
            f" At the largest shape fastcfg's kernels move bytes at {between(shares, percent)} "
            "of the copy's speed; above 100 % a nearer cache has them."
        )
    shown = [row for row in rows if row.least and row.copy]
    return Chart(
        "Roofline: time against bytes",
        finding,
        panels,
        tabulate(
            f"Bytes and times ({where})",
            shown,
            words("rule", lambda r: r.rule),
            words("shape", lambda r: r.size),
            words("dtype", lambda r: r.dtype),
            words("contestant", lambda r: r.provider),
            numbers("MB at least", lambda r: decimal(r.least / 1e6)),
            numbers("MB moved", _megabytes),
            numbers("time", lambda r: milliseconds(r.p50)),
            numbers("copy", lambda r: milliseconds(r.copy)),
            numbers("of the copy's speed", lambda r: percent(r.share)),
        ),
        legend(f"{key}-roofline", [(LONG[name], STYLES[name]) for name in _ORDER], line=False),
        where=where,
    )


def _accuracy(rows: list[Row], dtypes: list[str], where: str, key: str) -> Chart:
    rules = list(dict.fromkeys(row.rule for row in rows))
    worst: dict[tuple[str, str, str], Row] = {}
    for row in rows:
        place = row.dtype, row.rule, family(row.provider)
        if place not in worst or row.error > worst[place].error:
            worst[place] = row
    names = [name for name in _ORDER if any(place[2] == name for place in worst)]
    panels: list[Panel] = []
    for dtype in dtypes:

        def paint(axes: Any, dtype: str = dtype) -> None:
            for shift, name in enumerate(reversed(names)):
                found = [(rules.index(r), row.error) for (d, r, n), row in worst.items() if (d, n) == (dtype, name)]
                if found:
                    at, errors = zip(*found, strict=True)
                    up = [y + (len(names) - 1 - shift - (len(names) - 1) / 2) * 0.13 for y in at]
                    axes.plot(errors, up, STYLES[name].marker, color=STYLES[name].colour, markersize=5.5)
            axes.set_xscale("log")
            number_ticks(axes.xaxis)
            labels(axes, rules)
            axes.invert_yaxis()
            axes.set_title(dtype)
            axes.set_xlabel("error in roundings of the dtype (log)")

        panels.append(Panel(dtype, draw(f"{key}-accuracy-{dtype}", paint, height=70 + 24 * len(rules))))
    halves = [d for d in dtypes if d != "fp32"] or dtypes

    def largest(ours: bool) -> float:
        found = [row.error for (d, _, n), row in worst.items() if d in halves and (n == REFERENCE) == ours]
        return max(found, default=math.nan)

    return Chart(
        "Accuracy beside the peers",
        f"Root mean square error against float64, the worst over shapes. In {listed(halves)} fastcfg errs by at most "
        f"{decimal(largest(True), 2)} roundings, the peers by up to {decimal(largest(False), 2)}.",
        panels,
        tabulate(
            f"Errors in roundings of the dtype, the worst over shapes ({where})",
            [(dtype, rule) for dtype in dtypes for rule in rules if (dtype, rule, REFERENCE) in worst],
            words("rule", lambda p: p[1]),
            words("dtype", lambda p: p[0]),
            *(numbers(LONG[name], partial(_error, worst, name)) for name in names),
        ),
        legend(f"{key}-accuracy", [(LONG[name], STYLES[name]) for name in names], line=False),
        where=where,
    )


def _error(worst: Mapping[tuple[str, str, str], Row], name: str, place: tuple[str, str]) -> str:
    row = worst.get((*place, name))
    return decimal(row.error if row else None, 2)


def _findings(report: Report, where: str) -> Iterator[Finding]:
    faster = {n: rows for n, rows in _by_family(report).items() if median(row.ratio for row in rows) > 1}
    if faster:
        said = listed([f"{LONG[name]} {_spread(rows)}, {plural(len(rows), 'case')}" for name, rows in faster.items()])
        yield Finding("gain", f"Guidance alone, the time of each peer ÷ fastcfg's: {said}.", where)
    lost: dict[tuple[str, str], list[Row]] = {}
    for _, row in _peers(report):
        if row.ratio < 1:
            lost.setdefault((row.rule, family(row.provider)), []).append(row)
    if lost:
        ordered = sorted(lost.items(), key=lambda item: min(row.ratio for row in item[1]))
        said = "; ".join(f"{rule} against {LONG[name]}, {_range(rows)}" for (rule, name), rows in ordered)
        yield Finding("loss", f"Guidance alone, where a peer is faster: {said}.", where)
    targets = report.targets()
    if missed := [target for target in targets if not target.met]:
        worst = "; ".join(f"{t.what} ({t.row.dtype}): {times(t.row.ratio)}" for t in missed[:3])
        yield Finding("loss", f"{len(missed)} of {plural(len(targets), 'target')} missed: {worst}.", where)


def _tiles(report: Report, *, first: bool) -> Iterator[Tile]:
    for name, rows in _by_family(report).items() if first else ():
        if name in TILES:
            yield Tile(times(median(row.ratio for row in rows)), TILES[name], 1)
