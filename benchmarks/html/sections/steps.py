"""Whole steps: passes batched and skipped, and samplers with stock guidance and with ours."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from statistics import median
from typing import Any

from ..charts import draw, legend, style
from ..content import Cell, Chart, Finding, Panel, Section
from ..marks import Bar, Segment, bars, stacks
from ..numbers import between, decimal, listed, milliseconds, percent, plural, times
from ..results import Result
from ..tables import numbers, tabulate, verdict, words

__all__ = ["guided_step", "samplers"]

Row = Mapping[str, Any]


def _groups(rows: Iterable[Row], *names: str) -> dict[tuple[str, ...], list[Row]]:
    found: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        found.setdefault(tuple(str(row[name]) for name in names), []).append(row)
    return found


def guided_step(results: list[Result]) -> Section:
    """Small models of diffusers: what a step costs by the passes it runs."""
    section = Section(
        "guided-step",
        "A guided step, by its passes",
        "Small models with random weights under a flow sampler. What moves the time of a step are the passes: batched, "
        "one after another, or left out. A ratio is a contestant's time divided by that of the batched passes.",
    )
    for result in results:
        rows = result.data["rows"]
        panels: list[Panel] = []
        for (model, shape), found in _groups(rows, "model", "shape").items():
            drawn = [
                Bar(r["contestant"], r["p50"], f"{milliseconds(r['p50'])} · {r['ratio']:.2f}",
                    style(0 if r["passes"] == r["full"] else 3), (r["p20"], r["p80"]))
                for r in found
            ]  # fmt: skip
            paint = bars(drawn, title=f"{model}, {shape}", x="ms a step")
            panels.append(Panel(model, draw(f"{result.path.stem}-{len(panels)}", paint, height=75 + 20 * len(found))))
        skipping = [r["ratio"] for r in rows if r["passes"] < r["full"] and r["contestant"] != "no guidance"]
        alone = [r["ratio"] for r in rows if r["contestant"] == "sequential"]
        hand = [r["ratio"] for r in rows if r["contestant"] == "by hand"]
        parts = []
        if skipping:
            parts.append(f"leaving out passes takes {between(skipping, times)} of the time")
            text = f"Leaving out unconditional passes: a step takes {between(skipping, times)} of "
            section.findings.append(Finding("gain", f"{text}the batched time.", result.where))
        if alone:
            parts.append(f"passes one after another {between(alone, times)}")
        if hand:
            low, high = min(hand), max(hand)
            parts.append(f"the same loop written by hand {times(low)} to {times(high)}")
            if low < 1:
                text = f"A batched step written by hand takes {times(low)} to {times(high)} of fastcfg's time: batching"
                section.findings.append(Finding("loss", f"{text} itself is no gain over careful code.", result.where))
        section.blocks.append(
            Chart(
                "Time of a step",
                f"Beside batched passes, {'; '.join(parts)}. Whiskers: 20th to 80th percentile.",
                panels,
                tabulate(
                    f"Steps of small models ({result.where})",
                    rows,
                    words("model", lambda r: r["model"]),
                    words("latent", lambda r: r["shape"]),
                    words("contestant", lambda r: r["contestant"]),
                    numbers("passes", lambda r: f"{r['passes']}/{r['full']}"),
                    numbers("a step", lambda r: milliseconds(r["p50"])),
                    numbers("÷ batched", lambda r: times(r["ratio"])),
                ),
                legend(
                    result.path.stem, [("every pass is run", style(0)), ("some are left out", style(3))], line=False
                ),
                where=result.where,
            )
        )
    return section


def samplers(results: list[Result]) -> Section:
    """Denoising runs with stock guidance and with fastcfg's."""
    section = Section(
        "samplers",
        "Samplers' steps",
        "Whole denoising runs as they are and with fastcfg plugged in, in one process and round. The passes are the "
        "same: where they take nearly all of a step, nothing is gained. The timelines show how much they take.",
    )
    for result in results:
        rows, stem = result.data["rows"], result.path.stem
        if timelines := result.data.get("timelines"):
            section.blocks.extend(_timelines(timelines, stem, result.where))
        if peers := [row for row in rows if row["provider"] != "fastcfg"]:
            section.findings.extend(_sampler_findings(peers, result.where))
            section.blocks.append(_samplers(rows, peers, stem, result.where))
    return section


RATIOS = {"ratio": "a whole step", "outside_ratio": "what is outside of the passes"}


def _samplers(rows: Sequence[Row], peers: Sequence[Row], stem: str, where: str) -> Chart:
    panels: list[Panel] = []
    said = []
    for key, what in RATIOS.items():
        if any(key not in row for row in peers):
            continue
        drawn = [Bar(_contest(row, peers), row[key], times(row[key]), style(1), _whisker(row, key)) for row in peers]
        paint = bars(drawn, title=what[0].upper() + what[1:], x="peer's time ÷ fastcfg's", start=1.0)
        panels.append(Panel(what, draw(f"{stem}-{key.replace('_', '-')}", paint, height=75 + 20 * len(drawn))))
        ratios = [row[key] for row in peers]
        said.append(f"for {what} {between(ratios, times)}, median {times(median(ratios))}")
    return Chart(
        "Runs against the peers",
        f"The peers' time divided by fastcfg's: {listed(said)}.",
        panels,
        tabulate(
            f"Denoising runs ({where})",
            rows,
            words("model", lambda r: r["model"]),
            words("scheduler", lambda r: r["scheduler"]),
            words("rule", lambda r: r["rule"]),
            words("provider", lambda r: r["provider"]),
            numbers("a step", lambda r: milliseconds(r["ms_per_step"])),
            numbers("ratio", lambda r: _ratio(r, "ratio")),
            numbers("outside the passes", lambda r: milliseconds(r.get("outside_ms"))),
            numbers("its ratio", lambda r: _ratio(r, "outside_ratio")),
            numbers("guidance", lambda r: milliseconds(r.get("guidance_ms"))),
            numbers("of a step", lambda r: percent(r.get("guidance_share"), 1)),
            numbers("difference", lambda r: decimal(r.get("error"))),
            numbers("bound", lambda r: decimal(r.get("bound"))),
        ),
        where=where,
    )


def _contest(row: Row, peers: Sequence[Row]) -> str:
    """Model and rule, and what else tells the row apart from the others of these."""
    alike = [r for r in peers if (r["model"], r["rule"]) == (row["model"], row["rule"])]
    more = [row[name] for name in ("scheduler", "provider") if len({r[name] for r in alike}) > 1]
    return " · ".join((*more, row["model"], row["rule"]))


def _whisker(row: Row, key: str) -> tuple[float, float] | None:
    return (row[f"{key}_p20"], row[f"{key}_p80"]) if f"{key}_p20" in row else None


def _ratio(row: Row, key: str) -> str | Cell:
    if row["provider"] == "fastcfg" or row.get(key) is None:
        return "–"
    low, high = _whisker(row, key) or (row[key], row[key])
    return verdict(times(row[key]), low, high)


def _sampler_findings(peers: Sequence[Row], where: str) -> Iterator[Finding]:
    """How many runs are faster beyond the noise, and how many are not."""
    intervals = [_whisker(row, "ratio") or (row["ratio"], row["ratio"]) for row in peers]
    cases, faster = plural(len(peers), "case"), sum(low > 1 for low, _ in intervals)
    best, least = (times(pick(row["ratio"] for row in peers)) for pick in (max, min))
    if faster:
        text = f"Whole denoising runs: {faster} of {cases} faster beyond the noise, up to {best}."
        yield Finding("gain", text, where)
    if rest := len(peers) - faster:
        slower = sum(high < 1 for _, high in intervals)
        text = f"Whole denoising runs: {rest} of {cases} not faster beyond the noise, {slower} slower; least {least}."
        yield Finding("loss", text, where)
    outside = [row["outside_ratio"] for row in peers if row.get("outside_ratio") is not None]
    if outside and median(outside) != 1:
        spread = f"{between(outside, times)}, median {times(median(outside))}"
        text = f"Denoising runs outside of their passes, the peers' time ÷ fastcfg's: {spread}."
        yield Finding("gain" if median(outside) > 1 else "loss", text, where)
    shares = [row["guidance_share"] for row in peers if row.get("guidance_share") is not None]
    if shares:
        text = f"Stock guidance takes {percent(min(shares), 1)} to {percent(max(shares), 1)} of a step of these small "
        yield Finding("loss", f"{text}models, and less of a large one: no guidance can gain more.", where)


def _timelines(timelines: Sequence[Row], stem: str, where: str) -> Iterator[Chart]:
    """The parts of a step; and these without the passes, beside which they are hardly seen."""
    shares = [_milliseconds(line, (PASSES,)) / (_milliseconds(line) or 1) for line in timelines]
    names = list(dict.fromkeys(part["name"] for line in timelines for part in line["parts"]))
    others = [name for name in names if name != PASSES]
    finding = f"The passes take {percent(min(shares), 1)} to {percent(max(shares), 1)} of a step."
    yield _timeline("Timeline of a step, stock against fastcfg", finding, timelines, names, f"{stem}-line", where)
    if len(others) < len(names):
        longest = max(_milliseconds(line, others) for line in timelines)
        finding = f"The same without the passes: {milliseconds(longest)} at the most."
        yield _timeline("Timeline of what is outside of the passes", finding, timelines, others, f"{stem}-rest", where)


PASSES = "passes"


def _milliseconds(line: Row, names: Sequence[str] | None = None) -> float:
    return float(sum(part["ms"] for part in line["parts"] if names is None or part["name"] in names))


def _timeline(title: str, finding: str, timelines: Sequence[Row], names: Sequence[str], key: str, where: str) -> Chart:
    looks = {name: style(4 if name == PASSES else place) for place, name in enumerate(sorted(names, key=PASSES.__eq__))}
    panels: list[Panel] = []
    for (model, scheduler, rule), found in _groups(timelines, "model", "scheduler", "rule").items():
        drawn = [
            (line["provider"], [Segment(p["ms"], looks[p["name"]]) for p in line["parts"] if p["name"] in looks])
            for line in found
        ]
        name = f"{model}, {scheduler}, {rule}"
        paint = stacks(drawn, title=name, x="ms")
        panels.append(Panel(name, draw(f"{key}-{len(panels)}", paint, height=70 + 26 * len(found))))
    records = [(line, part) for line in timelines for part in line["parts"] if part["name"] in looks]
    return Chart(
        title,
        finding,
        panels,
        tabulate(
            f"{title} ({where})",
            records,
            words("model", lambda r: r[0]["model"]),
            words("scheduler", lambda r: r[0]["scheduler"]),
            words("rule", lambda r: r[0]["rule"]),
            words("provider", lambda r: r[0]["provider"]),
            words("part", lambda r: r[1]["name"]),
            numbers("time", lambda r: milliseconds(r[1]["ms"])),
            numbers("of the step", lambda r: percent(r[1]["ms"] / (_milliseconds(r[0]) or 1), 2)),
        ),
        legend(key, list(looks.items()), line=False),
        where,
    )
