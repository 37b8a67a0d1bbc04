"""A step in the guidance's pass: every backend, dtype and output against float64; its place after a clamp; errors."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
import torch._dynamo.testing
from conformance.oracles.rounding import ulp

import fastcfg
from fastcfg import APG, CFG, FDG, CFGZeroStar, Clamp, InDomain, NormCap, Rule, Sampler, State, guide, guide_step
from fastcfg.samplers import DDIM, DPMSolver2M, Step
from fastcfg.schedules import Ramp

PRODUCTS = [0.02, 0.1, 0.35, 0.7, 0.95, 1.0]
SOLVERS = {"DDIM": DDIM(), "DDIM-eta": DDIM(1.0), "2M": DPMSolver2M(), "2M-SDE": DPMSolver2M(1.0)}
BACKENDS = ["auto", "torch", "row", "two_launch"]
SHAPE = (3, 4, 9, 8)


def sampler(solver: str = "2M", kind: str = "v") -> Sampler:
    """Input scales other than 1, as Euler's in sigma space are."""
    a = PRODUCTS
    levels = [((p**0.5, (1 - p) ** 0.5), (q**0.5, (1 - q) ** 0.5)) for p, q in pairwise(a)]
    return Sampler.from_levels(
        levels, kind=kind, solver=SOLVERS[solver], input_scales=[1.0, 0.9, 0.8, 0.7, 0.6], timesteps=a[:-1]
    )


def draw(rule: Rule, dtype: torch.dtype, shape: tuple[int, ...] = SHAPE) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(5)

    def one(spread: float = 1.0) -> torch.Tensor:
        return spread * torch.randn(shape, generator=generator, dtype=torch.float64)

    common = one()
    return {name: (common + one(0.4)).to(dtype) for name in rule.conditions}


def exact_step(
    step: Step, guided: torch.Tensor, x: torch.Tensor, previous: torch.Tensor, noise: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """``(next x, x0)`` in float64."""
    after = step.prediction * guided + step.x * x + (step.previous_x0 or 0.0) * previous + (step.noise or 0.0) * noise
    return after, step.x0_prediction * guided + step.x0_x * x


def run(
    rule: Rule, step: Step, given: dict[str, torch.Tensor], x: torch.Tensor, state: State, path: str, **options: Any
) -> torch.Tensor:
    if path in ("row", "two_launch"):
        with pytest.MonkeyPatch.context() as patch:
            force = fastcfg.core.launch.fk.guide_checked
            patch.setattr(fastcfg.core.launch.fk, "guide_checked", lambda *a, **k: force(*a, **{**k, "strategy": path}))
            return guide_step(rule, step, x=x, state=state, backend="triton", **options, **given)
    return guide_step(rule, step, x=x, state=state, backend=None if path == "auto" else path, **options, **given)


def close(got: torch.Tensor, exact: torch.Tensor, magnitude: float, *, truncates: bool = False) -> None:
    """Half a spacing of the output, and 32 roundings of the accumulator at the size of what was added up."""
    unit = 2.0**-53 if got.dtype == torch.float64 else 2.0**-24
    if exact.dtype == got.dtype == torch.float64:
        unit *= 4  # The reference rounds too.
    bound = (1.0 if truncates else 0.5) * ulp(exact.numpy(), got.dtype) + 32 * unit * magnitude
    assert (np.abs(got.double().numpy() - exact.numpy()) <= bound).all()


# Every solver in float32; the one that reads everything in the other dtypes too.
OUTPUTS = [*((solver, torch.float32) for solver in SOLVERS), ("2M-SDE", torch.bfloat16), ("2M-SDE", torch.float64)]


@pytest.mark.parametrize(("solver", "dtype"), OUTPUTS, ids=lambda v: str(v).removeprefix("torch."))
@pytest.mark.parametrize("path", BACKENDS)
def test_every_backend_gives_every_output(path: str, solver: str, dtype: torch.dtype) -> None:
    """The next x in x's own dtype, the clean sample in the accumulator's, the model's input in bfloat16 three times."""
    rule = CFG(5.0, rescale=0.5)
    step = sampler(solver).steps[2]
    given = draw(rule, dtype)
    acc = torch.float64 if dtype == torch.float64 else torch.float32
    x, previous, noise = (draw(CFG(), acc)["cond"] * k for k in (1.0, 0.5, 0.25))
    state = State({"previous_x0": previous.clone()} if step.keeps_x0 else {})
    batch = torch.full((3 * SHAPE[0], *SHAPE[1:]), float("nan"), dtype=torch.bfloat16)
    options: dict[str, Any] = {"batch_out": batch} | ({} if step.noise is None else {"noise": noise})
    after = run(rule, step, given, x, state, path, **options)
    assert after.dtype == acc and after.shape == x.shape

    guided = guide(rule, **{name: p.double() for name, p in given.items()})
    exact, clean = exact_step(step, guided, x.double(), previous.double(), noise.double())
    magnitude = 5.0 * sum(float(t.abs().max()) for t in (*given.values(), x, previous, noise))
    close(after, exact, magnitude)
    if step.keeps_x0:
        assert state["previous_x0"].dtype == acc
        close(state["previous_x0"], clean, magnitude)
    for block in batch.chunk(3):
        # Triton's interpreter truncates where a GPU rounds.
        close(block, step.next_input_scale * exact, magnitude, truncates=path in ("row", "two_launch"))


RULES = [
    Clamp(CFG(6.0), k=1.0),
    InDomain(Clamp(CFG(6.0), k=1.0), "x0"),
    InDomain(CFG(6.0, rescale=0.7), "eps"),
    CFGZeroStar(5.0, zero_init_steps=0),
    NormCap(CFG(5.0), over="channel"),
    FDG(),
]


@pytest.mark.parametrize("path", ["auto", "torch", "two_launch"])
@pytest.mark.parametrize("rule", RULES, ids=lambda r: type(r).__name__ + getattr(r, "domain", ""))
def test_the_step_is_that_of_the_guided_prediction(rule: Rule, path: str) -> None:
    """After a clamp, in another space, by channel, of prepared tensors: what ``guide`` gives, and then the step."""
    step = sampler().steps[1]
    given = draw(rule, torch.float64)
    x, previous = (draw(CFG(), torch.float64)[name] for name in ("cond", "uncond"))
    space = {} if rule.lowered.domain is None else {"x": step.input_scale * x, "prediction": step.level}
    exact, clean = exact_step(step, guide(rule, **given, **space), x, previous, torch.zeros(()))
    state = State({"previous_x0": previous})
    torch.testing.assert_close(run(rule, step, given, x, state, path), exact, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(state["previous_x0"], clean, rtol=1e-12, atol=1e-12)


def test_a_rule_with_a_memory_keeps_it() -> None:
    rule = APG(5.0, eta=0.3, norm_threshold=4.0, momentum=-0.5)
    step = sampler().steps[0]
    given = draw(rule, torch.float32)
    x = given["cond"] * 0.5
    alone, both = State(), State()
    guided = guide(rule, state=alone, **given)
    after = guide_step(rule, step, x=x, state=both, **given)
    assert torch.equal(alone["average"], both["average"]) and set(both) == {"average", "previous_x0"}
    exact, _ = exact_step(step, guided.double(), x.double(), torch.zeros(()), torch.zeros(()))
    torch.testing.assert_close(after.double(), exact, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("path", BACKENDS)
def test_a_sample_alone_has_the_bits_of_its_row(path: str) -> None:
    rule = CFG(5.0, rescale=0.5)
    given = draw(rule, torch.float32, (8, 4, 9, 8))
    x, previous = (draw(CFG(), torch.float32, (8, 4, 9, 8))[n] for n in ("cond", "uncond"))
    steps = [sampler().steps[k % 4 + 1] for k in range(8)]
    together = State({"previous_x0": previous})
    whole = run(rule, Step.stack(steps), given, x, together, path)
    for b in (0, 3, 7):
        state = State({"previous_x0": previous[b : b + 1].clone()})
        one = {name: p[b : b + 1].clone() for name, p in given.items()}
        alone = run(rule, Step.stack(steps[b : b + 1]), one, x[b : b + 1].clone(), state, path)
        assert torch.equal(alone, whole[b : b + 1])
        assert torch.equal(state["previous_x0"], together["previous_x0"][b : b + 1])


@pytest.mark.parametrize("path", BACKENDS)
@pytest.mark.parametrize("over", ["x", "uncond", "cond"])
def test_the_next_latent_may_take_the_place_of_an_input(over: str, path: str) -> None:
    rule = CFG(5.0, rescale=0.5)
    step = sampler("DDIM").steps[1]
    given = draw(rule, torch.float32)
    x = given["cond"] * 0.3 + 1.0
    expected = run(rule, step, given, x, State(), path)
    buffers = {"x": x.clone()} | {name: p.clone() for name, p in given.items()}
    own = {name: buffers[name] for name in given}
    got = run(rule, step, own, buffers["x"], State(), path, out=buffers[over])
    assert got is buffers[over] and torch.equal(got, expected)


def test_numbers_and_tensors_agree_and_a_graph_serves_every_step() -> None:
    torch._dynamo.reset()
    rule = InDomain(CFG(5.0, rescale=0.5), "x0")
    given = draw(rule, torch.float32)
    x = given["cond"] * 0.5
    counter = torch._dynamo.testing.CompileCounter()

    @torch.compile(fullgraph=True, backend=counter)
    def compiled(step: Step, x: torch.Tensor, previous: torch.Tensor, u: torch.Tensor, c: torch.Tensor) -> Any:
        state = State({"previous_x0": previous})
        return guide_step(rule, step, x=x, state=state, uncond=u, cond=c), state["previous_x0"]

    for step in sampler().steps[1:]:
        state = State({"previous_x0": x})
        expected = guide_step(rule, step, x=x, state=state, **given)
        after, kept = compiled(Step.stack([step]), x, x, given["uncond"], given["cond"])
        torch.testing.assert_close(after, expected, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(kept, state["previous_x0"], rtol=1e-5, atol=1e-5)
    assert counter.frame_count == 1


def test_gradients_pass_through() -> None:
    step = sampler("DDIM").steps[1]
    given = {name: p.double().requires_grad_() for name, p in draw(CFG(), torch.float64, (2, 3, 4)).items()}
    x = torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True)

    def call(x: torch.Tensor, uncond: torch.Tensor, cond: torch.Tensor) -> torch.Tensor:
        return guide_step(CFG(5.0, rescale=0.5), step, x=x, uncond=uncond, cond=cond)

    assert torch.autograd.gradcheck(call, (x, given["uncond"], given["cond"]))


def test_schedules_are_resolved_by_the_step() -> None:
    rule = CFG(Ramp(6.0, 2.0))
    given = draw(rule, torch.float32)
    x = given["cond"] * 0.5
    for step in sampler("DDIM"):
        resolved = rule.at(step.index, step.num_steps)
        expected = guide_step(resolved, step, x=x, **given)
        assert torch.equal(guide_step(rule, step, x=x, **given), expected)


def test_one_batch_of_predictions_in_any_order() -> None:
    given = draw(CFG(), torch.float32)
    step = sampler("DDIM").steps[0]
    x = given["cond"] * 0.5
    expected = guide_step(CFG(5.0), step, x=x, **given)
    batch = torch.cat([given["cond"], given["uncond"]])
    assert torch.equal(guide_step(CFG(5.0), step, batch, order=("cond", "uncond"), x=x), expected)


BAD: list[tuple[dict[str, Any], str]] = [
    ({"noise": torch.zeros(SHAPE)}, "noise: the step takes none"),
    ({"state": None}, "state: the solver reads the clean sample"),
    ({"x": torch.zeros(3, 4, 9, 7)}, r"x: expected the shape \[3, 4, 9, 8\]"),
    ({"x": torch.zeros(SHAPE, dtype=torch.float64)}, "x: expected"),
    ({"out": torch.zeros(SHAPE, dtype=torch.bfloat16)}, "out: expected"),
    ({"batch_out": torch.zeros(4, 4, 9, 8)}, r"batch_out: expected a floating tensor \[k\*3, ...\]"),
    ({"batch_out": torch.zeros(6, 4, 9, 8, dtype=torch.int32)}, "batch_out: expected a floating tensor"),
    ({"step": 3}, "step: expected a fastcfg.samplers.Step, got int"),
    ({"rule": "cfg"}, "rule: expected a fastcfg rule, got str"),
    ({"batch": torch.zeros(6, 4, 9, 8)}, "batch: give one tensor or named predictions"),
]


@pytest.mark.parametrize(("wrong", "message"), BAD, ids=[message[:24] for _, message in BAD])
def test_bad_input(wrong: dict[str, Any], message: str) -> None:
    given = {"rule": CFG(5.0), "step": sampler().steps[1], "x": torch.zeros(SHAPE), "state": State()}
    with pytest.raises((TypeError, ValueError), match=message):
        guide_step(**{**given, **draw(CFG(), torch.float32), **wrong})


def test_noise_is_asked_for() -> None:
    with pytest.raises(ValueError, match="noise: the step takes noise; give a tensor"):
        guide_step(CFG(), sampler("DDIM-eta").steps[0], x=torch.zeros(SHAPE), **draw(CFG(), torch.float32))
