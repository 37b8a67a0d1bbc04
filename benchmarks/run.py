"""``fastcfg bench``, or ``python -m benchmarks.run``: measure this machine against the peers installed beside it."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from . import compare as comparison
from . import suite
from .cases import RULES
from .environment import Environment
from .sections import Case, Plan
from .suite import SECTIONS, Outcome

__all__ = ["app"]

RESULTS = Path(__file__).parent / "results"
QUICK = Path("outputs/bench")
REPORT = "report.html"
app = typer.Typer(add_completion=False)


@app.command()
def main(
    full: Annotated[bool, typer.Option("--full/--quick", help="All sizes and more rounds; or minutes.")] = False,
    section: Annotated[
        list[str] | None, typer.Option(help=f"Only this one of {', '.join(SECTIONS)}; may be given several times.")
    ] = None,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    cold: Annotated[bool, typer.Option("--cold", help="The kernels, with predictions that are in no cache.")] = False,
    output: Annotated[
        Path | None,
        typer.Option(
            help="Folder for JSON, Markdown and the report; default: benchmarks/results for all of a full "
            f"run, {QUICK} for less."
        ),
    ] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads; default: torch's.")] = None,
    rule: Annotated[
        list[str] | None, typer.Option(help="The kernels, of this rule alone; may be given several times.")
    ] = None,
    rounds: Annotated[int | None, typer.Option(min=1, help="Rounds of each case; default: by its size.")] = None,
    compare: Annotated[
        tuple[Path, Path] | None,
        typer.Option(
            metavar="OLD NEW",
            help="Measure nothing: compare two JSON files, or this machine's in two folders; status 1 if worse.",
        ),
    ] = None,
    repeat: Annotated[
        bool, typer.Option("--repeat", help="With --compare: measure again what looks worse, before it is called so.")
    ] = False,
) -> None:
    """Measure kernels, guided steps, samplers, exported graphs and scaling beside the peers, each checked first.

    Contestants take turns in one process. Writes JSON, CSV and Markdown of each section when it is done, and one
    report.html of all results in the folder; what was not measured stands in it as it is recorded.
    """
    known = [contest.name for contest in RULES]
    if unknown := [name for name in rule or () if name not in known]:
        raise typer.BadParameter(f"expected one of {known}, got {unknown[0]!r}", param_hint="--rule")
    if unknown := [name for name in section or () if name not in SECTIONS]:
        raise typer.BadParameter(f"expected one of {list(SECTIONS)}, got {unknown[0]!r}", param_hint="--section")
    if device not in ("cpu", "cuda"):
        raise typer.BadParameter(f"expected cpu or cuda, got {device!r}", param_hint="--device")
    if device == "cuda" and not torch.cuda.is_available():
        raise typer.BadParameter("no CUDA device here", param_hint="--device")
    if repeat and compare is None:
        raise typer.BadParameter("goes with --compare", param_hint="--repeat")
    if threads:
        torch.set_num_threads(threads)
    plan = Plan(full, device, cold, tuple(rule or ()), rounds)
    console = Console(width=None if Console().is_terminal else 180)
    if compare is not None:
        _compare(*compare, plan, repeat, console)
        return
    # The kernels alone have options of their own.
    names = section or (["kernels"] if rule or cold else list(SECTIONS))
    if output is None:
        output = QUICK if not full or rule or rounds else RESULTS
    outcomes: list[Outcome] = []
    stopped = False
    try:
        with _progress(len(names)) as progress:
            for outcome in suite.run([name for name in SECTIONS if name in names], plan, progress):
                outcomes.append(outcome)
                _write(outcome, output, console)
    except KeyboardInterrupt:
        stopped = True
    if any(outcome.measured for outcome in outcomes):
        _report(output, console)
    for outcome in outcomes:
        console.print(_line(outcome), highlight=False)
    if stopped:
        missing = [name for name in SECTIONS if name in names and name not in {o.section for o in outcomes}]
        rest = " ".join(f"--section {name}" for name in missing)
        console.print(f"stopped; what is above is written, and the rest is measured by {rest}", highlight=False)
        raise typer.Exit(130)
    console.print(f"{sum(o.seconds for o in outcomes):.0f} s in all", highlight=False)
    if any(outcome.failed for outcome in outcomes):
        raise typer.Exit(1)


class _Bar:
    """Progress over sections, with the part that is being measured."""

    def __init__(self, bar: Progress, total: int) -> None:
        self._bar, self._sections = bar, list[str]()
        self._task = bar.add_task("", total=total)

    def __call__(self, section: str, part: str) -> None:
        if section not in self._sections:
            self._sections.append(section)
        text = escape(f"{section} {part}".strip())
        self._bar.update(self._task, description=text, completed=len(self._sections) - 1)

    def finish(self) -> None:
        self._bar.update(self._task, description="done", completed=self._bar.tasks[0].total)


@contextmanager
def _progress(sections: int) -> Iterator[_Bar]:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        made = _Bar(bar, sections)
        yield made
        made.finish()


def _write(outcome: Outcome, output: Path, console: Console) -> None:
    """A section's tables on the terminal and its files, as soon as it is done."""
    if (measured := outcome.measured) is None:
        return
    for table in measured.show:
        console.print(table)
    for note in measured.notes:
        console.print(note, highlight=False, markup=False)
    written = measured.record.write(output)
    for path in written:
        console.print(f"wrote {path}", highlight=False)


def _report(output: Path, console: Console) -> None:
    """One page of all results in the folder, and of the recorded ones of other kinds."""
    try:
        from .html import write_report

        path = write_report(output, output / REPORT, recorded=RESULTS)
    except (ImportError, ValueError, OSError) as error:
        console.print(f"no report: {error}", highlight=False, markup=False)
        return
    console.print(f"report: {path}", highlight=False)


def _line(outcome: Outcome) -> str:
    about = SECTIONS[outcome.section].about
    if outcome.failed:
        return f"[red]{outcome.section}[/]: {escape(outcome.why)}"
    if outcome.measured is None:
        return f"[yellow]{outcome.section}[/]: left out: {escape(outcome.why)}"
    return f"{outcome.section} ({about}): {outcome.seconds:.0f} s"


def _compare(old: Path, new: Path, plan: Plan, repeat: bool, console: Console) -> None:
    """Print what changed; the process ends with status 1 if a case got worse."""
    here = Environment.of(plan.device)
    try:
        before, after = (comparison.load(path, here.name) for path in (old, new))
        found = comparison.compare(before, after)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--compare") from None
    for difference in comparison.differences(before, after):
        console.print(f"note: {difference}", highlight=False, markup=False)
    if repeat and (suspects := found.cases("worse")):
        elsewhere = [e for e in after.environments.values() if Environment(**e).label != here.label]
        if elsewhere:
            what = f"{new} is of {Environment(**elsewhere[0]).label}, and this is {here.label}"
            raise typer.BadParameter(f"can't measure again: {what}", param_hint="--repeat")
        console.print(f"measuring {len(suspects)} again, alone, that look worse", highlight=False)
        found = found.confirmed(before, _again(suspects, plan, console))
    if (table := found.table()).row_count:
        console.print(table)
    console.print(found.summary(), highlight=False)
    if found.cases("worse"):
        raise typer.Exit(1)


def _again(suspects: Collection[Case], plan: Plan, console: Console) -> comparison.Results:
    """The suspects measured once more."""
    ratios: dict[tuple[Case, str], comparison.Interval] = {}
    environments: dict[str, Mapping[str, Any]] = {}
    with _progress(len({case[0] for case in suspects})) as progress:
        for outcome in suite.again(suspects, plan, progress):
            if outcome.measured is None:
                console.print(_line(outcome), highlight=False)
                continue
            found = comparison.results_of(outcome.measured.record.to_dict())
            ratios |= found.ratios
            environments |= found.environments
    return comparison.Results(environments, ratios)


if __name__ == "__main__":
    app()
