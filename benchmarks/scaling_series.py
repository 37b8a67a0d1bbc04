"""What is timed along each axis: calls of one kind that differ in one size."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import prod
from typing import Any

import torch
from torch import Tensor

from fastcfg import CFG, GuidedDenoiser, MultiCondition, Rule, guide

from . import peers
from .cases import RULES, Case, Contest, draw, exact
from .peers import Call
from .race import Reading, Timer, check

__all__ = ["Plan", "Point", "Warm", "combine_points", "step_points"]

COMBINED = ("CFG", "CFG + rescale 0.7", "PerpNeg", "MultiCondition(3)")
WITH_OUT = "CFG + rescale 0.7"
CHECKED = 2**18
"""Elements up to which a combine is checked against float64 first; larger ones run the same code."""


@dataclass(frozen=True)
class Plan:
    """Sizes along the axes, and how often each is timed.

    Attributes:
        batches: samples of an SD 1.5 latent, 4×64×64; sides: of the latent 4×side×side; frames: of the latent
            16×frames×60×104, 480p.
        conditions: beside the unconditional prediction, at 16×128×128.
        passes: of the demo's network, on ``images`` images; images_of: batches of a whole step with CFG.
        ranks: processes that share the passes; empty to start none.
        rounds: of the combine; step_rounds: of the steps.
    """

    batches: Sequence[int] = (1, 2, 4, 8, 16, 32, 64)
    sides: Sequence[int] = (32, 48, 64, 96, 128, 192, 256)
    frames: Sequence[int] = (1, 2, 5, 9, 17, 33, 65, 129)
    conditions: Sequence[int] = (2, 3, 4, 5, 6, 7, 8)
    passes: Sequence[int] = (1, 2, 3, 4)
    images: int = 8
    images_of: Sequence[int] = (1, 2, 4, 8, 16, 32)
    ranks: Sequence[int] = ()
    dtypes: Sequence[str] = ("fp32",)
    rounds: int = 7
    step_rounds: int = 5

    @staticmethod
    def of(device: str, *, full: bool) -> Plan:
        """The quick or the full one of a device, in the dtype first that its samplers use."""
        dtypes = ("bf16", "fp32") if device == "cuda" else ("fp32", "bf16")
        if not full:
            return Plan(dtypes=dtypes[:1])
        most = torch.cuda.device_count() if device == "cuda" else 2
        return Plan(
            images_of=(1, 2, 4, 8, 16, 32, 64),
            ranks=tuple(range(1, most + 1)) if most > 1 else (),
            dtypes=dtypes,
            rounds=40,
            step_rounds=20,
        )


@dataclass(frozen=True)
class Point:
    """One call and where it stands.

    Attributes:
        value: on the axis; elements: of one prediction; size: bytes that a combine reads and writes, None for a step.
    """

    axis: str
    value: int
    what: str
    rule: str
    dtype: str
    shape: tuple[int, ...]
    elements: int
    size: int | None
    call: Call


class Warm:
    """Times the second of two calls, which finds in the caches what fits there, whoever had its turn before."""

    def __init__(self, timer: Timer) -> None:
        self.timer = timer

    def measure(self, call: Call) -> Reading:
        call()
        return self.timer.measure(call)


Part = tuple[str, Callable[[], list[Point]]]
"""A name, and what makes the points: the tensors of one part at a time are in memory."""


def combine_points(plan: Plan, device: str) -> Iterator[Part]:
    """The combine by axis and dtype; along the frames also one rule that is given the tensor to write."""
    shapes: dict[str, Mapping[int, tuple[int, ...]]] = {
        "batch": {b: (b, 4, 64, 64) for b in plan.batches},
        "pixels": {s * s: (1, 4, s, s) for s in plan.sides},
        "frames": {f: (1, 16, f, 60, 104) for f in plan.frames},
    }
    for dtype in plan.dtypes:
        for axis, sizes in shapes.items():
            if sizes:
                yield f"combine, {axis}, {dtype}", partial(_combines, axis, sizes, dtype, device)
        if plan.conditions:
            yield f"combine, conditions, {dtype}", partial(_by_conditions, plan.conditions, dtype, device)


def _combines(axis: str, sizes: Mapping[int, tuple[int, ...]], dtype: str, device: str) -> list[Point]:
    contests = [next(c for c in RULES if c.name == name) for name in COMBINED]
    most = max(contests, key=lambda contest: len(contest.rule.conditions))
    found = []
    for value, shape in sizes.items():
        drawn = list(draw(Case(most, shape, dtype), device).values())
        for contest in contests:
            case = Case(contest, shape, dtype)
            predictions = dict(zip(contest.rule.conditions, drawn, strict=False))
            found.append(_combine(axis, value, case, predictions))
            if axis == "frames" and contest.name == WITH_OUT:
                found.append(_with_out(found[-1], contest.rule, predictions))
    return found


def _with_out(point: Point, rule: Rule, predictions: Mapping[str, Tensor]) -> Point:
    out = torch.empty_like(predictions[rule.conditions[0]])

    def call() -> Tensor:
        return guide(rule, **predictions, out=out)  # type: ignore[arg-type]

    return replace(point, rule=f"{point.rule}, out=", call=call)


def _by_conditions(counts: Sequence[int], dtype: str, device: str) -> list[Point]:
    found = []
    for count in counts:
        scales = tuple(2.0 + k for k in range(count))
        formula = partial(peers.multi_condition, scales=scales)
        case = Case(Contest("MultiCondition", MultiCondition(scales), formula), (1, 16, 128, 128), dtype)
        found.append(_combine("conditions", count, case, draw(case, device)))
    return found


def _combine(axis: str, value: int, case: Case, predictions: Mapping[str, Tensor]) -> Point:
    """One point, its result checked against float64 where it is small.

    Raises:
        benchmarks.race.WrongResult: if it is wrong.
    """
    call = peers.fused(case.contest.rule)(predictions)
    elements = prod(case.shape)
    if elements <= CHECKED:
        check(call(), exact(case, predictions), case.dtype)
    rule = case.contest.name
    return Point(axis, value, "combine", rule, case.dtype_name, case.shape, elements, case.least, call)


def step_points(plan: Plan, device: str) -> Iterator[Part]:
    """Whole steps of the demo's network by axis, the passes in one batch and one after another."""
    modes = ("batched", "sequential")
    if plan.passes:
        passes = [("passes", count, _rule(count), mode, plan.images) for mode in modes for count in plan.passes]
        yield "step, passes", partial(_steps, passes, device)
    if plan.images_of:
        batches = [("batch", images, _rule(2), mode, images) for mode in modes for images in plan.images_of]
        yield "step, batch", partial(_steps, batches, device)


def _steps(chosen: Sequence[tuple[str, int, Rule, str, int]], device: str) -> list[Point]:
    from fastcfg.demo.checkpoint import load_denoiser

    model = load_denoiser(device=device)[0]
    return [_step(*each, model, device) for each in chosen]


def _rule(passes: int) -> Rule:
    """A rule of so many passes."""
    return CFG(1.0) if passes == 1 else MultiCondition((2.0,) * (passes - 1))


def _step(axis: str, value: int, rule: Rule, mode: Any, batch: int, model: Callable[..., Any], device: str) -> Point:
    from fastcfg.demo.sample import draw_noise

    x = draw_noise(batch, 0, torch.device(device))
    digits = {n: torch.full((batch,), k, device=device) for k, n in enumerate(rule.conditions)}
    conditions = {n: {"digit": d, "colour": torch.zeros_like(d)} for n, d in digits.items()}
    denoiser = GuidedDenoiser(model, rule, mode=mode)
    name = f"demo's network, {mode}"
    return Point(
        axis,
        value,
        "step",
        name,
        "fp32",
        tuple(x.shape),
        x.numel(),
        None,
        lambda: denoiser(x, 500, conditions=conditions),
    )
