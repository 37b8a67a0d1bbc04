"""The same cases as pytest-benchmark tests, grouped by case: ``pytest benchmarks/bench_guidance.py``.

They run one after another, not in turns: take ratios from ``benchmarks.run``.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache, partial
from math import prod
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.cases import REFERENCE, Case, cases, contestants, draw, exact
from benchmarks.counting import work
from benchmarks.race import check

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
PAIRS = [
    pytest.param(case, name, id=f"{case}-{name}")
    for case in cases(DEVICE)
    for name in contestants(case, strategies=DEVICE == "cuda")
]


@lru_cache(maxsize=1)
def _inputs(case: Case) -> tuple[dict[str, Tensor], Tensor]:
    predictions = draw(case, DEVICE)
    return predictions, exact(case, predictions)


@pytest.fixture(autouse=True)
def _no_grad() -> Iterator[None]:
    with torch.no_grad():
        yield


@pytest.mark.parametrize(("case", "name"), PAIRS)
def test_guidance(benchmark: Any, case: Case, name: str) -> None:
    predictions, truth = _inputs(case)
    try:
        call = contestants(case, strategies=DEVICE == "cuda")[name](predictions)
    except (ImportError, RuntimeError, ValueError) as error:
        pytest.skip(str(error))
    benchmark.group = str(case)
    done = work(call, prod(case.shape), DEVICE, partial(case.moved_by_fastcfg, DEVICE))
    benchmark.extra_info |= {"launches": done.launches, "moved": done.moved, "least": case.least}
    allowed = 0.0 if name.startswith(REFERENCE) else case.contest.allowed
    benchmark.extra_info["error_in_roundings"] = check(call(), truth, case.dtype, allowed)

    def run() -> None:
        call()
        if DEVICE == "cuda":
            torch.cuda.synchronize()

    benchmark(run)
