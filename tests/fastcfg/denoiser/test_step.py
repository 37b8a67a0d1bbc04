"""Passes, guidance and the solver's step: the schedulers' trajectories, and the next model input written on the way."""

from typing import Any

import pytest
import torch

from fastcfg import APG, CFG, GatedCFG, GuidedDenoiser, Rule, Sampler, State, schedules
from fastcfg.samplers import DDIM, from_scheduler

from .models import Counting, draw, labels

X = draw(2, 3, 4, 5)
SAMPLER = Sampler.edm([4.0, 2.0, 1.0, 0.5, 0.2, 0.0], timesteps=[5.0, 4.0, 3.0, 2.0, 1.0])


@pytest.mark.parametrize("mode", ["batched", "sequential"])
@pytest.mark.parametrize(
    "rule",
    [CFG(4.0), CFG(schedules.Interval(5.0, 0.25, 0.75), rescale=0.5), GatedCFG(4.0, every=3), APG(5.0, momentum=-0.5)],
    ids=repr,
)
@pytest.mark.parametrize("name", ["DDIMScheduler", "EulerDiscreteScheduler", "DPMSolverMultistepScheduler"])
@torch.no_grad()
def test_the_trajectory_is_that_of_the_scheduler(name: str, rule: Rule, mode: Any) -> None:
    diffusers = pytest.importorskip("diffusers")
    options = {"clip_sample": False, "timestep_spacing": "trailing"} if name == "DDIMScheduler" else {}
    scheduler = getattr(diffusers, name)(**options)
    scheduler.set_timesteps(8)
    given = labels("uncond", "cond")
    ours, theirs = GuidedDenoiser(Counting(), rule, mode=mode), GuidedDenoiser(Counting(), rule)
    a = b = X * scheduler.init_noise_sigma
    states = State(), State()
    for step, t in zip(from_scheduler(scheduler), scheduler.timesteps, strict=True):
        a = ours.step(a, step, conditions=given, state=states[0], t=t.item() / 1000)
        prediction = theirs(
            scheduler.scale_model_input(b, t), t.item() / 1000, conditions=given, step=step.index, num_steps=8,
            sigma=step.sigma, state=states[1],
        )  # fmt: skip
        b = scheduler.step(prediction, t, b).prev_sample
    # A few roundings in each of eight steps on either side, relative to the largest element.
    torch.testing.assert_close(a, b, rtol=0, atol=2.0**-18 * b.abs().max().item())
    assert ours.report() == theirs.report()


@torch.no_grad()
def test_the_next_input_is_the_one_that_the_step_wrote() -> None:
    model = Counting()
    denoiser, given = GuidedDenoiser(model, CFG(4.0)), labels("uncond", "cond")
    x = X
    for step in SAMPLER:
        x = denoiser.step(x, step, conditions=given)
    addresses = {call["x"].data_ptr() for call in model.calls}
    assert len(addresses) == 1 and model.sizes == [4] * 5
    assert denoiser._input._latent is x
    # Written by the last step for a next one that has the scale 1.
    assert torch.equal(model.calls[0]["x"], torch.cat([x, x]))


@torch.no_grad()
def run(change: bool, mode: Any = "batched", dtype: torch.dtype | None = None) -> torch.Tensor:
    denoiser, given = GuidedDenoiser(Counting(), CFG(4.0), mode=mode), labels("uncond", "cond")
    x = X
    for step in SAMPLER:
        x = denoiser.step(x, step, conditions=given, dtype=dtype)
        if change:
            x[:, :1] = 0.25  # As inpainting does.
    return x


@torch.no_grad()
def test_a_latent_that_was_written_to_is_read_again() -> None:
    denoiser, given = GuidedDenoiser(Counting(), CFG(4.0)), labels("uncond", "cond")
    x = X
    for step in SAMPLER:
        x = denoiser.step(x.clone(), step, conditions=given)  # Another tensor each time: never what was written.
        x[:, :1] = 0.25
    assert torch.equal(run(change=True), x) and not torch.equal(run(change=False), x)
    with torch.inference_mode():
        torch.testing.assert_close(run(change=True), x, rtol=0, atol=0)
    assert torch.equal(run(change=True, mode="sequential"), x)


@torch.no_grad()
def test_steps_out_of_order_scale_their_input_themselves() -> None:
    denoiser, given = GuidedDenoiser(Counting(), CFG(4.0)), labels("uncond", "cond")
    x = denoiser.step(X, SAMPLER.steps[0], conditions=given)
    again = denoiser.step(x, SAMPLER.steps[3], conditions=given)
    fresh = GuidedDenoiser(Counting(), CFG(4.0)).step(x.clone(), SAMPLER.steps[3], conditions=given)
    assert torch.equal(again, fresh)


@torch.no_grad()
def test_the_model_may_take_a_narrower_input_than_the_latent() -> None:
    model = Counting()
    denoiser, given = GuidedDenoiser(model, CFG(4.0)), labels("uncond", "cond", dtype=torch.bfloat16)
    x = X
    for step in SAMPLER:
        x = denoiser.step(x, step, conditions=given, dtype=torch.bfloat16)
        assert x.dtype == torch.float32
    assert {call["x"].dtype for call in model.calls} == {torch.bfloat16}


def test_noise_and_arguments() -> None:
    sampler = Sampler.edm([2.0, 1.0, 0.0], solver=DDIM(1.0))
    denoiser, given = GuidedDenoiser(Counting(), CFG(4.0)), labels("uncond", "cond")
    with pytest.raises(ValueError, match="t: the step has no timestep; give t="):
        denoiser.step(X, sampler.steps[0], conditions=given)
    with pytest.raises(ValueError, match="noise: the step takes noise; give a tensor"):
        denoiser.step(X, sampler.steps[0], conditions=given, t=0.5)
    noise = draw(2, 3, 4, 5, seed=5)
    a, b = (denoiser.step(X, sampler.steps[0], conditions=given, t=0.5, noise=n) for n in (noise, 0 * noise))
    assert not torch.equal(a, b)


def test_channels_beyond_the_guided_ones_take_no_part() -> None:
    given = labels("uncond", "cond")
    model = Counting(lambda y: torch.cat([y, y.cos()], 1))
    got = GuidedDenoiser(model, CFG(4.0), guided_channels=3, rest="cond").step(X, SAMPLER.steps[1], conditions=given)
    assert torch.equal(got, GuidedDenoiser(Counting(), CFG(4.0)).step(X, SAMPLER.steps[1], conditions=given))
