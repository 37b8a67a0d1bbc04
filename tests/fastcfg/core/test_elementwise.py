"""Scales that vary within a sample, and masks of what is summed, in the pass that guides."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from conformance.oracles import rescale as oracle

import fastcfg
from fastcfg import APG, CFG, FDG, TCFG, Clamp, InDomain, NormCap, Prediction, Rule, Sampler, guide, guide_step

PATHS = ["auto", "torch", "row", "two_launch"]
RULES = [
    CFG(5.0),
    CFG(5.0, rescale=0.7),
    Clamp(CFG(5.0, rescale=0.7), k=2.0),
    APG(5.0, eta=0.3, norm_threshold=20.0),
    TCFG(5.0),
    NormCap(CFG(5.0)),
]


def draw(rule: Rule, shape: tuple[int, ...], dtype: torch.dtype = torch.float64) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(7)

    def one(spread: float = 1.0) -> torch.Tensor:
        return spread * torch.randn(shape, generator=generator, dtype=torch.float64)

    common = one() + 0.5
    return {name: (common + one(0.4)).to(dtype) for name in rule.conditions}


def run(rule: Rule, path: str, given: dict[str, torch.Tensor], **options: Any) -> torch.Tensor:
    if path in ("row", "two_launch"):
        with pytest.MonkeyPatch.context() as patch:
            call = fastcfg.core.launch.fk.guide_checked
            patch.setattr(fastcfg.core.launch.fk, "guide_checked", lambda *a, **k: call(*a, **{**k, "strategy": path}))
            return guide(rule, backend="triton", **given, **options)
    return guide(rule, backend=None if path == "auto" else path, **given, **options)


MAPS = {
    "region": ((2, 6, 12, 8), (2, 1, 12, 8)),
    "one-region": ((2, 6, 12, 8), (12, 8)),
    "frames": ((2, 3, 5, 8, 4), (2, 1, 5, 1, 1)),
    "frames-first": ((2, 5, 3, 8, 4), (5, 1, 1, 1)),
    "tokens": ((2, 300, 12), (2, 300, 1)),
    "sample": ((3, 50), (3, 1)),
    "elements": ((2, 4, 9, 5), (2, 4, 9, 5)),
    "rows-and-columns": ((2, 3, 5, 7, 4), (1, 5, 1, 4)),
}


def scale_map(shape: tuple[int, ...]) -> torch.Tensor:
    values = 2 * torch.rand(shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    return values * (values > 0.3)  # Some of it is zero.


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("case", MAPS)
def test_a_map_multiplies_the_scale(case: str, path: str) -> None:
    shape, of_map = MAPS[case]
    given, scales = draw(CFG(), shape), scale_map(of_map)
    u, c = given["uncond"], given["cond"]
    y = u + 5.0 * scales * (c - u)
    torch.testing.assert_close(run(CFG(5.0), path, given, scale_map=scales), y, rtol=1e-13, atol=1e-13)
    expected = torch.from_numpy(oracle.rescale_std(guided=y.numpy(), cond=c.numpy(), phi=0.7))
    got = run(CFG(5.0, rescale=0.7), path, given, scale_map=scales)
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("rule", [RULES[0], RULES[1], RULES[3]], ids=lambda r: type(r).__name__)
def test_a_map_of_ones_changes_nothing_and_one_of_zeros_leaves_the_base(rule: Rule, path: str) -> None:
    given = draw(rule, (2, 3, 12, 16))
    ones = torch.ones(1, 1, 1, 16, dtype=torch.float64)
    torch.testing.assert_close(run(rule, path, given, scale_map=ones), run(rule, path, given), rtol=1e-13, atol=1e-13)
    if isinstance(rule, CFG) and not rule.rescale:
        assert torch.equal(run(rule, path, given, scale_map=0 * ones), given["uncond"])


@pytest.mark.parametrize("path", PATHS)
def test_rules_measure_the_change_that_is_made(path: str) -> None:
    """APG's limit is that of the masked delta, in the region alone."""
    given = draw(CFG(), (1, 2, 6, 10))
    region = torch.zeros(6, 10, dtype=torch.float64)
    region[2:5, 3:9] = 1
    masked = region * (given["cond"] - given["uncond"])
    rule = APG(4.0, eta=1.0, norm_threshold=1.5)
    limit = min(1.0, 1.5 / masked.norm().item())
    got = run(rule, path, given, scale_map=region)
    torch.testing.assert_close(got, given["uncond"] + 4.0 * limit * masked, rtol=1e-12, atol=1e-12)


LENGTHS = [1.0, 0.38, 0.006]
"""Of a padded batch's samples, as a share of the longest: a full one, one of some tiles, one of a few tokens."""


def padded(path: str) -> tuple[int, int, int]:
    """Two tiles of 4,096 elements; in float64 a program of one launch holds no more than one."""
    return (3, 340 if path == "row" else 400, 12)


def lengths(shape: tuple[int, ...]) -> list[int]:
    return [int(share * shape[1]) for share in LENGTHS]


def padding(shape: tuple[int, ...]) -> torch.Tensor:
    return torch.arange(shape[1])[None, :, None] < torch.tensor(lengths(shape))[:, None, None]


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("rule", RULES, ids=lambda r: type(r).__name__)
def test_padding_is_left_out_of_every_sum(rule: Rule, path: str) -> None:
    """A padded sample is guided as the same sample without padding, whatever stands there and however far its mean."""
    shape = padded(path)
    given = {name: p + 300.0 for name, p in draw(rule, shape).items()}
    for k, p in enumerate(given.values()):
        p.masked_fill_(~padding(shape), [float("nan"), float("inf")][k % 2])
    # Native code is built for each rule and dtype: float32 for one rule is enough.
    dtypes = {torch.float64: 1e-9} | ({torch.float32: 2e-4} if rule == RULES[1] else {})
    for dtype, tolerance in dtypes.items():
        typed = {name: p.to(dtype) for name, p in given.items()}
        got = run(rule, path, typed, mask=padding(shape))
        for b, length in enumerate(lengths(shape)):
            alone = {name: p[b : b + 1, :length].double() for name, p in typed.items()}
            expected = guide(rule, backend="torch", **alone)
            limit = tolerance * max(1.0, expected.abs().max().item())
            torch.testing.assert_close(got[b : b + 1, :length].double(), expected, rtol=0, atol=limit)


@pytest.mark.parametrize("path", PATHS)
def test_what_the_mask_leaves_out_is_guided_too(path: str) -> None:
    shape = padded(path)
    rule, given = CFG(5.0, rescale=0.7), draw(CFG(), shape)
    plain = guide(CFG(5.0), **given)
    factor = run(rule, path, given, mask=padding(shape)) / plain
    torch.testing.assert_close(factor, factor[:, :1, :1].expand(shape), rtol=1e-9, atol=0)
    assert not torch.allclose(factor[1:, 0, 0], (run(rule, path, given) / plain)[1:, 0, 0], rtol=1e-6)


@pytest.mark.parametrize("path", PATHS)
def test_a_sample_without_elements_stays_finite(path: str) -> None:
    for rule in (RULES[2], RULES[4]):
        given = draw(rule, (2, 40))
        mask = torch.tensor([[1.0], [0.0]]).expand(2, 40)
        got = run(rule, path, given, mask=mask)
        assert got.isfinite().all()
        torch.testing.assert_close(got[:1], run(rule, path, {n: p[:1] for n, p in given.items()}), rtol=1e-12, atol=0)


@pytest.mark.parametrize("path", PATHS)
def test_a_sample_alone_has_the_bits_of_its_row(path: str) -> None:
    rule = CFG(5.0, rescale=0.7)
    shape = padded(path)
    given = draw(rule, shape, torch.float32)
    scales, mask = scale_map((*shape[:2], 1)).float(), padding(shape)
    whole = run(rule, path, given, scale_map=scales, mask=mask)
    for b in range(shape[0]):
        one = {name: p[b : b + 1].clone() for name, p in given.items()}
        part = slice(b, b + 1)
        assert torch.equal(run(rule, path, one, scale_map=scales[part], mask=mask[part]), whole[part])


@pytest.mark.parametrize("path", PATHS)
def test_dense_layouts_are_read_in_the_order_of_their_memory(path: str) -> None:
    rule = CFG(5.0, rescale=0.7)
    given = draw(rule, (2, 6, 12, 8))
    options = {"scale_map": scale_map((2, 1, 12, 8)), "mask": scale_map((1, 6, 1, 8)) > 0}
    expected = run(rule, path, given, **options)
    last = {name: p.contiguous(memory_format=torch.channels_last) for name, p in given.items()}
    torch.testing.assert_close(run(rule, path, last, **options), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("path", PATHS)
def test_in_another_space_and_with_a_step(path: str) -> None:
    """The delta of x0 is multiplied; then the step, of what comes out."""
    step = Sampler.vp([0.2, 0.5, 0.9], kind="v").steps[0]
    assert isinstance(step.level, Prediction)
    rule = InDomain(CFG(5.0, rescale=0.7), "x0")
    given = draw(CFG(), (2, 3, 6, 5))
    x = given["cond"] * 0.5
    options: dict[str, Any] = {"scale_map": scale_map((6, 5)), "mask": scale_map((6, 5)) > 0.2}
    if path in ("row", "two_launch"):
        guided = run(rule, path, given, x=x, prediction=step.level, **options)
        after = guide_step(rule, step, x=x, backend="triton", **given, **options)
    else:
        backend = None if path == "auto" else path
        guided = guide(rule, x=x, prediction=step.level, backend=backend, **given, **options)
        after = guide_step(rule, step, x=x, backend=backend, **given, **options)
    torch.testing.assert_close(after, step.prediction * guided + step.x * x, rtol=1e-12, atol=1e-12)
    clean = {name: step.level.convert(p, x, "x0") for name, p in given.items()}
    expected = step.level.convert(guided, x, "x0")
    direct = guide(CFG(5.0, rescale=0.7), backend="torch", **clean, **options)
    torch.testing.assert_close(expected, direct, rtol=1e-10, atol=1e-10)


def test_by_channel() -> None:
    """Sums over other dimensions: a mask broadcasts to them as to all."""
    rule = NormCap(CFG(5.0), over="channel")
    given = draw(rule, (2, 4, 3, 5))
    mask = torch.tensor([True, True, False, True])[:, None, None]
    got = guide(rule, mask=mask, **given)
    kept = [0, 1, 3]
    expected = guide(rule, **{name: p[:, kept] for name, p in given.items()})
    torch.testing.assert_close(got[:, kept], expected, rtol=1e-12, atol=1e-12)


def test_gradients_reach_the_map() -> None:
    given = draw(CFG(), (2, 3, 4))
    scales = scale_map((3, 1)).requires_grad_()

    def call(scales: torch.Tensor, uncond: torch.Tensor, cond: torch.Tensor) -> torch.Tensor:
        mask = torch.tensor([True, True, False, True])
        return guide(CFG(5.0, rescale=0.7), scale_map=scales, mask=mask, uncond=uncond, cond=cond)

    assert torch.autograd.gradcheck(call, (scales, *(given[n].requires_grad_() for n in ("uncond", "cond"))))


BAD: list[tuple[Rule, dict[str, Any], str]] = [
    (CFG(), {"scale_map": torch.ones(3, 4)}, r"scale_map: expected a shape that broadcasts to \[2, 5\]"),
    (CFG(), {"scale_map": torch.ones(5, dtype=torch.int64)}, "scale_map: expected a floating tensor"),
    (CFG(rescale=0.5), {"mask": torch.ones(3, dtype=torch.bool)}, "mask: expected a shape that broadcasts to"),
    (CFG(), {"scale_map": torch.ones(5), "numerics": "eager"}, "numerics: 'eager' has no scale_map"),
    (FDG(), {"mask": torch.ones(5)}, "scale_map, mask.*: FDG makes tensors of the predictions"),
]


@pytest.mark.parametrize(("rule", "options", "message"), BAD, ids=[m[:20] for _, _, m in BAD])
def test_bad_input(rule: Rule, options: dict[str, Any], message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        guide(rule, uncond=torch.zeros(2, 5), cond=torch.ones(2, 5), **options)


def test_a_mask_without_sums_plays_no_part() -> None:
    given = draw(CFG(), (2, 5))
    assert torch.equal(guide(CFG(5.0), mask=torch.zeros(5), **given), guide(CFG(5.0), **given))
