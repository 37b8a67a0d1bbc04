"""``python -m benchmarks.fleet``: the fleet's table in a terminal, as Markdown or as JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from .fleet_parts import GIVEN, RESULTS, measured, section
from .records import markdown_table

__all__ = ["app", "to_markdown"]

app = typer.Typer(add_completion=False)
HEADER = (
    "setup", "passes a step", "GPUs", "latency s", "× faster", "images/s", "images/s a GPU", "÷ first", "combine %",
    "GPUs for the demand", "wait s",
)  # fmt: skip
CHECKED = ("measured", "predicted ÷ reference", "measured ÷ reference", "off by %")


def _lines(fleet: Mapping[str, Any]) -> list[tuple[str, ...]]:
    return [
        (
            row["setup"], f"{row['passes_per_step']:.2f}", str(row["gpus"]), f"{row['latency_s']:.2f}",
            f"{row['speedup']:.2f}", f"{row['images_per_second']:.3f}", f"{row['images_per_second_per_gpu']:.3f}",
            f"{row['relative']:.2f}", f"{100 * row['combine_share']:.2g}", _known(row["fleet"], "d"),
            _known(row["wait_s"], ".2g"),
        )
        for row in fleet["rows"]
    ]  # fmt: skip


def _known(value: float | None, form: str) -> str:
    return "–" if value is None else format(value, form)


def _assumed(fleet: Mapping[str, Any]) -> list[tuple[str, ...]]:
    return [(each["name"], f"{each['value']:g}", each["unit"], each["source"]) for each in fleet["assumptions"]]


def _checked(fleet: Mapping[str, Any]) -> list[tuple[str, ...]]:
    return [
        (c["what"], f"{c['predicted']:.2f}", f"{c['measured']:.2f}", f"{100 * c['error']:+.0f}")
        for c in fleet["checks"]
    ]


def _combine(fleet: Mapping[str, Any]) -> str:
    largest = max(row["combine_share"] for row in fleet["rows"])
    parts = {each["name"]: each["value"] for each in fleet["assumptions"]}
    return (
        f"The combine is at most {100 * largest:.2g} % of a call: no way of computing it saves more. It is less than "
        f"1 % wherever the {parts['passes']} passes of a step take longer than {99 * parts['combine_ms']:.3g} ms."
    )


def to_markdown(fleet: Mapping[str, Any]) -> str:
    """Setups, assumptions, checks and what is left out.

    Args:
        fleet: of :func:`benchmarks.fleet_parts.section`.
    """
    header = HEADER if fleet["demand"] is not None else HEADER[:-2]
    lines = [
        markdown_table(header, [row[: len(header)] for row in _lines(fleet)]),
        "",
        _combine(fleet) + (f" The demand is {fleet['demand']:g} images a second." if fleet["demand"] else ""),
        "",
        markdown_table(("part", "value", "unit", "source"), _assumed(fleet)),
    ]
    if fleet["checks"]:
        about = "The model beside what was measured; a network's single pass and its batch of two are taken as known:"
        lines += ["", about, "", markdown_table(CHECKED, _checked(fleet))]
    return "\n".join([*lines, "", "Left out:", "", *(f"- {each}" for each in fleet["left_out"])]) + "\n"


def _show(fleet: Mapping[str, Any], console: Console) -> None:
    header = HEADER if fleet["demand"] is not None else HEADER[:-2]
    for title, names, rows in (
        ("parts", ("part", "value", "unit", "source"), _assumed(fleet)),
        ("the model beside measurements", CHECKED, _checked(fleet)),
        ("fleet", header, [row[: len(header)] for row in _lines(fleet)]),
    ):
        table = Table(*(escape(name) for name in names), title=title)
        for row in rows:
            table.add_row(*map(escape, row))
        console.print(table)
    console.print(_combine(fleet), highlight=False)
    for each in fleet["left_out"]:
        console.print(f"left out: {each}", highlight=False, markup=False)


@app.command()
def main(
    pass_ms: Annotated[float | None, typer.Option(help="One pass on a call's images, ms.")] = None,
    steps: Annotated[int | None, typer.Option(help="Steps of the sampler.")] = None,
    passes: Annotated[int | None, typer.Option(help="Passes of a guided step.")] = None,
    images: Annotated[int | None, typer.Option(help="Images of a call.")] = None,
    batch_gain: Annotated[float | None, typer.Option(help="Two passes in turn ÷ both as one batch.")] = None,
    combine_ms: Annotated[float | None, typer.Option(help="Guidance of a step, ms.")] = None,
    scheduler_ms: Annotated[float | None, typer.Option(help="The rest of a step, ms.")] = None,
    fixed_ms: Annotated[float | None, typer.Option(help="Text encoder and image decoder of a call, ms.")] = None,
    prediction_mb: Annotated[float | None, typer.Option(help="One prediction, MB.")] = None,
    link_gb_per_s: Annotated[float | None, typer.Option(help="Between two GPUs, GB/s.")] = None,
    link_us: Annotated[float | None, typer.Option(help="Of one exchange between GPUs, µs.")] = None,
    imbalance: Annotated[float | None, typer.Option(help="Slowest GPU's passes ÷ their time alone.")] = None,
    student_cost: Annotated[float | None, typer.Option(help="A student's pass ÷ the teacher's.")] = None,
    utilisation: Annotated[float | None, typer.Option(help="Most of its time that a GPU may be busy.")] = None,
    demand: Annotated[float | None, typer.Option(help="Images a second to serve.")] = None,
    results: Annotated[Path, typer.Option(help="Folder of results that other parts are taken from.")] = RESULTS,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """What passes, CFG-parallel, gating and students mean for latency, images a second and the number of GPUs."""
    options = {
        "pass_ms": pass_ms, "steps": steps, "passes": passes, "images": images, "batch_gain": batch_gain,
        "combine_ms": combine_ms, "scheduler_ms": scheduler_ms, "fixed_ms": fixed_ms, "prediction_mb": prediction_mb,
        "link_gb_per_s": link_gb_per_s, "link_us": link_us, "imbalance": imbalance, "student_cost": student_cost,
        "utilisation": utilisation,
    }  # fmt: skip
    given: dict[str, Any] = {name: value for name, value in options.items() if value is not None}
    try:
        parts, sources = measured(results)
        fleet = section(replace(parts, **given), sources | dict.fromkeys(given, GIVEN), demand, results)
    except (TypeError, ValueError) as error:
        Console(stderr=True).print(f"[red]error:[/] {escape(str(error))}", highlight=False, soft_wrap=True)
        raise typer.Exit(1) from None
    if as_json:
        print(json.dumps(fleet, indent=1, ensure_ascii=False))
        return
    _show(fleet, Console(width=None if Console().is_terminal else 180))
