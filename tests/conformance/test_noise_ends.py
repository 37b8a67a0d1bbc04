"""The ends of the noise range: limits where they exist, and errors by name where they do not."""

from typing import Any, cast

import numpy as np
import pytest
import torch

from fastcfg import APG, CFG, InDomain, Prediction, Sampler, State, convert, guide, guide_step
from fastcfg.prediction import Kind, affine_map, domain_map, latent_at

pytestmark = pytest.mark.skipif(np.finfo(np.longdouble).eps > 1e-18, reason="the oracle needs 80-bit numbers")

X, U, C = torch.randn(3, 2, 4, 6, 6, generator=torch.Generator().manual_seed(0))
LONG = [np.asarray(t.double().numpy(), dtype=np.longdouble) for t in (X, U, C)]
AXES = (1, 2, 3)


def rescaled(u: Any, c: Any) -> Any:
    y = u + np.longdouble(5) * (c - u)
    factor = c.std(AXES, keepdims=True) / y.std(AXES, keepdims=True)
    return y * (np.longdouble("0.3") + np.longdouble("0.7") * factor)


def projected(u: Any, c: Any) -> Any:
    d = c - u
    return u + 5 * (d - (d * c).sum(AXES, keepdims=True) / (c * c).sum(AXES, keepdims=True) * c)


RULES = [(CFG(5.0, rescale=0.7), rescaled), (APG(5.0, eta=0.0, norm_threshold=0.0, momentum=0.0), projected)]


def limit(formula: Any, kind: Kind, domain: Kind, alpha: float, sigma: float) -> Any:
    """The formula in the domain and back, in 80-bit numbers, 1e-9 beside the end."""
    near = [np.longdouble(v) if v else np.longdouble("1e-9") for v in (alpha, sigma)]
    shift, gain = (np.longdouble(v) for v in affine_map(kind, domain, *cast(Any, near)))
    x, u, c = LONG
    return (formula(shift * x + gain * u, shift * x + gain * c) - shift * x) / gain


ENDS = [
    ("flow", "eps", 0.0, 1.0),
    ("v", "eps", 0.0, 1.0),
    ("v", "score", 0.0, 1.0),
    ("x0", "eps", 0.0, 1.0),
    ("flow", "score", 0.0, 1.0),
    ("flow", "x0", 1.0, 0.0),
    ("v", "x0", 1.0, 0.0),
    ("eps", "x0", 1.0, 0.0),
    ("score", "eps", 1.0, 0.0),
]


@pytest.mark.parametrize("as_tensor", [False, True], ids=["number", "tensor"])
@pytest.mark.parametrize(("rule", "formula"), RULES, ids=["rescale", "APG"])
@pytest.mark.parametrize(("kind", "domain", "alpha", "sigma"), ENDS)
def test_guidance_has_its_limit(
    kind: Kind, domain: Kind, alpha: float, sigma: float, rule: Any, formula: Any, as_tensor: bool
) -> None:
    levels: Any = [torch.tensor([v, v]) for v in (alpha, sigma)] if as_tensor else (alpha, sigma)
    got = guide(InDomain(rule, domain), x=X, prediction=Prediction(kind, *levels), uncond=U, cond=C)
    exact = limit(formula, kind, domain, alpha, sigma)
    # Two roundings to float32, the nearness of both, and what float64 loses beside the end: 2**-52 / NEAREST.
    bound = (4 * 2.0**-24 + 2 * 2.0**-26 * 8) * (1 + np.abs(exact).max())
    assert np.abs(np.asarray(got.double().numpy()) - exact).max() <= bound


@pytest.mark.parametrize(("kind", "domain", "alpha", "sigma"), ENDS)
def test_a_level_of_a_trace_is_near_the_limit(kind: Kind, domain: Kind, alpha: float, sigma: float) -> None:
    rule, formula = RULES[0]
    placed = InDomain(rule, domain)

    def run(a: torch.Tensor, s: torch.Tensor) -> torch.Tensor:
        return guide(placed, x=X, prediction=Prediction(kind, a, s), uncond=U, cond=C)

    got = torch.func.vmap(run)(torch.tensor([alpha]), torch.tensor([sigma]))[0]
    exact = limit(formula, kind, domain, alpha, sigma)
    assert np.abs(np.asarray(got.double().numpy()) - exact).max() <= 64 * 2.0**-12 * (1 + np.abs(exact).max())


@pytest.mark.parametrize("as_tensor", [False, True], ids=["number", "tensor"])
@pytest.mark.parametrize(
    ("kind", "domain", "alpha", "sigma", "name"),
    [
        ("eps", "x0", 0.0, 1.0, "alpha"),
        ("eps", "v", 0.0, 1.0, "alpha"),
        ("score", "x0", 0.0, 1.0, "alpha"),
        ("x0", "eps", 1.0, 0.0, "sigma"),
        ("x0", "v", 1.0, 0.0, "sigma"),
        ("eps", "score", 1.0, 0.0, "sigma"),
    ],
)
def test_what_is_not_defined_is_refused_by_name(
    kind: Kind, domain: Kind, alpha: float, sigma: float, name: str, as_tensor: bool
) -> None:
    levels: Any = [torch.tensor([v, v]) for v in (alpha, sigma)] if as_tensor else (alpha, sigma)
    with pytest.raises(ValueError, match=f"{name}: this conversion divides by {name}, which is 0 here"):
        guide(InDomain(CFG(5.0, rescale=0.7), domain), x=X, prediction=Prediction(kind, *levels), uncond=U, cond=C)
    with pytest.raises(ValueError, match=f"{name}: this conversion divides by {name}, which is 0 here"):
        convert(U, X, kind, domain, alpha=levels[0], sigma=levels[1])


def test_near_the_end_no_digits_are_lost() -> None:
    rule, formula = RULES[0]
    for alpha in (1e-2, 1e-3, 1e-5, 1e-7, 1e-12):
        got = guide(InDomain(rule, "eps"), x=X, prediction=Prediction("flow", alpha, 1 - alpha), uncond=U, cond=C)
        shift, gain = affine_map("flow", "eps", alpha, 1 - alpha)
        x, u, c = LONG
        exact = (formula(shift * x + gain * u, shift * x + gain * c) - shift * x) / gain
        # Above the bound that float64 begins at, float32 divides its rounding by the gain.
        lost = 2.0**-24 * 16 * 2.0**8 if gain > 2.0**-8 else 2.0**-20
        assert np.abs(np.asarray(got.double().numpy()) - exact).max() <= lost * (1 + np.abs(exact).max()), alpha


def test_a_step_from_pure_noise() -> None:
    sampler = Sampler.flow([1.0, 0.5, 0.0])
    rule, formula = RULES[0]
    state = State()
    after = guide_step(InDomain(rule, "eps"), sampler.steps[0], x=X, state=state, uncond=U, cond=C)
    exact = LONG[0] - np.longdouble("0.5") * limit(formula, "flow", "eps", 0.0, 1.0)
    assert np.abs(np.asarray(after.double().numpy()) - exact).max() <= 2.0**-19 * (1 + np.abs(exact).max())


@pytest.mark.parametrize("sigma", [255.0, 256.0, 1000.0, 60000.0])
def test_levels_of_half_precision_do_not_overflow(sigma: float) -> None:
    x = torch.randn(2, 4, 6, 6, generator=torch.Generator().manual_seed(1)).half()
    latent, level = latent_at(x, torch.tensor([sigma, sigma]).half(), "x0", {"v"}, flow=False)
    exact = torch.tensor(sigma).half().double()
    assert latent.dtype == torch.float16 and isinstance(level.sigma, torch.Tensor)
    torch.testing.assert_close(level.alpha.double(), (1 + exact**2).rsqrt().expand(2), rtol=2.0**-22, atol=0)
    torch.testing.assert_close(level.sigma.double(), (1 + exact**-2).rsqrt().expand(2), rtol=2.0**-22, atol=0)


def test_away_from_the_ends_nothing_is_wide() -> None:
    for kind in ("eps", "x0", "v", "flow", "score"):
        for domain in ("eps", "x0", "v", "flow", "score"):
            if kind != domain:
                level = Prediction(cast(Kind, kind), 0.6, 0.8)
                *found, wide = domain_map(level, cast(Kind, domain))
                assert tuple(found) == affine_map(cast(Kind, kind), cast(Kind, domain), 0.6, 0.8) and not wide
