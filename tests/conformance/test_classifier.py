"""Classifier guidance against the fp64 oracles, finite differences and an analytic Gaussian mixture."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fastcfg import CFG, guide
from fastcfg.methods.classifier import ClassifierGuidance, classifier_gradient, implied_classifier_gradient
from fastcfg.methods.universal import universal_gradient, universal_step
from fastcfg.prediction import convert, posterior_mean

from .affine_bounds import check_sum
from .oracles import classifier

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
MEANS = torch.tensor([[-1.0, 0.5], [2.0, -1.0], [0.0, 2.0]], dtype=torch.float64)
VARIANCES = torch.tensor([0.5, 1.5, 0.8], dtype=torch.float64)
PRIOR = torch.tensor([0.3, 0.5, 0.2], dtype=torch.float64)
ALPHA, SIGMA = 0.8, 0.6


def draw(dtype: torch.dtype, count: int = 2) -> list[torch.Tensor]:
    rng = np.random.default_rng(count)
    return [torch.from_numpy(rng.normal(size=(3, 4, 6, 6))).to(dtype) for _ in range(count)]


def bayes_logits(x: torch.Tensor) -> torch.Tensor:
    """log p(y) + log p(x_t | y) of a mixture of Gaussians noised to (ALPHA, SIGMA): [B, 2] -> [B, 3]."""
    spread = ALPHA**2 * VARIANCES + SIGMA**2
    distance = ((x[:, None] - ALPHA * MEANS) ** 2).sum(-1)
    return PRIOR.log() - distance / (2 * spread) - spread.log()


def mixture_scores(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(scores of each class [B, 3, 2], score of the mixture [B, 2]) in closed form."""
    spread = ALPHA**2 * VARIANCES + SIGMA**2
    scores = -(x[:, None] - ALPHA * MEANS) / spread[:, None]
    weights = torch.softmax(bayes_logits(x), -1)
    return scores, (weights[..., None] * scores).sum(1)


POINTS = torch.from_numpy(np.random.default_rng(4).normal(size=(40, 2)) * 1.5)
LABELS = torch.arange(40) % 3


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("base", ["uncond", "cond"])
@pytest.mark.parametrize("scale", [0.0, 1.0, 4.0])
def test_the_forms(scale: float, base: str, dtype: torch.dtype) -> None:
    p, g = draw(dtype)
    p64, g64 = p.double().numpy(), g.double().numpy()

    def run(form: str, **levels: float) -> torch.Tensor:
        return guide(ClassifierGuidance(scale, form, base), gradient=g, params=levels or None, **{base: p})

    eps = classifier.eps_form(eps=p64, gradient=g64, sigma=0.6, scale=scale)
    check_sum(run("eps", sigma=0.6), eps, [(1.0, p64), (0.6 * scale, g64)])
    score = classifier.score_form(score=p64, gradient=g64, scale=scale)
    check_sum(run("score"), score, [(1.0, p64), (scale, g64)])
    mean = classifier.mean_form(mean=p64, gradient=g64, variance=0.01, scale=scale)
    check_sum(run("mean", variance=0.01), mean, [(1.0, p64), (0.01 * scale, g64)])
    if scale == 0:
        assert torch.equal(run("eps", sigma=0.6), p)


def test_levels_and_scales_for_each_sample() -> None:
    p, g = draw(torch.float32)
    scale, sigma = torch.tensor([0.5, 1.0, 3.0]), torch.tensor([0.2, 0.6, 0.9])
    got = guide(ClassifierGuidance(), uncond=p, gradient=g, params={"scale": scale, "sigma": sigma})
    exact = classifier.eps_form(
        eps=p.double().numpy(), gradient=g.double().numpy(), sigma=sigma.double().numpy(), scale=scale.double().numpy()
    )
    weights = (scale * sigma).double().numpy().reshape(-1, 1, 1, 1)
    check_sum(got, exact, [(1.0, p.double().numpy()), (weights, g.double().numpy())])


def test_gradient_of_the_bayes_classifier_is_the_difference_of_scores() -> None:
    scores, mixture = mixture_scores(POINTS)
    expected = scores[torch.arange(40), LABELS] - mixture
    got = classifier_gradient(bayes_logits, POINTS, LABELS)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-13)
    for label in range(3):
        rows = classifier_gradient(bayes_logits, POINTS, label)
        torch.testing.assert_close(rows, scores[:, label] - mixture, rtol=0, atol=1e-13)


@pytest.mark.parametrize("scale", [0.0, 1.0, 3.0])
def test_with_the_bayes_classifier_it_is_cfg(scale: float) -> None:
    scores, mixture = mixture_scores(POINTS)
    cond = scores[torch.arange(40), LABELS]
    gradient = classifier_gradient(bayes_logits, POINTS, LABELS)
    guided = guide(ClassifierGuidance(scale, "score"), uncond=mixture, gradient=gradient)
    cfg = guide(CFG(scale), uncond=mixture, cond=cond)
    torch.testing.assert_close(guided, cfg, rtol=0, atol=1e-12)
    eps = guide(ClassifierGuidance(scale), uncond=-SIGMA * mixture, gradient=gradient, params={"sigma": SIGMA})
    torch.testing.assert_close(eps, -SIGMA * cfg, rtol=0, atol=1e-12)
    # A conditional base is the exponent scale + 1.
    on_cond = guide(ClassifierGuidance(scale, "score", "cond"), cond=cond, gradient=gradient)
    torch.testing.assert_close(on_cond, guide(CFG(scale + 1), uncond=mixture, cond=cond), rtol=0, atol=1e-12)


def test_the_sign_leads_towards_the_class() -> None:
    """Following the guided score raises the class's log-likelihood; the other sign on eps lowers it."""
    _, mixture = mixture_scores(POINTS)
    gradient = classifier_gradient(bayes_logits, POINTS, LABELS)

    def likelihood(score: torch.Tensor) -> float:
        moved = POINTS + 0.01 * score
        return torch.log_softmax(bayes_logits(moved), -1)[torch.arange(40), LABELS].mean().item()

    eps = -SIGMA * mixture
    right = guide(ClassifierGuidance(5.0), uncond=eps, gradient=gradient, params={"sigma": SIGMA})
    wrong = eps + 5.0 * SIGMA * gradient
    assert likelihood(-right / SIGMA) > likelihood(mixture) > likelihood(-wrong / SIGMA)
    with pytest.raises(ValueError, match="sign"):
        ClassifierGuidance(5.0, sign=1)
    with pytest.raises(ValueError, match="sign"):
        ClassifierGuidance(5.0, "score", sign=-1)
    assert ClassifierGuidance(5.0, sign=-1).scale == 5.0


def test_gradient_is_the_finite_difference() -> None:
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 16), torch.nn.Tanh(), torch.nn.Linear(16, 4))
    net.double()
    x, labels = torch.randn(2, 3, 2, 2, dtype=torch.float64), torch.tensor([3, 1])
    got = classifier_gradient(net, x, labels)
    h = 1e-5

    def log_p(at: torch.Tensor) -> torch.Tensor:
        return torch.log_softmax(net(at), -1)[torch.arange(2), labels]

    with torch.no_grad():
        for index in np.ndindex(3, 2, 2):
            shift = torch.zeros_like(x)
            shift[(slice(None), *index)] = h
            difference = (log_p(x + shift) - log_p(x - shift)) / (2 * h)
            # h^2/6 of a third derivative below 10, and the rounding of log p over h.
            torch.testing.assert_close(got[(slice(None), *index)], difference, rtol=0, atol=10 * h**2 + 64 * 2e-16 / h)


def test_mean_form_agrees_with_the_eps_form_to_first_order() -> None:
    """Their difference falls by the step's own factor: Sigma = beta, so it is of the order of beta squared."""
    eps, g, x = draw(torch.float64, 3)
    differences = []
    for beta in (0.02, 0.01):
        level = {"alpha_t": 1 - beta, "alphas_cumprod": 0.4}
        guided = guide(ClassifierGuidance(2.0), uncond=eps, gradient=g, params={"sigma": 0.6**0.5})
        from_eps = posterior_mean(guided, x, **level)
        mean = posterior_mean(eps, x, **level)
        from_mean = guide(ClassifierGuidance(2.0, "mean"), uncond=mean, gradient=g, params={"variance": beta})
        differences.append((from_eps - from_mean).abs().max().item())
    assert 3.9 < differences[0] / differences[1] < 4.2


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_implied_gradient(dtype: torch.dtype) -> None:
    u, c = draw(dtype)
    u64, c64 = u.double().numpy(), c.double().numpy()
    exact = classifier.implied_classifier_gradient(uncond=u64, cond=c64, sigma=SIGMA)
    check_sum(implied_classifier_gradient(uncond=u, cond=c, sigma=SIGMA), exact, [(1 / SIGMA, u64), (1 / SIGMA, c64)])


@pytest.mark.parametrize("kind", ["eps", "x0", "v", "flow", "score"])
def test_implied_gradient_of_the_toy(kind: str) -> None:
    scores, mixture = mixture_scores(POINTS)
    predictions = [
        convert(s, POINTS, "score", kind, alpha=ALPHA, sigma=SIGMA) for s in (mixture, scores[torch.arange(40), LABELS])
    ]
    got = implied_classifier_gradient(uncond=predictions[0], cond=predictions[1], kind=kind, alpha=ALPHA, sigma=SIGMA)
    torch.testing.assert_close(got, classifier_gradient(bayes_logits, POINTS, LABELS), rtol=0, atol=1e-12)


def linear_denoiser(x: torch.Tensor) -> torch.Tensor:
    """The exact eps of x0 ~ N(0, 1): sigma * x (variance preserving)."""
    return SIGMA * x


def test_universal_gradient_of_a_linear_denoiser() -> None:
    """x0(x) = alpha * x for N(0, 1), and a Gaussian likelihood N(y; x0, 1): the gradient is alpha (y - alpha x)."""
    x, y = draw(torch.float64)

    def log_prob(x0: torch.Tensor) -> torch.Tensor:
        return -0.5 * ((x0 - y) ** 2).flatten(1).sum(1)

    def denoise(z: torch.Tensor) -> torch.Tensor:
        return convert(linear_denoiser(z), z, "eps", "x0", alpha=ALPHA, sigma=SIGMA)

    with torch.no_grad():
        got = universal_gradient(x, denoise, log_prob)
    torch.testing.assert_close(got, ALPHA * (y - ALPHA * x), rtol=0, atol=1e-13)


@pytest.mark.parametrize("kind", ["eps", "x0", "v", "flow", "score"])
def test_universal_step_of_a_linear_denoiser(kind: str) -> None:
    x, y = draw(torch.float64)

    def log_prob(x0: torch.Tensor) -> torch.Tensor:
        return -0.5 * ((x0 - y) ** 2).flatten(1).sum(1)

    def predict(z: torch.Tensor) -> torch.Tensor:
        return convert(linear_denoiser(z), z, "eps", kind, alpha=ALPHA, sigma=SIGMA)

    levels = {"alpha": ALPHA, "sigma": SIGMA, "next_alpha": 0.96, "next_sigma": 0.28}
    after, guided = universal_step(x, predict, log_prob, scale=2.0, kind=kind, **levels)
    eps = SIGMA * x - 2.0 * SIGMA * ALPHA * (y - ALPHA * x)
    torch.testing.assert_close(convert(guided, x, kind, "eps", alpha=ALPHA, sigma=SIGMA), eps, rtol=0, atol=1e-12)
    torch.testing.assert_close(after, 0.96 * (x - SIGMA * eps) / ALPHA + 0.28 * eps, rtol=0, atol=1e-12)


def test_universal_recurrences_noise_back_to_the_level() -> None:
    """Two recurrences by hand: step, noise with what the levels leave, step again."""
    x, y = draw(torch.float64)
    calls: list[int] = []

    def log_prob(x0: torch.Tensor) -> torch.Tensor:
        return -0.5 * ((x0 - y) ** 2).flatten(1).sum(1)

    def predict(z: torch.Tensor) -> torch.Tensor:
        calls.append(1)
        return linear_denoiser(z)

    levels = {"alpha": ALPHA, "sigma": SIGMA, "next_alpha": 0.96, "next_sigma": 0.28}
    got, _ = universal_step(x, predict, log_prob, recurrences=2, generator=torch.Generator().manual_seed(1), **levels)
    assert len(calls) == 2
    first, _ = universal_step(x, predict, log_prob, **levels)
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    ratio = ALPHA / 0.96
    back = ratio * first + (SIGMA**2 - (ratio * 0.28) ** 2) ** 0.5 * noise
    second, _ = universal_step(back, predict, log_prob, **levels)
    torch.testing.assert_close(got, second, rtol=0, atol=1e-12)
