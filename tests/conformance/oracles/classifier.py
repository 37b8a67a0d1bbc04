"""Classifier guidance and the affine maps between parameterisations.

The forward process is ``x = α·x0 + σ·ε``; variance preserving: α = √ᾱ, σ = √(1 − ᾱ); flow matching: α = 1 −
t, σ = t.
"""

from __future__ import annotations

from .arrays import Array, Parameter, f64, per_sample


def score_form(*, score: Array, gradient: Array, scale: Parameter = 1.0) -> Array:
    """``s + λ·∇log p(y|x)``, Dhariwal & Nichol, arXiv 2105.05233, sec. 4.  Shapes ``[B, ...]``."""
    score = f64(score)
    return score + per_sample(scale, score) * f64(gradient)


def eps_form(*, eps: Array, gradient: Array, sigma: Parameter, scale: Parameter = 1.0) -> Array:
    """``ε − λ·σ·∇log p(y|x)``, arXiv 2105.05233, algorithm 2 (σ = √(1 − ᾱ)).  Shapes ``[B, ...]``."""
    eps = f64(eps)
    return eps - per_sample(scale, eps) * per_sample(sigma, eps) * f64(gradient)


def mean_form(*, mean: Array, gradient: Array, variance: Parameter, scale: Parameter = 1.0) -> Array:
    """``μ + λ·Σ·∇log p(y|x)``, arXiv 2105.05233, algorithm 1.

    Shapes ``[B, ...]``; ``variance``: a float, ``[B]`` or shaped as the mean.
    """
    mean = f64(mean)
    return mean + per_sample(scale, mean) * per_sample(variance, mean) * f64(gradient)


def implied_classifier_gradient(*, uncond: Array, cond: Array, sigma: Parameter) -> Array:
    """``∇log p(c|x) = −(ε_c − ε_u)/σ`` on eps predictions, arXiv 2207.12598."""
    u, c = f64(uncond), f64(cond)
    return -(c - u) / per_sample(sigma, c)


def posterior_mean_from_eps(*, x: Array, eps: Array, alphas_cumprod: Parameter, alpha_t: Parameter) -> Array:
    """DDPM: ``(x − (1 − α_t)/√(1 − ᾱ_t)·ε)/√α_t``, Ho et al., arXiv 2006.11239, eq. 11.  α_t = 1 − β_t."""
    x = f64(x)
    bar, a = per_sample(alphas_cumprod, x), per_sample(alpha_t, x)
    return (x - (1 - a) / (1 - bar) ** 0.5 * f64(eps)) / a**0.5


def posterior_mean_from_score(*, x: Array, score: Array, alpha_t: Parameter) -> Array:
    """The same with a score: ``(x + (1 − α_t)·s)/√α_t``."""
    x = f64(x)
    a = per_sample(alpha_t, x)
    return (x + (1 - a) * f64(score)) / a**0.5


PARAMETERIZATIONS = ("eps", "x0", "v", "flow", "score")


def to_x0_and_eps(
    prediction: Array, *, x: Array, alpha: Parameter, sigma: Parameter, source: str
) -> tuple[Array, Array]:
    """(x0, ε) from a prediction in any parameterisation; needs α > 0 and σ > 0.

    ``eps``: ε; ``x0``; ``v = α·ε − σ·x0`` (Salimans & Ho, arXiv 2202.00512; α² + σ² need not be 1 here);
    ``flow = ε − x0`` (rectified flow's velocity from data to noise); ``score = −ε/σ``.  Shapes ``[B, ...]``.
    """
    p, x = f64(prediction), f64(x)
    a, s = per_sample(alpha, x), per_sample(sigma, x)
    if source == "x0":
        x0 = p
    elif source == "eps":
        x0 = (x - s * p) / a
    elif source == "v":
        x0 = (a * x - s * p) / (a**2 + s**2)
    elif source == "flow":
        x0 = (x - s * p) / (a + s)
    elif source == "score":
        x0 = (x + s**2 * p) / a
    else:
        raise ValueError(f"source must be one of {PARAMETERIZATIONS}, got {source!r}")
    return x0, (p if source == "eps" else (x - a * x0) / s)


def convert(prediction: Array, *, x: Array, alpha: Parameter, sigma: Parameter, source: str, target: str) -> Array:
    """The prediction of ``source`` parameterisation as ``target``; see :func:`to_x0_and_eps`."""
    x0, eps = to_x0_and_eps(prediction, x=x, alpha=alpha, sigma=sigma, source=source)
    a, s = per_sample(alpha, x0), per_sample(sigma, x0)
    if target == "x0":
        return x0
    if target == "eps":
        return eps
    if target == "v":
        return a * eps - s * x0
    if target == "flow":
        return eps - x0
    if target == "score":
        return -eps / s
    raise ValueError(f"target must be one of {PARAMETERIZATIONS}, got {target!r}")
