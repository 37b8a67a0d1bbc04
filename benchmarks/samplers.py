"""Whole denoising runs: diffusers' own pipelines, schedulers and guiders as they are, and with fastcfg plugged in.

Both run the same passes of the same model from the same noise, in turns in one process. The last latents are compared
first: they may differ as far as roundings do, which the network amplifies, so the measure is a control, the stock run
from noise that is one unit in the last place larger.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from math import inf
from statistics import median
from typing import Any

import torch
from fastcfg_export.verification import ALLOWED
from torch import Tensor

from .cases import REFERENCE
from .environment import Environment
from .peers import Call
from .race import Reading, summarise, take_turns, wait_for
from .records import Record, markdown_table, terminal_table
from .sampler_contests import STEPS, STOCK, Bout, Contest, Run, contests
from .sections import Measured, Plan, Progress, wanted
from .timelines import FUSED, GUIDANCE, NEXT, PASSES, SCHEDULER, Timeline

__all__ = ["differences", "measure", "section"]

KIND = "samplers"


def differences(bout: Bout) -> tuple[float, float]:
    """Return how far fastcfg's last latent is from the stock one, and the bound: shares of the largest stock value.

    Raises:
        RuntimeError: if the difference is above the bound.
    """
    stock, ours = (bout.runs[name](bout.noise, Timeline()) for name in (STOCK, REFERENCE))
    size = stock.abs().max()
    ulp_up = torch.nextafter(bout.noise, bout.noise.sign() * inf)
    control = (bout.runs[STOCK](ulp_up, Timeline()) - stock).abs().max() / size
    error = float((ours - stock).abs().max() / size)
    bound = ALLOWED * max(float(control), torch.finfo(stock.dtype).eps)
    if not error <= bound:  # Written so that NaN fails.
        raise RuntimeError(f"the last latent differs by {error:.2g} of its largest value; the bound is {bound:.2g}")
    return error, bound


class _Timed:
    """A run that notes where it spent its time."""

    def __init__(self, run: Run, noise: Tensor, wait: Callable[[], None]) -> None:
        self._run, self._noise, self._wait = run, noise, wait
        self.timeline = Timeline(wait)

    def __call__(self) -> Tensor:
        self.timeline = Timeline(self._wait)
        return self._run(self._noise, self.timeline)


class _TimelineTimer:
    """Milliseconds of a step, as ``step``, of what is ``outside`` its passes, and of its parts."""

    def measure(self, call: Call) -> Reading:
        call()
        timeline: Timeline = call.timeline  # type: ignore[attr-defined]
        parts = timeline.parts()
        outside = sum(ms for name, ms in parts.items() if name != PASSES)
        return lambda: {"step": timeline.ms_per_step, "outside": outside, **parts}


def measure(contest: Contest, device: str, rounds: int) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The rows and the timelines of a contest.

    Raises:
        RuntimeError: as :func:`differences`.
    """
    try:
        bout = contest.make(device)
        error, bound = differences(bout)
    except RuntimeError as wrong:
        raise RuntimeError(f"{contest.model}, {contest.scheduler}, {contest.rule}: {wrong}") from None
    wait = wait_for(device)
    calls = {name: _Timed(run, bout.noise, wait) for name, run in bout.runs.items()}
    times = take_turns(calls, _TimelineTimer(), rounds=rounds, warmup=1)
    summaries, outside = summarise(times["step"], REFERENCE), summarise(times["outside"], REFERENCE)
    what = {"model": contest.model, "scheduler": contest.scheduler, "rule": contest.rule}
    rows, timelines = [], []
    for name, summary in summaries.items():
        parts = {
            part: median(times[part][name])
            for part in (NEXT, PASSES, GUIDANCE, SCHEDULER, FUSED)
            if name in times.get(part, {})
        }
        guidance = parts[FUSED if FUSED in parts else GUIDANCE]
        found = asdict(summary)
        rows.append(
            {
                **what,
                "provider": name,
                "how": contest.how if name == REFERENCE else "as it is",
                "shape": list(bout.noise.shape),
                "dtype": str(bout.noise.dtype).removeprefix("torch."),
                "steps": STEPS,
                "ms_per_step": found.pop("p50"),
                **found,
                "guidance_ms": guidance,
                "guidance_share": guidance / summary.p50,
                "outside_ms": outside[name].p50,
                "outside_ratio": outside[name].ratio,
                "outside_ratio_p20": outside[name].ratio_p20,
                "outside_ratio_p80": outside[name].ratio_p80,
                "error": error if name == REFERENCE else 0.0,
                "bound": bound,
            }
        )
        timelines.append({**what, "provider": name, "parts": [{"name": n, "ms": ms} for n, ms in parts.items()]})
    return rows, timelines


HEADER = (
    "model", "noise", "scheduler", "rule", "provider", "how", "ms a step", "÷ fastcfg", "outside the passes, ms",
    "÷ fastcfg's", "guidance, ms", "% of a step", "difference", "bound",
)  # fmt: skip


def _line(row: Mapping[str, Any]) -> tuple[str, ...]:
    return (
        row["model"], "×".join(map(str, row["shape"])), row["scheduler"], row["rule"], row["provider"], row["how"],
        f"{row['ms_per_step']:.2f}", f"{row['ratio']:.2f}", f"{row['outside_ms']:.3f}", f"{row['outside_ratio']:.2f}",
        f"{row['guidance_ms']:.3f}", f"{100 * row['guidance_share']:.1f}", f"{row['error']:.1e}",
        f"{row['bound']:.1e}",
    )  # fmt: skip


def to_markdown(rows: Sequence[Mapping[str, Any]], environment: Environment) -> str:
    """The environment and all rows."""
    parts = [
        f"# Whole denoising runs on {environment.label}",
        environment.origin,
        f"diffusers' pipelines and loops of {STEPS} steps as they are, and with fastcfg plugged in; small denoisers "
        "with random weights, and the demo's. Both take turns in one process; milliseconds are medians over rounds of "
        "the median step (the first is left out), and *÷ fastcfg* is the median over rounds of the ratio: above 1 "
        "fastcfg is faster. *Guidance* lasts from the last pass's return to the scheduler's step; of "
        "`GuidedDenoiser.step`, which takes guidance, scheduler and the next model input in one, it is all three. "
        "*Difference* is of the last latents, as a share of the largest value; its bound is "
        f"{ALLOWED:g} times what the noise one unit in the last place up changes in the stock run.",
        "The passes are the same: where they take nearly all of a step, nothing is gained.",
        markdown_table(HEADER, map(_line, rows)),
    ]
    return "\n\n".join(parts) + "\n"


@contextmanager
def _quiet_diffusers() -> Iterator[None]:
    """Without what it says of every guider that is put into a pipeline."""
    from diffusers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)


def section(plan: Plan, progress: Progress) -> Measured:
    """The section of ``fastcfg bench``."""
    chosen = [c for c in contests(plan.all_sizes) if wanted(plan, KIND, c.model, c.scheduler, c.rule)]
    rows: list[dict[str, Any]] = []
    timelines: list[dict[str, Any]] = []
    with torch.no_grad(), _quiet_diffusers():
        for number, contest in enumerate(chosen, 1):
            progress(f"{number}/{len(chosen)} {contest.model}, {contest.scheduler}, {contest.rule}")
            found = measure(contest, plan.device, plan.rounds_of(30 if plan.full else 6))
            rows += found[0]
            timelines += found[1]
    environment = Environment.of(plan.device)
    text = to_markdown(rows, environment)
    more = {"schema": 1, "unit": "ms", "timelines": timelines}
    record = Record(KIND, f"{KIND}-{environment.name}", environment, rows, text, more)
    shown = [place for place, name in enumerate(HEADER) if name not in ("noise", "how", "% of a step")]
    header, *lines = ([line[place] for place in shown] for line in (HEADER, *map(_line, rows)))
    return Measured(record, [terminal_table(environment.label, header, lines)])
