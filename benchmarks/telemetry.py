"""``python -m benchmarks.telemetry``: what telemetry adds to a call of guidance, and what a scrape takes."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from torch import Tensor

from fastcfg import CFG, Rule, guide
from fastcfg.telemetry import Telemetry

from .environment import Environment
from .peers import Call
from .race import HostTimer, Reading, Timer, summarise, take_turns, wait_for
from .records import Record, markdown_table

__all__ = ["app", "contestants", "measure", "record"]

RESULTS = Path(__file__).parent / "results"
SHAPES = ((1, 4, 64, 64), (1, 16, 128, 128))
RULES: dict[str, Rule] = {"CFG": CFG(7.5), "CFG + rescale 0.7": CFG(7.5, rescale=0.7)}
EVERY = (1, 10, 100)
CALLS = 100
"""Calls of a contestant in a round: as many as the rarest recording needs to happen once."""

app = typer.Typer(add_completion=False)


class ProcessTimer:
    """Time that the processors spent on a call, as ``time``: other work on the machine is none of it."""

    def measure(self, call: Call) -> Reading:
        start = time.process_time_ns()
        call()
        elapsed = (time.process_time_ns() - start) / 1e6
        return lambda: {"time": elapsed}


def _timer(device: str) -> Timer:
    return ProcessTimer() if device == "cpu" else HostTimer(wait_for(device))


def contestants() -> dict[str, Telemetry | None]:
    """The recorder of each; ``off`` twice, which shows what the measurement itself can tell."""
    every = {f"every={n}": Telemetry(every=n) for n in EVERY}
    return {"off": None, "off, again": None, **every, 'sums="gram", every=100': Telemetry(sums="gram", every=100)}


def _calls(rule: Rule, named: dict[str, Tensor], telemetry: Telemetry | None) -> None:
    for _ in range(CALLS):
        guide(rule, **named, telemetry=telemetry)


def measure(rounds: int, device: str = "cpu", shapes: Sequence[tuple[int, ...]] = SHAPES) -> list[dict[str, Any]]:
    """A row for each rule, shape and contestant; times are of one call in microseconds."""
    rows = []
    for shape in shapes:
        u, c = torch.randn(2, *shape, device=device)
        for name, rule in RULES.items():
            recorders = contestants()
            calls: dict[str, Callable[[], Any]] = {
                who: partial(_calls, rule, {"uncond": u, "cond": c}, told) for who, told in recorders.items()
            }
            times = take_turns(calls, _timer(device), rounds=rounds)["time"]
            for who, found in summarise(times, "off").items():
                rows.append(
                    {
                        "rule": name, "shape": list(shape), "telemetry": who, "us": 1e3 * found.p50 / CALLS,
                        "ratio": found.ratio, "ratio_p20": found.ratio_p20, "ratio_p80": found.ratio_p80,
                    }
                )  # fmt: skip
    return rows


def scrape(device: str, rounds: int) -> float:
    """Milliseconds of :meth:`fastcfg.telemetry.Telemetry.to_prometheus` with a full ring."""
    telemetry = Telemetry()
    u, c = torch.randn(2, 1, 4, 8, 8, device=device)
    for step in range(telemetry.capacity):
        guide(RULES["CFG + rescale 0.7"], uncond=u, cond=c, telemetry=telemetry.at(step))
    telemetry.drain()
    calls = {"scrape": telemetry.to_prometheus}
    return statistics.median(take_turns(calls, _timer(device), rounds=rounds)["time"]["scrape"])


def record(rows: Sequence[dict[str, Any]], scraped: float, environment: Environment) -> Record:
    """The result."""
    lines = [
        (row["rule"], "×".join(map(str, row["shape"])), row["telemetry"], f"{row['us']:.1f}",
         f"{row['ratio']:.2f}", f"{row['ratio_p20']:.2f} … {row['ratio_p80']:.2f}")
        for row in rows
    ]  # fmt: skip
    text = (
        f"# What telemetry costs on {environment.label}\n\n{environment.origin}\n\n"
        f"`python -m benchmarks.telemetry`: rounds of {CALLS} calls each, in turns in one process, in the time "
        "that the processors spent (on a GPU: until it is done); a ratio is the "
        "median over rounds to calls without telemetry in the same round.\n\n"
        + markdown_table(("rule", "float32", "telemetry", "µs a call", "÷ off", "p20 … p80"), lines)
        + f"\n\nA scrape (`to_prometheus`, {Telemetry().capacity} records): {scraped:.1f} ms.\n"
    )
    return Record("telemetry", f"telemetry-{environment.name}", environment, rows, text, {"scrape_ms": scraped})


@app.command()
def main(
    rounds: Annotated[int, typer.Option(min=1, help="Rounds of each case.")] = 60,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    output: Annotated[Path, typer.Option(help="Folder for JSON, CSV and Markdown.")] = RESULTS,
) -> None:
    """Time calls of guidance with telemetry off, on and in between; writes telemetry-*.json, .csv and .md."""
    if device not in ("cpu", "cuda") or (device == "cuda" and not torch.cuda.is_available()):
        raise typer.BadParameter(f"expected cpu, or cuda where there is one, got {device!r}", param_hint="--device")
    made = record(measure(rounds, device), scrape(device, rounds), Environment.of(device))
    made.write(output)
    Console().print(made.text, highlight=False, markup=False)


if __name__ == "__main__":
    app()
