"""The float64 oracles of classifier guidance against the peers' installed code."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..oracles import classifier, classifier_free
from ..peers import diffusers_schedulers
from .agreement import U64, agree, draw, size, t


class TestClassifier:
    def test_conversions_round_trip_and_commute_with_cfg(self) -> None:
        u, c, x = draw((2, 3, 4), 3)
        levels: dict[str, Any] = {"alpha": np.array([0.8, 0.3]), "sigma": np.array([0.6, 0.7])}
        bound: dict[str, Any] = {"rtol": 0, "atol": 2e3 * U64 * size(u, c, x)}
        for source in classifier.PARAMETERIZATIONS:
            for target in classifier.PARAMETERIZATIONS:
                way: dict[str, Any] = {"x": x, **levels, "source": source, "target": target}
                back: dict[str, Any] = {"x": x, **levels, "source": target, "target": source}
                there = classifier.convert(c, **way)
                np.testing.assert_allclose(classifier.convert(there, **back), c, **bound)
                guided = classifier_free.cfg(uncond=classifier.convert(u, **way), cond=there, scale=4.0)
                direct = classifier.convert(classifier_free.cfg(uncond=u, cond=c, scale=4.0), **way)
                np.testing.assert_allclose(guided, direct, **bound)

    def test_velocity(self) -> None:
        x0, eps = draw((2, 3, 4), 2)
        bar, _ = diffusers_schedulers.ddim_alphas_cumprod(step=5, num_steps=10)
        alpha, sigma = bar**0.5, (1 - bar) ** 0.5
        x = alpha * x0 + sigma * eps
        got = classifier.convert(eps, x=x, alpha=alpha, sigma=sigma, source="eps", target="v")
        peer = diffusers_schedulers.velocity(x0=t(x0), eps=t(eps), timestep=400)
        agree(peer, got, magnitude=2 * size(x0, eps))

    def test_the_three_forms_are_one(self) -> None:
        score, gradient, x = draw((2, 3, 4), 3)
        alpha_t, bar = 0.97, 0.4
        sigma = (1 - bar) ** 0.5
        guided = classifier.score_form(score=score, gradient=gradient, scale=2.0)
        eps = classifier.eps_form(eps=-sigma * score, gradient=gradient, sigma=sigma, scale=2.0)
        bound: dict[str, Any] = {"rtol": 0, "atol": 64 * U64 * size(score, gradient, x)}
        np.testing.assert_allclose(-eps / sigma, guided, **bound)
        from_eps = classifier.posterior_mean_from_eps(x=x, eps=eps, alphas_cumprod=bar, alpha_t=alpha_t)
        from_score = classifier.posterior_mean_from_score(x=x, score=guided, alpha_t=alpha_t)
        np.testing.assert_allclose(from_eps, from_score, **bound)
        # With the variance (1 − α)/√α the mean form is the same again; DDPM's β differs by that √α only.
        plain = classifier.posterior_mean_from_score(x=x, score=score, alpha_t=alpha_t)
        variance = (1 - alpha_t) / alpha_t**0.5
        shifted = classifier.mean_form(mean=plain, gradient=gradient, variance=variance, scale=2.0)
        np.testing.assert_allclose(shifted, from_score, **bound)
