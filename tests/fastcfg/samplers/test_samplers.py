"""Samplers as values: JSON, stacks, what every kind of prediction has in common, and what is refused."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    UniPCMultistepScheduler,
)

from fastcfg import Sampler
from fastcfg.samplers import DDIM, DPMSolver2M, Solver, Step, from_scheduler

SIGMAS = [14.6, 6.0, 2.5, 0.9, 0.3, 0.0]
FLOW = [1.0, 0.9, 0.6, 0.35, 0.1, 0.0]
PRODUCTS = [0.01, 0.2, 0.5, 0.9, 1.0]
SAMPLERS = {
    "edm": Sampler.edm(SIGMAS, kind="v", solver=DPMSolver2M(), timesteps=range(5)),
    "flow": Sampler.flow(torch.tensor(FLOW)),
    "vp": Sampler.vp(PRODUCTS, solver=DDIM(0.5)),
}


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_sampler_is_a_value(name: str) -> None:
    sampler = SAMPLERS[name]
    again = Sampler.from_json(sampler.to_json())
    assert again == sampler and hash(again) == hash(sampler)
    assert [step.index for step in sampler] == list(range(len(sampler)))
    assert sampler != Sampler(sampler.steps[1:])


def test_euler_by_hand() -> None:
    """``x + (sigma' - sigma) * eps``, and ``x + (sigma' - sigma) * v`` of flow matching."""
    for step, now, after in zip(Sampler.edm(SIGMAS), SIGMAS[:-1], SIGMAS[1:], strict=True):
        assert step.x == pytest.approx(1.0, rel=1e-15) and step.prediction == pytest.approx(after - now, rel=1e-14)
        assert step.input_scale == pytest.approx(1 / math.sqrt(now**2 + 1), rel=1e-15)
        assert step.sigma == pytest.approx(now, rel=1e-15) and step.noise is None and not step.keeps_x0
    for step, now, after in zip(Sampler.flow(FLOW), FLOW[:-1], FLOW[1:], strict=True):
        assert step.x == pytest.approx(1.0, rel=1e-15) and step.prediction == pytest.approx(after - now, rel=1e-14)


@pytest.mark.parametrize(
    "solver", [DDIM(), DDIM(1.0), DPMSolver2M(), DPMSolver2M(1.0), DPMSolver2M(0, "heun")], ids=str
)
@pytest.mark.parametrize("kind", ["x0", "v", "flow", "score"])
def test_every_kind_of_prediction_makes_the_step_of_eps(kind: Any, solver: Solver) -> None:
    reference = Sampler.vp(PRODUCTS, kind="eps", solver=solver)
    for step, other in zip(reference, Sampler.vp(PRODUCTS, kind=kind, solver=solver), strict=True):
        assert step.level is not None
        # eps as the other kind is a * x + b * eps: the same step of x and eps.
        a, b = step.level.to(kind)
        assert other.x + other.prediction * a == pytest.approx(step.x, rel=1e-12)
        assert other.prediction * b == pytest.approx(step.prediction, rel=1e-12, abs=1e-14)
        assert (other.previous_x0, other.noise) == (step.previous_x0, step.noise)


def test_the_variance_is_preserved() -> None:
    """With noise too the coefficients of independent x0, eps and noise add up to the next level."""
    for eta in (0.0, 0.3, 1.0):
        for step, (now, after) in zip(Sampler.vp(PRODUCTS, solver=DDIM(eta)), pairwise(PRODUCTS), strict=True):
            assert step.x * math.sqrt(now) == pytest.approx(math.sqrt(after), rel=1e-12)
            of_eps = step.x * math.sqrt(1 - now) + step.prediction
            assert of_eps**2 + (step.noise or 0.0) ** 2 == pytest.approx(1 - after, rel=1e-12, abs=1e-15)


def test_a_constant_clean_sample_needs_no_correction() -> None:
    """x0' = x0: the second-order step is the first-order one."""
    first, second = (Sampler.vp(PRODUCTS, kind="x0", solver=solver) for solver in (DDIM(), DPMSolver2M()))
    for a, b in zip(first, second, strict=True):
        assert b.previous_x0 is not None
        assert b.prediction + b.previous_x0 == pytest.approx(a.prediction, rel=1e-12) and b.x == a.x


def test_stacks() -> None:
    steps = SAMPLERS["edm"].steps
    stacked = Step.stack([steps[3], steps[1]], dtype=torch.float64)
    for name in ("prediction", "x", "x0_x", "x0_prediction", "previous_x0", "input_scale", "next_input_scale"):
        assert getattr(stacked, name).tolist() == [getattr(steps[3], name), getattr(steps[1], name)]
    assert stacked.level is not None and stacked.level.kind == "v" and stacked.sigma is None
    with pytest.raises(ValueError, match="steps: expected steps of one solver and one kind"):
        Step.stack([steps[1], SAMPLERS["flow"].steps[1]])
    with pytest.raises(ValueError, match="steps: expected at least one"):
        Step.stack([])


def test_model_input() -> None:
    x = torch.randn(2, 3, 4)
    steps = SAMPLERS["edm"].steps
    batch = steps[1].model_input(x, copies=3, dtype=torch.bfloat16)
    assert torch.equal(batch, torch.cat([(x * steps[1].input_scale).bfloat16()] * 3))
    by_sample = Step.stack(steps[1:3]).model_input(x)
    torch.testing.assert_close(by_sample[1], x[1] * steps[2].input_scale)


REFUSED: list[tuple[Any, str]] = [
    (lambda: Sampler.edm([1.0]), "expected at least two levels"),
    (lambda: Sampler.edm([1.0, -0.5]), r"sigmas\[1\]: expected"),
    (lambda: Sampler.flow([1.5, 0.0]), r"sigmas\[0\]: expected a number in"),
    (lambda: Sampler.vp([0.5, 0.2, 0.9], solver=DPMSolver2M(lower_order_final=False)), "levels: expected less noise"),
    (lambda: Sampler.flow(FLOW, timesteps=[1, 2]), "levels: expected as many as input_scales and timesteps"),
    (lambda: Sampler.flow(FLOW, kind="eps"), "alpha: this conversion divides by alpha"),
    (lambda: Sampler.flow(FLOW, kind="velocity"), "kind: expected one of"),
    (lambda: DDIM(-1.0), "eta: expected a number at least 0"),
    (lambda: DPMSolver2M(0.5), "eta: expected 0, or 1"),
    (lambda: DPMSolver2M(1.0, "heun"), "eta: expected 0, or 1 with solver_type 'midpoint'"),
    (lambda: DPMSolver2M(solver_type="bh2"), "solver_type: expected one of"),
    (lambda: Step(float("nan"), 1.0, 1.0, 0.0), "prediction: expected a finite number"),
    (lambda: Step.from_dict({"x": 1.0, "wait": 2}), "step: no field wait"),
    (lambda: Sampler.from_json("[]"), "sampler: expected a JSON object, got list"),
    (lambda: Sampler.from_json("{}"), "sampler: expected an object with a list 'steps'"),
    (lambda: from_scheduler(DDIMScheduler(clip_sample=False)), "its timesteps are not set"),
    (lambda: from_scheduler(ready(DDIMScheduler())), "with clip_sample=True is not supported; expected False"),
    (lambda: from_scheduler(ready(DDIMScheduler(clip_sample=False, thresholding=True))), "thresholding=True"),
    (lambda: from_scheduler(ready(UniPCMultistepScheduler())), r"scheduler: expected one of \['DDIMScheduler'"),
    (lambda: from_scheduler(ready(DPMSolverMultistepScheduler(solver_order=3))), "with solver_order=3 is not"),
    (lambda: from_scheduler(ready(DPMSolverMultistepScheduler(prediction_type="flow_prediction"))), "use_flow_sigmas"),
    (lambda: from_scheduler(ready(FlowMatchEulerDiscreteScheduler(stochastic_sampling=True))), "stochastic_sampling"),
    (lambda: from_scheduler(ready(FlowMatchEulerDiscreteScheduler(invert_sigmas=True))), "invert_sigmas=True"),
    (lambda: from_scheduler(ready(EulerDiscreteScheduler()), eta=1.0), "eta: EulerDiscreteScheduler takes none"),
]


def ready(scheduler: Any) -> Any:
    scheduler.set_timesteps(5)
    return scheduler


@pytest.mark.parametrize(("make", "message"), REFUSED, ids=[message[:30] for _, message in REFUSED])
def test_what_is_refused(make: Any, message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        make()


def test_a_subclass_of_a_scheduler_is_known() -> None:
    class Own(FlowMatchEulerDiscreteScheduler):
        pass

    assert from_scheduler(ready(Own())) == from_scheduler(ready(FlowMatchEulerDiscreteScheduler()))
