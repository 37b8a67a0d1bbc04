"""A whole step as one piece: the same result, new numbers without a new piece, and compiled without a break."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch._dynamo.testing import CompileCounter

from fastcfg import (
    APG,
    CFG,
    FDG,
    GatedCFG,
    GuidedDenoiser,
    InDomain,
    Prediction,
    Requests,
    Rescale,
    Rule,
    Sampler,
    State,
    schedules,
)
from fastcfg.samplers import DPMSolver2M, Step

from .models import draw

X = draw(2, 4, 8, 8)
GIVEN = {"uncond": {"y": torch.zeros(2, 4)}, "cond": {"y": draw(2, 4, seed=1)}}


class Net(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = torch.nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x: torch.Tensor, t: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return torch.tanh(self.conv(x) + y[:, :, None, None]) * t.view(-1, 1, 1, 1)


@pytest.fixture(scope="module")
def model() -> Net:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Net().requires_grad_(False)


@pytest.fixture(autouse=True)
def fresh_dynamo() -> None:
    torch._dynamo.reset()


def euler(x: torch.Tensor, prediction: torch.Tensor, dt: torch.Tensor | float) -> torch.Tensor:
    return x + dt * prediction


def sample(step: Callable[..., torch.Tensor], rule: Rule, steps: int = 8, **extra: Any) -> torch.Tensor:
    """A run by ``step(x, t, ..., coefficients=...)``."""
    x, state = X, State()
    for i in range(steps):
        space = {"prediction": Prediction("v", 0.8 - 0.01 * i, 0.6)} if isinstance(rule, InDomain) else {}
        x = step(
            x, torch.full((2,), 1 - i / steps), conditions=GIVEN, step=i, num_steps=steps, state=state,
            coefficients={"dt": -1 / (steps + i)}, **space, **extra,
        )  # fmt: skip
    return x


def plain(denoiser: GuidedDenoiser) -> Callable[..., torch.Tensor]:
    def step(x: torch.Tensor, t: torch.Tensor, *, coefficients: Any, **arguments: Any) -> torch.Tensor:
        return euler(x, denoiser(x, t, **arguments), **coefficients)

    return step


RULES: dict[str, tuple[Rule, int]] = {
    "schedule": (CFG(schedules.Ramp(1.5, 9.0)), 1),
    "interval": (CFG(schedules.Interval(5.0, 0.25, 0.75), rescale=0.5), 2),
    "gate": (Rescale(GatedCFG(schedules.Ramp(2.0, 6.0), every=3, drift=0.9), 0.5), 2),
    "momentum": (APG(5.0, momentum=-0.5), 1),
    "domain": (InDomain(CFG(schedules.Ramp(2.0, 6.0), rescale=0.5), "x0"), 1),
    "pyramid": (FDG((8.0, 3.0)), 1),
}


@pytest.mark.parametrize("backend", ["eager", "compile"])
@pytest.mark.parametrize("name", RULES)
def test_a_captured_run_is_the_run(name: str, backend: str, model: Net) -> None:
    rule, pieces = RULES[name]
    counter = CompileCounter()
    denoiser, other = GuidedDenoiser(model, rule), GuidedDenoiser(model, rule)
    captured = denoiser.capture(euler, backend=backend, options={"backend": counter})  # type: ignore[arg-type]
    got, expected = sample(captured, rule), sample(plain(other), rule)
    # Parameters are float32 tensors here and numbers there; eight steps carry that on.
    torch.testing.assert_close(got, expected, rtol=2.0**-18, atol=2.0**-18)
    assert denoiser.report() == other.report()
    assert captured.pieces == pieces and counter.frame_count == (pieces if backend == "compile" else 0)


@pytest.mark.parametrize("mode", ["batched", "sequential", "auto"])
@pytest.mark.parametrize("kind", ["number", "0-dim"])
def test_fifty_scales_compile_once_or_twice(kind: str, mode: str, model: Net) -> None:
    counter = CompileCounter()
    denoiser = GuidedDenoiser(model, CFG(7.5, rescale=0.5), mode=mode)  # type: ignore[arg-type]

    @torch.compile(fullgraph=True, backend=counter)
    def step(x: torch.Tensor, t: torch.Tensor, scale: Any) -> torch.Tensor:
        return euler(x, denoiser(x, t, conditions=GIVEN, params={"scale": scale}), 0.1)

    t = torch.full((2,), 0.5)
    for scale in torch.linspace(1.5, 12.0, 50):
        got = step(X, t, scale if kind == "0-dim" else scale.item())
    expected = euler(X, GuidedDenoiser(model, CFG(12.0, rescale=0.5))(X, t, conditions=GIVEN), 0.1)
    torch.testing.assert_close(got, expected, rtol=2.0**-18, atol=2.0**-18)
    assert counter.frame_count == (1 if kind == "0-dim" else 2)
    assert denoiser.report().steps == 0, "a compiled call is not counted"


def test_a_schedule_of_fifty_scales_is_one_piece(model: Net) -> None:
    counter = CompileCounter()
    rule = CFG(schedules.Cosine(1.5, 12.0), rescale=schedules.Ramp(0.2, 0.8))
    captured = GuidedDenoiser(model, rule).capture(euler, backend="compile", options={"backend": counter})
    sample(captured, rule, steps=50)
    assert (captured.pieces, counter.frame_count) == (1, 1)


def test_by_inductor(model: Net) -> None:
    rule = CFG(schedules.Ramp(1.5, 9.0), rescale=0.5)
    captured = GuidedDenoiser(model, rule).capture(euler, backend="compile")
    got, expected = sample(captured, rule, steps=3), sample(plain(GuidedDenoiser(model, rule)), rule, steps=3)
    torch.testing.assert_close(got, expected, rtol=2.0**-17, atol=2.0**-17)


def test_a_rule_without_schedules_compiles_as_it_is(model: Net) -> None:
    t = 0.5 * torch.ones(2)
    for rule in (CFG(4.0), CFG(4.0, rescale=0.5), CFG(1.0), APG(4.0)):
        denoiser = GuidedDenoiser(model, rule)
        compiled = torch.compile(partial(denoiser, t=t, conditions=GIVEN), fullgraph=True, backend="eager")
        torch.testing.assert_close(compiled(X), denoiser(X, t, conditions=GIVEN))


@pytest.mark.parametrize("backend", ["eager", "compile"])
@pytest.mark.parametrize(
    "rule", [CFG(schedules.Ramp(2.0, 5.0)), GatedCFG(4.0, every=3), InDomain(CFG(4.0, rescale=0.5), "x0")], ids=repr
)
def test_a_solver_s_steps_are_one_piece(rule: Rule, backend: str, model: Net) -> None:
    products = torch.linspace(0.02, 0.999, 9, dtype=torch.float64)
    sampler = Sampler.vp(products, solver=DPMSolver2M(), timesteps=torch.linspace(1.0, 0.1, 8))
    counter = CompileCounter()
    denoiser = GuidedDenoiser(model, rule)
    captured = denoiser.capture(backend=backend, options={"backend": counter})  # type: ignore[arg-type]
    results = []
    for step in (captured.step, GuidedDenoiser(model, rule).step):
        x, state = X, State()
        for each in sampler:
            x = step(x, each, conditions=GIVEN, state=state, t=torch.full((2,), each.timestep))  # type: ignore[arg-type]
        results.append(x)
    torch.testing.assert_close(results[0], results[1], rtol=2.0**-17, atol=2.0**-17)
    pieces = 2 if isinstance(rule, GatedCFG) else 1
    assert captured.pieces == pieces and counter.frame_count == (pieces if backend == "compile" else 0)


def test_a_compiled_step_takes_all_steps_of_a_solver(model: Net) -> None:
    sampler = Sampler.flow([1.0, 0.75, 0.5, 0.25, 0.0], timesteps=[1.0, 0.75, 0.5, 0.25])
    counter = CompileCounter()
    denoiser = GuidedDenoiser(model, CFG(4.0, rescale=0.5))
    compiled = torch.compile(partial(denoiser.step, conditions=GIVEN), fullgraph=True, backend=counter)
    x = y = X
    for step in sampler:
        t = torch.full((2,), step.timestep)
        x, y = compiled(x, Step.stack([step]), t=t), denoiser.step(y, step, conditions=GIVEN, t=t)
        torch.testing.assert_close(x, y, rtol=2.0**-18, atol=2.0**-18)
    assert counter.frame_count == 1


def test_two_requests_with_one_captured_step_keep_their_states_apart(model: Net) -> None:
    rule = APG(5.0, momentum=-0.5)
    captured = GuidedDenoiser(model, rule).capture(backend="eager")
    alone, states = GuidedDenoiser(model, rule), (State(), State())
    own = (State(), State())
    t = torch.full((2,), 0.5)
    kept = []
    for i in range(4):
        for r in range(2):
            x = draw(2, 4, 8, 8, seed=10 * r + i)
            got = captured(x, t, conditions=GIVEN, state=states[r])
            expected = alone(x, t, conditions=GIVEN, state=own[r])
            torch.testing.assert_close(got, expected, rtol=2.0**-20, atol=2.0**-20)
            kept.append((got, got.clone()))
    assert all(torch.equal(*pair) for pair in kept), "a result was overwritten"


def test_new_conditions_are_read_and_a_new_structure_is_a_new_piece(model: Net) -> None:
    captured = GuidedDenoiser(model, CFG(4.0)).capture(backend="eager")
    alone, t = GuidedDenoiser(model, CFG(4.0)), torch.full((2,), 0.5)
    for seed in range(3):
        given = {"uncond": GIVEN["uncond"], "cond": {"y": draw(2, 4, seed=seed)}}
        assert torch.equal(captured(X, t, conditions=given), alone(X, t, conditions=given))
    assert captured.pieces == 1
    captured(X[:, :, :4], t, conditions=GIVEN)
    captured(X, t, conditions=GIVEN, params={"scale": torch.tensor([3.0, 4.0])})
    assert captured.pieces == 3
    captured.reset()
    assert captured.pieces == 0


def test_errors_name_the_argument(model: Net) -> None:
    denoiser = GuidedDenoiser(model, CFG(4.0))
    with pytest.raises(ValueError, match="backend: expected one of auto, cudagraph, compile, eager, got 'graph'"):
        denoiser.capture(backend="graph")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="step: expected a callable step"):
        denoiser.capture(3)  # type: ignore[arg-type]
    with pytest.raises(RuntimeError, match="backend: a CUDA graph needs CUDA tensors, got tensors on cpu"):
        denoiser.capture(backend="cudagraph")(X, 0.5 * torch.ones(2), conditions=GIVEN)
    with pytest.raises(TypeError, match=r"coefficients\.dt: expected a number or a tensor, got str"):
        denoiser.capture(euler)(X, 0.5 * torch.ones(2), conditions=GIVEN, coefficients={"dt": "x"})  # type: ignore[dict-item]
    with pytest.raises(ValueError, match=r"state: the step carries \['average'\]"):
        GuidedDenoiser(model, APG(4.0, momentum=-0.5)).capture()(X, 0.5 * torch.ones(2), conditions=GIVEN)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="captures CUDA graphs; there is no GPU")
@pytest.mark.parametrize("name", RULES)
def test_a_cuda_graph_replays_the_run(name: str, model: Net) -> None:
    rule, pieces = RULES[name]
    net = Net().cuda().requires_grad_(False)
    net.load_state_dict(model.state_dict())
    captured = GuidedDenoiser(net, rule).capture(euler)
    given = {n: {"y": c["y"].cuda()} for n, c in GIVEN.items()}

    def step(run: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        def on_gpu(x: torch.Tensor, t: torch.Tensor, **arguments: Any) -> torch.Tensor:
            return run(x.cuda(), t.cuda(), **{**arguments, "conditions": given})

        return on_gpu

    got = sample(step(captured), rule)
    expected = sample(step(plain(GuidedDenoiser(net, rule))), rule)
    torch.testing.assert_close(got, expected, rtol=2.0**-17, atol=2.0**-17)
    assert captured.pieces == pieces


@pytest.mark.skipif(not torch.cuda.is_available(), reason="looks for waits on a GPU; there is none")
def test_a_step_on_a_gpu_waits_for_nothing(model: Net) -> None:
    net = Net().cuda().requires_grad_(False)
    given = {n: {"y": c["y"].cuda()} for n, c in GIVEN.items()}
    x, t, state = X.cuda(), torch.full((2,), 0.5, device="cuda"), State()
    denoiser = GuidedDenoiser(net, GatedCFG(4.0, every=3, drift=0.1, stop=1e-3))
    batch = Requests(denoiser)
    for i in range(2):
        batch.add(i, {n: {"y": c["y"][i : i + 1]} for n, c in given.items()}, num_steps=9)
    torch.cuda.set_sync_debug_mode("error")
    try:
        for step in range(4):
            denoiser(x, t, conditions=given, step=step, num_steps=4, state=state)
            batch(x, t)
    finally:
        torch.cuda.set_sync_debug_mode("default")
