"""The Markdown of :mod:`benchmarks.scaling`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from .environment import Environment
from .fleet_command import to_markdown as fleet_to_markdown
from .records import markdown_table

__all__ = ["LAWS", "laws", "to_markdown"]

UNITS = {
    "batch": "sample",
    "pixels": "pixel",
    "frames": "frame",
    "conditions": "condition",
    "passes": "pass",
    "ranks": "pass of the busiest rank",
}


def to_markdown(data: Mapping[str, Any], environment: Environment) -> str:
    """Laws, where they fail, every time, and the fleet."""
    caches = ", ".join(f"{name} {size / 2**10:.0f} KiB" for name, size in data["caches"].items()) or "unknown"
    parts = [
        f"# How the cost of guidance grows, on {environment.label} ({environment.device})",
        f"{environment.origin} Caches of a core: {caches}.",
        "All sizes of an axis take turns in one process; times are medians of calls that come right after one like "
        "them, so that what fits in a cache is read from there. A law is a fixed cost and a cost a unit, by least "
        "squares of the relative errors, and the exponent of a power law of the same points. Latents: 4×64×64 a sample "
        "along the batch, 4×side×side along the pixels, 16×60×104 a frame, 16×128×128 along the conditions. A step is "
        "the demo's network with the rule; along the batch with two passes.",
        "## Laws",
        markdown_table(LAWS, laws(data)),
    ]
    if data["regimes"]:
        parts += [
            "## Where a law changes",
            "The combine's bytes a second, predictions and result counted once, by the nearest cache that holds them "
            "all: a law within each. A rule with sums reads its predictions again, from a cache where a sample fits.",
            _regimes(data),
        ]
    parts += [
        "## Times",
        "Milliseconds, and in brackets ÷ the law's. A column with `out=` is given the tensor to write. The others make "
        "one at each call, which on a CPU is memory used before until it has more than 32 MiB (glibc's largest "
        "`M_MMAP_THRESHOLD`): from there on every call maps new pages, and the kernel has to clear them.",
    ]
    for axis, dtype, text in _times(data):
        parts += [f"### {axis.capitalize()}, {dtype}", text]
    if data["left_out"]:
        parts += ["Not measured: " + "; ".join(data["left_out"]) + "."]
    parts += [
        "## A fleet of GPUs",
        "The model of `python -m benchmarks.fleet`, for a large network: give it your own figures.",
        fleet_to_markdown(data["fleet"]).rstrip(),
    ]
    return "\n\n".join(parts) + "\n"


def _time(ms: float) -> str:
    return f"{ms:.3g} ms" if ms >= 1 else f"{1e3 * ms:.3g} µs" if ms >= 1e-3 else f"{1e6 * ms:.3g} ns"


LAWS = ("axis", "what", "rule", "dtype", "fixed", "and", "residual", "exponent", "furthest off")


def laws(data: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """The laws of cost as lines under :data:`LAWS`."""
    rows = []
    for law in data["fits"]:
        departs = law["departs"]
        where = f" ({departs['held_by']})" if departs["held_by"] else ""
        rows.append(
            (
                law["axis"], law["what"], law["rule"], law["dtype"], _time(law["fixed_ms"]),
                f"{_time(law['ms_per_unit'])} a {UNITS[law['axis']]}", f"{100 * law['residual']:.0f} %",
                f"{law['exponent']:.2f}", f"× {departs['ratio']:.2f} at {departs['value']}{where}",
            )
        )  # fmt: skip
    return rows


def _regimes(data: Mapping[str, Any]) -> str:
    rows = [
        (
            each["rule"], each["dtype"], each["held_by"], each["points"],
            "–" if each["gb_per_s"] is None else f"{each['gb_per_s']:.1f}", _time(each["fixed_ms"]),
            f"{100 * each['residual']:.0f} %",
        )
        for each in data["regimes"]
    ]  # fmt: skip
    return markdown_table(("rule", "dtype", "held by", "sizes", "GB/s", "fixed", "residual"), rows)


def _times(data: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """By axis and dtype a table with a line a size and a column a rule."""
    laws = {(law["axis"], law["what"], law["rule"], law["dtype"]): law for law in data["fits"]}
    tables: dict[tuple[str, str, str], dict[int, dict[str, str]]] = {}
    for row in data["rows"]:
        axis, what, rule = row["axis"], row["what"], row["rule"]
        law = laws.get((axis, what, "all" if axis == "ranks" else rule, row["dtype"]))
        expected = law["fixed_ms"] + law["ms_per_unit"] * row["units"] if law else row["ms"]
        line = tables.setdefault((axis, what, row["dtype"]), {}).setdefault(row["value"], {})
        line[rule] = f"{row['ms']:.3g} ({row['ms'] / expected:.2f})"
    for (axis, what, dtype), lines in tables.items():
        rules = list(dict.fromkeys(rule for line in lines.values() for rule in line))
        rows = [(value, *(line.get(rule, "–") for rule in rules)) for value, line in lines.items()]
        yield axis, f"{what}, {dtype}", markdown_table((axis, *rules), rows)
