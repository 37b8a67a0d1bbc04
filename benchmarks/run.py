"""``fastcfg bench``, or ``python -m benchmarks.run``: measure this machine against the peers.

On a GPU, ``--device cuda`` also measures each launch strategy at each size, eagerly and in captured graphs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from math import prod
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from torch import Tensor

from . import compare as comparison
from .caches import copies, copy_call, in_turn, last_level_cache, rotations
from .cases import REFERENCE, RULES, Case, cases, contestants, draw, exact
from .counting import Work, work
from .graphs import GraphTimer, capture
from .peers import Call
from .race import CudaTimer, HostTimer, Timer, race, summarise
from .report import Environment, Report

__all__ = ["graph_race", "measure", "run_case"]

RESULTS = Path(__file__).parent / "results"
COPY = "copy"
CAPTURED = 32
"""Calls in a graph at least, so that the time of its start is a small part of each."""
app = typer.Typer(add_completion=False)


def run_case(case: Case, device: str, timer: Timer, report: Report, *, strategies: bool, rounds: int | None) -> None:
    """One case: bind the contestants, check them, let them race, add the rows.

    Raises:
        RuntimeError: if fastcfg itself was refused: then there is nothing to compare with.
    """
    predictions = draw(case, device)
    size = sum(p.numel() * p.element_size() for p in predictions.values())
    number = rotations(size, last_level_cache(device)) if report.cache == "cold" else 1
    sets = copies(predictions, number)
    bound: dict[str, list[Call]] = {}
    works: dict[str, Work] = {}
    for name, bind in contestants(case, strategies=strategies).items():
        try:
            bound[name] = [bind(each) for each in sets]
        except (ImportError, AttributeError, RuntimeError, ValueError) as error:
            report.left_out.append((str(case), name, str(error).splitlines()[0]))
            continue
        with suppress(Exception):  # Whatever goes wrong is met again in the race, and told there.
            works[name] = work(bound[name][0], prod(case.shape), device, partial(case.moved_by_fastcfg, device))
    bound[COPY] = [copy_call(case.least, device) for _ in sets]
    truth = exact(case, predictions)
    refused = _race(case, in_turn(bound), truth, timer, report, works, rounds)
    if REFERENCE in refused:
        raise RuntimeError(f"{case}: fastcfg was refused: {refused[REFERENCE]}")
    if device == "cuda":
        ran = {name: calls for name, calls in bound.items() if name not in refused}
        graph_race(case, ran, truth, report, works, rounds)


def _race(
    case: Case,
    calls: Mapping[str, Call],
    truth: Tensor,
    timer: Timer,
    report: Report,
    works: Mapping[str, Work],
    rounds: int | None,
) -> dict[str, str]:
    """Race the contestants beside the copy and add the rows; who was refused and why."""
    racing = {name: call for name, call in calls.items() if name != COPY}
    allowed = {name: case.contest.allowed for name in racing if not name.startswith(REFERENCE)}
    times, errors, refused = race(
        racing,
        truth,
        case.dtype,
        timer,
        rounds=rounds or case.rounds,
        beside={COPY: calls[COPY]},
        allowed=allowed,
    )
    report.left_out.extend((str(case), name, why) for name, why in refused.items())
    if REFERENCE not in refused:
        for metric, samples in times.items():
            copy = median(samples.pop(COPY))
            summaries = summarise(samples, REFERENCE)
            report.add(case, metric, summaries, errors, works, None if metric == "host" else copy)
    return refused


def graph_race(
    case: Case,
    bound: Mapping[str, Sequence[Call]],
    truth: Tensor,
    report: Report,
    works: Mapping[str, Work],
    rounds: int | None,
    cuda: Any = torch.cuda,
) -> None:
    """The same race with every contestant's calls in a CUDA graph; who can't be captured is left out of it.

    Args:
        bound: by contestant its calls, one on each copy of the predictions.
        cuda: ``torch.cuda``, or what stands for it in a test.
    """
    iterations = max(CAPTURED, len(bound[COPY]))
    replays: dict[str, Call] = {}
    for name, calls in bound.items():
        try:
            replays[name] = capture(calls, iterations, cuda)
        except RuntimeError as error:
            report.left_out.append((str(case), f"{name}, captured", str(error).splitlines()[0]))
    if REFERENCE in replays and COPY in replays:
        _race(case, replays, truth, GraphTimer(iterations, cuda), report, works, rounds)


def measure(
    chosen: Iterable[Case],
    device: str,
    timer: Timer,
    *,
    strategies: bool,
    rounds: int | None = None,
    cold: bool = False,
    progress: Callable[[Case], None] = lambda case: None,
) -> Report:
    """All cases, in one process.

    Args:
        rounds: of each case instead of its own number.
        cold: let copies of the predictions take turns, more of them than the last-level cache holds.
        progress: called before each case.
    """
    report = Report(Environment.of(device), cache="cold" if cold else "hot")
    with torch.no_grad():
        for case in chosen:
            progress(case)
            run_case(case, device, timer, report, strategies=strategies, rounds=rounds)
    return report


@app.command()
def main(
    quick: Annotated[bool, typer.Option(help="Three of the rules.")] = False,
    full: Annotated[bool, typer.Option(help="All shapes, up to long videos.")] = False,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    cold: Annotated[bool, typer.Option("--cold", help="Predictions that are in no cache.")] = False,
    output: Annotated[Path, typer.Option(help="Folder for the JSON, CSV, Markdown and plots.")] = RESULTS,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads; default: torch's.")] = None,
    rule: Annotated[list[str] | None, typer.Option(help="Only this rule; may be given several times.")] = None,
    rounds: Annotated[int | None, typer.Option(min=1, help="Rounds of each case; default: by its size.")] = None,
    compare: Annotated[
        tuple[Path, Path] | None,
        typer.Option(
            metavar="OLD NEW",
            help="Measure nothing: compare two JSON files, or this machine's in two folders; status 1 if worse.",
        ),
    ] = None,
) -> None:
    """Time guidance against the peers, interleaved, each checked against float64 first; writes files and plots."""
    known = [contest.name for contest in RULES]
    if unknown := [name for name in rule or () if name not in known]:
        raise typer.BadParameter(f"expected one of {known}, got {unknown[0]!r}", param_hint="--rule")
    if device not in ("cpu", "cuda"):
        raise typer.BadParameter(f"expected cpu or cuda, got {device!r}", param_hint="--device")
    if device == "cuda" and not torch.cuda.is_available():
        raise typer.BadParameter("no CUDA device here", param_hint="--device")
    if threads:
        torch.set_num_threads(threads)
    console = Console(width=None if Console().is_terminal else 180)
    if compare is not None:
        _compare(*compare, Report(Environment.of(device), cache="cold" if cold else "hot").name, console)
        return
    chosen = [c for c in cases(device, quick=quick and not rule, full=full) if not rule or c.contest.name in rule]
    timer: Timer = CudaTimer(cold=cold) if device == "cuda" else HostTimer()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("", total=len(chosen))
        started = iter(range(len(chosen)))

        def progress(case: Case) -> None:
            bar.update(task, description=str(case), completed=next(started))

        try:
            report = measure(
                chosen, device, timer, strategies=device == "cuda", rounds=rounds, cold=cold, progress=progress
            )
        except RuntimeError as error:
            bar.stop()
            Console(stderr=True).print(f"[red]error:[/] {escape(str(error))}", highlight=False, soft_wrap=True)
            raise typer.Exit(1) from None
        bar.update(task, completed=len(chosen))
    _show(report, console)
    for path in report.write(output):
        console.print(f"wrote {path}", highlight=False)
    try:
        from .plots import draw_plots
    except ImportError as error:
        console.print(f"no plots: {error}; pip install 'fastcfg[bench]'", highlight=False, markup=False)
        return
    for path in draw_plots(report, output):
        console.print(f"wrote {path}", highlight=False)


def _show(report: Report, console: Console) -> None:
    console.print(report.table())
    for case_name, who, why in report.left_out:
        console.print(f"left out: {case_name}: {who}: {why}", highlight=False, markup=False)
    for target in report.targets():
        met = "met" if target.met else "[red]missed[/]"
        row = target.row
        console.print(f"{met}: {target.what}, {row.size} {row.dtype}: {row.ratio:.2f}", highlight=False)


def _compare(old: Path, new: Path, name: str, console: Console) -> None:
    """Print what changed; the process ends with status 1 if a case got worse."""
    before, after = (path / f"{name}.json" if path.is_dir() else path for path in (old, new))
    try:
        results = comparison.load(before), comparison.load(after)
        found = comparison.compare(*results)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--compare") from None
    for difference in comparison.differences(*results):
        console.print(f"note: {difference}", highlight=False, markup=False)
    if (table := found.table()).row_count:
        console.print(table)
    console.print(found.summary(), highlight=False)
    if found.cases("worse"):
        raise typer.Exit(1)


if __name__ == "__main__":
    app()
