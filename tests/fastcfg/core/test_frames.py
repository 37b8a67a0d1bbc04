"""Scales by frame against the oracle, in both layouts; metrics of steadiness."""

import math

import numpy as np
import pytest
import torch
from conformance.oracles import classifier_free as oracle
from conformance.oracles import rescale
from conformance.oracles.arrays import std
from conformance.oracles.rounding import ulp

from fastcfg import (
    CFG,
    Clamp,
    DualCFG,
    InnerGuidance,
    MultiCondition,
    PerpNeg,
    Rescale,
    Rule,
    guide,
    schedules,
)
from fastcfg.core.frames import guide_frames, keyframe_scales, temporal_decay, uniform_scales
from fastcfg.metrics.steadiness import aliasing, flicker, jitter

SHAPES = {2: (2, 3, 5, 4, 6), 1: (2, 5, 3, 4, 6)}
FRAMES = 5
SCALES = [1.5, 7.5, 3.0, 5.0, 0.0]
DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]


def draw(rule: Rule, frame_dim: int, dtype: torch.dtype = torch.float64) -> dict[str, torch.Tensor]:
    rng = np.random.default_rng(3)
    common = rng.normal(size=SHAPES[frame_dim]) + 0.2
    return {n: torch.from_numpy(common + 0.5 * rng.normal(size=common.shape)).to(dtype) for n in rule.conditions}


def exact(predictions: dict[str, torch.Tensor]) -> dict[str, np.ndarray]:
    return {name: p.double().numpy() for name, p in predictions.items()}


def close(actual: torch.Tensor, expected: np.ndarray, roundings: float = 24.0, magnitude: float = 60.0) -> None:
    """Half a spacing, and so many roundings of the accumulator at the size of what is added up."""
    unit = 2.0**-53 if actual.dtype == torch.float64 else 2.0**-24
    bound = 0.5 * ulp(expected, actual.dtype) + roundings * unit * magnitude
    assert (np.abs(actual.double().numpy() - expected) <= bound).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d)[6:])
@pytest.mark.parametrize("frame_dim", [1, 2])
@pytest.mark.parametrize("per_sample", [False, True])
def test_cfg_by_frame(frame_dim: int, dtype: torch.dtype, per_sample: bool) -> None:
    p = draw(CFG(), frame_dim, dtype)
    scales = torch.tensor([SCALES, SCALES[::-1]], dtype=torch.float32) if per_sample else torch.tensor(SCALES)
    for kwargs in ({}, {"group": "frame"}, {"backend": "torch"}):
        actual = guide_frames(CFG(), scales, frame_dim=frame_dim, **p, **kwargs)
        assert actual.dtype == dtype and actual.shape == SHAPES[frame_dim]
        close(actual, oracle.per_frame_cfg(**exact(p), scales=scales.double().numpy(), frame_dim=frame_dim))


@pytest.mark.parametrize("frame_dim", [1, 2])
def test_equal_scales_are_the_rule_itself(frame_dim: int) -> None:
    for rule in (CFG(3.0), CFG(3.0, rescale=0.7), PerpNeg(3.0, (1.5,)), DualCFG(3.0, 2.0), Clamp(CFG(3.0), 1.5)):
        p = draw(rule, frame_dim)
        actual = guide_frames(rule, uniform_scales(FRAMES, 3.0), frame_dim=frame_dim, **p)
        torch.testing.assert_close(actual, guide(rule, backend="torch", **p), rtol=0, atol=1e-13)


@pytest.mark.parametrize("frame_dim", [1, 2])
def test_other_parameters_and_rules(frame_dim: int) -> None:
    p = draw(MultiCondition((2.0, 3.0)), frame_dim)
    actual = guide_frames(MultiCondition((2.0, 3.0)), SCALES, frame_dim=frame_dim, parameter="scale_2", **p)
    e = exact(p)
    second = oracle.per_frame_cfg(uncond=e["uncond"], cond=e["cond_2"], scales=np.array(SCALES), frame_dim=frame_dim)
    close(actual, second + 2.0 * (e["cond_1"] - e["uncond"]))

    rule = InnerGuidance(5.0, 3.0)
    p = draw(rule, frame_dim)
    override = torch.tensor([1.0, 2.0], dtype=torch.float64)
    actual = guide_frames(rule, SCALES, frame_dim=frame_dim, params={"inner_scale": override}, **p)
    shape = [1] * 5
    shape[frame_dim] = FRAMES
    expected = oracle.inner_guidance(**exact(p), scale=np.array(SCALES).reshape(shape), inner_scale=override.numpy())
    close(actual, expected)


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d)[6:])
@pytest.mark.parametrize("frame_dim", [1, 2])
@pytest.mark.parametrize("norm", ["std", "l2"])
def test_sums_over_the_whole_sample_see_the_map(frame_dim: int, dtype: torch.dtype, norm: str) -> None:
    rule = Rescale(CFG(4.0), 0.7, norm)
    p = draw(rule, frame_dim, dtype)
    e = exact(p)
    guided = oracle.per_frame_cfg(**e, scales=np.array(SCALES), frame_dim=frame_dim)
    apply = rescale.rescale_std if norm == "std" else rescale.rescale_l2
    # One more rounding for each of the additions side by side, as in conformance.tolerances.
    close(
        guide_frames(rule, SCALES, frame_dim=frame_dim, **p), apply(guided=guided, cond=e["cond"], phi=0.7),
        roundings=24 + 4 * math.sqrt(guided[0].size / 16),
    )  # fmt: skip


@pytest.mark.parametrize("frame_dim", [1, 2])
def test_the_clamp_of_a_map(frame_dim: int) -> None:
    rule = Clamp(CFG(4.0), 1.5)
    p = draw(rule, frame_dim)
    e = exact(p)
    bound = 1.5 * std(e["cond"])
    guided = oracle.per_frame_cfg(**e, scales=np.array(SCALES), frame_dim=frame_dim)
    close(guide_frames(rule, SCALES, frame_dim=frame_dim, **p), np.clip(guided, -bound, bound))


@pytest.mark.parametrize("frame_dim", [1, 2])
def test_perp_neg_keeps_what_is_orthogonal(frame_dim: int) -> None:
    rule = PerpNeg(4.0, (1.5,))
    p = draw(rule, frame_dim)
    e = exact(p)
    away = oracle.perp_neg(**e, scale=0.0, negative_scale=1.5) - e["uncond"]
    expected = away + oracle.per_frame_cfg(
        uncond=e["uncond"], cond=e["cond"], scales=np.array(SCALES), frame_dim=frame_dim
    )
    close(guide_frames(rule, SCALES, frame_dim=frame_dim, **p), expected)


@pytest.mark.parametrize("frame_dim", [1, 2])
def test_frames_as_groups_are_samples_of_their_own(frame_dim: int) -> None:
    rule = Rescale(PerpNeg(4.0, (1.5,)), 0.7)
    p = draw(rule, frame_dim)
    actual = guide_frames(rule, SCALES, frame_dim=frame_dim, group="frame", **p)
    for f, scale in enumerate(SCALES):
        one = {name: x.select(frame_dim, f) for name, x in p.items()}
        expected = guide(rule, params={"scale": scale}, backend="torch", **one)
        torch.testing.assert_close(actual.select(frame_dim, f), expected, rtol=0, atol=1e-13)
    phi = guide_frames(rule, [0.0, 0.1, 0.5, 0.9, 1.0], parameter="phi", frame_dim=frame_dim, group="frame", **p)
    expected = guide(rule, params={"phi": 0.9}, backend="torch", **{n: x.select(frame_dim, 3) for n, x in p.items()})
    torch.testing.assert_close(phi.select(frame_dim, 3), expected, rtol=0, atol=1e-13)


def test_any_layout_and_gradients() -> None:
    p = draw(CFG(), 2)
    expected = guide_frames(CFG(), SCALES, **p)
    strided = {n: x.movedim(2, 4).contiguous().movedim(4, 2) for n, x in p.items()}
    assert torch.equal(guide_frames(CFG(), SCALES, **strided), expected)
    assert torch.equal(guide_frames(CFG(), SCALES, **p, frame_dim=-3), expected)
    scales = torch.tensor(SCALES, dtype=torch.float64, requires_grad=True)
    guide_frames(CFG(rescale=0.5), scales, **p).sum().backward()
    assert scales.grad is not None and scales.grad.isfinite().all() and (scales.grad != 0).all()
    last = {n: x.reshape(2, 3, -1) for n, x in p.items()}
    assert guide_frames(CFG(), [2.0] * 120, frame_dim=2, **last).shape == (2, 3, 120)


def test_triton_gives_the_same() -> None:
    p = draw(CFG(), 2, torch.float32)
    close(
        guide_frames(CFG(), SCALES, backend="triton", **p),
        oracle.per_frame_cfg(**exact(p), scales=np.array(SCALES), frame_dim=2),
    )


@pytest.mark.parametrize(
    ("rule", "group"), [(CFG(), "sample"), (CFG(rescale=0.5), "sample"), (CFG(rescale=0.5), "frame")], ids=repr
)
def test_compiles(rule: Rule, group: str) -> None:
    p = draw(rule, 2, torch.float32)
    scales = torch.tensor(SCALES)
    expected = guide_frames(rule, scales, group=group, **p)
    compiled = torch.compile(
        lambda s, u, c: guide_frames(rule, s, group=group, uncond=u, cond=c), fullgraph=True, backend="eager"
    )
    torch.testing.assert_close(compiled(scales, p["uncond"], p["cond"]), expected)


@pytest.mark.parametrize("num_frames", [1, 2, 3, 8, 17])
def test_scales(num_frames: int) -> None:
    def same(actual: torch.Tensor, expected: np.ndarray) -> None:
        assert actual.dtype == torch.float32 and actual.shape == (num_frames,)
        np.testing.assert_array_equal(actual.numpy(), expected.astype(np.float32))

    same(uniform_scales(num_frames, 4.5), np.full(num_frames, 4.5))
    for interpolation in ("none", "linear"):
        for keys in (None, [0], [-1] if num_frames == 1 else [1]):
            expected = oracle.keyframe_scales(
                num_frames,
                low=3,
                high=8,
                keyframes=keys and [k % num_frames for k in keys],
                interpolation=interpolation,
            )
            same(keyframe_scales(num_frames, 3, 8, keyframes=keys, interpolation=interpolation), expected)
    same(keyframe_scales(num_frames, 4, 4), np.full(num_frames, 4.0))
    for kind in ("linear", "exponential"):
        scales = temporal_decay(num_frames, 9, 3, kind=kind)
        same(scales, oracle.temporal_decay_scales(num_frames, start=9, end=3, kind=kind))
        assert scales[0] == 9 and (num_frames == 1 or scales[-1] == 3)


@pytest.mark.parametrize("frame_dim", [1, 2])
def test_steadiness(frame_dim: int) -> None:
    torch.manual_seed(0)
    still = torch.randn(2, 3, 1, 4, 4, dtype=torch.float64).expand(-1, -1, 8, -1, -1)
    ramp = torch.arange(8.0, dtype=torch.float64).view(1, 1, 8, 1, 1)
    alternating = torch.tensor([1.0, -1.0] * 4, dtype=torch.float64).view(1, 1, 8, 1, 1)

    def at(video: torch.Tensor) -> torch.Tensor:
        return video.movedim(2, frame_dim)

    zero, one = torch.zeros(2, dtype=torch.float64), torch.ones(2, dtype=torch.float64)
    for metric in (flicker, jitter, aliasing):
        assert torch.equal(metric(at(still), frame_dim), zero)
        assert torch.equal(metric(at(still[:, :, :1]), frame_dim), zero)
    torch.testing.assert_close(flicker(at(still + 0.5 * ramp), frame_dim), 0.5 * one)
    torch.testing.assert_close(jitter(at(still + 0.5 * ramp), frame_dim), zero, atol=1e-14, rtol=0)
    torch.testing.assert_close(flicker(at(still + alternating), frame_dim), 2 * one)
    torch.testing.assert_close(jitter(at(still + alternating), frame_dim), 4 * one)
    torch.testing.assert_close(aliasing(at(still + alternating), frame_dim), one)
    slow = torch.cos(2 * math.pi * ramp / 8)
    torch.testing.assert_close(aliasing(at(still + slow), frame_dim), zero, atol=1e-14, rtol=0)
    torch.testing.assert_close(aliasing(at(still + slow + alternating), frame_dim), 2 / 3 * one)


def test_flicker_grows_with_the_scale() -> None:
    p = draw(CFG(), 2)
    for metric in (flicker, jitter):
        values = torch.stack([metric(guide(CFG(s), **p)) for s in (1.0, 3.0, 7.5, 15.0)])
        assert (values.diff(dim=0) > 0).all()


P = draw(CFG(), 2)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: guide_frames(7, SCALES, **P), "rule: expected a fastcfg rule, got int"),
        (lambda: guide_frames(CFG(), SCALES[:3], **P), r"scales: expected the shape \[5\] or \[2, 5\], got \[3\]"),
        (lambda: guide_frames(CFG(), torch.ones(5, dtype=torch.int64), **P), "scales: expected a floating tensor"),
        (lambda: guide_frames(CFG(), torch.ones(5, device="meta"), **P), "scales: expected a tensor on cpu"),
        (lambda: guide_frames(CFG(), SCALES, frame_dim=0, **P), "frame_dim: expected a dimension 1"),
        (lambda: guide_frames(CFG(), SCALES, frame_dim=5, **P), "frame_dim: expected a dimension 1"),
        (lambda: guide_frames(CFG(), SCALES, parameter="phi", **P), r"parameter, params: CFG has \['scale'\]"),
        (lambda: guide_frames(CFG(), SCALES, params={"w": 1.0}, **P), "parameter, params: CFG has"),
        (lambda: guide_frames(CFG(), SCALES, group="video", **P), "group: expected 'sample' or 'frame'"),
        (lambda: guide_frames(CFG(), SCALES, uncond=P["uncond"]), r"missing \['cond'\]"),
        (lambda: guide_frames(CFG(), SCALES, uncond=P["uncond"], cond=1.0), "cond: expected a tensor, got float"),
        (lambda: guide_frames(CFG(), SCALES, **P | {"cond": P["cond"][:1]}), "cond: expected the shape of uncond"),
        (
            lambda: guide_frames(CFG(rescale=schedules.Ramp(0, 1)), SCALES, **P),
            "rescale: is a schedule",
        ),
        (lambda: guide_frames(CFG(rescale=0.5), SCALES, parameter="rescale", **P), "parameter: 'rescale' belongs to"),
        (lambda: uniform_scales(0, 1.0), "num_frames: expected a positive integer, got 0"),
        (lambda: uniform_scales(3, math.inf), "scale: expected a finite number"),
        (lambda: keyframe_scales(3, 1, 2, keyframes=[3]), r"keyframes: expected frame numbers in -3 ... 2, got \[3\]"),
        (lambda: keyframe_scales(3, 1, 2, interpolation="cubic"), "interpolation: expected 'none' or 'linear'"),
        (lambda: temporal_decay(3, 1, 0, kind="exponential"), "start, end: expected numbers above zero"),
        (lambda: temporal_decay(3, "1", 0), "start: expected a number, got str"),
        (lambda: temporal_decay(3, 1, 0, kind="cosine"), "kind: expected 'linear' or 'exponential'"),
        (lambda: flicker(P["cond"], 0), "frame_dim: expected a dimension 1"),
        (lambda: jitter(torch.ones(2, 3, dtype=torch.int64), 1), "video: expected a floating tensor"),
    ],
)
def test_errors_name_the_argument(call: object, message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        call()  # type: ignore[operator]
