"""Where a guided pipeline is in its run, and what its scheduler says of the noise level there."""

from __future__ import annotations

import copy
from typing import Any

import diffusers
import pytest
import torch
from conformance.tiny_pipelines import CASES, STEPS, drawn, made
from torch import Tensor

from fastcfg import APG, CFG, InDomain
from fastcfg.adapters.diffusers import guided
from fastcfg.adapters.diffusers.noise import SchedulerLevels
from fastcfg.schedules import Interval, SigmaInterval

# --- Steps and noise levels -------------------------------------------------------------------------------------------


def test_an_img2img_run_counts_its_own_steps() -> None:
    rule = CFG(Interval(5.0, 0.0, 0.5))
    with guided(made("sd_img2img"), rule) as guidance:
        CASES["sd_img2img"].run(3.0, strength=0.5, num_inference_steps=4)
    assert guidance.num_steps == 2 and guidance.step == 2
    assert (guidance.passes_run, guidance.passes_saved) == (3, 1)


def test_schedules_run_on_the_scheduler_s_noise_levels() -> None:
    pipe = made("sd")
    pipe.scheduler.set_timesteps(STEPS)
    first, second = pipe.scheduler.sigmas[:2].tolist()
    with guided(pipe, CFG(SigmaInterval(5.0, low=second, high=first))) as guidance:
        CASES["sd"].run(3.0)
    assert (guidance.passes_run, guidance.passes_saved) == (3, 1)


SCHEDULERS = {
    "euler": lambda d: d.EulerDiscreteScheduler(),
    "euler_v": lambda d: d.EulerDiscreteScheduler(prediction_type="v_prediction"),
    "ddim": lambda d: d.DDIMScheduler(clip_sample=False),
    "ddim_v": lambda d: d.DDIMScheduler(clip_sample=False, prediction_type="v_prediction"),
    "ddim_x0": lambda d: d.DDIMScheduler(clip_sample=False, prediction_type="sample"),
    "ddpm": lambda d: d.DDPMScheduler(clip_sample=False),
    "dpm": lambda d: d.DPMSolverMultistepScheduler(solver_order=1),
    "unipc_flow": lambda d: d.UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True),
    "flow": lambda d: d.FlowMatchEulerDiscreteScheduler(),
}


@pytest.mark.parametrize("name", SCHEDULERS)
def test_what_the_model_predicts_is_what_the_scheduler_takes_it_for(name: str) -> None:
    scheduler = SCHEDULERS[name](diffusers)
    scheduler.set_timesteps(4)
    output, sample = drawn(1, 4, 8, 8, seed=0), drawn(1, 4, 8, 8, seed=1)
    for step, t in enumerate(scheduler.timesteps[:2]):
        levels = SchedulerLevels(scheduler, step, 4)
        x = levels.model_sample(sample, t)
        x0 = levels.prediction().convert(output, x, "x0")
        torch.testing.assert_close(x0, clean_sample(scheduler, output, t, sample), rtol=2e-4, atol=2e-4)
        sample = scheduler.step(output, t, sample).prev_sample


def clean_sample(scheduler: Any, output: Tensor, t: Tensor, sample: Tensor) -> Tensor:
    """The clean sample as the scheduler itself makes it."""
    if hasattr(scheduler, "convert_model_output"):
        if scheduler.step_index is None:
            scheduler._init_step_index(t)
        return scheduler.convert_model_output(output, sample=sample)
    if scheduler.__class__.__name__.startswith("FlowMatch"):
        if scheduler.step_index is None:
            scheduler._init_step_index(t)
        return sample - scheduler.sigmas[scheduler.step_index] * output
    return copy.deepcopy(scheduler).step(output, t, sample).pred_original_sample


@pytest.mark.parametrize("name", ["sd", "sd_ddim", "sd3", "wan"])
def test_rules_with_a_domain_get_the_noise_level(name: str) -> None:
    case, pipe = CASES[name], made(name)
    with guided(pipe, InDomain(APG(5.0, 0.0), "x0")):
        in_x0 = case.run(3.0)
    with guided(pipe, APG(5.0, 0.0)):
        in_own = case.run(3.0)
    assert in_x0.isfinite().all() and not torch.equal(in_x0, in_own)
    # Without a norm the domain makes no difference.
    with guided(pipe, InDomain(APG(5.0), "x0")):
        plain = case.run(3.0)
    with guided(pipe, CFG(5.0)):
        torch.testing.assert_close(plain, case.run(3.0), rtol=1e-3, atol=1e-3 * float(plain.std()))
