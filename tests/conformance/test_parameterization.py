"""Conversions, posterior means, sampler steps and rescalings against the fp64 oracles and diffusers' DDIM."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch

from fastcfg.methods.noise_rescaling import epsilon_scaling, temporal_score_rescaling
from fastcfg.prediction import affine_map, convert, posterior_mean
from fastcfg.samplers.steps import cfg_pp_step, ddim_step

from .affine_bounds import check_sum
from .oracles import classifier, classifier_free, nonlinear
from .oracles.arrays import Array
from .peers import diffusers_schedulers

KINDS = classifier.PARAMETERIZATIONS
PAIRS = list(product(KINDS, KINDS))
DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
EPS64 = 2.0**-53
LEVELS = {"vp": (0.8, 0.6), "flow": (0.7, 0.3), "edm": (1.0, 2.5), "noisy": (0.02, 0.9998), "clean": (0.9999, 0.0141)}


def draw(count: int, dtype: torch.dtype, shape: tuple[int, ...] = (2, 3, 8, 8), seed: int = 0) -> list[torch.Tensor]:
    rng = np.random.default_rng([seed, count])
    return [torch.from_numpy(rng.normal(size=shape)).to(dtype) for _ in range(count)]


def f64(x: torch.Tensor) -> Array:
    return x.double().numpy()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("levels", LEVELS)
@pytest.mark.parametrize(("source", "target"), PAIRS)
def test_convert(source: str, target: str, levels: str, dtype: torch.dtype) -> None:
    alpha, sigma = LEVELS[levels]
    prediction, x = draw(2, dtype)
    got = convert(prediction, x, source, target, alpha=alpha, sigma=sigma)
    exact = classifier.convert(f64(prediction), x=f64(x), alpha=alpha, sigma=sigma, source=source, target=target)
    assert got.dtype == dtype
    a, b = affine_map(source, target, alpha, sigma)
    terms = [(b, f64(prediction))] + [(a, f64(x))] * (a != 0)
    # The oracle goes by way of x0 and so loses digits of its own where x0 is nearly x / alpha.
    detour = 16 * 2.0**-53 * (1 + 1 / alpha + 1 / sigma) ** 3 * (abs(f64(x)) + abs(f64(prediction))).max()
    check_sum(got, exact, [*terms, (detour / EPS64, np.ones_like(exact))] if dtype == torch.float64 else terms)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("source", "target"), PAIRS)
def test_convert_with_a_level_for_each_sample(source: str, target: str, dtype: torch.dtype) -> None:
    alpha, sigma = torch.tensor([0.8, 0.25]), torch.tensor([0.6, 0.9375])
    prediction, x = draw(2, dtype)
    got = convert(prediction, x, source, target, alpha=alpha, sigma=sigma)
    one_by_one = [
        convert(prediction[i : i + 1], x[i : i + 1], source, target, alpha=alpha[i : i + 1], sigma=sigma[i : i + 1])
        for i in range(2)
    ]
    assert torch.equal(got, torch.cat(one_by_one))
    exact = classifier.convert(
        f64(prediction), x=f64(x), alpha=f64(alpha), sigma=f64(sigma), source=source, target=target
    )
    a, b = (f64(torch.as_tensor(w)).reshape(-1, 1, 1, 1) for w in affine_map(source, target, alpha, sigma))
    check_sum(got, exact, [(b, f64(prediction))] + [(a, f64(x))] * bool(np.any(a)), operations=16)


@pytest.mark.parametrize(("source", "target"), PAIRS)
def test_there_and_back(source: str, target: str) -> None:
    alpha, sigma = LEVELS["vp"]
    prediction, x = draw(2, torch.float64)
    there = convert(prediction, x, source, target, alpha=alpha, sigma=sigma)
    back = convert(there, x, target, source, alpha=alpha, sigma=sigma)
    torch.testing.assert_close(back, prediction, rtol=0, atol=1e3 * EPS64)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_posterior_mean(dtype: torch.dtype) -> None:
    x, eps = draw(2, dtype)
    bar, step = 0.4, 0.97
    exact = classifier.posterior_mean_from_eps(x=f64(x), eps=f64(eps), alphas_cumprod=bar, alpha_t=step)
    terms = [(1 / step**0.5, f64(x)), (0.04, f64(eps))]
    check_sum(posterior_mean(eps, x, alphas_cumprod=bar, alpha_t=step), exact, terms)
    exact = classifier.posterior_mean_from_score(x=f64(x), score=f64(eps), alpha_t=step)
    check_sum(posterior_mean(eps, x, alpha_t=step, kind="score"), exact, terms)


def test_posterior_mean_forms_agree_and_the_mixed_one_does_not() -> None:
    x, eps = draw(2, torch.float64)
    bar, step = 0.4, 0.97
    score = -eps / (1 - bar) ** 0.5
    mean = posterior_mean(eps, x, alphas_cumprod=bar, alpha_t=step)
    torch.testing.assert_close(posterior_mean(score, x, alpha_t=step, kind="score"), mean, rtol=0, atol=1e-14)
    mixed = posterior_mean(score, x, alphas_cumprod=bar, alpha_t=step)
    assert (mixed - mean).abs().max() > 0.03


STEP = {"alpha": 0.6, "sigma": 0.8, "next_alpha": 0.8, "next_sigma": 0.6}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("scale", [0.0, 0.6, 1.0, 3.0])
def test_cfg_pp(scale: float, dtype: torch.dtype) -> None:
    x, u, c = draw(3, dtype)
    after, clean = cfg_pp_step(x, uncond=u, cond=c, scale=scale, **STEP)
    exact_after, exact_clean = nonlinear.cfg_pp_step(x=f64(x), uncond=f64(u), cond=f64(c), scale=scale, **STEP)
    weights = [1 / 0.6, 0.8 / 0.6 * (1 - scale), 0.8 / 0.6 * scale]
    check_sum(clean, exact_clean, list(zip(weights, map(f64, (x, u, c)), strict=True)))
    weights[1] = abs(weights[1]) + 0.6
    check_sum(after, exact_after, list(zip(weights, map(f64, (x, u, c)), strict=True)))


@pytest.mark.parametrize("kind", ["x0", "v", "flow", "score"])
def test_cfg_pp_of_every_kind_is_that_of_eps(kind: str) -> None:
    x, u, c = draw(3, torch.float64)
    expected = cfg_pp_step(x, uncond=u, cond=c, scale=0.6, **STEP)
    other = [convert(p, x, "eps", kind, alpha=0.6, sigma=0.8) for p in (u, c)]
    got = cfg_pp_step(x, uncond=other[0], cond=other[1], scale=0.6, kind=kind, **STEP)
    for ours, reference in zip(got, expected, strict=True):
        torch.testing.assert_close(ours, reference, rtol=0, atol=1e-13)


@pytest.mark.parametrize("kind", ["epsilon", "sample", "v_prediction"])
def test_ddim_is_diffusers(kind: str) -> None:
    x, p = draw(2, torch.float64)
    now, after = diffusers_schedulers.ddim_alphas_cumprod(step=3, num_steps=10)
    levels = {"alpha": now**0.5, "sigma": (1 - now) ** 0.5, "next_alpha": after**0.5, "next_sigma": (1 - after) ** 0.5}
    own = {"epsilon": "eps", "sample": "x0", "v_prediction": "v"}[kind]
    got = ddim_step(p, x, kind=own, **levels)
    peer = diffusers_schedulers.ddim_step(prediction=p, x=x, step=3, num_steps=10, kind=kind)
    # The scheduler keeps its levels in float32.
    torch.testing.assert_close(got, peer, rtol=0, atol=64 * 2.0**-24 * 8 / now**0.5)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_rescalings(dtype: torch.dtype) -> None:
    x, d = draw(2, dtype)
    exact = nonlinear.epsilon_scaling(x=f64(x), denoised=f64(d), factor=1.005)
    share = 1 / 1.005
    check_sum(epsilon_scaling(x, d, factor=1.005), exact, [(1 - share, f64(x)), (share, f64(d))])
    for alpha, sigma in LEVELS.values():
        options = {"alpha": alpha, "sigma": sigma, "k": 0.9, "spread": 2.0}
        exact = nonlinear.temporal_score_rescaling(x=f64(x), denoised=f64(d), **options)
        check_sum(temporal_score_rescaling(x, d, **options), exact, [(0.1 / alpha, f64(x)), (1.0, f64(d))])


def test_rescalings_without_effect() -> None:
    x, d = draw(2, torch.float32)
    assert torch.equal(epsilon_scaling(x, d, factor=1.0), d)
    assert torch.equal(temporal_score_rescaling(x, d, alpha=0.8, sigma=0.6, k=1.0), d)
    # Without noise x is alpha * x0, and the ratio is k.
    exact = nonlinear.temporal_score_rescaling(x=f64(0.5 * d), denoised=f64(d), alpha=0.5, sigma=0.0, k=0.9)
    np.testing.assert_allclose(f64(temporal_score_rescaling(0.5 * d, d, alpha=0.5, sigma=0.0, k=0.9)), exact, rtol=1e-6)


def test_guidance_commutes_with_conversions() -> None:
    u, c, x = draw(3, torch.float64)
    for source, target in PAIRS:
        way = {"alpha": 0.8, "sigma": 0.6}
        converted = [convert(p, x, source, target, **way) for p in (u, c)]
        guided = classifier_free.cfg(uncond=f64(u), cond=f64(c), scale=4.0)
        direct = convert(torch.from_numpy(guided), x, source, target, **way)
        last = classifier_free.cfg(uncond=f64(converted[0]), cond=f64(converted[1]), scale=4.0)
        np.testing.assert_allclose(last, f64(direct), rtol=0, atol=1e3 * EPS64 * 16)
