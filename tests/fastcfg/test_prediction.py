"""The interface of conversions and steps: arguments, errors, dtypes, autograd, compilation."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch

from fastcfg.prediction import Prediction, affine_map, convert, posterior_mean
from fastcfg.samplers.steps import ddim_step

X, P = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4)


def test_prediction_is_a_value() -> None:
    assert Prediction("eps", 0.8, 0.6) == Prediction("eps", 0.8, 0.6)
    assert hash(Prediction("v", 1, 0.5)) == hash(Prediction("v", 1.0, 0.5))
    a, b = Prediction("eps", 0.8, 0.6).to("x0")
    torch.testing.assert_close(Prediction("eps", 0.8, 0.6).convert(P, X, "x0"), a * X + b * P)


def test_identity_returns_the_prediction() -> None:
    assert convert(P, X, "v", "v", alpha=0.8, sigma=0.6) is P


def test_zero_levels_are_named() -> None:
    with pytest.raises(ValueError, match="alpha"):
        affine_map("eps", "x0", 0.0, 1.0)
    with pytest.raises(ValueError, match="sigma"):
        affine_map("x0", "eps", 1.0, 0.0)
    assert convert(P, X, "v", "x0", alpha=0.0, sigma=1.0).equal(-P)
    assert convert(P, X, "flow", "x0", alpha=1.0, sigma=0.0).equal(X)


def test_mixed_dtypes_take_the_wider() -> None:
    half = P.bfloat16()
    got = convert(half, X, "eps", "x0", alpha=0.8, sigma=0.6)
    assert got.dtype == torch.float32
    assert torch.equal(got, convert(half.float(), X, "eps", "x0", alpha=0.8, sigma=0.6))
    narrow = convert(half, X, "eps", "x0", alpha=0.8, sigma=0.6, dtype=torch.bfloat16)
    assert torch.equal(narrow, got.bfloat16())
    wide = convert(half, X.bfloat16(), "eps", "x0", alpha=0.8, sigma=0.6, dtype=torch.float32)
    assert wide.dtype == torch.float32
    assert torch.equal(wide.bfloat16(), convert(half, X.bfloat16(), "eps", "x0", alpha=0.8, sigma=0.6))


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"source": "noise"}, "source"),
        ({"target": "eps0"}, "target"),
        ({"x": X[:1]}, "x"),
        ({"x": 1.0}, "x"),
        ({"prediction": P.long()}, "prediction"),
        ({"alpha": float("nan")}, "alpha"),
        ({"sigma": torch.ones(3)}, "sigma"),
        ({"sigma": "0.6"}, "sigma"),
    ],
)
def test_errors_name_the_argument(change: dict[str, Any], name: str) -> None:
    arguments: dict[str, Any] = {"prediction": P, "x": X, "source": "eps", "target": "x0", "alpha": 0.8, "sigma": 0.6}
    with pytest.raises((TypeError, ValueError), match=f"^{name}"):
        convert(**(arguments | change))


def test_gradient_flows() -> None:
    p = P.clone().requires_grad_(True)
    convert(p, X, "eps", "x0", alpha=0.8, sigma=0.6).sum().backward()
    torch.testing.assert_close(p.grad, torch.full_like(P, -0.75))


def test_compiles_without_breaks() -> None:
    sigma = torch.tensor([0.6, 0.3])

    def run(p: torch.Tensor, x: torch.Tensor, s: torch.Tensor) -> torch.Tensor:
        return convert(p, x, "eps", "x0", alpha=(1 - s * s).sqrt(), sigma=s)

    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(P, X, sigma), run(P, X, sigma))


def test_posterior_mean_needs_the_product() -> None:
    with pytest.raises(ValueError, match="alphas_cumprod"):
        posterior_mean(P, X, alpha_t=0.9)
    with pytest.raises(ValueError, match="kind"):
        posterior_mean(P, X, alpha_t=0.9, kind="v")


def test_stochastic_step_has_the_posterior_of_ddpm() -> None:
    """With eta = 1 the mean and variance are those of q(x_s | x_t, x0), for x0 and eps that make up x."""
    x0, eps = torch.randn(2, 1, 4, 4, 4, dtype=torch.float64)
    bar, bar_next = 0.36, 0.64
    levels = {"alpha": 0.6, "sigma": 0.8, "next_alpha": 0.8, "next_sigma": 0.6}
    x = 0.6 * x0 + 0.8 * eps
    mean = ddim_step(eps, x, eta=1.0, noise=torch.zeros_like(x), **levels)
    beta = 1 - bar / bar_next
    expected = bar_next**0.5 * beta / (1 - bar) * x0 + (1 - beta) ** 0.5 * (1 - bar_next) / (1 - bar) * x
    torch.testing.assert_close(mean, expected, rtol=0, atol=1e-14)
    spread = ddim_step(eps, x, eta=1.0, noise=torch.ones_like(x), **levels) - mean
    torch.testing.assert_close(spread**2, torch.full_like(x, (1 - bar_next) / (1 - bar) * beta), rtol=0, atol=1e-14)
    with pytest.raises(ValueError, match="noise"):
        ddim_step(eps, x, eta=1.0, **levels)
    with pytest.raises(ValueError, match="eta"):
        ddim_step(eps, x, eta=-0.5, **levels)


def test_ddim_with_the_exact_denoiser_gives_the_gaussian() -> None:
    """Deterministic sampling of N(1, 0.25) ends at its mean and spread, and twice at the same samples."""
    x = torch.linspace(-2.5, 2.5, 64, dtype=torch.float64).reshape(1, -1)
    alphas = torch.linspace(0.005, 1.0, 400, dtype=torch.float64).sqrt().tolist()

    def run(state: torch.Tensor) -> torch.Tensor:
        for a, b in pairwise(alphas):
            s, s_next = (1 - a * a) ** 0.5, max(1 - b * b, 0.0) ** 0.5
            eps = s * (state - a) / (a * a * 0.25 + s * s)
            state = ddim_step(eps, state, alpha=a, sigma=s, next_alpha=b, next_sigma=s_next)
        return state

    end = run(x)
    assert torch.equal(end, run(x))
    # A probability flow of Gaussians is affine: mean 1 and slope 0.5 up to the steps' own error.
    torch.testing.assert_close(end.mean(), torch.tensor(1.0, dtype=torch.float64), rtol=0, atol=0.06)
    torch.testing.assert_close((end[0, -1] - end[0, 0]) / 5, torch.tensor(0.5, dtype=torch.float64), rtol=0.02, atol=0)
