"""``python -m benchmarks.scaling``: how the cost of guidance grows along each axis, and what that means for a fleet.

The combine against batch, pixels, frames and conditions, whole steps against batch, passes and ranks: all sizes of an
axis take turns in one process, and a law is fitted to their medians. The fleet is :mod:`benchmarks.fleet`'s.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from .caches import cache_levels
from .environment import Environment
from .fits import fit
from .fleet_parts import RESULTS, combine_ms, measured, section
from .parallel import times_over
from .race import CudaTimer, HostTimer, Timer, take_turns, wait_for
from .records import Record
from .scaling_series import Plan, Point, Warm, combine_points, step_points
from .scaling_text import to_markdown

__all__ = ["fits_of", "measure", "record", "regimes_of"]

MEMORY = "memory"
app = typer.Typer(add_completion=False)
Row = Mapping[str, Any]


def measure(
    *,
    full: bool = False,
    device: str = "cpu",
    progress: Callable[[str], None] = lambda part: None,
    plan: Plan | None = None,
    results: Path = RESULTS,
) -> dict[str, Any]:
    """All axes, their laws and the fleet.

    Args:
        full: more sizes, dtypes and rounds, and ranks; device: ``cpu`` or ``cuda``.
        progress: called with the name of each part before it.
        plan: sizes instead of the quick or full ones; results: folder that the fleet's other parts are taken from.

    Returns:
        A result of the kind ``scaling``: rows, ``fits``, ``regimes``, ``caches`` in bytes, ``fleet``, ``left_out``.
    """
    plan = plan or Plan.of(device, full=full)
    # A call finds its predictions where the last one left them: what fits in a cache is read from there.
    timer: Timer = CudaTimer(cold=False) if device == "cuda" else HostTimer()
    levels = cache_levels(device)
    rows: list[dict[str, Any]] = []
    left_out: list[str] = []
    with torch.no_grad():
        for part, points in combine_points(plan, device):
            progress(part)
            rows += _timed(points(), Warm(timer), plan.rounds, levels)
        try:
            for part, points in step_points(plan, device):
                progress(part)
                rows += _timed(points(), HostTimer(wait_for(device)), plan.step_rounds, levels, warmup=1)
        except ImportError as error:
            left_out.append(f"whole steps: {error}")
    for ranks in plan.ranks:
        progress(f"step, {ranks} ranks")
        rows += _over(ranks, plan)
    if not plan.ranks:
        left_out.append("ranks: measured in a full run only, where there are two devices or processes for them")
    laws = fits_of(rows)
    parts, sources = measured(results)
    if device == "cuda" and (own := combine_ms(laws)) is not None:
        parts, sources = replace(parts, combine_ms=own), sources | {"combine_ms": "measured here: this file"}
    environment = Environment.of(device)
    return {
        "kind": "scaling",
        "unit": "ms",
        "caches": levels,
        "fits": laws,
        "regimes": regimes_of(rows),
        "fleet": section(parts, sources, folder=results),
        "left_out": left_out,
        "environment": vars(environment),
        "rows": rows,
    }


def _timed(
    points: Sequence[Point], timer: Timer, rounds: int, levels: Mapping[str, int], warmup: int = 2
) -> Iterator[dict[str, Any]]:
    """A row for each point, all of them timed in turns."""
    named = {str(number): point for number, point in enumerate(points)}
    times = take_turns({name: point.call for name, point in named.items()}, timer, rounds=rounds, warmup=warmup)
    host = times.pop("host", None)
    (samples,) = times.values()
    for name, point in named.items():
        p20, p50, p80 = map(float, np.percentile(samples[name], [20, 50, 80]))
        yield {
            "axis": point.axis,
            "value": point.value,
            "what": point.what,
            "rule": point.rule,
            "dtype": point.dtype,
            "shape": list(point.shape),
            "ms": p50,
            "p20": p20,
            "p80": p80,
            "host_ms": None if host is None else float(np.median(host[name])),
            "per_unit": p50 / point.value,
            "units": point.value,
            "elements": point.elements,
            "bytes": point.size,
            "held_by": None if point.size is None else _held_by(point.size, levels),
            "rounds": rounds,
        }


def _held_by(size: int, levels: Mapping[str, int]) -> str:
    return next((name for name, capacity in levels.items() if size <= capacity), MEMORY)


def _over(ranks: int, plan: Plan) -> Iterator[dict[str, Any]]:
    """Rows of steps whose passes are shared by so many processes; the unit is a pass of the busiest."""
    for name, samples in times_over(ranks, plan.step_rounds, plan.images).items():
        rule, how = name.rsplit(" | ", 1)
        if how == "parallel":
            p20, p50, p80 = map(float, np.percentile(samples, [20, 50, 80]))
            passes = int(rule.rpartition(", ")[2].split()[0])
            units = -(-passes // ranks)
            shape = [plan.images, 3, 28, 28]
            yield {
                "axis": "ranks", "value": ranks, "what": "step", "rule": rule, "dtype": "fp32", "shape": shape,
                "ms": p50, "p20": p20, "p80": p80, "host_ms": None, "per_unit": p50 / units, "units": units,
                "elements": int(np.prod(shape)), "bytes": None, "held_by": None, "rounds": plan.step_rounds,
            }  # fmt: skip


def fits_of(rows: Iterable[Row]) -> list[dict[str, Any]]:
    """A law for each axis, rule and dtype with two sizes or more; ranks have one law for all rules."""
    series: dict[tuple[str, str, str, str], list[Row]] = {}
    for row in rows:
        rule = "all" if row["axis"] == "ranks" else row["rule"]
        series.setdefault((row["axis"], row["what"], rule, row["dtype"]), []).append(row)
    found = []
    for (axis, what, rule, dtype), points in series.items():
        units = [point["units"] for point in points]
        if len(set(units)) < 2:
            continue
        law = fit(units, [point["ms"] for point in points])
        furthest = points[law.departs]
        found.append(
            {
                "axis": axis,
                "what": what,
                "rule": rule,
                "dtype": dtype,
                "fixed_ms": law.fixed_ms,
                "ms_per_unit": law.ms_per_unit,
                "exponent": law.exponent,
                "residual": law.residual,
                "exponent_residual": law.exponent_residual,
                "points": law.points,
                "elements_per_unit": points[0]["elements"] / units[0],
                "departs": {
                    "value": furthest["value"],
                    "ratio": law.departure,
                    "bytes": furthest["bytes"],
                    "held_by": furthest["held_by"],
                },
            }
        )
    return found


def regimes_of(rows: Iterable[Row]) -> list[dict[str, Any]]:
    """The combine's cost a gigabyte by what holds a call's tensors: each cache and memory has a law of its own."""
    series: dict[tuple[str, str, str], list[Row]] = {}
    for row in rows:
        # Along the conditions the rule itself changes.
        if row["what"] == "combine" and row["axis"] != "conditions":
            series.setdefault((row["rule"], row["dtype"], row["held_by"]), []).append(row)
    found = []
    for (rule, dtype, level), points in series.items():
        sizes = [point["bytes"] for point in points]
        if len(set(sizes)) < 3:
            continue
        law = fit(sizes, [point["ms"] for point in points])
        speed = 1e-6 / law.ms_per_unit if law.ms_per_unit else None
        found.append(
            {
                "rule": rule,
                "dtype": dtype,
                "held_by": level,
                "fixed_ms": law.fixed_ms,
                "gb_per_s": speed,
                "residual": law.residual,
                "points": law.points,
            }
        )
    return found


def record(data: Mapping[str, Any]) -> Record:
    """What :func:`measure` returned, as files."""
    environment = Environment(**data["environment"])
    more = {name: value for name, value in data.items() if name not in ("kind", "environment", "rows")}
    name = f"scaling-{environment.name}"
    return Record(data["kind"], name, environment, data["rows"], to_markdown(data, environment), more)


@app.command()
def main(
    full: Annotated[bool, typer.Option("--full", help="More sizes, dtypes and rounds, and ranks.")] = False,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads; default: torch's.")] = None,
    output: Annotated[Path, typer.Option(help="Folder for the JSON, CSV and Markdown.")] = RESULTS,
) -> None:
    """Time guidance along each axis, fit laws of cost and model a fleet; writes scaling-DEVICE.json, .csv and .md."""
    if device not in ("cpu", "cuda"):
        raise typer.BadParameter(f"expected cpu or cuda, got {device!r}", param_hint="--device")
    if device == "cuda" and not torch.cuda.is_available():
        raise typer.BadParameter("no CUDA device here", param_hint="--device")
    if threads:
        torch.set_num_threads(threads)
    console = Console(width=None if Console().is_terminal else 180)
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    try:
        with Progress(*columns, console=Console(stderr=True)) as bar:
            task = bar.add_task("", total=None)
            data = measure(full=full, device=device, progress=lambda part: bar.update(task, description=part))
    except (RuntimeError, ValueError, OSError) as error:
        Console(stderr=True).print(f"error: {error}", style="red", highlight=False, markup=False, soft_wrap=True)
        raise typer.Exit(1) from None
    result = record(data)
    console.print(result.text, highlight=False, markup=False)
    for path in result.write(output):
        console.print(f"wrote {path}", highlight=False)


if __name__ == "__main__":
    app()
