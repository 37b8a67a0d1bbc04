"""Calls with one thing wrong: each gets an error that begins with the argument's name, and none a crash."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from random import Random
from typing import Any

import numpy as np
import torch

from fastcfg import CFG, InDomain, Prediction, Rule, State, guide

from .isolation import isolated
from .outcome import Row, Tick, Wrong
from .rules import draw_rule

__all__ = ["TITLE", "cases", "check", "merge", "replay", "run"]

TITLE = "Calls with one thing wrong: an error that names the argument"

Arguments = dict[str, Any]
NAMED = re.compile(r"(rule: )?[A-Za-z_][\w, .]*: ")


def _predictions(arguments: Arguments) -> list[str]:
    return list(arguments["rule"].conditions)


def _one(change: Callable[[torch.Tensor], Any]) -> Callable[[Arguments, Random], None]:
    def apply(arguments: Arguments, rng: Random) -> None:
        name = rng.choice(_predictions(arguments))
        arguments[name] = change(arguments[name])

    return apply


def _set(name: str, value: Callable[[Arguments], Any]) -> Callable[[Arguments, Random], None]:
    def apply(arguments: Arguments, rng: Random) -> None:
        arguments[name] = value(arguments)

    return apply


def _first(arguments: Arguments) -> torch.Tensor:
    found: torch.Tensor = arguments[_predictions(arguments)[0]]
    return found


def _drop(arguments: Arguments, rng: Random) -> None:
    del arguments[rng.choice(_predictions(arguments))]


def _scale(value: Any) -> Callable[[Arguments, Random], None]:
    def apply(arguments: Arguments, rng: Random) -> None:
        names = sorted(arguments["rule"].lowered.params) or ["scale"]
        arguments["params"] = {rng.choice(names): value}

    return apply


WRONG: dict[str, Callable[[Arguments, Random], None]] = {
    "integers": _one(lambda t: t.to(torch.int32)),
    "complex": _one(lambda t: t.to(torch.complex64)),
    "boolean": _one(lambda t: t > 0),
    "sparse": _one(lambda t: t.to_sparse()),
    "numpy": _one(lambda t: t.numpy()),
    "list": _one(lambda t: t.tolist()),
    "none": _one(lambda t: None),
    "one dimension": _one(lambda t: t.flatten()),
    "scalar": _one(lambda t: t.flatten()[0]),
    "another dimension": _one(lambda t: t[..., None]),
    "another size": _one(lambda t: torch.cat([t, t], -1)),
    "another batch": _one(lambda t: t[:1]),
    "another device": _one(lambda t: t.to("meta")),
    "missing": _drop,
    "unknown": _set("surely_unknown", _first),
    "a batch too": _set("batch", _first),
    "out of another shape": _set("out", lambda a: torch.empty(3, 5)),
    "out of integers": _set("out", lambda a: torch.empty(_first(a).shape, dtype=torch.int64)),
    "out expanded": _set("out", lambda a: torch.zeros(1, *_first(a).shape[1:]).expand(_first(a).shape)),
    "out elsewhere": _set("out", lambda a: torch.empty_like(_first(a), device="meta")),
    "out a number": _set("out", lambda a: 3.0),
    "backend": _set("backend", lambda a: "cuda"),
    "numerics": _set("numerics", lambda a: "fp8"),
    "map of another shape": _set("scale_map", lambda a: torch.ones(7, 11, 13)),
    "map of integers": _set("scale_map", lambda a: torch.ones(_first(a).shape, dtype=torch.int64)),
    "map a number": _set("scale_map", lambda a: 2.0),
    "mask of another shape": _set("mask", lambda a: torch.ones(7, 11, 13)),
    "mask a list": _set("mask", lambda a: [1, 0]),
    "params a list": _set("params", lambda a: [7.5]),
    "scale not a number": _scale(float("nan")),
    "scale infinite": _scale(float("inf")),
    "scale a text": _scale("7"),
    "scale of two dimensions": _scale(torch.ones(2, 2)),
    "scale of another batch": _scale(torch.ones(17)),
    "scale of integers": _scale(torch.ones(2, dtype=torch.int64)),
    "scale none": _scale(None),
    "rule a dict": _set("rule", lambda a: a["rule"].to_dict()),
    "rule a class": _set("rule", lambda a: type(a["rule"])),
}  # fmt: skip
UNREAD = ("mask of another shape", "mask a list")
"""What a rule without sums never looks at."""


def cases(seed: int, start: int) -> Iterator[dict[str, Any]]:
    """A thing to do wrong and a rule."""
    kinds = sorted(WRONG)
    for index in itertools.count(start):
        rng = Random(f"{seed} refusal {index}")
        rule = CFG(3.0) if rng.random() < 0.2 else draw_rule(rng)
        yield {"wrong": kinds[index % len(kinds)], "rule": rule.to_dict(), "seed": rng.randrange(2**31)}


def check(case: Mapping[str, Any]) -> dict[str, Any]:
    """Make the call; an error has to name what is wrong."""
    rule, kind = Rule.from_dict(case["rule"]), case["wrong"]
    generator = torch.Generator().manual_seed(case["seed"])
    shape = (2, 3, 16, 16)
    arguments: Arguments = {"rule": rule, "state": State()}
    arguments |= {name: torch.randn(shape, generator=generator) for name in rule.conditions}
    if isinstance(rule, InDomain):
        arguments |= {"x": torch.randn(shape, generator=generator), "prediction": Prediction("eps", 0.6, 0.8)}
    for name in rule.lowered.extras:
        arguments["state"][name] = torch.randn(shape, generator=generator)
    WRONG[kind](arguments, Random(case["seed"]))
    if len(rule.conditions) == 1 and kind in ("another dimension", "another size", "another batch", "another device"):
        return {"refused": 0}
    try:
        result = guide(**arguments)
    except (TypeError, ValueError, RuntimeError) as error:
        if not NAMED.match(str(error)) and "unexpected keyword" not in str(error):
            raise Wrong(f"{kind}: the error names no argument: {type(error).__name__}: {error}") from error
        return {"refused": 1}
    if kind in UNREAD and not rule.lowered.program.reduces:
        return {"refused": 0}
    raise Wrong(f"{kind}: the call gave {list(np.shape(result))} and no error")


def merge(figures: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """How many were refused."""
    return {"refused": sum(f["refused"] for f in figures), "kinds of mistake": len(WRONG)}


def run(seconds: float, seed: int, tick: Tick, most: int | None = None) -> Row:
    """Wrong calls for so long."""
    return isolated("refusals", __name__, seconds, seed, tick, most=most)


def replay(case: Mapping[str, Any]) -> None:
    """One call again."""
    check(case)
