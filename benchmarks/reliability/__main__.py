"""``python -m benchmarks.reliability``: every run, for minutes or hours, and what was found."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, cast

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from fastcfg.files import write_atomically

from ..report import Environment
from .outcome import Row, Run

RESULTS = Path(__file__).resolve().parents[1] / "results"
RUNS = {
    "fuzz": ("fuzz_run", 5),
    "refusals": ("refusals", 1),
    "threads": ("threads", 1),
    "processes": ("processes", 2),
    "memory": ("memory", 4),
    "interrupts": ("interrupts", 8),
    "files": ("corruption", 5),
}
"""Runs by name: their module, and their share of the time."""
app = typer.Typer(add_completion=False)


def the_run(name: str) -> Run:
    """The module of a run.

    Raises:
        ValueError: for a name that is none.
    """
    if name not in RUNS:
        raise ValueError(f"run: expected one of {', '.join(RUNS)}, got {name!r}")
    return cast(Run, import_module(f"{__package__}.{RUNS[name][0]}"))


def to_markdown(rows: Sequence[Row], minutes: float, seed: int, environment: Environment) -> str:
    """What ran, what it found, and its figures."""
    versions = ", ".join(f"{name} {version}" for name, version in environment.versions.items())
    lines = ["# Reliability", "", f"`python -m benchmarks.reliability --minutes {minutes:g} --seed {seed}` on "]
    lines[-1] += f"{environment.label}, commit {environment.commit}; {versions}."
    lines += ["", "| run | what must hold | calls | seconds | failures |", "|---|---|---:|---:|---:|"]
    for row in rows:
        lines.append(
            f"| {row.run} | {the_run(row.run).TITLE} | {row.calls} | {row.seconds:.0f} | {len(row.failures)} |"
        )
    lines += ["", "| run | figure | value |", "|---|---|---:|"]
    lines += [f"| {row.run} | {name} | {value} |" for row in rows for name, value in row.figures.items()]
    for row in rows:
        for failure in row.failures:
            lines += ["", f"**{row.run}**: {failure.what}", "", "```", failure.command, "```"]
    return "\n".join(lines) + "\n"


def _parsed(case: str) -> dict[str, Any]:
    try:
        found = json.loads(case)
    except ValueError as error:
        raise ValueError(f"case: expected JSON, as a failure's command has it: {error}") from None
    if not isinstance(found, dict):
        raise ValueError(f"case: expected a JSON object, got {case}")
    return found


@app.command()
def main(
    minutes: Annotated[float, typer.Option(min=0.05, help="For all runs together.")] = 5.0,
    run: Annotated[list[str] | None, typer.Option(help="Of: " + ", ".join(RUNS) + "; repeat. Default: all.")] = None,
    seed: Annotated[int, typer.Option(help="Of everything random.")] = 0,
    output: Annotated[Path, typer.Option(help="Folder for reliability.json and .md.")] = RESULTS,
    case: Annotated[str, typer.Option(help="With one --run: make this case alone (JSON), and write nothing.")] = "",
) -> None:
    """Run for so long; exits with 1, and says how to see it again, where something did not hold."""
    console = Console(stderr=True)
    names = run or list(RUNS)
    try:
        runs = {name: the_run(name) for name in names}
        if case:
            if len(names) != 1:
                raise ValueError("case: goes with one --run, which made it")
            runs[names[0]].replay(_parsed(case))
            console.print("it holds")
            return
    except ValueError as error:
        console.print(f"error: {error}", style="red", markup=False, highlight=False)
        raise typer.Exit(1) from None
    total = sum(RUNS[name][1] for name in names)
    rows: list[Row] = []
    columns = (TextColumn("{task.description:<12}"), BarColumn(), TextColumn("{task.fields[calls]} calls"))
    with Progress(*columns, TimeElapsedColumn(), console=console) as bar:
        for name, made in runs.items():
            seconds = 60 * minutes * RUNS[name][1] / total
            task = bar.add_task(name, total=None, calls=0)

            def tick(calls: int, task: Any = task) -> None:
                bar.update(task, calls=calls)

            rows.append(made.run(seconds, seed, tick))
            bar.update(task, total=1, completed=1, calls=rows[-1].calls)
    environment = Environment.of("cpu")
    data = {
        "kind": "reliability",
        "environment": asdict(environment),
        "minutes": minutes,
        "seed": seed,
        "rows": [row.to_dict() for row in rows],
    }
    write_atomically(output / "reliability.json", json.dumps(data, indent=1, ensure_ascii=False) + "\n")
    text = to_markdown(rows, minutes, seed, environment)
    write_atomically(output / "reliability.md", text)
    Console().print(text, highlight=False, markup=False, soft_wrap=True)
    if any(row.failures for row in rows):
        raise typer.Exit(1)


if __name__ == "__main__":
    app()
