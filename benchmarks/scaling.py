"""Scaling: the measured growth of the cost of guidance, and the arithmetic of a fleet with its assumptions.

``python -m benchmarks.scaling [--full]`` times the combine against batch, pixels, frames and conditions, and whole
steps against passes and batch: all sizes of an axis take turns in one process, and a law is fitted to their medians.
``python -m benchmarks.scaling fleet pass_ms=180`` computes what CFG-parallel, gating and students mean for a network.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from rich.console import Console

from fastcfg import CFG, GuidedDenoiser, MultiCondition, PerpNeg, Rule, guide
from fastcfg.validate import number

from .environment import Environment
from .race import CudaTimer, HostTimer, Timer, take_turns, wait_for
from .records import Record, markdown_table, terminal_table
from .sections import Measured, Plan, Progress

Row = Mapping[str, Any]
RULES: Mapping[str, Rule] = {"CFG": CFG(), "CFG + rescale 0.7": CFG(rescale=0.7), "PerpNeg": PerpNeg()}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
SHAPES: Mapping[str, Callable[[int], tuple[int, ...]]] = {
    "batch": lambda b: (b, 4, 64, 64),
    "pixels": lambda p: (1, 4, math.isqrt(p), math.isqrt(p)),
    "frames": lambda f: (1, 16, f, 60, 104),
    "conditions": lambda c: (1, 16, 128, 128),
}
SIZES: Mapping[str, Sequence[int]] = {
    "batch": (1, 2, 4, 8, 16, 32, 64),
    "pixels": tuple(side * side for side in (32, 64, 96, 128, 192, 256)),
    "frames": (1, 2, 5, 9, 17, 33, 65),
    "conditions": (2, 3, 4, 6, 8),
    "passes": (1, 2, 3, 4),
    "images": (1, 2, 4, 8, 16),
}
NAMES, NUMBERS = ("axis", "what", "rule", "dtype"), ("fixed_ms", "ms_per_unit", "exponent", "residual")
app = typer.Typer(add_completion=False, invoke_without_command=True)


def fit(units: Sequence[float], ms: Sequence[float]) -> dict[str, float]:
    """Return the laws that fit times best by their relative errors: a small size counts as much as a large one.

    ``ms = fixed_ms + ms_per_unit * units``, with the root mean square of its relative errors as ``residual``, which is
    large where one law does not hold; and ``ms ~ units ** exponent``. It takes positive times of two sizes or more.
    """
    x, y = np.asarray(units, dtype=float), np.asarray(ms, dtype=float)
    if x.shape != y.shape or len(set(x.tolist())) < 2 or not (x > 0).all() or not ((y > 0) & np.isfinite(y)).all():
        raise ValueError(f"units, ms: expected positive times of at least two sizes, got {list(units)}, {list(ms)}")
    law = np.linalg.lstsq(columns := np.stack([1 / y, x / y], 1), np.ones_like(y), rcond=None)[0]
    for keep, drop in ((1, 0), (0, 1)):  # A negative cost is no cost: the best law then lies on that bound.
        if law[drop] < 0:
            law[drop], law[keep] = 0.0, columns[:, keep].sum() / (columns[:, keep] @ columns[:, keep])
    values = (*law, np.polyfit(np.log(x), np.log(y), 1)[0], np.sqrt(np.mean((columns @ law - 1) ** 2)))
    return dict(zip(NUMBERS, map(float, values), strict=True))


def _combines(axis: str, dtype: str, device: str) -> Iterator[tuple[str, int, Callable[[], Any]]]:
    for value in SIZES[axis]:
        rules = {"MultiCondition": MultiCondition((2.0,) * value)} if axis == "conditions" else RULES
        like = torch.randn(SHAPES[axis](value), device=device, dtype=DTYPES[dtype])
        for name, rule in rules.items():
            given = {n: torch.randn_like(like) for n in rule.conditions}
            yield name, value, partial(guide, rule, **given)  # type: ignore[arg-type]


def _steps(axis: str, device: str) -> Iterator[tuple[str, int, Callable[[], Any]]]:
    """Whole steps of the demo's network, the passes in one batch and one after another."""
    from fastcfg.demo.checkpoint import load_denoiser
    from fastcfg.demo.sample import draw_noise

    model = load_denoiser(device=device)[0]
    for value in SIZES[axis]:
        passes, batch = (value, 8) if axis == "passes" else (2, value)
        rule = CFG(1.0) if passes == 1 else MultiCondition((2.0,) * (passes - 1))
        labels = {n: torch.full((batch,), k, device=device) for k, n in enumerate(rule.conditions)}
        given = {n: {"digit": d, "colour": torch.zeros_like(d)} for n, d in labels.items()}
        x = draw_noise(batch, 0, torch.device(device))
        for mode in ("batched", "sequential"):
            denoiser = GuidedDenoiser(model, rule, mode=mode)  # type: ignore[arg-type]
            yield f"demo's network, {mode}", value, partial(denoiser, x, 500, conditions=given)


@torch.no_grad()
def measure(plan: Plan, progress: Progress) -> Record:
    """Time all axes of a plan's device: rows, and their ``fits``."""
    device, timer = plan.device, CudaTimer(cold=False) if plan.device == "cuda" else HostTimer()
    rows: list[dict[str, Any]] = []
    for dtype in list(DTYPES)[: 1 + plan.full]:
        for axis in SHAPES:
            progress(f"combine, {axis}, {dtype}")
            rows += _timed(axis, "combine", dtype, list(_combines(axis, dtype, device)), timer, plan)
    for axis in ("passes", "images"):
        progress(f"step, {axis}")
        rows += _timed(axis, "step", "fp32", list(_steps(axis, device)), HostTimer(wait_for(device)), plan)
    environment, laws = Environment.of(device), fits_of(rows)
    about = "`python -m benchmarks.scaling`: ms = fixed_ms + units × ms_per_unit; the exponent is of a power law."
    text = f"# How cost grows on {environment.label}\n\n{about}\n\n{markdown_table((*NAMES, *NUMBERS), _lines(laws))}\n"
    return Record("scaling", f"scaling-{environment.name}", environment, rows, text, {"unit": "ms", "fits": laws})


def _timed(axis: str, what: str, dtype: str, points: list[Any], timer: Timer, plan: Plan) -> Iterator[dict[str, Any]]:
    named = {str(k): call for k, (_, _, call) in enumerate(points)}
    times = take_turns(named, timer, rounds=plan.rounds_of(30 if plan.full else 6), warmup=2)
    times.pop("host", None)
    (samples,) = times.values()
    for k, (rule, value, _) in enumerate(points):
        p20, p50, p80 = map(float, np.percentile(samples[str(k)], [20, 50, 80]))
        given = {"axis": axis, "value": value, "what": what, "rule": rule, "dtype": dtype}
        yield given | {"ms": p50, "p20": p20, "p80": p80, "per_unit": p50 / value, "rounds": len(samples[str(k)])}


def fits_of(rows: Iterable[Row]) -> list[dict[str, Any]]:
    """Return the law of each axis, rule and dtype."""
    series: dict[tuple[str, ...], list[tuple[float, float]]] = {}
    for row in rows:
        series.setdefault(tuple(row[name] for name in NAMES), []).append((row["value"], row["ms"]))
    return [dict(zip(NAMES, key, strict=True)) | fit(*zip(*own, strict=True)) for key, own in series.items()]


def _lines(laws: Iterable[Row]) -> list[list[str]]:
    return [[law[name] for name in NAMES] + [f"{law[name]:.3g}" for name in NUMBERS] for law in laws]


def section(plan: Plan, progress: Progress) -> Measured:
    """The section of ``fastcfg bench``."""
    record = measure(plan, progress)
    return Measured(record, [terminal_table("Laws of cost", (*NAMES, *NUMBERS), _lines(record.more["fits"]))])


COLUMNS = ("setup", "GPUs", "latency, s", "images/s/GPU", "× the first", "GPUs for the demand", "mean wait, s")
LEFT_OUT = "quality (gating and students change the images), memory, batches across requests, failures, training"


@dataclass(frozen=True)
class Fleet:
    """The parts of a call. A replica serves one call at a time, and nothing overlaps; :data:`LEFT_OUT` is the rest.

    Attributes:
        pass_ms: one pass on a call's images, on one GPU; steps: of the sampler; passes: of a guided step.
        batch_gain: two passes one after another ÷ both as one batch; 1 where a pass fills the GPU.
        combine_ms: guidance of a step; other_ms: everything else of a step that is no pass.
        fixed_ms: text encoding and image decoding of a call; images: of a call.
        transfer_ms: what GPUs that share the passes of a step send each other; imbalance: of their slowest.
        kept: share of the steps that run every pass under a gate; student_cost: a student's pass ÷ the teacher's.
        utilisation: most of its time that a replica may be busy.
    """

    pass_ms: float = 180.0
    steps: int = 30
    passes: int = 2
    batch_gain: float = 1.0
    combine_ms: float = 0.02
    other_ms: float = 0.1
    fixed_ms: float = 150.0
    images: int = 1
    transfer_ms: float = 0.5
    imbalance: float = 1.0
    kept: float = 0.35
    student_cost: float = 1.0
    utilisation: float = 0.7

    def __post_init__(self) -> None:
        least = {"steps": 1, "passes": 1, "images": 1, "batch_gain": 0.5, "imbalance": 1.0, "combine_ms": 0.0}
        least |= dict.fromkeys(("other_ms", "fixed_ms", "transfer_ms", "kept"), 0.0)
        for name, value in vars(self).items():
            number(name, value, least.get(name, 1e-9), {"batch_gain": 2, "kept": 1, "utilisation": 1}.get(name))

    def latencies(self) -> dict[str, tuple[int, float]]:
        """Return GPUs and milliseconds of a call, by setup; the first is what the others are compared with."""
        one, rest = self.pass_ms, self.combine_ms + self.other_ms
        share = -(-self.passes // 2)
        parallel = share * one * self.imbalance + self.transfer_ms * (self.passes > 1)
        every = {
            "all passes, one after another": (1, self.passes * one + rest),
            "all passes, one batch": (1, one * (1 + (2 / self.batch_gain - 1) * (self.passes - 1)) + rest),
            "CFG-parallel": (2, parallel + rest),
            f"gated, {self.kept:.0%} of the steps in full": (1, (1 + self.kept * (self.passes - 1)) * one + rest),
            "gated, CFG-parallel": (2, self.kept * parallel + (1 - self.kept) * one + rest),
            "student": (1, one * self.student_cost + self.other_ms),
        }
        return {name: (gpus, self.fixed_ms + self.steps * step) for name, (gpus, step) in every.items()}


def wait(servers: int, offered: float) -> float:
    """Return the mean wait in an M/M/c queue in service times, by Erlang's C; infinite where it only grows."""
    if offered >= servers:
        return math.inf
    blocked = 1.0
    for count in range(1, servers + 1):
        blocked = offered * blocked / (count + offered * blocked)
    return blocked / (1 - offered / servers * (1 - blocked)) / (servers - offered)


def outcomes(fleet: Fleet, demand: float) -> Iterator[list[str]]:
    """Yield a row of :data:`COLUMNS` a setup; the demand is in images a second, 0 for none."""
    base = next(iter(fleet.latencies().values()))[1]
    for name, (gpus, ms) in fleet.latencies().items():
        rate = fleet.images / ms * 1e3 / gpus
        offered = demand / fleet.images * ms / 1e3
        servers = max(1, math.ceil(offered / fleet.utilisation - 1e-9))
        queue = [str(servers * gpus), f"{wait(servers, offered) * ms / 1e3:.2f}"] if demand else ["–", "–"]
        yield [name, str(gpus), f"{ms / 1e3:.2f}", f"{rate:.3f}", f"{base / ms / gpus:.2f}", *queue]


@app.callback()
def main(
    context: typer.Context,
    full: Annotated[bool, typer.Option("--full", help="More dtypes and rounds.")] = False,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    output: Annotated[Path, typer.Option(help="Folder of the results.")] = Path(__file__).parent / "results",
) -> None:
    """Return how the cost of guidance grows; writes scaling-*.json and .md."""
    if context.invoked_subcommand is None:
        found = section(Plan(full=full, device=device), lambda part: Console(stderr=True).print(part))
        Console().print(*found.show, *map(str, found.record.write(output)), sep="\n")


@app.command("fleet")
def fleet_command(
    part: Annotated[list[str] | None, typer.Argument(help="NAME=VALUE of Fleet: pass_ms=95 steps=28 …")] = None,
    demand: Annotated[float, typer.Option(min=0.0, help="Images a second to serve; 0 for none.")] = 0.0,
) -> None:
    """Return what CFG-parallel, gating and students mean for latency and the number of GPUs.

    A model, not a measurement.
    """
    try:
        given = dict(each.split("=", 1) for each in part or ())
        kinds = {name: type(value) for name, value in vars(Fleet()).items()}
        fleet = Fleet(**{name: kinds[name](value) for name, value in given.items()})
    except KeyError as error:
        raise typer.BadParameter(f"expected names of {', '.join(kinds)}, got {error}") from None
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    assumed = ", ".join(f"{name}={value:g}" for name, value in vars(fleet).items() if name not in given)
    console = Console(width=None if Console().is_terminal else 160)
    console.print(terminal_table("A fleet", COLUMNS, outcomes(fleet, demand)))
    console.print(f"assumed: {assumed}; left out: {LEFT_OUT}")


if __name__ == "__main__":
    app()
