"""The interface of thresholding, attention guidance, Mahiro, FreSca and the noise rescalings."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fastcfg.methods.attention import attention_mask, degrade, normalized_attention_guidance
from fastcfg.methods.fresca import fresca
from fastcfg.methods.mahiro import mahiro
from fastcfg.methods.noise_rescaling import epsilon_scaling, temporal_score_rescaling
from fastcfg.methods.thresholding import dynamic_threshold, static_threshold

X, Y = torch.randn(2, 3, 12, 12), torch.randn(2, 3, 12, 12)


@given(st.integers(0, 2**31), st.floats(0.0, 1.0), st.floats(0.1, 50.0), st.one_of(st.none(), st.floats(1.0, 9.0)))
def test_dynamic_threshold_properties(seed: int, quantile: float, size: float, cap: float | None) -> None:
    x = torch.randn(3, 40, generator=torch.Generator().manual_seed(seed)) * size
    got = dynamic_threshold(x, quantile=quantile, cap=cap)
    assert got.abs().max() <= 1
    assert torch.equal(got.sign(), x.sign())
    assert torch.equal(got[1:2], dynamic_threshold(x[1:2], quantile=quantile, cap=cap))
    inside = x / x.abs().max()
    assert torch.equal(dynamic_threshold(inside, quantile=quantile, cap=cap), inside)


def test_thresholds_of_degenerate_samples() -> None:
    assert torch.equal(dynamic_threshold(torch.zeros(2, 5)), torch.zeros(2, 5))
    assert dynamic_threshold(torch.empty(0, 5)).shape == (0, 5)
    assert torch.equal(dynamic_threshold(torch.tensor([[4.0]])), torch.tensor([[1.0]]))
    x = torch.full((2, 8), 3.0)
    x[0, 2] = torch.nan
    got = dynamic_threshold(x, quantile=0.5)
    assert torch.isnan(got[0, 2])
    assert torch.equal(got[1], torch.ones(8))


def test_strided_inputs() -> None:
    wide = torch.randn(2, 3, 8, 8).to(memory_format=torch.channels_last)
    assert torch.equal(dynamic_threshold(wide), dynamic_threshold(wide.contiguous()))


CALLS: dict[str, Callable[..., Any]] = {
    "dynamic": lambda **k: dynamic_threshold(**{"x0": X, **k}),
    "static": lambda **k: static_threshold(**{"x0": X, **k}),
    "nag": lambda **k: normalized_attention_guidance(**{"positive": X, "negative": Y, **k}),
    "mask": lambda **k: attention_mask(**{"attention": torch.rand(2, 4, 6, 6), "size": (2, 3), **k}),
    "degrade": lambda **k: degrade(
        **{"x0": X, "mask": torch.ones(2, 1, 3, 3), "eps": Y, "alpha": 0.8, "sigma": 0.6, **k}
    ),
    "mahiro": lambda **k: mahiro(**{"uncond": X, "cond": Y, "scale": 3.0, **k}),
    "fresca": lambda **k: fresca(**{"uncond": X, "cond": Y, "scale": 3.0, **k}),
    "epsilon": lambda **k: epsilon_scaling(**{"x": X, "denoised": Y, **k}),
    "tsr": lambda **k: temporal_score_rescaling(**{"x": X, "denoised": Y, "alpha": 0.8, "sigma": 0.6, **k}),
}
BAD: list[tuple[str, str, Any]] = [
    ("dynamic", "quantile", 1.5),
    ("dynamic", "cap", 0.5),
    ("dynamic", "cap", "diffusers"),
    ("dynamic", "x0", X.long()),
    ("dynamic", "x0", [1.0]),
    ("static", "bound", -1.0),
    ("static", "bound", torch.tensor(1.0)),
    ("nag", "negative", Y[:1]),
    ("nag", "tau", -1.0),
    ("nag", "alpha", 2.0),
    ("nag", "eps", -1e-6),
    ("nag", "scale", torch.ones(3)),
    ("mask", "attention", None),
    ("mask", "attention", torch.rand(2, 6, 6)),
    ("mask", "size", (3, 3)),
    ("degrade", "mask", torch.ones(2, 3, 3)),
    ("degrade", "kernel_size", 8),
    ("degrade", "kernel_size", 25),
    ("degrade", "blur_sigma", 0.0),
    ("degrade", "eps", Y[:1]),
    ("mahiro", "dim", 0),
    ("mahiro", "variant", "batch"),
    ("fresca", "cutoff", 0),
    ("fresca", "low", float("nan")),
    ("epsilon", "factor", 0.0),
    ("tsr", "k", 0.0),
    ("tsr", "spread", -1.0),
    ("tsr", "alpha", 0.0),
]


@pytest.mark.parametrize(("call", "name", "value"), BAD, ids=[f"{c}-{n}" for c, n, _ in BAD])
def test_errors_name_the_argument(call: str, name: str, value: Any) -> None:
    shown = {"kernel_size": "kernel_size|x0"}.get(name, name)
    with pytest.raises((TypeError, ValueError), match=f"^({shown})"):
        CALLS[call](**{name: value})


def test_no_attention_is_explained() -> None:
    with pytest.raises(ValueError, match="needs the probabilities of a self-attention layer"):
        attention_mask(None, (4, 4))


@pytest.mark.parametrize("call", [name for name in CALLS if name != "mask"])
def test_calls_compile_without_breaks(call: str) -> None:
    torch.testing.assert_close(
        torch.compile(CALLS[call], fullgraph=True, backend="eager")(), CALLS[call](), rtol=1e-5, atol=1e-6
    )


def test_scales_for_each_sample() -> None:
    scales = torch.tensor([1.5, 6.0])
    for call in (mahiro, fresca):
        both = call(uncond=X, cond=Y, scale=scales)
        for i in range(2):
            alone = call(uncond=X[i : i + 1], cond=Y[i : i + 1], scale=scales[i].item())
            torch.testing.assert_close(both[i : i + 1], alone, rtol=1e-5, atol=1e-5)
    both = epsilon_scaling(X, Y, factor=torch.tensor([1.0, 1.25]))
    torch.testing.assert_close(both[0], Y[0])
    torch.testing.assert_close(both[1], X[1] - (X[1] - Y[1]) / 1.25)


def test_degrade_blurs_under_the_mask_alone() -> None:
    mask = torch.zeros(2, 1, 12, 12, dtype=torch.bool)
    assert torch.equal(degrade(X, mask, Y, alpha=1.0, sigma=0.0), X)
    mask[..., :6] = True
    got = degrade(X, mask, Y, alpha=1.0, sigma=0.0)
    assert torch.equal(got[..., 6:], X[..., 6:])
    assert got[..., :6].std() < 0.6 * X[..., :6].std()
    constant = torch.full_like(X, 2.5)
    torch.testing.assert_close(degrade(constant, mask, Y, alpha=1.0, sigma=0.0), constant, rtol=1e-6, atol=0)


def test_gradients_flow() -> None:
    for call, name in (("nag", "negative"), ("mahiro", "cond"), ("fresca", "cond"), ("dynamic", "x0"), ("tsr", "x")):
        variable = (Y * 3).requires_grad_(True)
        CALLS[call](**{name: variable}).sum().backward()
        assert variable.grad is not None
        assert torch.isfinite(variable.grad).all()
