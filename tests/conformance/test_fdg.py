"""Frequency-decoupled guidance against the fp64 oracle and diffusers (kornia), and what one pyramid of d changes."""

from typing import Any

import numpy as np
import pytest
import torch

from conformance.oracles import classifier_free, projection, rescale
from conformance.oracles.rounding import ulp
from conformance.peers import diffusers_guiders
from fastcfg import CFG, FDG, Clamp, Linear, Rescale, Rule, guide, schedules
from fastcfg.core.frames import guide_frames
from fastcfg.denoiser.planner import plan
from fastcfg.metrics.geometry import geometry
from fastcfg.rules import fdg, pyramid

SHAPES = [(2, 3, 16, 32), (1, 4, 32, 24), (2, 2, 20, 28), (1, 2, 3, 16, 16)]
OPTIONS: list[dict[str, Any]] = [
    {},
    {"scales": (8.0, 3.0, 2.0)},
    {"scales": (5.0,)},
    {"parallel_weights": (0.5, 0.25)},
    {"parallel_weights": 0.5},
    {"rescale": 0.6},
    {"rescale": (0.3, 0.8), "rescale_space": "freq"},
    {"rescale": 0.4, "rescale_space": "freq", "parallel_weights": 0.0},
]
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
needs_kornia = pytest.mark.skipif(not diffusers_guiders.has_kornia(), reason="diffusers' FDG needs kornia")


def draw(shape: tuple[int, ...], dtype: torch.dtype = torch.float64, delta: float = 0.5) -> dict[str, torch.Tensor]:
    rng = np.random.default_rng([1, *shape])
    common = rng.normal(size=shape) + 0.1
    return {n: torch.from_numpy(common + delta * rng.normal(size=shape)).to(dtype) for n in ("uncond", "cond")}


def exact(predictions: dict[str, torch.Tensor]) -> dict[str, np.ndarray]:
    return {name: p.double().numpy() for name, p in predictions.items()}


def oracle(options: dict[str, Any], p: dict[str, np.ndarray], base: str) -> np.ndarray:
    options = dict(options)
    weights = options.get("parallel_weights")
    if isinstance(weights, float):
        options["parallel_weights"] = [weights] * len(options.get("scales", (10.0, 5.0)))
    return projection.fdg(**p, base=base, **options)


def bound(expected: np.ndarray, dtype: torch.dtype, options: dict[str, Any]) -> np.ndarray:
    """Half a spacing of the store, and the accumulator's roundings.

    Each level rounds a sum of positive weights adding to 1 about 40 times (four filters of up to 6 taps and the
    differences), at the size of the largest scaled delta; a sum over a sample adds 4 sqrt(n/16) + 8.
    """
    unit = 2.0**-53 if dtype == torch.float64 else 2.0**-24
    scales = options.get("scales", (10.0, 5.0))
    sums = 4 * (expected[0].size / 16) ** 0.5 + 8 if len(options) > ("scales" in options) else 0
    return 0.5 * ulp(expected, dtype) + unit * (40 * len(scales) + sums) * (max(scales) * 2 + 8)


@pytest.mark.parametrize("base", ["uncond", "cond"])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_within_the_bound_of_the_oracle(shape: tuple[int, ...], options: dict[str, Any], base: str) -> None:
    for dtype in DTYPES:
        p = draw(shape, dtype)
        actual = guide(FDG(**options, base=base), **p)
        expected = oracle(options, exact(p), base)
        assert actual.dtype == dtype and actual.shape == shape
        assert (np.abs(actual.double().numpy() - expected) <= bound(expected, dtype, options)).all()


@needs_kornia
@pytest.mark.parametrize("base", ["uncond", "cond"])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_equals_diffusers(options: dict[str, Any], base: str) -> None:
    for shape in SHAPES[:3]:
        p = draw(shape)
        lists = {k: list(v) if isinstance(v, tuple) else v for k, v in options.items()}
        peer = diffusers_guiders.frequency_decoupled(**p, original=base == "cond", **lists)
        height, width = shape[-2:]
        padded = peer.shape[-2:] != (height, width)
        actual = guide(FDG(**options, base=base), **p)
        if padded and "rescale" in options and options.get("rescale_space") != "freq":
            # diffusers measures the padded result; here it is the result itself.
            continue
        torch.testing.assert_close(actual, peer[..., :height, :width], rtol=0, atol=2e-13)


@needs_kornia
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=lambda d: str(d)[6:])
def test_closer_than_diffusers(dtype: torch.dtype) -> None:
    for options in OPTIONS[:5]:
        p = draw((2, 4, 32, 32), dtype)
        expected = oracle(options, exact(p), "uncond")
        lists = {k: list(v) if isinstance(v, tuple) else v for k, v in options.items()}
        peer = diffusers_guiders.frequency_decoupled(**p, **lists)
        ours = guide(FDG(**options), **p)
        errors = [np.sqrt(np.mean((y.double().numpy() - expected) ** 2)) for y in (ours, peer)]
        assert errors[0] <= errors[1] * (1.0 if dtype == torch.float32 else 0.8), (options, errors)


def test_one_pyramid_where_the_options_allow_it(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []

    def counted(x: torch.Tensor, levels: int) -> list[torch.Tensor]:
        calls.append(levels)
        return pyramid.gaussian_pyramid(x, levels)

    monkeypatch.setattr(fdg, "gaussian_pyramid", counted)
    p = draw(SHAPES[0])
    for options, expected in [({}, 1), ({"rescale": 0.6}, 1), ({"parallel_weights": 0.5}, 2), (OPTIONS[6], 2)]:
        calls.clear()
        guide(FDG(**options), **p)
        assert len(calls) == expected


def test_equal_scales_are_cfg() -> None:
    p = draw((2, 3, 16, 16), torch.float32)
    assert FDG((4.0, 4.0)).simplify() == CFG(4.0)
    assert FDG((4.0, 4.0), rescale=0.5, base="cond").simplify() == CFG(4.0, rescale=0.5, base="cond").simplify()
    # What a coarser level adds is exactly zero, so that no pyramid shows in the bits.
    u, c = p["uncond"], p["cond"]
    assert torch.equal(guide(FDG((4.0, 4.0, 4.0)), **p), u + 4.0 * (c - u))


def test_a_level_without_guidance_keeps_conds() -> None:
    p = draw((2, 3, 16, 16))
    e = exact(p)
    for options in ({}, {"parallel_weights": 0.5}, {"rescale": (0.3, 0.8), "rescale_space": "freq"}):
        for base, off in (("uncond", 1.0), ("cond", 0.0)):
            actual = guide(FDG((off, 5.0), base=base, **options), **p)
            expected = oracle(options | {"scales": (off, 5.0), "active": [False, True]}, e, base)
            np.testing.assert_allclose(actual.numpy(), expected, rtol=0, atol=1e-13)
    assert FDG((1.0, 1.0), parallel_weights=0.5).simplify() == Linear((("cond", 1.0),))
    assert FDG((0.0, 0.0), base="cond").simplify() == Linear((("cond", 1.0),))


def test_windows_by_level_and_the_planner() -> None:
    rule = FDG((schedules.Interval(10.0, 0.0, 0.5), schedules.Interval(5.0, 0.25, 0.75)))
    assert [plan(rule, None, i, 4).count for i in range(4)] == [2, 2, 2, 1]
    assert rule.at(0, 4) == FDG((10.0, 1.0)) and rule.at(2, 4) == FDG((1.0, 5.0))
    p = draw((1, 2, 16, 16))
    with pytest.raises(ValueError, match="scale_1: is a schedule"):
        guide(rule, **p)
    with pytest.raises(ValueError, match="rescale: is a schedule"):
        guide(FDG(rescale=schedules.Ramp(0, 1)), **p)


def test_scales_by_sample_and_batch_invariance() -> None:
    for options in ({}, {"parallel_weights": 0.5}, {"rescale": 0.7}, {"rescale": 0.5, "rescale_space": "freq"}):
        rule = FDG(**options)
        p = draw((3, 2, 20, 24), torch.float32)
        scale = torch.tensor([2.0, 5.0, 9.0])
        whole = guide(rule, params={"scale_2": scale}, **p)
        for b in range(3):
            one = {n: x[b : b + 1] for n, x in p.items()}
            assert torch.equal(guide(rule, params={"scale_2": scale[b : b + 1]}, **one), whole[b : b + 1])
            number = guide(rule, params={"scale_2": scale[b].item()}, **one)
            torch.testing.assert_close(number, whole[b : b + 1], rtol=0, atol=1e-5)


def test_modifiers_over_it() -> None:
    p = draw((2, 3, 16, 16))
    e = exact(p)
    guided = projection.fdg(**e)
    actual = guide(Rescale(FDG(), 0.6, "l2"), **p)
    np.testing.assert_allclose(actual, rescale.rescale_l2(guided=guided, cond=e["cond"], phi=0.6), rtol=0, atol=1e-13)
    both = rescale.rescale_std(guided=guided, cond=e["cond"], phi=0.5)
    actual = guide(Clamp(FDG(rescale=0.5), 1.5), **p)
    np.testing.assert_allclose(actual, rescale.clamp_std(guided=both, cond=e["cond"], k=1.5), rtol=0, atol=1e-13)
    out = p["uncond"].clone()
    assert guide(FDG(), uncond=out, cond=p["cond"], out=out) is out
    np.testing.assert_allclose(out, guided, rtol=0, atol=1e-13)


def test_small_deltas_and_degenerate_inputs() -> None:
    p = draw((1, 2, 16, 16), torch.float32, delta=1e-4)
    expected = projection.fdg(**exact(p), scales=(30.0, 10.0))
    error = np.abs(guide(FDG((30.0, 10.0)), **p).double().numpy() - expected)
    assert (error <= 1.01 * 0.5 * ulp(expected, torch.float32) + 1e-4 * 30 * 2.0**-20).all()
    zero = torch.zeros(1, 2, 16, 16)
    for options in OPTIONS:
        scales = {"scales": (8.0, 3.0)} | options
        assert torch.equal(guide(FDG(**scales), uncond=zero, cond=zero), zero)
        assert guide(FDG(**scales), uncond=zero, cond=zero + 1).isfinite().all()
        assert guide(FDG(**scales), uncond=zero + 1, cond=zero).isfinite().all()


def test_gradients_and_compilation() -> None:
    p = {n: x.requires_grad_() for n, x in draw((1, 2, 16, 16)).items()}
    guide(FDG(parallel_weights=0.5, rescale=0.5), **p).square().sum().backward()
    assert all(x.grad is not None and x.grad.isfinite().all() for x in p.values())
    plain = draw((1, 2, 20, 28), torch.float32)
    for rule in (FDG((8.0, 3.0, 2.0)), FDG(parallel_weights=0.5, rescale=0.5)):
        compiled = torch.compile(lambda u, c, rule=rule: guide(rule, uncond=u, cond=c), fullgraph=True, backend="eager")
        torch.testing.assert_close(compiled(plain["uncond"], plain["cond"]), guide(rule, **plain))


def test_json_round_trip() -> None:
    for options in OPTIONS:
        rule = Rescale(FDG(**options), 0.5)
        assert Rule.from_json(rule.to_json()) == rule


@needs_kornia
@pytest.mark.parametrize("shape", [(2, 3, 16, 32), (1, 2, 20, 28), (1, 1, 8, 8), (1, 2, 24, 16)], ids=str)
def test_pyramid_equals_kornia(shape: tuple[int, ...]) -> None:
    from kornia.geometry import pyrup
    from kornia.geometry.transform import build_laplacian_pyramid, pyrdown

    x = draw(shape)["cond"]
    for levels in (1, 2, 3):
        ours = pyramid.laplacian_pyramid(pyramid.pad_to_pyramid(x, levels), levels)
        for mine, theirs in zip(ours, build_laplacian_pyramid(x, levels), strict=True):
            torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-14)
    torch.testing.assert_close(pyramid.pyramid_down(x), pyrdown(x), rtol=0, atol=1e-14)
    torch.testing.assert_close(pyramid.pyramid_up(x), pyrup(x), rtol=0, atol=1e-14)
    padded = pyramid.pad_to_pyramid(x, 3)
    torch.testing.assert_close(pyramid.from_laplacian(pyramid.laplacian_pyramid(padded, 3)), padded)


P = draw((1, 2, 16, 16))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: FDG(5.0), "scales: expected one or more numbers or schedules in a tuple"),
        (lambda: FDG((1.0, 2.0), parallel_weights=(1.0,)), "parallel_weights: expected one number, or 2"),
        (lambda: FDG(rescale=(0.1, 0.2)), "rescale: expected one number in data space"),
        (lambda: FDG(rescale=1.5), "rescale: expected a share in 0 ... 1, got 1.5"),
        (lambda: FDG(rescale=(0.1, 2.0), rescale_space="freq"), r"rescale\[1\]: expected a share"),
        (lambda: FDG(rescale_space="time"), "rescale_space: expected 'data' or 'freq'"),
        (lambda: FDG(base="image"), "base: expected 'uncond' or 'cond'"),
        (lambda: guide(FDG((3.0,) * 5), **P), "levels: 5 levels need sides of 32 or more, got 16 x 16"),
        (lambda: guide(FDG(), uncond=P["uncond"]), r"missing \['cond'\]"),
        (lambda: guide(FDG(), uncond=P["uncond"][0, 0], cond=P["cond"][0, 0]), r"uncond: expected \[B, C, ..., H, W\]"),
        (
            lambda: guide(FDG(), uncond=P["uncond"], cond=P["cond"][..., :8]),
            r"cond: expected the shape of uncond, \[1, 2, 16, 16\]",
        ),
        (lambda: guide(FDG(), uncond=P["uncond"].long(), cond=P["cond"]), "uncond: expected a float32"),
        (lambda: guide(FDG(), params={"scale_3": 1.0}, **P), "params: FDG has no parameter 'scale_3'"),
        (lambda: guide(FDG(), params={"scale_1": torch.ones(3)}, **P), r"scale_1: expected a tensor of shape \[\] or"),
        (lambda: guide(FDG(), numerics="eager", **P), "numerics: FDG has 'fp32' only"),
        (lambda: guide_frames(FDG(), [1.0] * 16, parameter="scale_1", **P), "rule: FDG has memory, dims"),
        (lambda: geometry(FDG(), **P), "rule: FDG has memory, dims"),
        (lambda: pyramid.pad_to_pyramid(P["cond"], 0), "levels: expected a positive integer, got 0"),
    ],
)
def test_errors_name_the_argument(call: object, message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        call()  # type: ignore[operator]


def test_the_bound_can_fail() -> None:
    p = draw(SHAPES[0])
    wrong = guide(FDG((10.0, 5.0 * (1 + 1e-6))), **p).numpy()
    expected = oracle({}, exact(p), "uncond")
    assert (np.abs(wrong - expected) > bound(expected, torch.float64, {})).any()
    assert np.abs(classifier_free.cfg(**exact(p), scale=10.0) - expected).max() > 0.1
