"""Memory over 10^5 calls: resident bytes, Python objects, tensors, files and threads, none of which may grow."""

from __future__ import annotations

import gc
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import fastcfg
from fastcfg import APG, CFG, Clamp, GuidedDenoiser, Linear, PerpNeg, Requests, Sampler, State, guide, guide_step

from .growth import trend
from .isolation import isolated
from .outcome import Row, Tick, Wrong

__all__ = ["SCENARIOS", "TITLE", "cases", "check", "merge", "replay", "run"]

TITLE = "10^5 calls: resident memory, objects, tensors, files and threads do not grow"
OBJECT = 28.0
"""Bytes a call that count as growth: half of the smallest Python object that is left at each call."""
SAMPLES = 40
WARM = 2500
"""Calls before the first measurement: caches of the last 1024 numbers are full then."""
Call = Callable[[int], Any]


def _pair(shape: tuple[int, ...] = (2, 4, 8, 8), dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(shape, generator=generator).to(dtype) for name in ("uncond", "cond")}


def _same(backend: str | None) -> Call:
    p, rule = _pair(), CFG(3.0, rescale=0.5)
    return lambda i: guide(rule, backend=backend, **p)


def _lerp() -> Call:
    p, rule = _pair(), CFG(3.0)
    return lambda i: guide(rule, **p)


def _scales() -> Call:
    p = _pair()
    return lambda i: guide(CFG(1.0 + i % 100_003 / 7.0, rescale=0.5), **p)


def _tensor_scales() -> Call:
    p, rule = _pair(), CFG(rescale=0.5)
    return lambda i: guide(rule, params={"scale": torch.full((2,), 1.0 + i)}, **p)


def _shapes() -> Call:
    rule, wide = CFG(3.0, rescale=0.5), {n: torch.randn(3, 2, 2100) for n in ("uncond", "cond")}
    return lambda i: guide(rule, **{n: t[: 1 + i % 3, :, : 1 + i * 7 % 2099] for n, t in wide.items()})


def _out() -> Call:
    p, rule = _pair(dtype=torch.bfloat16), PerpNeg(3.0)
    p["negative"], out = p["cond"] * 0.5, torch.empty_like(p["cond"])
    return lambda i: guide(rule, out=out, **p)


def _elementwise() -> Call:
    p, rule = _pair(), Clamp(CFG(3.0), k=2.0)
    scale_map, mask = torch.rand(2, 1, 8, 8), torch.rand(2, 1, 8, 8) > 0.3
    return lambda i: guide(rule, scale_map=scale_map, mask=mask, **p)


def _state() -> Call:
    p, rule, kept = _pair(), APG(3.0, eta=0.3, momentum=-0.5), [State()]

    def call(i: int) -> None:
        if i % 20 == 0:
            kept[0] = State()
        guide(rule, state=kept[0], **p)

    return call


def _step() -> Call:
    sampler = Sampler.flow([1.0, 0.75, 0.5, 0.25, 0.0])
    steps, p, rule = list(sampler), _pair(), CFG(3.0, rescale=0.5)
    x = torch.randn_like(p["cond"])
    return lambda i: guide_step(rule, steps[i % len(steps)], x=x, state=State(), **p)


def _model(x: Tensor, t: Any, label: Tensor) -> Tensor:
    return x * 0.5 + label.view(-1, *[1] * (x.dim() - 1))


def _denoiser() -> Call:
    denoiser, x = GuidedDenoiser(_model, CFG(3.0)), torch.randn(2, 4, 8, 8)

    @torch.no_grad()
    def call(i: int) -> None:
        conditions = {"uncond": {"label": torch.zeros(2)}, "cond": {"label": torch.ones(2)}}
        denoiser(x, i, conditions=conditions)

    return call


def _requests() -> Call:
    """Each request has a scale of its own, lives for three steps and leaves."""
    requests, x, t = Requests(GuidedDenoiser(_model, CFG(3.0))), torch.randn(3, 4, 4), torch.zeros(3)
    conditions = {"uncond": {"label": torch.zeros(1)}, "cond": {"label": torch.ones(1)}}

    def call(i: int) -> None:
        requests.add(i, conditions, num_steps=3, rule=CFG(1.0 + i / 7.0))
        requests(x[: len(requests)], t[: len(requests)])
        for name in [name for name in requests.ids if requests[name].done]:
            requests.remove(name)

    return call


def _structures() -> Call:
    """Rules that need a program of their own: names that no rule had before."""
    p = _pair((1, 8))
    u, c = p["uncond"], p["cond"]

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


def _json() -> Call:
    p, texts = _pair(), [CFG(3.0, rescale=0.5).to_json(), Clamp(PerpNeg(3.0), k=2.0).to_json()]
    p["negative"] = p["cond"]

    def call(i: int) -> None:
        rule = fastcfg.Rule.from_json(texts[i % 2])
        guide(rule, **{name: p[name] for name in rule.conditions})

    return call


def _errors() -> Call:
    p, rule = _pair(), CFG(3.0, rescale=0.5)

    def call(i: int) -> None:
        try:
            guide(rule, uncond=p["uncond"], cond=p["cond"][:, :1], params={"scale": 1.0 + i})
        except ValueError:
            return
        raise Wrong("another shape was taken")

    return call


SCENARIOS: dict[str, tuple[Callable[[], Call], float]] = {
    "lerp": (_lerp, 1.0),
    "native": (lambda: _same(None), 1.0),
    "torch": (lambda: _same("torch"), 0.5),
    "scales": (_scales, 0.5),
    "tensor scales": (_tensor_scales, 1.0),
    "shapes": (_shapes, 1.0),
    "out": (_out, 1.0),
    "map and mask": (_elementwise, 1.0),
    "state": (_state, 1.0),
    "solver's step": (_step, 0.5),
    "denoiser": (_denoiser, 0.5),
    "requests": (_requests, 0.2),
    "rules from JSON": (_json, 0.5),
    "errors": (_errors, 1.0),
    "new structures": (_structures, 0.2),
    "rules of one's own": (_own_rules, 0.2),
}
"""What is called, and for which share of the calls."""
TOTAL = 1.1e5


def cases(seed: int, start: int) -> Iterator[dict[str, Any]]:
    """Each scenario once; ``calls`` at most, in ``seconds``."""
    seconds = float(os.environ.get("RELIABILITY_SECONDS", "120"))
    shares = sum(share for _, share in SCENARIOS.values())
    for name, (_, share) in list(SCENARIOS.items())[start:]:
        yield {"scenario": name, "calls": int(TOTAL * share / shares), "seconds": 2 * seconds * share / shares}


def _measure() -> dict[str, float]:
    gc.collect()
    objects = gc.get_objects()
    tensors = sum(type(o) is Tensor for o in objects)
    resident = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    files = len(os.listdir("/proc/self/fd"))
    return {
        "bytes": resident, "objects": len(objects), "tensors": tensors, "files": files,
        "threads": threading.active_count(),
    }  # fmt: skip


def check(case: Mapping[str, Any]) -> dict[str, Any]:
    """The scenario's calls, measured now and then; raises where something grew."""
    try:
        return _check(case)
    finally:
        gc.unfreeze()


def _check(case: Mapping[str, Any]) -> dict[str, Any]:
    name, calls = case["scenario"], max(case["calls"], 400)
    # What is there already is not counted again and again. Caches turn over to what is counted while they warm up.
    gc.collect()
    gc.freeze()
    call = SCENARIOS[name][0]()
    warm = min(WARM, calls // 3)
    began = time.monotonic()
    for i in range(warm):
        call(i)
    done, at, found = warm, [], []
    every = max(1, (calls - warm) // SAMPLES)
    while done < calls and (time.monotonic() - began < case["seconds"] or len(at) < 12):
        for i in range(done, done + every):
            call(i)
        done += every
        found.append(_measure())
        at.append(float(done))
    for kind in ("files", "threads"):
        if found[-1][kind] > max(f[kind] for f in found[: len(found) // 2]):
            raise Wrong(f"{kind}: {found[0][kind]} became {found[-1][kind]}")
    lines = {kind: trend(at, [f[kind] for f in found]) for kind in ("bytes", "objects", "tensors")}
    for kind, least in (("tensors", 1e-3), ("objects", 1e-2), ("bytes", OBJECT)):
        if lines[kind].grows(least):
            raise Wrong(
                f"{kind}: {lines[kind].slope:.3g} ± {lines[kind].error:.2g} a call over {done} calls of {name!r}: "
                f"{found[0][kind]} became {found[-1][kind]}"
            )
    return {
        "calls": done,
        "slope": max(0.0, lines["bytes"].slope),
        "error": lines["bytes"].error,
        "objects": lines["objects"].slope,
        "scenario": name,
    }


def merge(figures: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Calls, and the steepest slopes."""
    steepest: Mapping[str, Any] = max(figures, key=lambda f: f["slope"], default={})
    return {
        "calls of all scenarios": sum(f["calls"] for f in figures),
        "scenarios": len(figures),
        "steepest slope of resident memory, bytes a call": round(steepest.get("slope", 0.0), 2),
        "its standard error": round(steepest.get("error", 0.0), 2),
        "its scenario": steepest.get("scenario", ""),
        "steepest slope of Python objects a call": round(max((f["objects"] for f in figures), default=0.0), 5),
    }


def run(seconds: float, seed: int, tick: Tick, most: int | None = None) -> Row:
    """Every scenario, all together 10^5 calls or so long."""
    os.environ["RELIABILITY_SECONDS"] = str(seconds)
    row = isolated("memory", __name__, 10 * seconds, seed, tick, most=most, patience=600)
    row.calls = int(row.figures.get("calls of all scenarios", 0))
    return row


def replay(case: Mapping[str, Any]) -> None:
    """One scenario again."""
    check(case)
