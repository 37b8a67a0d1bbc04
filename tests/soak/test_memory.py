"""Memory over many calls: resident bytes, Python objects, tensors, files and threads, none of which may grow."""

from __future__ import annotations

import gc
import math
import os
import threading
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import pytest
import torch
from soak.examples import SOAK
from torch import Tensor

import fastcfg
from fastcfg import APG, CFG, Clamp, GuidedDenoiser, Linear, Requests, Rule, guide

OBJECT = 28.0
"""Bytes a call that count as growth: half of the smallest Python object that is left at each call."""
SAMPLES = 24
Call = Callable[[int], Any]


def _pair(shape: tuple[int, ...] = (2, 4, 8, 8)) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(shape, generator=generator) for name in ("uncond", "cond")}


def _same(rule: Rule, backend: str | None = None, **options: Any) -> Call:
    p = _pair()
    return lambda i: guide(rule, backend=backend, **options, **p)


def _tensor_scales() -> Call:
    p, rule = _pair(), CFG(rescale=0.5)
    return lambda i: guide(rule, params={"scale": torch.full((2,), 1.0 + i)}, **p)


def _shapes() -> Call:
    rule, wide = CFG(3.0, rescale=0.5), {n: torch.randn(3, 2, 2100) for n in ("uncond", "cond")}
    return lambda i: guide(rule, **{n: t[: 1 + i % 3, :, : 1 + i * 7 % 2099] for n, t in wide.items()})


def _stats() -> Call:
    p, rule, out = _pair(), APG(3.0, norm_threshold=2.0), torch.empty(2, 2)
    return lambda i: guide(rule, stats=("delta_ratio", "limited"), stats_out=out, **p)


def _structures() -> Call:
    """Rules that need a program of their own: names that no rule had before."""
    u, c = _pair((1, 8)).values()

    def call(i: int) -> None:
        guide(Linear(((f"a{i}", 1.5), (f"b{i}", -0.5))), backend="torch", **{f"a{i}": u, f"b{i}": c})

    return call


def _own_rules() -> Call:
    """A rule of the user's that is defined in a function that runs again and again."""
    p = _pair((1, 8))

    def call(i: int) -> None:
        @fastcfg.rule("uncond", "cond")
        def doubled(scale: Any = 2.0) -> Any:
            return 1.0, 2.0 * scale

        guide(doubled(3.0), backend="torch", **p)

    return call


def _denoiser() -> Call:
    denoiser, x = GuidedDenoiser(lambda x, t, y: x * 0.5 + y.view(-1, 1, 1, 1), CFG(3.0)), torch.randn(2, 4, 8, 8)

    @torch.no_grad()
    def call(i: int) -> None:
        denoiser(x, i, conditions={"uncond": {"y": torch.zeros(2)}, "cond": {"y": torch.ones(2)}})

    return call


def _requests() -> Call:
    """Each request has a scale of its own, lives for three steps and leaves."""
    requests, x = Requests(GuidedDenoiser(lambda x, t, y: x * 0.5 + y.view(-1, 1, 1), CFG(3.0))), torch.randn(3, 4, 4)
    conditions = {"uncond": {"y": torch.zeros(1)}, "cond": {"y": torch.ones(1)}}

    @torch.no_grad()
    def call(i: int) -> None:
        requests.add(i, conditions, num_steps=3, rule=CFG(1.0 + i / 7.0))
        requests(x[: len(requests)], torch.zeros(len(requests)))
        for name in [name for name in requests.ids if requests[name].done]:
            requests.remove(name)

    return call


SCENARIOS: dict[str, tuple[Callable[[], Call], int]] = {
    "lerp": (lambda: _same(CFG(3.0)), 500),
    "native": (lambda: _same(CFG(3.0, rescale=0.5)), 500),
    "torch": (lambda: _same(CFG(3.0, rescale=0.5), "torch"), 300),
    "map and mask": (lambda: _same(Clamp(CFG(3.0), k=2.0), scale_map=torch.rand(2, 1, 8, 8), mask=torch.eye(8)), 300),
    "tensor scales": (_tensor_scales, 500),
    "shapes": (_shapes, 500),
    "stats": (_stats, 500),
    "denoiser": (_denoiser, 300),
    "requests": (_requests, 150),
    # Caches of up to 1024 have to be full before the first sample, after a third of the calls.
    "new structures": (_structures, 3600),
    "rules of one's own": (_own_rules, 3600),
}
"""What is called, and how often in the short run."""
LONG = [pytest.param(name, marks=[pytest.mark.slow] * (count > 1000)) for name, (_, count) in SCENARIOS.items()]


def trend(calls: list[float], values: list[float]) -> tuple[float, float]:
    """Theil and Sen's slope, the median over all pairs, and its standard error.

    Its variance is that of least squares divided by 0.91 for normal noise (Sen 1968, sec. 6); the noise is 1.4826 times
    the median distance from the line.
    """
    points = list(zip(calls, values, strict=True))
    slope = median((v - u) / (b - a) for i, (a, u) in enumerate(points) for b, v in points[i + 1 :])
    middle = median(v - slope * c for c, v in points)
    noise = 1.4826 * median(abs(v - slope * c - middle) for c, v in points)
    mean = sum(calls) / len(calls)
    return slope, noise / math.sqrt(0.91 * sum((c - mean) ** 2 for c in calls))


def measure() -> dict[str, float]:
    gc.collect()
    objects = gc.get_objects()
    resident = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return {
        "bytes": resident,
        "objects": len(objects),
        "tensors": sum(type(o) is Tensor for o in objects),
        "files": len(os.listdir("/proc/self/fd")),
        "threads": threading.active_count(),
    }


def check_memory(call: Call, count: int) -> None:
    gc.collect()
    gc.freeze()  # What is there already is not counted again and again.
    try:
        done, at, found = count // 3, [], []
        for i in range(done):
            call(i)
        every = max(1, (count - done) // SAMPLES)
        for _ in range(SAMPLES):
            for i in range(done, done + every):
                call(i)
            done += every
            found.append(measure())
            at.append(float(done))
    finally:
        gc.unfreeze()
    for kind in ("files", "threads"):
        assert found[-1][kind] <= max(f[kind] for f in found[: SAMPLES // 2]), kind
    # In a short run resident memory still settles.
    for kind, least in (("tensors", 1e-3), ("objects", 1e-2), *((("bytes", OBJECT),) if SOAK else ())):
        slope, error = trend(at, [f[kind] for f in found])
        assert slope - 5 * error <= least, f"{kind}: {slope:.3g} +- {error:.2g} a call over {done} calls"


@pytest.mark.parametrize("name", LONG)
def test_nothing_grows(name: str) -> None:
    make, count = SCENARIOS[name]
    check_memory(make(), count * (1 + SOAK // 10))


@pytest.mark.parametrize("kind", ["tensors", "objects", "files"])
def test_growth_is_found(kind: str) -> None:
    kept: list[Any] = []
    leaks: dict[str, Call] = {
        "tensors": lambda i: kept.append(torch.zeros(1)),
        "objects": lambda i: kept.append([i]),
        "files": lambda i: kept.append(os.dup(0)),
    }
    try:
        with pytest.raises(AssertionError, match=kind):
            check_memory(leaks[kind], 120)
    finally:
        for number in kept if kind == "files" else ():
            os.close(number)
