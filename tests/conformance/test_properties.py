"""What must hold whatever the numbers: bits of a sample alone, homogeneity, limits, invariances, finiteness.

Scaling by a power of two is exact in every operation, so that a homogeneous rule gives the very bits.
"""

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from conformance.cases import exact
from conformance.oracles import classifier
from fastcfg import (
    APG,
    CFG,
    LTX2,
    TCFG,
    Autoguidance,
    CFGZeroStar,
    Clamp,
    DualCFG,
    GatedCFG,
    HistoryGuidance,
    InDomain,
    InnerGuidance,
    InstructPix2Pix,
    MaMBOG,
    MultiCondition,
    NegativePrompt,
    NormCap,
    PerpNeg,
    Perturbed,
    Rescale,
    Rule,
    SelfAttentionGuidance,
    State,
    guide,
)
from fastcfg.prediction import Prediction

LINEAR: tuple[Rule, ...] = (
    CFG(7.5), CFG(3.0, base="cond"), NegativePrompt(4.0), DualCFG(5.0, 2.0), MultiCondition((3.0, 1.5, -1.0)),
    InstructPix2Pix(7.5, 1.5), HistoryGuidance(3.0), InnerGuidance(5.0, 3.0), Autoguidance(2.5), Perturbed(7.5, 2.8),
    SelfAttentionGuidance(5.0, 0.75), LTX2(3.0, 1.5, 2.5),
)  # fmt: skip
"""Rules whose weights add to 1."""
SUMS: tuple[Rule, ...] = (
    CFG(7.5, rescale=0.7), PerpNeg(5.0, (1.5, 0.5)), APG(7.5, 0.0, 0.0), APG(5.0, 0.3, 0.0, base="cond"),
    APG(5.0, 0.3, 0.0, dims=(1,)), CFGZeroStar(5.0, 0, eps=0.0), TCFG(5.0), TCFG(5.0, base="cond"), MaMBOG(5.0, 0.7),
    NormCap(CFG(5.0)), NormCap(CFG(5.0), mode="clamp", low=0.3), NormCap(CFG(5.0), mode="full", over="channel"),
    Clamp(CFG(5.0), k=2.0), Rescale(APG(5.0, 0.0, 0.0), phi=0.5), NormCap(TCFG(5.0)),
    Clamp(Rescale(DualCFG(5.0, 1.0), phi=0.7, norm="l2"), k=1.5),
)  # fmt: skip
"""Homogeneous rules with sums: without eps and without an absolute threshold."""
OTHERS: tuple[Rule, ...] = (APG(5.0, 0.3, norm_threshold=1.5), CFGZeroStar(5.0, 0), APG(5.0, 0.0, 2.0, dims=(-1,)))

rules = st.sampled_from(LINEAR + SUMS + OTHERS)
homogeneous = st.sampled_from(LINEAR + SUMS)
seeds = st.integers(0, 2**32 - 1)
shapes = st.sampled_from([(1, 1), (2, 3), (3, 2, 5), (2, 4, 3, 6), (5, 8, 40)])
dtypes = st.sampled_from([torch.float32, torch.bfloat16, torch.float16, torch.float64])
backends = st.sampled_from(["auto", "torch"])
KINDS = st.sampled_from(["eps", "x0", "v", "flow"])


def draw_for(
    rule: Rule, seed: int, shape: tuple[int, ...], dtype: torch.dtype, size: float = 1.0
) -> dict[str, torch.Tensor]:
    rng = np.random.default_rng(seed)
    common = rng.normal(size=shape) + rng.normal()
    return {
        name: torch.from_numpy(size * (common + rng.uniform(0.01, 2) * rng.normal(size=shape))).to(dtype)
        for name in rule.conditions
    }


@given(rule=rules, seed=seeds, shape=shapes, dtype=dtypes, backend=backends)
def test_a_sample_does_not_know_its_batch(
    rule: Rule, seed: int, shape: tuple[int, ...], dtype: torch.dtype, backend: str
) -> None:
    predictions = draw_for(rule, seed, shape, dtype)
    whole = guide(rule, backend=backend, **predictions)
    order = torch.from_numpy(np.random.default_rng(seed).permutation(shape[0]))
    shuffled = guide(rule, backend=backend, **{n: p[order] for n, p in predictions.items()})
    assert torch.equal(shuffled, whole[order])
    alone = guide(rule, backend=backend, **{n: p[:1].clone() for n, p in predictions.items()})
    assert torch.equal(alone, whole[:1])


@given(rule=homogeneous, seed=seeds, shape=shapes, power=st.integers(-6, 6), backend=backends)
def test_guidance_of_scaled_predictions_is_the_guidance_scaled(
    rule: Rule, seed: int, shape: tuple[int, ...], power: int, backend: str
) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        predictions = draw_for(rule, seed, shape, dtype)
        expected = guide(rule, backend=backend, **predictions)
        scaled = guide(rule, backend=backend, **{n: 2.0**power * p for n, p in predictions.items()})
        assert torch.equal(scaled, 2.0**power * expected)
        negative = guide(rule, backend=backend, **{n: -p for n, p in predictions.items()})
        assert torch.equal(negative, -expected)


@given(seed=seeds, shape=shapes, power=st.integers(-6, 6), dims=st.sampled_from([None, (1,), (-1,)]))
def test_a_threshold_scales_with_the_predictions(seed: int, shape: tuple[int, ...], power: int, dims: Any) -> None:
    rule = APG(5.0, 0.3, norm_threshold=1.5, dims=dims)
    predictions = draw_for(rule, seed, shape, torch.float32)
    larger = dataclasses.replace(rule, norm_threshold=1.5 * 2.0**power)
    scaled = guide(larger, **{n: 2.0**power * p for n, p in predictions.items()})
    assert torch.equal(scaled, 2.0**power * guide(rule, **predictions))


def size_of(rule: Rule, predictions: dict[str, torch.Tensor]) -> float:
    """A bound of what the rule adds up, for the linear rules above: their weights' sizes add to less than 32."""
    return 32 * max(float(p.abs().max()) for p in predictions.values())


@given(rule=st.sampled_from(LINEAR), seed=seeds, shape=shapes, gain=st.floats(-3, 3), shift=st.floats(-3, 3))
def test_weights_that_add_to_one_commute_with_a_change_of_space(
    rule: Rule, seed: int, shape: tuple[int, ...], gain: float, shift: float
) -> None:
    predictions = draw_for(rule, seed, shape, torch.float64)
    x = torch.from_numpy(np.random.default_rng(seed + 1).normal(size=shape))
    moved = {n: gain * p + shift * x for n, p in predictions.items()}
    expected = gain * guide(rule, **predictions) + shift * x
    bound = 16 * 2.0**-53 * (size_of(rule, moved) + abs(gain) * size_of(rule, predictions) + abs(shift) * 5)
    assert float((guide(rule, **moved) - expected).abs().max()) <= bound


@given(seed=seeds, shape=shapes, gain=st.floats(0.25, 3), shift=st.floats(-3, 3))
def test_perp_neg_commutes_with_a_change_of_space(seed: int, shape: tuple[int, ...], gain: float, shift: float) -> None:
    rule = PerpNeg(5.0, (1.5, 0.5))
    predictions = draw_for(rule, seed, shape, torch.float64)
    p = exact(predictions)
    lengths = [np.linalg.norm((p[n] - p["uncond"]).reshape(shape[0], -1), axis=1) for n in rule.conditions[1:]]
    assume(all((length > 1e-3).all() for length in lengths))
    loss = float(max((n / lengths[0]).max() for n in lengths)) + 1
    x = torch.from_numpy(np.random.default_rng(seed + 1).normal(size=shape))
    moved = {n: gain * q + shift * x for n, q in predictions.items()}
    got, expected = guide(rule, **moved), gain * guide(rule, **predictions) + shift * x
    # A delta of the moved predictions carries roundings of their size, and turns the direction by as much.
    size = size_of(rule, moved) + gain * size_of(rule, predictions) + abs(shift) * 5
    turned = size / (gain * float(lengths[0].min())) * np.sqrt(p["cond"][0].size)
    assert float((got - expected).abs().max()) <= 64 * 2.0**-53 * size * loss * (1 + turned)


IN_DOMAIN = (APG(5.0, 0.0), TCFG(4.0), CFG(5.0, rescale=0.7), NormCap(CFG(3.0)), GatedCFG(3.0, phase="refresh"))


@given(rule=st.sampled_from(IN_DOMAIN), seed=seeds, kind=KINDS, domain=KINDS)
def test_a_rule_in_a_domain_is_the_rule_between_two_conversions(rule: Rule, seed: int, kind: Any, domain: Any) -> None:
    predictions = draw_for(rule, seed, (2, 4, 9), torch.float64)
    x = torch.from_numpy(np.random.default_rng(seed + 1).normal(size=(2, 4, 9)))
    levels: dict[str, Any] = {"x": x.numpy(), "alpha": 0.8, "sigma": 0.6}
    state, inner = State(), State()
    got = guide(InDomain(rule, domain), x=x, prediction=Prediction(kind, 0.8, 0.6), state=state, **predictions)
    moved = {n: classifier.convert(p, source=kind, target=domain, **levels) for n, p in exact(predictions).items()}
    there = guide(rule, state=inner, **{n: torch.from_numpy(p) for n, p in moved.items()}).numpy()
    expected = classifier.convert(there, source=domain, target=kind, **levels)
    np.testing.assert_allclose(got.numpy(), expected, rtol=0, atol=1e-11 * (1 + abs(expected).max()))
    for name in inner:
        torch.testing.assert_close(state[name], inner[name], rtol=0, atol=1e-12 * (1 + abs(x).max().item() * 10))


@given(seed=seeds, shape=shapes, order=st.permutations(range(3)), backend=backends)
def test_the_order_of_conditions_does_not_matter(
    seed: int, shape: tuple[int, ...], order: list[int], backend: str
) -> None:
    scales = (3.0, 1.5, -1.0)
    for rule, other, prefix in (
        (MultiCondition(scales), MultiCondition(tuple(scales[i] for i in order)), "cond"),
        (PerpNeg(5.0, scales), PerpNeg(5.0, tuple(scales[i] for i in order)), "negative"),
        (HistoryGuidance(scales, kind="temporal"),
         HistoryGuidance(tuple(scales[i] for i in order), kind="temporal"), "cond"),
    ):  # fmt: skip
        predictions = draw_for(rule, seed, shape, torch.float64)
        renamed = dict(predictions)
        for position, i in enumerate(order):
            renamed[f"{prefix}_{position + 1}"] = predictions[f"{prefix}_{i + 1}"]
        got, expected = (guide(r, backend=backend, **p) for r, p in ((other, renamed), (rule, predictions)))
        # A negative along a short direction is as large as the share that it is multiplied by.
        size = size_of(rule, predictions) + float(expected.abs().max())
        assert torch.allclose(got, expected, rtol=0, atol=1e3 * 2.0**-53 * size)


@given(rule=rules, seed=seeds, shape=shapes, dtype=dtypes, backend=backends)
def test_equal_predictions_come_back(
    rule: Rule, seed: int, shape: tuple[int, ...], dtype: torch.dtype, backend: str
) -> None:
    one = next(iter(draw_for(rule, seed, shape, dtype).values()))
    predictions = dict.fromkeys(rule.conditions, one)
    got = guide(rule, backend=backend, **predictions)
    assert got.isfinite().all()
    if "Clamp" not in repr(rule):
        eps = torch.finfo(dtype).eps
        # Rules whose weights add to 1 only up to roundings: a spacing of the result, and some of the accumulator's.
        unit = 2.0**-52 if dtype == torch.float64 else 2.0**-23
        torch.testing.assert_close(got, one, rtol=0.5 * eps + 256 * unit, atol=1e-6 if "eps=1e-08" in repr(rule) else 0)


@given(rule=rules, shape=shapes, dtype=dtypes, backend=backends, seed=seeds, zero=st.integers(0, 3))
def test_zeros_are_finite(
    rule: Rule, shape: tuple[int, ...], dtype: torch.dtype, backend: str, seed: int, zero: int
) -> None:
    predictions = draw_for(rule, seed, shape, dtype)
    name = rule.conditions[zero % len(rule.conditions)]
    predictions[name] = torch.zeros_like(predictions[name])
    assert guide(rule, backend=backend, **predictions).isfinite().all()
    nothing = guide(rule, backend=backend, **{n: torch.zeros_like(p) for n, p in predictions.items()})
    assert torch.equal(nothing, torch.zeros_like(nothing))


# Sums of squares stay in the accumulator's range: 1e16 squared, a thousand times, in float32.
SIZES = {
    torch.float16: (1e-7, 1e-4, 400.0),
    torch.bfloat16: (1e-38, 1e-25, 1e16),
    torch.float32: (1e-40, 1e-25, 1e16),
    torch.float64: (1e-300, 1e-150, 1e150),
}


@pytest.mark.parametrize("backend", ["auto", "torch"])
@given(rule=rules, seed=seeds, shape=shapes, dtype=dtypes, which=st.integers(0, 2))
def test_tiny_and_huge_predictions_are_finite(
    rule: Rule, seed: int, shape: tuple[int, ...], dtype: torch.dtype, which: int, backend: str
) -> None:
    size = SIZES[dtype][which]
    predictions = draw_for(rule, seed, shape, dtype, size)
    got = guide(rule, backend=backend, **predictions)
    assert got.isfinite().all()
    for name in rule.conditions:  # One of them far from the others.
        mixed = draw_for(rule, seed, shape, dtype) | {name: predictions[name]}
        assert guide(rule, backend=backend, **mixed).isfinite().all(), name


@given(seed=seeds, shape=shapes, backend=backends)
def test_scales_of_one_and_zero(seed: int, shape: tuple[int, ...], backend: str) -> None:
    predictions = draw_for(Perturbed(), seed, shape, torch.float64)
    u, c = predictions["uncond"], predictions["cond"]
    close: dict[str, float] = {"rtol": 0, "atol": 256 * 2.0**-53 * (1 + float(torch.stack([u, c]).abs().max()))}

    def call(rule: Rule) -> torch.Tensor:
        return guide(rule, backend=backend, **{n: predictions[n] for n in rule.conditions})

    at_one = (
        CFG(1.0),
        CFG(1.0, rescale=0.7),
        CFGZeroStar(1.0, 0),
        TCFG(1.0),
        MaMBOG(1.0),
        APG(1.0, 1.0, 0.0),
        NormCap(CFG(1.0)),
    )
    of_cond = (CFG(0.0, base="cond"), TCFG(0.0, base="cond"), MaMBOG(0.0, base="cond"), Perturbed(1.0, 0.0))
    for rule in at_one + of_cond:
        torch.testing.assert_close(call(rule), c, **close)
    for rule in (CFG(0.0), APG(0.0, 0.0), APG(0.0, 0.3, 1.0), Perturbed(0.0, 0.0), SelfAttentionGuidance(0.0, 0.0)):
        torch.testing.assert_close(call(rule), u, **close)


@given(rule=st.sampled_from(LINEAR[:2] + SUMS[2:5] + SUMS[5:8]), seed=seeds, shape=shapes)
def test_guidance_is_linear_in_its_scale(rule: Rule, seed: int, shape: tuple[int, ...]) -> None:
    # The rules' sums do not see the scale: a mean of two scales gives the mean of the two results.
    predictions = draw_for(rule, seed, shape, torch.float64)
    low, middle, high = (guide(rule, params={"scale": s}, **predictions) for s in (-2.0, 1.5, 5.0))
    bound = 64 * 2.0**-53 * (size_of(rule, predictions) + float(torch.stack([low, high]).abs().max()))
    assert float((middle - (low + high) / 2).abs().max()) <= bound
