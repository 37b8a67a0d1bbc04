"""The run of random calls, in a process that may crash."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

from .cases import Case, draw_case
from .fuzz import backends, check_case, shrink
from .isolation import isolated
from .outcome import Row, Tick

__all__ = ["TITLE", "cases", "check", "merge", "replay", "run", "smaller"]

TITLE = "Random calls: within the bound of the float64 oracle, bits of the sample alone, nothing written astray"


def cases(seed: int, start: int) -> Iterator[dict[str, Any]]:
    """Random calls, from number ``start`` on."""
    here = backends()
    devices = ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",)
    for index in itertools.count(start):
        yield json.loads(draw_case(seed, index, here, devices).to_json())


def check(case: Mapping[str, Any]) -> dict[str, Any]:
    """Make the call."""
    made = Case(**case)
    found = check_case(made)
    return {"bounded": found.bounded, "error": found.error, "backend": made.backend, "rule": made.rule["type"]}


def smaller(case: Mapping[str, Any], error: Exception) -> dict[str, Any]:
    """A simpler case that fails in the same way."""
    kind = str(error).partition(":")[0]

    def still(other: Case) -> bool:
        try:
            check_case(other)
        except Exception as found:
            return type(found) is type(error) and str(found).partition(":")[0] == kind
        return False

    found: dict[str, Any] = json.loads(shrink(Case(**case), still).to_json())
    return found


def merge(figures: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """How many calls were compared with the oracle, and how near to the bound they came."""
    by_backend = {
        f"{b} calls": sum(f["backend"] == b for f in figures) for b in sorted({f["backend"] for f in figures})
    }
    return {
        "compared with the oracle": sum(f["bounded"] for f in figures),
        "largest error / bound": round(max((f["error"] for f in figures), default=0.0), 3),
        "rules": len({f["rule"] for f in figures}),
        **by_backend,
    }


def run(seconds: float, seed: int, tick: Tick, most: int | None = None) -> Row:
    """Random calls for so long."""
    return isolated("fuzz", __name__, seconds, seed, tick, most=most)


def replay(case: Mapping[str, Any]) -> None:
    """One call again."""
    check(case)
