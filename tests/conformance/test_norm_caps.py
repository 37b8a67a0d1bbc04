"""Norm caps against the fp64 oracle: cap, full and clamp, over samples, tokens and channels."""

from typing import Any

import numpy as np
import pytest
import torch

import fastcfg
from conformance.cases import BY_NAME, Case, draw, exact
from conformance.field_cases import CAPPED, capped, check, check_rows, grouped, shape_of
from conformance.tolerances import check_error
from fastcfg import APG, CFG, TCFG, Clamp, NormCap, Rescale, guide

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
by_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d)[6:])
by_case = pytest.mark.parametrize("case", CAPPED, ids=str)
by_over = pytest.mark.parametrize(("over", "dim"), [("sample", (1, 2, 3)), ("token", (3,)), ("channel", (1,))])


@by_dtype
@pytest.mark.parametrize("path", ["auto", "torch"])
@by_case
def test_torch_and_the_small_path_are_within_the_bound(case: Case, path: str, dtype: torch.dtype) -> None:
    check(case, path, shape_of(case), dtype)


@pytest.mark.parametrize("path", ["row", "two_launch"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=lambda d: str(d)[6:])
@by_case
def test_triton_is_within_the_bound(case: Case, dtype: torch.dtype, path: str) -> None:
    if grouped(case) and (path == "two_launch" or case.rule.mode == "cap"):
        pytest.skip("hundreds of rows, one program each: slow in the interpreter")
    check(case, path, tuple(min(n, 8) for n in shape_of(case)) if grouped(case) else shape_of(case), dtype)


@by_case
def test_rows_of_a_batch_have_their_own_bits(case: Case) -> None:
    for path in ("auto", "torch"):
        for dtype in (torch.float32, torch.bfloat16):
            check_rows(case, path, shape_of(case), dtype)


@by_over
@pytest.mark.parametrize("backend", ["auto", "torch"])
def test_norms_are_what_the_mode_says(backend: str, over: Any, dim: tuple[int, ...]) -> None:
    predictions = draw(("uncond", "cond"), (2, 6, 5, 9), torch.float64)
    length = predictions["cond"].square().sum(dim).sqrt()
    plain = guide(CFG(3.0), **predictions).square().sum(dim).sqrt()
    close: dict[str, float] = {"rtol": 1e-13, "atol": 0}

    def norms(**options: Any) -> torch.Tensor:
        return guide(NormCap(CFG(3.0), over=over, **options), backend=backend, **predictions).square().sum(dim).sqrt()

    torch.testing.assert_close(norms(mode="full"), length, **close)
    torch.testing.assert_close(norms(mode="full", cap=0.5), 0.5 * length, **close)
    torch.testing.assert_close(norms(mode="cap", cap=0.7), plain.minimum(0.7 * length), **close)
    torch.testing.assert_close(norms(mode="clamp", low=0.6), plain * (length / plain).clamp(0.6, 1.0), **close)


@by_over
@pytest.mark.parametrize("mode", ["cap", "full", "clamp"])
def test_zero_results_and_references(mode: Any, over: Any, dim: tuple[int, ...]) -> None:
    c = draw(("cond",), (2, 6, 5, 9), torch.float32)["cond"]
    zero = torch.zeros_like(c)
    rule = NormCap(CFG(2.0), mode=mode, over=over)
    # u + 2 (c - u) is zero for u = 2 c: it stays; a zero reference caps everything to nothing.
    assert not guide(rule, uncond=2 * c, cond=c).any()
    assert not guide(rule, uncond=zero, cond=zero).any()
    assert not guide(rule, uncond=c, cond=zero).any()


@pytest.mark.parametrize("path", ["auto", "torch"])
def test_fp16_norms_beyond_its_range(path: str) -> None:
    """65504 is the largest float16: a norm taken in the predictions' dtype is infinite here."""
    predictions = {n: p * 1200 for n, p in draw(("uncond", "cond"), (2, 4, 40, 40), torch.float16, mean=0.0).items()}
    assert not predictions["cond"].norm().isfinite()
    case = capped(BY_NAME["CFG"])
    check_error(case, guide(case.rule, backend=path, **predictions), exact(predictions))


def test_modifiers_over_other_groups_are_refused() -> None:
    with pytest.raises(ValueError, match="dims"):
        Clamp(NormCap(CFG(3.0), over="token"), k=2.0)
    with pytest.raises(ValueError, match="dims"):
        NormCap(TCFG(3.0), over="token")
    with pytest.raises(ValueError, match="dims"):
        Rescale(APG(3.0, dims=(1,)), phi=0.5)
    assert NormCap(APG(3.0, dims=(1,)), over="channel").lowered.dims == (1,)


def test_per_sample_caps_are_rows() -> None:
    predictions = draw(("uncond", "cond"), (3, 6, 5), torch.float32)
    caps = torch.tensor([0.2, 0.9, 3.0])
    for over in ("sample", "token", "channel"):
        rule = NormCap(CFG(3.0), over=over)
        together = guide(rule, params={"cap": caps}, **predictions)
        for b in range(3):
            row = {n: p[b : b + 1].clone() for n, p in predictions.items()}
            assert torch.equal(guide(rule, params={"cap": float(caps[b])}, **row), together[b : b + 1])


@pytest.mark.parametrize("backend", ["cpp", "torch", "triton"])
@pytest.mark.parametrize(("over", "axis"), [("channel", 1), ("token", -1)])
@pytest.mark.parametrize("norm", ["std", "l2"])
def test_a_rescale_over_channels_or_tokens(norm: str, over: str, axis: int, backend: str) -> None:
    """stable-audio-tools: ``std(cond, dim=1) / std(y, dim=1)``, each frame of ``[B, C, T]`` by itself."""
    u, c = (torch.randn(2, 6, 9, generator=torch.Generator().manual_seed(k), dtype=torch.float64) for k in range(2))
    rule = Rescale(CFG(5.0), 0.7, norm, over=over)  # type: ignore[arg-type]
    y = u.numpy() + 5.0 * (c.numpy() - u.numpy())
    size = (
        (lambda t: t.std(axis, keepdims=True))
        if norm == "std"
        else (lambda t: np.linalg.norm(t, axis=axis, keepdims=True))
    )
    exact = y * (0.3 + 0.7 * size(c.numpy()) / size(y))
    got = fastcfg.guide(rule, uncond=u, cond=c, backend=backend)
    np.testing.assert_allclose(got.numpy(), exact, rtol=1e-12, atol=1e-12)
    assert fastcfg.Rule.from_json(rule.to_json()) == rule
