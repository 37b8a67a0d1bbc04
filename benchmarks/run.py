"""``python -m benchmarks.run``: measure this machine against the peers.

On a GPU, ``python -m benchmarks.run --device cuda`` also measures each launch strategy at each size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from .cases import REFERENCE, RULES, Case, cases, contestants, draw, exact
from .peers import Call
from .race import CudaTimer, HostTimer, Timer, race, summarise
from .report import Environment, Report

__all__ = ["measure", "run_case"]

RESULTS = Path(__file__).parent / "results"
app = typer.Typer(add_completion=False)


def run_case(case: Case, device: str, timer: Timer, report: Report, *, strategies: bool, rounds: int | None) -> None:
    """One case: bind the contestants, check them, let them race, add the rows.

    Raises:
        RuntimeError: if fastcfg itself was refused: then there is nothing to compare with.
    """
    predictions = draw(case, device)
    calls: dict[str, Call] = {}
    for name, bind in contestants(case, strategies=strategies).items():
        try:
            calls[name] = bind(predictions)
        except (ImportError, AttributeError, RuntimeError, ValueError) as error:
            report.left_out.append((str(case), name, str(error).splitlines()[0]))
    truth = exact(case, predictions)
    times, errors, refused = race(calls, truth, case.dtype, timer, rounds=rounds or case.rounds)
    if REFERENCE in refused:
        raise RuntimeError(f"{case}: fastcfg was refused: {refused[REFERENCE]}")
    report.left_out.extend((str(case), name, why) for name, why in refused.items())
    for metric, samples in times.items():
        report.add(case, metric, summarise(samples, REFERENCE), errors)


def measure(
    chosen: Iterable[Case],
    device: str,
    timer: Timer,
    *,
    strategies: bool,
    rounds: int | None = None,
    progress: Callable[[Case], None] = lambda case: None,
) -> Report:
    """All cases, in one process.

    Args:
        rounds: of each case instead of its own number.
        progress: called before each case.
    """
    report = Report(Environment.of(device))
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
    output: Annotated[Path, typer.Option(help="Folder for the JSON and Markdown.")] = RESULTS,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads; default: torch's.")] = None,
    rule: Annotated[list[str] | None, typer.Option(help="Only this rule; may be given several times.")] = None,
    rounds: Annotated[int | None, typer.Option(min=1, help="Rounds of each case; default: by its size.")] = None,
) -> None:
    """Time guidance against the peers, interleaved, each checked against float64 first; writes JSON and Markdown."""
    known = [contest.name for contest in RULES]
    if unknown := [name for name in rule or () if name not in known]:
        raise typer.BadParameter(f"expected one of {known}, got {unknown[0]!r}", param_hint="--rule")
    if device not in ("cpu", "cuda"):
        raise typer.BadParameter(f"expected cpu or cuda, got {device!r}", param_hint="--device")
    if device == "cuda" and not torch.cuda.is_available():
        raise typer.BadParameter("no CUDA device here", param_hint="--device")
    if threads:
        torch.set_num_threads(threads)
    chosen = [c for c in cases(device, quick=quick and not rule, full=full) if not rule or c.contest.name in rule]
    timer: Timer = CudaTimer() if device == "cuda" else HostTimer()
    console = Console(width=None if Console().is_terminal else 160)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("", total=len(chosen))
        started = iter(range(len(chosen)))

        def progress(case: Case) -> None:
            bar.update(task, description=str(case), completed=next(started))

        try:
            report = measure(chosen, device, timer, strategies=device == "cuda", rounds=rounds, progress=progress)
        except RuntimeError as error:
            bar.stop()
            Console(stderr=True).print(f"[red]error:[/] {error}", highlight=False)
            raise typer.Exit(1) from None
        bar.update(task, completed=len(chosen))
    console.print(report.table())
    for case_name, who, why in report.left_out:
        console.print(f"left out: {case_name}: {who}: {why}", highlight=False, markup=False)
    for target in report.targets():
        met = "met" if target.met else "[red]missed[/]"
        size = "×".join(map(str, target.shape))
        console.print(f"{met}: {target.what}, {size} {target.dtype}: {target.ratio:.2f}", highlight=False)
    for path in report.write(output):
        console.print(f"wrote {path}", highlight=False)


if __name__ == "__main__":
    app()
