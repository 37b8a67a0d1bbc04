"""The float64 oracles against distributions whose guidance is known in closed form."""

from __future__ import annotations

import numpy as np

from ..oracles import classifier, classifier_free, nonlinear
from .agreement import U64


class TestExactToys:
    def test_gaussian_cfg(self) -> None:
        """CFG of N(0, 1) towards N(1, 1/4) with s = 3 is the score of N(1.2, 0.1)."""
        x = np.linspace(-4, 4, 81).reshape(1, -1)
        v0, v1, m, s = 1.0, 0.25, 1.0, 3.0
        guided = classifier_free.cfg(uncond=-x / v0, cond=-(x - m) / v1, scale=s)
        np.testing.assert_allclose(guided, -(x - 1.2) / 0.1, rtol=0, atol=8 * U64 * 100)

    def test_classifier_guidance_with_the_bayes_classifier_is_cfg(self) -> None:
        x = np.linspace(-3, 5, 65).reshape(1, -1)
        means, variances, prior = np.array([-1.0, 2.0]), np.array([0.5, 1.5]), np.array([0.3, 0.7])
        shape = (2, 1, 1)
        scores = -(x - means.reshape(shape)) / variances.reshape(shape)

        def log_joint(at: np.ndarray) -> np.ndarray:
            v = variances.reshape(shape)
            return np.log(prior).reshape(shape) - (at - means.reshape(shape)) ** 2 / (2 * v) - 0.5 * np.log(v)

        def log_posterior(at: np.ndarray) -> np.ndarray:
            joint = log_joint(at)
            return joint[1] - np.logaddexp(joint[0], joint[1])

        weights = np.exp(log_joint(x) - np.logaddexp(*log_joint(x)))
        uncond = (weights * scores).sum(axis=0)
        h = 1e-4
        gradient = (log_posterior(x + h) - log_posterior(x - h)) / (2 * h)
        guided = classifier.score_form(score=uncond, gradient=gradient, scale=3.0)
        cfg = classifier_free.cfg(uncond=uncond, cond=scores[1], scale=3.0)
        # Central differences: h²/6 of the third derivative, and the rounding of log p over h.
        np.testing.assert_allclose(guided, cfg, rtol=0, atol=3 * (10 * h**2 + 64 * U64 / h * 20))
        implied = classifier.implied_classifier_gradient(uncond=-0.6 * uncond, cond=-0.6 * scores[1], sigma=0.6)
        np.testing.assert_allclose(implied, scores[1] - uncond, rtol=0, atol=64 * U64 * 10)

    @staticmethod
    def _joint_and_sequential(p_u: np.ndarray, p_c: np.ndarray, gamma: float) -> float:
        joint = p_u ** (1 - gamma) * p_c**gamma
        joint = joint / joint.sum()
        first_u, first_c = p_u.sum(axis=1), p_c.sum(axis=1)
        first = nonlinear.guided_logits(uncond=np.log(first_u)[None], cond=np.log(first_c)[None], scale=gamma)[0]
        rest = nonlinear.guided_logits(
            uncond=np.log(p_u / first_u[:, None]), cond=np.log(p_c / first_c[:, None]), scale=gamma
        )
        first, rest = (np.exp(nonlinear.log_softmax(z)) for z in (first[None], rest))
        return 0.5 * float(np.abs(joint - first[0][:, None] * rest).sum())

    def test_joint_and_sequential_guidance_differ(self) -> None:
        rng = np.random.default_rng(0)
        p_u, p_c = rng.dirichlet(np.ones(12), 2).reshape(2, 3, 4)
        assert self._joint_and_sequential(p_u, p_c, 1.0) < 64 * U64
        assert self._joint_and_sequential(p_u, p_c, 3.0) > 0.01
        independent = [np.outer(p.sum(axis=1), p.sum(axis=0)) for p in (p_u, p_c)]
        assert self._joint_and_sequential(independent[0], independent[1], 3.0) < 64 * U64

    def test_logit_guidance_is_bayes_guidance(self) -> None:
        p_u, p_c = np.random.default_rng(1).dirichlet(np.ones(5), 2)
        likelihood = p_c / p_u
        bayes = p_u * likelihood**2.5
        logits = nonlinear.guided_logits(uncond=np.log(p_u)[None], cond=np.log(p_c)[None], scale=2.5)
        np.testing.assert_allclose(np.exp(nonlinear.log_softmax(logits))[0], bayes / bayes.sum(), rtol=0, atol=32 * U64)
