"""One random call of ``fastcfg.guide``, as a value that goes through JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from random import Random
from typing import Any

import torch

from fastcfg import InDomain, Rule

from .rules import KINDS, draw_rule
from .tensors import LAYOUTS, VALUES

__all__ = ["Case", "draw_case"]

DTYPES = ("float32", "bfloat16", "float16", "float64")
OUTS = ("none", "none", "none", "new", "strided", "input", "overlap")
SIZES = (1, 1, 2, 3, 5, 7, 8, 16, 17, 31, 64, 67, 97, 128)
LARGE = (4095, 4096, 4097, 16_384, 33_001, 70_001)
KEEP = 12
"""Calls in a row of one structure of rule, dtype and backend: a native program costs seconds to compile."""


@dataclass(frozen=True)
class Case:
    """A call.

    Attributes:
        rule: as :meth:`fastcfg.Rule.to_dict` has it, its schedules resolved.
        shape: of the predictions; layouts, kinds: by the prediction's name.
        out: what ``out=`` is; scale: how the scale is given (own, number, 0d, batch, one).
        scale_map, mask: their form, or "none"; bad: a value that one prediction's one sample holds, or "none".
        levels: ``(source, alpha, sigma)`` for a rule in a domain.
        threads: of torch; graph: under ``torch.compile``, without Inductor.
    """

    seed: int
    rule: Mapping[str, Any]
    shape: Sequence[int]
    dtype: str = "float32"
    device: str = "cpu"
    backend: str = "auto"
    layouts: Mapping[str, str] = field(default_factory=dict)
    kinds: Mapping[str, str] = field(default_factory=dict)
    out: str = "none"
    scale: str = "own"
    scale_map: str = "none"
    mask: str = "none"
    bad: str = "none"
    numerics: str = "fp32"
    levels: Sequence[Any] | None = None
    threads: int = 1
    graph: bool = False

    def to_json(self) -> str:
        """One line."""
        return json.dumps(asdict(self))

    @staticmethod
    def from_json(text: str) -> Case:
        """The case that :meth:`to_json` wrote."""
        return Case(**json.loads(text))

    def simpler(self) -> list[Case]:
        """Cases with one thing less, for finding what a failure hangs on."""
        plain = Case(self.seed, self.rule, self.shape, levels=self.levels)
        names = ("backend", "layouts", "kinds", "out", "scale", "scale_map", "mask", "bad", "threads", "graph", "dtype")
        found = [replace(self, **{n: getattr(plain, n)}) for n in names if getattr(self, n) != getattr(plain, n)]
        inner = self.rule.get("rule")
        if isinstance(inner, dict) and set(Rule.from_dict(inner).conditions) <= set(self.kinds):
            found.append(replace(self, rule=inner, levels=None if self.rule["type"] == "InDomain" else self.levels))
        found += [
            replace(self, shape=[*self.shape[:d], max(1, n // 2), *self.shape[d + 1 :]])
            for d, n in enumerate(self.shape)
            if n > 1
        ]
        return found


def _shape(rng: Random) -> tuple[int, ...]:
    batch = rng.choice((1, 1, 2, 3, 4, 7))
    if rng.random() < 0.02:
        return rng.choice(((0, 4, 8, 8), (2, 0), (0, 3), (3, 4, 0, 5)))
    if rng.random() < 0.2:
        return batch, rng.choice(LARGE)
    shape = (batch, *(rng.choice(SIZES) for _ in range(rng.choice((1, 2, 3, 3, 4)))))
    while torch.Size(shape).numel() > 120_000:
        largest = max(range(1, len(shape)), key=lambda d: shape[d])
        shape = (*shape[:largest], max(1, shape[largest] // 3), *shape[largest + 1 :])
    return shape


def draw_case(seed: int, index: int, backends: Sequence[str], devices: Sequence[str] = ("cpu",)) -> Case:
    """The call number ``index`` of a run.

    Args:
        backends, devices: what can run here.
    """
    kept = Random(f"{seed} structure {index // KEEP}")
    rng = Random(f"{seed} call {index}")
    made = draw_rule(kept)
    dtype = kept.choice(DTYPES)
    device = kept.choice(devices)
    backend = kept.choices(backends, [12 if b == "auto" else 6 if b in ("cpp", "torch") else 1 for b in backends])[0]
    if made.prepares and backend in ("cpp", "triton"):
        backend = "auto"
    elementwise = made.lowered.domain is None and not made.lowered.extras and not made.lowered.updates
    has_map = kept.random() < 0.15 and elementwise and not made.prepares
    has_mask = kept.random() < 0.15 and made.lowered.dims is None and not made.prepares
    rule = _same_structure(rng, kept, made)
    shape = _shape(rng)
    if made.prepares:  # A pyramid halves the last two dimensions.
        shape = (rng.choice((1, 2)), 3, 8 * rng.randint(2, 5), 8 * rng.randint(2, 5))
    if backend == "triton" and device == "cpu":  # The interpreter takes microseconds an element.
        shape = (min(shape[0], 2), *(min(n, 16) for n in shape[1:3]))
    like = rng.choice(VALUES)
    names = rule.conditions
    kinds = {n: like if rng.random() < 0.7 else rng.choice(VALUES) for n in names}
    same = rng.choice(("contiguous", "contiguous", *LAYOUTS))
    layouts = {n: same if rng.random() < 0.7 else rng.choice(LAYOUTS) for n in (*names, "out", "x", "map", "mask")}
    reads = rule.lowered.params
    return Case(
        seed=rng.randrange(2**31),
        rule=rule.to_dict(),
        shape=shape,
        dtype=dtype,
        device=device,
        backend=backend,
        layouts=layouts,
        kinds=kinds,
        out=rng.choice(OUTS),
        scale=rng.choice(("own", "own", "number", "0d", "batch", "one")) if "scale" in reads else "own",
        scale_map=rng.choice(("whole", "pixels", "sample", "channel")) if has_map else "none",
        mask=rng.choice(("random", "padding", "one", "nothing")) if has_mask else "none",
        bad=rng.choice(("inf", "-inf", "nan")) if rng.random() < 0.1 else "none",
        levels=(rng.choice(KINDS), *_levels(rng)) if isinstance(rule, InDomain) else None,
        threads=rng.choice((1, 1, 1, 2, 3)),
        graph=rng.random() < 0.004,
    )


def _levels(rng: Random) -> tuple[float, float]:
    """Levels of x that all conversions are finite at."""
    sigma = rng.randint(4, 60) / 64
    return 1 - sigma, sigma


def _same_structure(rng: Random, kept: Random, made: Rule) -> Rule:
    """The rule itself, or one of the same structure with another scale."""
    data = made.to_dict()
    inner = data
    while isinstance(inner.get("rule"), dict):
        inner = inner["rule"]
    if isinstance(inner.get("scale"), float):
        inner["scale"] = rng.randint(-256, 1024) / 64
    return Rule.from_dict(data)
