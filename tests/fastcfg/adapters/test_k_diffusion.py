"""``CFGDenoiser`` in samplers' loops, against float64, and in k-diffusion's own where ``KDIFFUSION_PATH`` has it."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from conformance.clients import k_diffusion as client
from conformance.oracles import projection as oracles
from torch import Tensor

from fastcfg import (
    APG,
    CFG,
    TCFG,
    Gate,
    GatedCFG,
    GuidedDenoiser,
    InstructPix2Pix,
    PerpNeg,
    Prediction,
    Rescale,
    Rule,
    State,
    guide,
)
from fastcfg import Linear as WeightedSum
from fastcfg.adapters.k_diffusion import CFGDenoiser
from fastcfg.schedules import Ramp, SigmaInterval

SIGMAS = torch.tensor([10.0, 4.0, 1.5, 0.4, 0.0])
U, C, N = torch.tensor([-0.4, 0.1]), torch.tensor([1.0, 0.7]), torch.tensor([0.3, -0.9])


def x0(x: Tensor, sigma: Tensor, value: Tensor) -> Tensor:
    """A clean sample under a condition ``[B]``: elementwise, so that only guidance could mix samples."""
    value = value.view(-1, 1, 1, 1).to(x.dtype)
    return x / (1 + sigma.view(-1, 1, 1, 1) ** 2).to(x.dtype) + value * torch.cos(0.4 * x + value)


class Inner:
    """A k-diffusion denoiser that counts its passes."""

    def __init__(self, kind: str = "x0", process: str = "ve") -> None:
        self.kind, self.process, self.batches = kind, process, list[int]()

    def __call__(self, x: Tensor, sigma: Tensor, cond: Tensor, shift: float = 0.0) -> Tensor:
        assert sigma.shape == x.shape[:1]
        self.batches.append(x.shape[0])
        clean, s = x0(x, sigma, cond) + shift, sigma.view(-1, 1, 1, 1)
        noise = (x - (1 - s if self.process == "flow" else 1) * clean) / s
        if self.kind == "v":  # Of a variance-preserving process.
            return (noise - s * clean) / torch.sqrt(1 + s * s)
        return {"x0": clean, "eps": noise, "flow": noise - clean}[self.kind]


def euler(model: Callable[..., Tensor], x: Tensor, sigmas: Tensor, extra_args: dict[str, Any]) -> Tensor:
    """Euler's method, as samplers of this kind are called."""
    ones = x.new_ones([x.shape[0]])
    for sigma, after in itertools.pairwise(sigmas):
        x = x + (x - model(x, sigma * ones, **extra_args)) / sigma * (after - sigma)
    return x


def dpmpp_2m(model: Callable[..., Tensor], x: Tensor, sigmas: Tensor, extra_args: dict[str, Any]) -> Tensor:
    """DPM-Solver++(2M), 2211.01095, in log-SNR."""
    ones, before = x.new_ones([x.shape[0]]), None
    times = [-float(sigma.log()) if sigma > 0 else float("inf") for sigma in sigmas]
    for i, (sigma, after) in enumerate(itertools.pairwise(sigmas)):
        clean = model(x, sigma * ones, **extra_args)
        step = times[i + 1] - times[i]
        used = clean
        if before is not None and after > 0:
            ratio = (times[i] - times[i - 1]) / step
            used = clean + (clean - before) / (2 * ratio)
        x = after / sigma * x - torch.expm1(torch.tensor(-step)) * used
        before = clean
    return x


def noise(batch: int = 2) -> Tensor:
    return 10 * torch.randn(batch, 3, 5, 6, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("solver", [euler, dpmpp_2m])
def test_a_run_is_that_of_guidance_by_hand(solver: Callable[..., Tensor]) -> None:
    def by_hand(x: Tensor, sigma: Tensor) -> Tensor:
        u, c = x0(x, sigma, U), x0(x, sigma, C)
        return u + 5.0 * (c - u)

    exact = solver(by_hand, noise().double(), SIGMAS.double(), {})
    inner = Inner()
    got = solver(CFGDenoiser(inner, CFG(5.0)), noise(), SIGMAS, {"uncond": U, "cond": C})
    assert torch.allclose(got.double(), exact, rtol=1e-4, atol=1e-4)
    assert inner.batches == [4, 4, 4, 4]


def test_conditions_by_mapping_and_arguments_for_all_passes() -> None:
    x, sigma = noise(), torch.full((2,), 2.0)
    plain = CFGDenoiser(Inner(), CFG(5.0))(x, sigma, uncond=U, cond=C, shift=0.5)
    mapped = CFGDenoiser(Inner(), CFG(5.0), argument="other")(x, sigma, uncond={"cond": U}, cond={"cond": C}, shift=0.5)
    assert torch.equal(plain, mapped)
    assert torch.equal(plain, CFGDenoiser(Inner(), CFG(5.0))(x, torch.tensor(2.0), uncond=U, cond=C, shift=0.5))
    with pytest.raises(ValueError, match="uncond: expected a condition"):
        CFGDenoiser(Inner(), CFG(5.0))(x, sigma, cond=C)


@pytest.mark.parametrize("mode", ["batched", "sequential"])
def test_rules_of_several_conditions(mode: Any) -> None:
    x, sigma = noise(), torch.full((2,), 2.0)
    for rule, names in ((PerpNeg(5.0), {"negative": N}), (InstructPix2Pix(5.0, 1.5), {"image": N})):
        inner = Inner()
        got = CFGDenoiser(inner, rule, mode=mode)(x, sigma, uncond=U, cond=C, **names)
        given = {name: x0(x.double(), sigma, value) for name, value in {"uncond": U, "cond": C, **names}.items()}
        assert torch.allclose(got.double(), guide(rule, **given), rtol=1e-4, atol=1e-4)
        assert inner.batches == ([6] if mode == "batched" else [2, 2, 2])


@pytest.mark.parametrize(("kind", "process"), [("eps", "ve"), ("v", "ve"), ("x0", "ve"), ("flow", "flow")])
@pytest.mark.parametrize("domain", [None, "x0", "eps", "v"])
def test_results_are_clean_whatever_the_model_returns(kind: Any, process: Any, domain: Any) -> None:
    """And the rule works on what it was told to, in the norms of a variance-preserving process."""
    x, sigma = noise() / 10, torch.tensor([0.8, 0.3])
    rule = APG(4.0, eta=0.3, norm_threshold=2.0)
    got = CFGDenoiser(Inner(kind, process), rule, kind=kind, domain=domain, process=process)(x, sigma, uncond=U, cond=C)
    s = sigma.double()
    flow = process == "flow"
    root = torch.ones_like(s) if flow else torch.sqrt(1 + s * s)
    level = Prediction("x0", 1 - s if flow else 1 / root, s / root)
    latent = x.double() / root.view(-1, 1, 1, 1)
    clean = {name: x0(x.double(), s, value) for name, value in (("uncond", U), ("cond", C))}
    target = domain or kind
    inside = {name: level.convert(p, latent, target) for name, p in clean.items()}
    arrays = {name: p.numpy() for name, p in inside.items()}
    guided = torch.from_numpy(oracles.apg(**arrays, scale=4.0, eta=0.3, norm_threshold=2.0)[0])
    exact = Prediction(target, level.alpha, level.sigma).convert(guided, latent, "x0")
    assert torch.allclose(got.double(), exact, rtol=1e-4, atol=2e-5)


def test_rescale_of_v_is_another_than_that_of_x0() -> None:
    x, sigma, rule = noise(), torch.full((2,), 2.0), Rescale(CFG(6.0), 1.0)
    by = {d: CFGDenoiser(Inner(), rule, domain=d)(x, sigma, uncond=U, cond=C) for d in ("x0", "v", "eps")}
    assert not torch.allclose(by["v"], by["x0"], atol=1e-2)
    assert not torch.allclose(by["v"], by["eps"], atol=1e-2)


def test_momentum_lasts_a_run() -> None:
    rule = APG(0.6, 1.0, 0.0, momentum=-0.5)
    denoiser = CFGDenoiser(Inner(), rule)
    extra = {"uncond": U, "cond": C}
    first = euler(denoiser, noise(), SIGMAS, extra)
    assert torch.equal(euler(denoiser, noise(), SIGMAS, extra), first), "the noise rises: a new run"
    denoiser.reset()
    assert torch.equal(euler(denoiser, noise(), SIGMAS, extra), first)
    one = {"uncond": U[:1], "cond": C[:1]}
    assert torch.equal(
        euler(denoiser, noise()[:1], SIGMAS[2:], one)[0],
        euler(CFGDenoiser(Inner(), rule), noise()[:1], SIGMAS[2:], one)[0],
    )
    x, average = noise().double(), 0.0
    for sigma, after in zip(SIGMAS[:-1].double(), SIGMAS[1:].double(), strict=True):
        u, c = (x0(x, sigma.expand(2), value) for value in (U, C))
        average = (c - u) - 0.5 * average
        x = x + (x - (u + 0.6 * average)) / sigma * (after - sigma)
    assert torch.allclose(first.double(), x, rtol=1e-4, atol=1e-4)


def heun(model: Callable[..., Tensor], x: Tensor, sigmas: Tensor, churn: float, extra_args: dict[str, Any]) -> Tensor:
    """Heun's method with churn, 2206.00364, algorithm 2: two evaluations a step, the first at a raised level."""
    ones, noise = x.new_ones([x.shape[0]]), torch.Generator().manual_seed(0)
    for sigma, after in itertools.pairwise(sigmas):
        raised = sigma * (1 + churn)
        x = x + torch.randn(x.shape, generator=noise).to(x) * (raised**2 - sigma**2) ** 0.5
        d = (x - model(x, raised * ones, **extra_args)) / raised
        end = x + d * (after - raised)
        if after > 0:
            d = (d + (end - model(end, after * ones, **extra_args)) / after) / 2
        x = x + d * (after - raised)
    return x


@pytest.mark.parametrize("told", [False, True])
@pytest.mark.parametrize("churn", [0.0, 0.2, 2**0.5 - 1])
def test_momentum_lasts_through_a_step_of_several_evaluations(churn: float, told: bool) -> None:
    class Restarts(State):
        count = 0

        def restart(self) -> None:
            self.count += 1
            super().restart()

    denoiser = CFGDenoiser(Inner(), APG(5.0, momentum=-0.5), sigmas=SIGMAS if told else None)
    denoiser.state = state = Restarts()
    x = 10.0 * torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(1))
    first = heun(denoiser, x, SIGMAS, churn, {"uncond": U, "cond": C})
    assert state.count == 0, "no step begins a run"
    again = heun(denoiser, x, SIGMAS, churn, {"uncond": U, "cond": C})
    assert state.count == 1 and torch.equal(first, again)
    denoiser.reset()
    assert torch.equal(heun(denoiser, x, SIGMAS, churn, {"uncond": U, "cond": C}), first)


def test_schedules_by_step_and_by_noise() -> None:
    x, extra = noise(), {"uncond": U, "cond": C}
    inner = Inner()
    denoiser = CFGDenoiser(inner, CFG(Ramp(1.0, 4.0)), sigmas=SIGMAS)
    got = [denoiser(x, torch.full((2,), level), **extra) for level in (10.0, 6.0, 4.0, 1.5, 0.4)]
    for y, level, scale in zip(got, (10.0, 6.0, 4.0, 1.5, 0.4), (1.0, 1.0, 2.0, 3.0, 4.0), strict=True):
        s = torch.full((2,), level).double()
        u, c = (x0(x.double(), s, value) for value in (U, C))
        assert torch.allclose(y.double(), u + scale * (c - u), rtol=1e-4, atol=1e-4)
    assert inner.batches == [2, 2, 4, 4, 4], "one pass at scale 1"
    inner = Inner()
    window = CFGDenoiser(inner, CFG(SigmaInterval(4.0, low=1.0, high=5.0)))
    euler(window, x, SIGMAS, extra)
    assert inner.batches == [2, 4, 4, 2], "no sigmas needed"
    with pytest.raises(ValueError, match="sigmas: expected"):
        CFGDenoiser(Inner(), CFG(Ramp(1.0, 4.0)))(x, torch.ones(2), **extra)


@pytest.mark.parametrize(
    "gate",
    [
        Gate(every=3), Gate(until=0.5), Gate(drift=2.0), Gate(stop=0.4), Gate(every=2, space="eps"),
        Gate(steps=(0, 1, 4), num_steps=8, weights=((1.1, -0.1),) * 8),
    ],
    ids=lambda g: ",".join(list(g.to_dict())[1:]),
)  # fmt: skip
@pytest.mark.parametrize("kind", ["x0", "eps", "v"])
def test_a_gated_run_is_a_gated_denoiser(kind: Any, gate: Gate) -> None:
    sigmas, start = torch.cat([torch.logspace(1, -0.5, 8), torch.zeros(1)]).double(), noise().double()
    inner, model = Inner(kind), Inner(kind)
    got = euler(
        CFGDenoiser(inner, CFG(3.0), kind=kind, sigmas=sigmas, gate=gate), start, sigmas, {"uncond": U, "cond": C}
    )
    denoiser, state, x = GuidedDenoiser(model, CFG(3.0), gate=gate), State(), start
    for step, (sigma, after) in enumerate(itertools.pairwise(sigmas)):
        alpha = 1 / (1 + sigma * sigma) ** 0.5 if kind == "v" else 1.0
        level, latent = Prediction(kind, alpha, alpha * sigma), x * alpha
        given = {"uncond": {"cond": U}, "cond": {"cond": C}}
        guess = denoiser(x, sigma.expand(2), conditions=given, step=step, num_steps=8, state=state, prediction=level)
        x = x + (x - level.convert(guess, latent, "x0")) / sigma * (after - sigma)
    assert inner.batches == model.batches and sum(inner.batches) == 2 * denoiser.passes_run
    assert denoiser.passes_run < 16 or gate.ends
    torch.testing.assert_close(got, x, rtol=1e-9, atol=1e-9)


def test_fewer_passes_over_any_rule_and_a_new_run_begins_fresh() -> None:
    sigmas = torch.cat([torch.logspace(1, -0.5, 8), torch.zeros(1)])
    for rule, gate, rows in (
        (GatedCFG(3.0), None, [4, 2] * 4), (PerpNeg(3.0), Gate(every=4), [6, 2, 2, 2] * 2),
        (APG(3.0), Gate(until=0.0), [4, *[2] * 7]),
    ):  # fmt: skip
        inner = Inner()
        denoiser = CFGDenoiser(inner, rule, sigmas=sigmas, gate=gate)
        given = {"uncond": U, "cond": C, "negative": N}
        for _ in range(2):
            euler(denoiser, noise(), sigmas, {name: given[name] for name in rule.conditions})
        assert inner.batches == rows * 2
    with pytest.raises(ValueError, match="sigmas: expected the sampler's noise levels, for a gate"):
        CFGDenoiser(Inner(), CFG(3.0), gate=Gate(2))(noise(), sigmas[:1].expand(2), uncond=U, cond=C)


def test_cond_scale_takes_the_place_of_the_rules() -> None:
    x, sigma, extra = noise(), torch.full((2,), 2.0), {"uncond": U, "cond": C}
    inner = Inner()
    denoiser = CFGDenoiser(inner, Rescale(CFG(6.0), 0.5))
    assert torch.equal(
        denoiser(x, sigma, cond_scale=3.0, **extra), CFGDenoiser(Inner(), Rescale(CFG(3.0), 0.5))(x, sigma, **extra)
    )
    denoiser(x, sigma, cond_scale=1.0, **extra)
    assert inner.batches == [4, 2]
    both = denoiser(x, sigma, cond_scale=torch.tensor([3.0, 6.0]), **extra)
    for i, scale in enumerate((3.0, 6.0)):
        one = denoiser(x, sigma, cond_scale=scale, **extra)
        assert torch.allclose(both[i], one[i], rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match="cond_scale: Linear has no scale"):
        CFGDenoiser(Inner(), WeightedSum((("uncond", -1.0), ("cond", 2.0))))(x, sigma, cond_scale=2.0, **extra)


@pytest.mark.parametrize(
    "rule", [CFG(5.0), APG(5.0, norm_threshold=3.0), TCFG(5.0)], ids=lambda rule: type(rule).__name__
)
def test_a_sample_does_not_depend_on_its_batch(rule: Rule) -> None:
    x, sigma = noise(), torch.tensor([2.0, 0.7])
    together = CFGDenoiser(Inner(), rule, domain="v")(x, sigma, uncond=U, cond=C)
    for i in range(2):
        part = slice(i, i + 1)
        alone = CFGDenoiser(Inner(), rule, domain="v")(x[part], sigma[part], uncond=U[part], cond=C[part])
        assert torch.equal(alone, together[part])


def test_it_is_guided_denoiser_with_their_signature() -> None:
    x, sigma = noise(), torch.full((2,), 2.0)
    conditions = {"uncond": {"cond": U}, "cond": {"cond": C}}
    expected = GuidedDenoiser(Inner(), CFG(5.0))(x, sigma, conditions=conditions)
    assert torch.equal(CFGDenoiser(Inner(), CFG(5.0))(x, sigma, uncond=U, cond=C), expected)


@pytest.mark.skipif(client.WHY is not None, reason=str(client.WHY))
@pytest.mark.parametrize("name", ["euler", "heun", "dpm_2", "dpmpp_2m", "dpmpp_2s_ancestral", "lms", "dpm_fast"])
def test_k_diffusions_own_samplers(name: str) -> None:
    def by_hand(x: Tensor, sigma: Tensor) -> Tensor:
        u, c = x0(x, sigma, U), x0(x, sigma, C)
        return u + 5.0 * (c - u)

    def run(model: Callable[..., Tensor], **extra: Tensor) -> Tensor:
        torch.manual_seed(0)
        sample = getattr(client.sampling(), f"sample_{name}")
        levels = (0.4, 10.0, 6) if name == "dpm_fast" else (SIGMAS,)
        return sample(model, noise(), *levels, extra_args=extra, disable=True)  # type: ignore[no-any-return]

    got, expected = run(CFGDenoiser(Inner(), CFG(5.0)), uncond=U, cond=C), run(by_hand)
    assert torch.allclose(got, expected, rtol=1e-3, atol=1e-3)
    jumped = run(CFGDenoiser(Inner(), Rescale(APG(5.0, momentum=-0.3), 0.5), domain="v"), uncond=U, cond=C)
    assert np.isfinite(jumped.numpy()).all()


@pytest.mark.skipif(client.WHY is not None, reason=str(client.WHY))
def test_k_diffusions_own_denoisers() -> None:
    """Their wrappers of networks that predict eps and v, below ours."""
    external = client.external()
    alphas = torch.linspace(0.999, 0.01, 100)

    def net(x: Tensor, t: Tensor, cond: Tensor) -> Tensor:
        return torch.sin(x + cond.view(-1, 1, 1, 1)) * 0.3 + x * 0.5

    x = noise()
    for kind in (external.DiscreteEpsDDPMDenoiser, external.DiscreteVDDPMDenoiser):
        inner = kind(net, alphas, quantize=False)
        got = euler(CFGDenoiser(inner, CFG(4.0)), x, SIGMAS, {"uncond": U, "cond": C})
        ones = torch.ones(2)
        expected = x
        for sigma, after in itertools.pairwise(SIGMAS):
            u, c = inner(expected, sigma * ones, cond=U), inner(expected, sigma * ones, cond=C)
            expected = expected + (expected - (u + 4.0 * (c - u))) / sigma * (after - sigma)
        assert torch.allclose(got, expected, rtol=1e-4, atol=1e-4)
