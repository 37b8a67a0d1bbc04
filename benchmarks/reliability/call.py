"""The tensors of a random call, and the call."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastcfg import InDomain, Prediction, Rule, State, guide

from .cases import Case
from .tensors import Placed, place, values

__all__ = ["Call", "bad_sample", "build", "out_of"]


@dataclass
class Call:
    """The tensors of a case, and how to call with them."""

    case: Case
    rule: Rule
    placed: dict[str, Placed]
    state: dict[str, Tensor]
    x: Placed | None
    scale: Any
    scale_map: Tensor | None
    mask: Tensor | None

    @property
    def predictions(self) -> dict[str, Tensor]:
        return {n: self.placed[n].tensor for n in self.rule.conditions}

    def run(
        self, rows: slice = slice(None), change: Callable[[Tensor], Tensor] = lambda t: t, out: Tensor | None = None
    ) -> tuple[Tensor, State]:
        """The call on some samples, each tensor changed in its layout."""
        state = State({n: change(t[rows]) for n, t in self.state.items()})
        options: dict[str, Any] = {}
        if self.scale is not None:
            batch = isinstance(self.scale, Tensor) and self.scale.dim() == 1 and len(self.scale) > 1
            options["params"] = {"scale": self.scale[rows] if batch else self.scale}
        if self.scale_map is not None:
            options["scale_map"] = self.scale_map[rows] if self.scale_map.shape[0] > 1 else self.scale_map
        if self.mask is not None:
            options["mask"] = self.mask[rows]
        if self.x is not None and self.case.levels is not None:
            options["x"] = change(self.x.tensor[rows])
            options["prediction"] = Prediction(*self.case.levels)
        backend = None if self.case.backend == "auto" else self.case.backend
        given = {n: change(p[rows]) for n, p in self.predictions.items()}
        if not self.case.graph:
            return guide(self.rule, state=state, backend=backend, out=out, **options, **given), state
        torch.compiler.reset()
        traced = torch.compile(guide, backend="eager", fullgraph=True)
        return traced(self.rule, state=state, backend=backend, out=out, **options, **given), state


def build(case: Case) -> Call:
    """The call that a case describes."""
    rule = Rule.from_dict(case.rule)
    rng, chance = np.random.default_rng(case.seed), Random(case.seed)
    dtype = getattr(torch, case.dtype)
    acc = torch.float64 if dtype == torch.float64 else torch.float32
    shape = tuple(case.shape)
    common = rng.normal(size=shape) + rng.normal()
    placed = {}
    for name in rule.conditions:
        content = values(rng, case.kinds.get(name, "normal"), shape, common).clamp(-6e4, 6e4).to(dtype)
        if case.bad != "none" and name == rule.conditions[-1] and content.numel():
            content[bad_sample(case)].view(-1)[-1] = float(case.bad)
        placed[name] = place(content, case.layouts.get(name, "contiguous"), chance)
    state = {n: torch.from_numpy(0.5 * rng.normal(size=shape)).to(acc) for n in rule.lowered.extras}
    x = None
    if isinstance(rule, InDomain):
        noisy = torch.from_numpy(rng.normal(size=shape)).to(chance.choice((dtype, acc)))
        x = place(noisy, case.layouts.get("x", "contiguous"), chance)
    return Call(case, rule, placed, state, x, _scale(case, rng), _map(case, rng, acc), _mask(case, rng))


def bad_sample(case: Case) -> int:
    """The sample that has a value which is no number."""
    return case.seed % max(1, case.shape[0])


def _scale(case: Case, rng: np.random.Generator) -> Any:
    drawn = np.round(rng.uniform(-2, 12, size=max(1, case.shape[0])) * 64) / 64
    kind = torch.float64 if case.seed % 3 == 0 else torch.float32
    return {
        "own": lambda: None,
        "number": lambda: float(drawn[0]),
        "0d": lambda: torch.tensor(drawn[0], dtype=kind),
        "one": lambda: torch.tensor(drawn[:1], dtype=kind),
        "batch": lambda: torch.tensor(drawn[: case.shape[0]], dtype=kind),
    }[case.scale]()


def _map(case: Case, rng: np.random.Generator, acc: torch.dtype) -> Tensor | None:
    shape = list(case.shape)
    small = {
        "whole": shape,
        "pixels": [shape[0], 1, *shape[2:]],
        "sample": [shape[0], *[1] * (len(shape) - 1)],
        "channel": [1, shape[1], *[1] * (len(shape) - 2)],
    }.get(case.scale_map)
    if small is None:
        return None
    return torch.from_numpy(np.round(rng.uniform(0, 2, size=small) * 8) / 8).to(acc)


def _mask(case: Case, rng: np.random.Generator) -> Tensor | None:
    if case.mask == "none":
        return None
    shape = tuple(case.shape)
    made = torch.from_numpy(rng.random(shape) < 0.7)
    if case.mask == "padding" and len(shape) > 2:
        made = torch.arange(shape[1])[None, :] < torch.from_numpy(rng.integers(1, shape[1] + 1, size=(shape[0], 1)))
        made = made.view(*made.shape, *[1] * (len(shape) - 2))
    elif case.mask == "one":
        made = torch.zeros(shape, dtype=torch.bool)
        made[..., -1] = True
    elif case.mask == "nothing":
        made[: (shape[0] + 1) // 2] = False
    return made if case.seed % 2 else made.to(torch.float32)


def out_of(call: Call) -> Placed | None:
    """``out=`` of a case: a tensor of its own, an input, or one that overlaps an input."""
    case, name = call.case, call.rule.conditions[-1]
    first = call.placed[name]
    content = torch.zeros(tuple(case.shape), dtype=first.tensor.dtype)
    chance = Random(case.seed + 1)
    if case.out == "none":
        return None
    layout = case.layouts.get("out", "contiguous")
    if case.out == "strided":
        return place(content, layout if layout not in ("expanded", "negated", "contiguous") else "strided", chance)
    if case.out == "input" and case.layouts.get(name) not in ("expanded", "negated"):
        return first
    if case.out == "overlap" and case.layouts.get(name) == "offset" and content.numel():
        shifted = first.buffer[11 : 11 + content.numel()].view(content.shape)
        inside = torch.zeros(first.buffer.shape, dtype=torch.bool)
        inside[11 : 11 + content.numel()] = True
        return Placed(shifted, first.buffer, inside, first.before)
    return place(content, "contiguous", chance)
