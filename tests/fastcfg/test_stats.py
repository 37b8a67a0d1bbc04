"""Stats of a rule beside float64, results that they leave as they are, and where they are refused."""

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import pytest
import torch
from conformance.cases import BY_NAME, draw

import fastcfg
from fastcfg import (
    APG,
    CFG,
    FDG,
    CFGZeroStar,
    Clamp,
    GatedCFG,
    GuidedDenoiser,
    InDomain,
    MaMBOG,
    NormCap,
    PerpNeg,
    Prediction,
    Rescale,
    Rule,
    Sampler,
    State,
    guide,
)
from fastcfg.schedules import Interval

BACKENDS = ["torch", "cpp", "triton"]
SHAPE = (2, 4, 24, 24)
ROUNDINGS = 256 * torch.finfo(torch.float32).eps
"""What the order of float32 sums may come to, as in :mod:`fastcfg_kernels.shadow`."""


def predictions(rule: Rule, dtype: torch.dtype = torch.float64, shape: tuple[int, ...] = SHAPE) -> dict[str, Any]:
    return draw(rule.conditions, shape, dtype)


def stats(rule: Rule, named: Mapping[str, Any], *names: str, **options: Any) -> list[torch.Tensor]:
    """Each stat by sample."""
    first = next(iter(named.values()))
    dtype = torch.float64 if first.dtype == torch.float64 else torch.float32
    out = torch.full((first.shape[0], len(names)), -1e9, dtype=dtype)
    guide(rule, **named, stats=names, stats_out=out, **options)
    return list(out.unbind(1))


def rows(named: Mapping[str, Any]) -> list[torch.Tensor]:
    return [named[name].double().flatten(1) for name in ("uncond", "cond")]


def dot(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return (a * b).sum(1)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", ["CFG", "CFG(rescale)", "PerpNeg_2", "CFG+clamp"])
def test_lengths_and_angles(name: str, backend: str) -> None:
    case = BY_NAME[name]
    named = predictions(case.rule)
    u, c = rows(named)
    names = ("delta_ratio", "delta_share", "cosine", "dot_uncond_cond", "dot_y_y")
    ratio, share, cosine, product, square = stats(case.rule, named, *names, backend=backend)
    torch.testing.assert_close(ratio, (c - u).norm(dim=1) / u.norm(dim=1), rtol=1e-10, atol=0)
    torch.testing.assert_close(share, (c - u).norm(dim=1) / c.norm(dim=1), rtol=1e-10, atol=0)
    torch.testing.assert_close(cosine, torch.cosine_similarity(u, c, dim=1), rtol=0, atol=1e-10)
    torch.testing.assert_close(product, dot(u, c), rtol=1e-10, atol=1e-8)
    if name != "CFG+clamp":
        y = torch.from_numpy(case.oracle({n: t.numpy() for n, t in named.items()})).flatten(1)
        torch.testing.assert_close(square, dot(y, y), rtol=1e-9, atol=0)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_lengths_in_float32(dtype: torch.dtype, backend: str) -> None:
    rule = CFG(5.0, rescale=0.7)
    named = predictions(rule, dtype)
    u, c = rows(named)
    ratio, cosine = stats(rule, named, "delta_ratio", "cosine", backend=backend)
    torch.testing.assert_close(ratio.double(), (c - u).norm(dim=1) / u.norm(dim=1), rtol=ROUNDINGS, atol=0)
    torch.testing.assert_close(cosine.double(), torch.cosine_similarity(u, c, dim=1), rtol=0, atol=ROUNDINGS)


@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_limits_that_took_hold(backend: str) -> None:
    named = predictions(CFG())
    u, c = rows(named)
    d = c - u
    threshold = float(d.norm(dim=1).mean())  # Between the samples' norms: one is shortened.
    apg = APG(7.5, eta=0.3, norm_threshold=threshold)
    hit = (d.norm(dim=1) > threshold).double()
    assert 0 < hit.sum() < SHAPE[0]
    y = u + 5 * d
    cap = 0.5 * float((y.norm(dim=1) / c.norm(dim=1)).sum())
    capped = (cap * c.norm(dim=1) < y.norm(dim=1)).double()
    assert 0 < capped.sum() < SHAPE[0]
    state = State({"average": named["uncond"] - 2 * named["cond"]})
    long = ((d - 0.5 * (u - 2 * c)).norm(dim=1) > 4 * threshold).double()
    for rule, expected, options in (
        (apg, hit, {}),
        (APG(7.5, norm_threshold=4 * threshold, momentum=-0.5), long, {"state": state}),
        (NormCap(CFG(5.0), cap), capped, {}),
        (NormCap(CFG(5.0), cap, mode="full"), torch.zeros(2).double(), {}),
        (NormCap(apg, 1e9), hit, {}),
        (NormCap(apg, 1e-9), hit + 1, {}),
    ):
        (limited,) = stats(rule, named, "limited", backend=backend, **options)
        assert torch.equal(limited, expected), rule
    (factor,) = stats(CFG(5.0, rescale=0.7), named, "factor", backend=backend)
    torch.testing.assert_close(factor, 0.3 + 0.7 * c.std(1) / y.std(1))


RULES: list[tuple[Rule, dict[str, Any]]] = [
    (CFG(3.0), {}),
    (CFG(3.0, rescale=0.7), {}),
    (Clamp(CFG(5.0), 1.0), {}),
    (PerpNeg(5.0, (1.0,)), {}),
    (APG(7.5, 0.3, 5.0), {}),
    (APG(7.5, 0.3, 5.0, -0.5, base="cond"), {"state": None}),
    (APG(7.5, 0.3, 5.0, dims=(-1,)), {}),
    (CFGZeroStar(4.0, 0), {}),
    (MaMBOG(base="cond"), {}),
    (GatedCFG(4.0, drift=0.1, phase="refresh"), {"state": None}),
    (NormCap(CFG(5.0), over="token"), {}),
    (Rescale(CFG(5.0), 0.7), {"mask": torch.arange(24) < 20}),
    (Rescale(CFG(5.0), 0.7), {"scale_map": torch.linspace(0, 1, 24)}),
    (InDomain(Rescale(CFG(5.0), 0.7), "x0"), {"prediction": Prediction("eps", alpha=0.8, sigma=0.6)}),
]


@pytest.mark.parametrize("backend", [None, "torch", "triton"])
@pytest.mark.parametrize("number", range(len(RULES)), ids=lambda k: type(RULES[k][0]).__name__)
def test_results_are_the_same_bits(number: int, backend: str | None) -> None:
    rule, options = RULES[number]
    dtype = (torch.float32, torch.bfloat16)[number % 2]  # Native code takes a second to build for each.
    named = predictions(rule, dtype, (2, 3, 16, 24))
    given = {**options, "backend": backend}
    if "prediction" in given:
        given["x"] = torch.randn(2, 3, 16, 24, generator=torch.Generator().manual_seed(1)).to(dtype)
    groups = {(-1,): 2 * 3 * 16, (1,): 2 * 16 * 24}.get(rule.lowered.dims or (), 2)
    out = torch.full((groups, 2), torch.nan)

    def guided(**more: Any) -> torch.Tensor:
        state = {"state": State()} if "state" in given else {}
        return guide(rule, **named, **more, **(given | state))

    assert torch.equal(guided(stats=("delta_ratio", "cosine"), stats_out=out), guided())
    assert out.isfinite().all() and (out[:, 0] > 0).all()


@pytest.mark.parametrize("rule", [CFG(), CFG(rescale=0.5)], ids=str)
def test_a_result_may_take_the_place_of_a_prediction(rule: Rule) -> None:
    named = predictions(rule, torch.float32)
    expected = guide(rule, **named)
    u, c = rows(named)
    (ratio,) = stats(rule, named, "delta_ratio", out=named["uncond"])
    assert torch.equal(named["uncond"], expected)
    torch.testing.assert_close(ratio.double(), (c - u).norm(dim=1) / u.norm(dim=1), rtol=ROUNDINGS, atol=0)


def test_of_a_step() -> None:
    levels = [((a, (1 - a * a) ** 0.5), (b, (1 - b * b) ** 0.5)) for a, b in pairwise((0.1, 0.4, 0.6, 0.8, 0.95))]
    step, x, rule = Sampler.from_levels(levels, kind="eps").steps[2], torch.randn(SHAPE), CFG(3.0, rescale=0.7)
    named = predictions(rule, torch.float32)
    out = torch.zeros(2, 1)
    found = fastcfg.guide_step(rule, step, x=x, stats=("cosine",), stats_out=out, **named)
    assert torch.equal(found, fastcfg.guide_step(rule, step, x=x, **named))
    assert torch.equal(out[:, 0], stats(rule, named, "cosine")[0])


@pytest.mark.parametrize("backend", BACKENDS)
def test_zero_and_infinite_samples(backend: str) -> None:
    named = predictions(CFG(), torch.float32)
    u, c = named["uncond"], named["cond"]
    c[0] = u[0]
    ratio, cosine = stats(CFG(3.0), named, "delta_ratio", "cosine", backend=backend)
    assert ratio[0] == 0 and ratio[1] > 0
    torch.testing.assert_close(cosine[0], torch.tensor(1.0), rtol=ROUNDINGS, atol=0)
    u[0] = c[0] = 0.0
    ratio, cosine = stats(CFG(3.0), named, "delta_ratio", "cosine", backend=backend)
    assert ratio[0] == cosine[0] == 0
    for value in (torch.inf, torch.nan):
        c[1, 0, 0, 0] = value
        (ratio,) = stats(CFG(3.0), named, "delta_ratio", backend=backend)
        assert ratio[0] == 0 and not ratio[1].isfinite()


def test_drift_is_of_the_delta_in_the_state() -> None:
    rule, state = GatedCFG(4.0, drift=0.1, phase="refresh"), State()
    first = predictions(rule, torch.float32)
    (drift,) = stats(rule, first, "drift", state=state)
    assert torch.equal(drift, torch.ones(2)), "there was none before"
    (drift,) = stats(rule, first, "drift", state=state)
    assert torch.equal(drift, torch.zeros(2))
    generator = torch.Generator().manual_seed(7)
    second = {name: t + torch.randn(t.shape, generator=generator) for name, t in first.items()}
    (drift,) = stats(rule, second, "drift", state=state)
    d, before = (c - u for u, c in (rows(second), rows(first)))
    torch.testing.assert_close(drift.double(), (d - before).norm(dim=1) / d.norm(dim=1), rtol=ROUNDINGS, atol=0)


class Net:
    def __call__(self, x: torch.Tensor, t: Any, y: torch.Tensor) -> torch.Tensor:
        return x * (1 + y.view(-1, 1, 1, 1))


CONDITIONS = {"uncond": {"y": torch.zeros(2)}, "cond": {"y": torch.tensor([0.5, 2.0])}}


@pytest.mark.parametrize("rule", [CFG(3.0), CFG(Interval(3.0, stop=0.5)), Rescale(GatedCFG(3.0, every=3))], ids=str)
def test_of_a_denoiser(rule: Rule) -> None:
    """From remembered deltas too; NaN where there is no guidance."""
    denoiser, state, x = GuidedDenoiser(Net(), rule), State(), torch.randn(SHAPE)
    for step in range(4):
        out = torch.zeros(2, 2)
        arguments: dict[str, Any] = {"conditions": CONDITIONS, "step": step, "num_steps": 4, "state": state}
        denoiser(x, 0.5, **arguments, stats=("delta_ratio", "cosine"), stats_out=out)
        if not isinstance(rule, CFG) or rule.at(step, 4).scale == 3:
            torch.testing.assert_close(out, torch.tensor([[0.5, 1.0], [2.0, 1.0]]), rtol=ROUNDINGS, atol=0)
        else:
            assert out.isnan().all()
    assert denoiser.passes_run == (8 if rule == CFG(3.0) else 6)


def test_refused() -> None:
    named, out = predictions(CFG(), torch.float32), torch.zeros(2, 1)
    with pytest.raises(TypeError, match="stats: expected a sequence of names, got the string 'cosine'"):
        guide(CFG(), **named, stats="cosine", stats_out=out)
    with pytest.raises(ValueError, match=r"stats: expected delta_ratio, .* got 'speed'"):
        guide(CFG(), **named, stats=("speed",), stats_out=out)
    for rule in (CFG(), CFG(rescale=0.5)):
        with pytest.raises(ValueError, match="stats_out: expected a tensor, since there are 1 stats"):
            guide(rule, **named, stats=("cosine",))
        with pytest.raises(ValueError, match="stats_out: expected none"):
            guide(rule, **named, stats_out=out)
    with pytest.raises(ValueError, match="stats: 'drift' takes dot_d_delta"):
        guide(CFG(), **named, stats=("drift",), stats_out=out)
    with pytest.raises(ValueError, match=r"stats: FDG makes tensors of the predictions"):
        guide(FDG(), **named, stats=("cosine",), stats_out=out)
    with pytest.raises(ValueError, match=r"numerics: 'eager' has no .* stats"):
        guide(CFG(), **named, numerics="eager", stats=("cosine",), stats_out=out)
    with pytest.raises(ValueError, match="stats, stats_out: expected both or none"):
        GuidedDenoiser(Net(), CFG())(torch.ones(SHAPE), 0.5, conditions=CONDITIONS, stats=("cosine",))


def test_telemetry_says_what_replaced_it() -> None:
    with pytest.raises(ImportError, match=r"fastcfg.telemetry was replaced by guide\(..., stats="):
        import fastcfg.telemetry  # noqa: F401
