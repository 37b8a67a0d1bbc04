"""Whole steps: passes batched, skipped and spread over processes, and samplers with stock guidance and with ours."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from statistics import median
from typing import Any

from ..charts import Line, draw, legend, lines, style
from ..content import Chart, Finding, Panel, Section, Tile
from ..marks import Bar, Segment, bars, stacks
from ..numbers import decimal, milliseconds, percent, plural, times
from ..results import Result
from ..tables import numbers, tabulate, verdict, words

__all__ = ["guided_step", "parallel", "samplers"]

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
        panels = []
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
            parts.append(f"leaving out passes takes {times(min(skipping))} to {times(max(skipping))} of the time")
            text = (
                f"Leaving out unconditional passes: a step takes {times(min(skipping))} to {times(max(skipping))} of "
            )
            section.findings.append(Finding("gain", f"{text}the batched time.", result.where))
        if alone:
            parts.append(f"passes one after another {times(min(alone))} to {times(max(alone))}")
        if hand:
            low, high = min(hand), max(hand)
            parts.append(f"the same loop written by hand {times(low)} to {times(high)}")
            if low < 1:
                text = f"A batched step written by hand takes {times(low)} to {times(high)} of fastcfg's time: batching"
                section.findings.append(Finding("loss", f"{text} itself is no gain over careful code.", result.where))
        section.blocks.append(
            Chart(
                "Time of a step",
                f"Beside batched passes, {'; '.join(parts)}. Whiskers: 20th to 80th percentile. {result.where}.",
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
            )
        )
    return section


def samplers(results: list[Result]) -> Section:
    """Pipelines' steps with stock guidance and with fastcfg's."""
    section = Section(
        "samplers",
        "Samplers' steps",
        "Steps of real pipelines, the guidance stock or fastcfg's, in one process and round. On a large model guidance "
        "is a small part of a step: the timelines show how small.",
    )
    for result in results:
        rows, stem = result.data["rows"], result.path.stem
        peers = [row for row in rows if row["provider"] != "fastcfg" and row.get("ratio") is not None]
        if timelines := result.data.get("timelines"):
            section.blocks.append(_timelines(timelines, stem, result.where))
        panels = []
        for (model,), found in _groups(peers, "model").items():
            drawn = [
                Bar(" · ".join(dict.fromkeys((r["rule"], r["scheduler"], r["provider"]))), r["ratio"],
                    times(r["ratio"]), style(1), None)
                for r in found
            ]  # fmt: skip
            paint = bars(drawn, title=model, x="peer's step ÷ fastcfg's", start=1.0)
            panels.append(Panel(model, draw(f"{stem}-ratios-{len(panels)}", paint, height=75 + 20 * len(found))))
        ratios = [row["ratio"] for row in peers]
        shares = [row["guidance_share"] for row in peers if row.get("guidance_share") is not None]
        finding = f"No peer was measured. {result.where}."
        if ratios:
            finding = (
                f"The peers' steps take {times(min(ratios))} to {times(max(ratios))} as long as fastcfg's, median "
                f"{times(median(ratios))}. {result.where}."
            )
            faster = [r for r in ratios if r > 1.02]
            if faster:
                text = f"Whole sampler steps: {len(faster)} of {plural(len(ratios), 'case')} more than 2 % faster, "
                section.findings.append(Finding("gain", f"{text}up to {times(max(ratios))}.", result.where))
            if len(faster) < len(ratios):
                same = len(ratios) - len(faster)
                text = f"Whole sampler steps: {same} of {plural(len(ratios), 'case')} gain less than 2 %, or lose"
                section.findings.append(Finding("loss", f"{text}: least {times(min(ratios))}.", result.where))
        if shares:
            finding += f" Stock guidance takes {percent(min(shares), 1)} to {percent(max(shares), 1)} of a step."
        section.blocks.append(
            Chart(
                "Whole steps against the peers",
                finding,
                panels,
                tabulate(
                    f"Sampler steps ({result.where})",
                    rows,
                    words("model", lambda r: r["model"]),
                    words("scheduler", lambda r: r["scheduler"]),
                    words("rule", lambda r: r["rule"]),
                    words("provider", lambda r: r["provider"]),
                    numbers("a step", lambda r: milliseconds(r["ms_per_step"])),
                    numbers("ratio", lambda r: _ratio(r.get("ratio"))),
                    numbers("guidance", lambda r: milliseconds(r.get("guidance_ms"))),
                    numbers("share", lambda r: percent(r.get("guidance_share"), 1)),
                    numbers("error", lambda r: decimal(r.get("error"))),
                    numbers("bound", lambda r: decimal(r.get("bound"))),
                ),
            )
        )
    return section


def _ratio(value: float | None) -> Any:
    return "–" if value is None else verdict(times(value), value, value, good=1.02, bad=0.98)


def _timelines(timelines: Sequence[Row], stem: str, where: str) -> Chart:
    names = list(dict.fromkeys(part["name"] for line in timelines for part in line["parts"]))
    panels = []
    for (model, rule), found in _groups(timelines, "model", "rule").items():
        drawn = [
            (line["provider"], [Segment(p["ms"], style(names.index(p["name"]))) for p in line["parts"]])
            for line in found
        ]
        paint = stacks(drawn, title=f"{model}, {rule}", x="ms")
        panels.append(Panel(f"{model}, {rule}", draw(f"{stem}-line-{len(panels)}", paint, height=70 + 26 * len(found))))
    records = [(line, part, sum(p["ms"] for p in line["parts"])) for line in timelines for part in line["parts"]]
    largest = max(records, key=lambda record: record[1]["ms"] / (record[2] or 1))
    return Chart(
        "Timeline of a step, stock against fastcfg",
        f"The largest part of any step is “{largest[1]['name']}” with "
        f"{percent(largest[1]['ms'] / (largest[2] or 1))} of it ({largest[0]['model']}, {largest[0]['provider']}). "
        f"{where}.",
        panels,
        tabulate(
            f"Parts of a step ({where})",
            records,
            words("model", lambda r: r[0]["model"]),
            words("rule", lambda r: r[0]["rule"]),
            words("provider", lambda r: r[0]["provider"]),
            words("part", lambda r: r[1]["name"]),
            numbers("time", lambda r: milliseconds(r[1]["ms"])),
            numbers("of the step", lambda r: percent(r[1]["ms"] / r[2] if r[2] else None, 1)),
        ),
        legend(f"{stem}-line", [(name, style(i)) for i, name in enumerate(names)], line=False),
    )


def parallel(results: list[Result]) -> Section:
    """Passes over several processes."""
    section = Section(
        "parallel",
        "Passes over processes",
        "The passes of a step on several ranks, beside the same passes one after another in one process. A ratio is "
        "the serial time divided by the parallel one.",
    )
    for result in results:
        rows = result.data["rows"]
        rules = list(_groups(rows, "rule"))
        found = [
            Line([(r["ranks"], r["ratio"]) for r in rows if r["rule"] == rule], style(i))
            for i, (rule,) in enumerate(rules)
        ]
        paint = lines(found, title="Speed-up by ranks", x="ranks", y="serial ÷ parallel", level=1)
        best = max(rows, key=lambda row: row["ratio"])
        text = f"Up to {times(best['ratio'])} as fast as one process ({best['rule']}, {plural(best['ranks'], 'rank')})"
        section.findings.append(Finding("gain", f"Passes over processes: {text[0].lower()}{text[1:]}.", result.where))
        poor = [row for row in rows if row["ranks"] > 1 and row["ratio"] < 1.2]
        if poor:
            said = "; ".join(f"{row['rule']} on {row['ranks']} ranks, {times(row['ratio'])}" for row in poor)
            section.findings.append(Finding("loss", f"Passes over processes hardly pay: {said}.", result.where))
        section.tiles.append(Tile(times(best["ratio"]), f"passes over {best['ranks']} processes, {best['rule']}", 4))
        section.blocks.append(
            Chart(
                "Speed-up by ranks",
                f"{text}. More ranks than the machine has cores share them. {result.where}.",
                [Panel("speed-up against ranks", draw(f"{result.path.stem}-ranks", paint))],
                tabulate(
                    f"Passes over processes ({result.where})",
                    rows,
                    words("rule", lambda r: r["rule"]),
                    numbers("ranks", lambda r: str(r["ranks"])),
                    numbers("parallel", lambda r: milliseconds(r["ms"])),
                    numbers("serial", lambda r: milliseconds(r["serial_ms"])),
                    numbers("ratio", lambda r: verdict(times(r["ratio"]), r["ratio"], r["ratio"], good=1.05, bad=0.95)),
                ),
                legend(f"{result.path.stem}-ranks", [(rule, style(i)) for i, (rule,) in enumerate(rules)]),
            )
        )
    return section
