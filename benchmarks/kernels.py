"""The kernels: guidance alone, every rule beside its peers, at each shape and dtype.

On a GPU each launch strategy is measured too, eagerly and in captured graphs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial
from math import prod
from statistics import median
from typing import Any

import torch
from torch import Tensor

from .caches import copies, copy_call, in_turn, last_level_cache, rotations
from .cases import REFERENCE, Case, cases, contestants, draw, exact
from .counting import Work, work
from .environment import Environment
from .graphs import GraphTimer, capture
from .peers import Call
from .race import CudaTimer, HostTimer, Timer, race, summarise
from .report import KIND, Report
from .sections import Measured, Plan, Progress, wanted

__all__ = ["graph_race", "measure", "run_case", "section"]

COPY = "copy"
CAPTURED = 32
"""Calls in a graph at least, so that the time of its start is a small part of each."""


def run_case(case: Case, device: str, timer: Timer, report: Report, *, strategies: bool, rounds: int) -> None:
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
    rounds: int,
) -> dict[str, str]:
    """Race the contestants beside the copy and add the rows; who was refused and why."""
    racing = {name: call for name, call in calls.items() if name != COPY}
    allowed = {name: case.contest.allowed for name in racing if not name.startswith(REFERENCE)}
    times, errors, refused = race(
        racing,
        truth,
        case.dtype,
        timer,
        rounds=rounds,
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
    rounds: int,
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
    chosen: Sequence[Case],
    plan: Plan,
    timer: Timer,
    *,
    strategies: bool = False,
    progress: Progress = lambda part: None,
) -> Report:
    """These cases, in one process: cold, copies of the predictions take turns, more than the last-level cache holds."""
    report = Report(Environment.of(plan.device), cache="cold" if plan.cold else "hot")
    with torch.no_grad():
        for number, case in enumerate(chosen, 1):
            progress(f"{number}/{len(chosen)} {case}")
            run_case(case, plan.device, timer, report, strategies=strategies, rounds=plan.rounds_of(case.rounds))
    return report


def section(plan: Plan, progress: Progress) -> Measured:
    """The section of ``fastcfg bench``."""
    chosen = [
        case
        for case in cases(plan.device, full=plan.all_sizes)
        if (not plan.rules or case.contest.name in plan.rules)
        and wanted(plan, KIND, case.contest.name, case.size, case.dtype_name)
    ]
    timer: Timer = CudaTimer(cold=plan.cold) if plan.device == "cuda" else HostTimer()
    report = measure(chosen, plan, timer, strategies=plan.device == "cuda", progress=progress)
    notes = [f"left out: {case}: {who}: {why}" for case, who, why in report.left_out]
    if targets := report.targets():
        missed = [target for target in targets if not target.met]
        notes += [f"missed: {t.what}, {t.row.size} {t.row.dtype}: {t.row.ratio:.2f}" for t in missed]
        notes.append(f"{len(targets) - len(missed)} of {len(targets)} promises kept")
    return Measured(report.record(), [report.table()], notes)
