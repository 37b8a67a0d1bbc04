"""What a whole step asks of torch: ours nothing, a pipeline of diffusers so many passes."""

from __future__ import annotations

import diffusers
import pytest
import torch

from benchmarks.counting import count
from benchmarks.race import check
from benchmarks.steps import RULES, SCHEDULERS, StepCase, contestants, step_cases

SHAPE = (1, 4, 64, 64)
PASSES = {  # (rule, dtype): guidance, scheduler.step, torch.cat, scale_model_input and the copy, by scheduler.
    ("CFG", "fp32"): (7, 12, 11, 15),
    ("CFG", "bf16"): (9, 14, 11, 17),
    ("CFG + rescale 0.7", "fp32"): (13, 18, 17, 21),
    ("CFG + rescale 0.7", "bf16"): (15, 20, 17, 23),
}


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_passes_saved(scheduler: str, rule: str, dtype: str) -> None:
    """Views and allocations left out; diffusers 0.42.1."""
    case = StepCase(rule, scheduler, SHAPE, dtype)
    calls, exact, needed = contestants(case, "cpu")
    ours, theirs = (count(call, exact.numel()) for call in calls.values())
    assert (ours.operations, ours.passes, ours.traffic) == (0, 0, 0)
    for call in calls.values():
        check(call(), exact, case.dtype)
    assert theirs.traffic > 2 * needed
    if diffusers.__version__ == "0.42.1":
        assert theirs.passes == PASSES[rule, dtype][SCHEDULERS.index(scheduler)]


def test_cases() -> None:
    found = list(step_cases("cpu"))
    assert len(found) == len(set(found)) == len(RULES) * len(SCHEDULERS) * 3 * 2
    assert {case.dtype for case in step_cases("cuda")} == {torch.float32, torch.bfloat16, torch.float16}
