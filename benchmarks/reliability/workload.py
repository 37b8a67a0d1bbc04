"""Pieces of work whose results are known to the bit: what threads, processes and memory runs are made of."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from random import Random
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastcfg import APG, CFG, GuidedDenoiser, Requests, Rule, Sampler, State, guide, guide_step

from .rules import draw_rule
from .tensors import bits

__all__ = ["KINDS", "digest", "work"]

SHAPES = ((1, 4, 16, 16), (2, 3, 7, 5), (3, 1031), (1, 2, 3, 8, 8), (2, 5000))


def digest(tensors: list[Tensor]) -> str:
    """SHA-256 of the bits."""
    found = hashlib.sha256()
    for tensor in tensors:
        found.update(f"{tensor.dtype} {tuple(tensor.shape)} ".encode())
        found.update(bits(tensor).numpy().tobytes())
    return found.hexdigest()


def _plain_rule(rng: Random) -> Rule:
    while (rule := draw_rule(rng)).prepares or rule.lowered.domain is not None:
        pass
    return rule


def _tensors(names: Any, shape: tuple[int, ...], rng: Random, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    noise = np.random.default_rng(rng.randrange(2**31))
    return {name: torch.from_numpy(noise.normal(size=shape)).to(dtype) for name in names}


def _guide(rng: Random) -> list[Tensor]:
    rule, shape = _plain_rule(rng), rng.choice(SHAPES)
    dtype = rng.choice((torch.float32, torch.bfloat16))
    state = State(_tensors(rule.lowered.extras, shape, rng))
    backend = rng.choice((None, None, "cpp", "torch"))
    predictions = _tensors(rule.conditions, shape, rng, dtype)
    made = guide(rule, state=state, backend=backend, **predictions)
    again = guide(rule, state=state, backend=backend, out=torch.empty_like(made), **predictions)
    return [made, again, *(state[name] for name in rule.lowered.updates)]


def _scales(rng: Random) -> list[Tensor]:
    """A rule of its own for each call."""
    shape = rng.choice(SHAPES)
    predictions = _tensors(("uncond", "cond"), shape, rng)
    found = []
    for _ in range(8):
        scale = rng.uniform(1, 9)
        found.append(guide(CFG(scale, rescale=rng.choice((0.0, 0.5))), **predictions))
        per_sample = torch.full((shape[0],), scale)
        found.append(guide(CFG(rescale=0.5), params={"scale": per_sample}, **predictions))
    return found


def _model(x: Tensor, t: Any, label: Tensor) -> Tensor:
    return torch.tanh(x) * 0.9 + label.view(-1, *[1] * (x.dim() - 1))


def _conditions(batch: int) -> dict[str, dict[str, Tensor]]:
    return {"uncond": {"label": torch.zeros(batch)}, "cond": {"label": torch.ones(batch)}}


def _denoiser(rng: Random) -> list[Tensor]:
    shape = rng.choice(SHAPES)
    rule = rng.choice((CFG(rng.uniform(1, 9)), APG(rng.uniform(1, 9), eta=0.2, momentum=-0.5)))
    denoiser, state = GuidedDenoiser(_model, rule, mode=rng.choice(("batched", "sequential"))), State()  # type: ignore[arg-type]
    (x,) = _tensors(("x",), shape, rng).values()
    for step in range(4):
        x = denoiser(x, step, step=step, num_steps=4, conditions=_conditions(shape[0]), state=state)
    return [x]


def _requests(rng: Random) -> list[Tensor]:
    """Requests that join and leave, with rules of their own."""
    requests, found = Requests(GuidedDenoiser(_model, CFG(4.0))), []
    for turn in range(6):
        if turn < 4:
            requests.add(turn, _conditions(1), num_steps=3, rule=CFG(rng.uniform(1, 9), rescale=rng.choice((0.0, 0.5))))
        (x,) = _tensors(("x",), (len(requests), 2, 6, 6), rng).values()
        found.append(requests(x, torch.zeros(len(requests))))
        for name in [name for name in requests.ids if requests[name].done]:
            requests.remove(name)
    return found


def _steps(rng: Random) -> list[Tensor]:
    """A solver's steps in the pass that guides."""
    sampler = Sampler.flow([1.0, 0.75, 0.5, 0.25, 0.0])
    shape = rng.choice(SHAPES)
    rule = CFG(rng.uniform(1, 9), rescale=0.5)
    (x,) = _tensors(("x",), shape, rng).values()
    for step in sampler:
        x = guide_step(rule, step, x=x, state=State(), **_tensors(rule.conditions, shape, rng))
    return [x]


KINDS: dict[str, Callable[[Random], list[Tensor]]] = {
    "guide": _guide,
    "scales": _scales,
    "denoiser": _denoiser,
    "requests": _requests,
    "steps": _steps,
}


def work(kind: str, seed: int) -> str:
    """A piece of work; the digest of what it gave."""
    with torch.no_grad():
        return digest(KINDS[kind](Random(f"{kind} {seed}")))
