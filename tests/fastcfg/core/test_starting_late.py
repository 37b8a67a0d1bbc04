"""Runs that begin at a later step (img2img, a restart): beside diffusers' scheduler with its begin_index set."""

from __future__ import annotations

from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor

from fastcfg import CFG, GuidedDenoiser, Sampler, State, guide, guide_step
from fastcfg.samplers import from_scheduler
from fastcfg.samplers.solvers import DPMSolver2M

X = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def model(x: Tensor, t: Any, y: float) -> Tensor:
    return torch.tanh(x + y)


@pytest.mark.parametrize("begin", [0, 1, 3, 6])
@pytest.mark.parametrize("solver_type", ["midpoint", "heun"])
@pytest.mark.parametrize("captured", [False, True])
def test_a_late_run_is_that_of_the_scheduler(begin: int, solver_type: str, captured: bool) -> None:
    scheduler: Any = diffusers.DPMSolverMultistepScheduler(solver_type=solver_type)
    scheduler.set_timesteps(8)
    sampler = from_scheduler(scheduler)
    scheduler.set_begin_index(begin)
    denoiser, state, x = GuidedDenoiser(model, CFG(3.0), mode="sequential"), State(), X
    conditions = {"uncond": {"y": 0.0}, "cond": {"y": 0.7}}
    take: Any = denoiser.capture(backend="eager").step if captured else denoiser.step
    theirs = X
    for step in sampler.steps[begin:]:
        x = take(x, step, conditions=conditions, state=state)
        guess = guide(CFG(3.0), uncond=model(theirs, 0, 0.0), cond=model(theirs, 0, 0.7))
        (theirs,) = scheduler.step(guess, scheduler.timesteps[step.index], theirs, return_dict=False)
    # The scheduler's tables are float32, and so are a captured step's weights.
    torch.testing.assert_close(x, theirs, rtol=0, atol=2e-5 * float(theirs.abs().max()))


def test_the_first_step_reads_no_zero_for_a_clean_sample() -> None:
    sampler = Sampler.vp([0.02, 0.2, 0.5, 0.8, 0.99], solver=DPMSolver2M())
    step = sampler.steps[2]
    predictions = {"uncond": model(X, 0, 0.0), "cond": model(X, 0, 0.7)}
    got = guide_step(CFG(3.0), step, x=X, state=State(), **predictions)
    first = Sampler.vp([0.5, 0.8], solver=DPMSolver2M()).steps[0]
    torch.testing.assert_close(
        got, guide_step(CFG(3.0), first, x=X, state=State(), **predictions), rtol=1e-12, atol=1e-12
    )
    zero = guide_step(CFG(3.0), step, x=X, state=State({"previous_x0": torch.zeros_like(X)}), **predictions)
    assert (zero - got).norm() > 0.05 * got.norm(), "what it was"
    assert step.first_order().previous_x0 == 0 and sampler.steps[0].first_order() == sampler.steps[0]
